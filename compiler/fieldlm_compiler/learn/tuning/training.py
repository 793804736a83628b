"""The steps of a tuning, from where an interrupted one was to the last, or to where it stops early."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fieldlm.core import terminal
from fieldlm_compiler.learn.tokenized import TokenizedExample
from fieldlm_compiler.learn.tuning.early_stopping import EarlyStopping
from fieldlm_compiler.learn.tuning.lessons import Lessons, schedule
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe
from fieldlm_compiler.learn.tuning.tuning_state import ThreadChoice, TuningRun

if TYPE_CHECKING:
    from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss


def train_on(
    answers: "AnswerLoss",
    examples: Sequence[TokenizedExample],
    held_out: Sequence[TokenizedExample],
    recipe: TrainingRecipe,
    run: TuningRun,
) -> None:
    """Train what learns of the model of `answers` on `examples`, and leave it at its best where that is looked for."""
    model = answers.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    answers.team.begin_alike(parameters)
    optimiser = _optimiser(model, recipe)
    run.restore(model, optimiser)
    steps = math.ceil(len(examples) * recipe.epochs / recipe.batch)
    stopping = EarlyStopping(run, held_out, recipe, math.ceil(len(examples) / recipe.batch))
    lessons = Lessons(len(examples), recipe)
    for worst in run.worst:
        lessons.saw(lessons.take(), worst)
    done = len(run.losses)
    threads = ThreadChoice(is_needed=model.device.type == "cpu")
    with terminal.progress("tune", total=steps) as line, threads.restored():
        line.done = line.begun = done
        for step in range(done, steps):
            if stopping.is_over:
                break
            started_s = time.monotonic()
            taken = lessons.take()
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * schedule(step, steps, recipe.warmup)
            batch = [examples[each] for each in taken]
            loss, worst = _step(answers, batch, recipe, parameters=parameters, optimiser=optimiser, threads=threads)
            lessons.saw(taken, worst)
            run.add(loss, time.monotonic() - started_s, worst)
            stopping.look(answers, is_last=step + 1 == steps)
            run.keep(model, optimiser)
            line.update(step + 1, f"loss {sum(run.losses[-10:]) / len(run.losses[-10:]):.3f}")
    stopping.take_best(model)


def _optimiser(model: Any, recipe: TrainingRecipe) -> Any:
    import torch
    from peft.optimizers import create_loraplus_optimizer

    optimiser = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=recipe.learning_rate, loraplus_lr_ratio=recipe.b_ratio, weight_decay=0.0
    )
    for group in optimiser.param_groups:
        group["peak"] = group["lr"]
    return optimiser


def _step(
    answers: "AnswerLoss",
    batch: Sequence[TokenizedExample],
    recipe: TrainingRecipe,
    *,
    parameters: Sequence[Any],
    optimiser: Any,
    threads: ThreadChoice,
) -> tuple[float, list[float]]:
    """Take one step, with the other processes of the team; return the loss and what each example's worst token has."""
    import torch

    places = answers.team.share([example.work for example in batch])
    mine = [batch[place] for place in places]
    with threads.step(sum(example.work for example in mine)):
        loss, worst = answers.mean_and_worst(mine, recipe.preference_weight, whole=batch)
        loss.backward()
        answers.team.sum_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    found = [float(loss.detach()), *[0.0] * len(batch)]
    for place, each in zip(places, worst, strict=True):
        found[1 + place] = each
    mean, *of_batch = answers.team.summed(found)
    return mean, of_batch
