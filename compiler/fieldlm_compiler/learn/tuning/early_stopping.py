"""Early stopping: after every pass the held-out examples are asked, and the best pass is the one that is kept.

The best has the greatest share of answers that greedy decoding would give to the token, as a mean over tasks, so that a
large task does not hide what happens to the others; of equals, the one with the lowest loss. It ends when `patience`
passes brought nothing better (L. Prechelt 1998, "Early stopping - but when?").
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fieldlm.core.logs import logger
from fieldlm_compiler.learn.tokenized import TokenizedExample
from fieldlm_compiler.learn.tuning.recipe import TrainingRecipe
from fieldlm_compiler.learn.tuning.tuning_state import TuningRun

if TYPE_CHECKING:
    from fieldlm_compiler.learn.tuning.answer_loss import AnswerLoss

log = logger(__name__)


class EarlyStopping:
    """What the passes of a run came to, kept in the run. Without patience or held-out examples nothing is looked at."""

    def __init__(
        self, run: TuningRun, held_out: Sequence[TokenizedExample], recipe: TrainingRecipe, steps_a_pass: int
    ) -> None:
        self._run = run
        self._held_out = held_out if recipe.patience else ()
        self._recipe = recipe
        self._steps_a_pass = steps_a_pass

    @property
    def is_over(self) -> bool:
        """Whether `patience` passes brought nothing better."""
        passes = self._run.passes
        return bool(self._held_out) and len(passes) - 1 - _best(passes) >= self._recipe.patience

    def look(self, answers: "AnswerLoss", *, is_last: bool) -> None:
        """Ask the held-out examples, where a pass has just ended or the last step has."""
        steps = len(self._run.losses)
        if not self._held_out or (steps % self._steps_a_pass and not is_last):
            return
        from peft import get_peft_model_state_dict

        found = answers.measure(self._held_out, self._recipe.batch)
        self._run.passes.append({"steps": steps, "exact_match": found.exact_match, "loss": found.loss})
        if _best(self._run.passes) == len(self._run.passes) - 1:
            self._run.best = {name: each.clone() for name, each in get_peft_model_state_dict(answers.model).items()}

    def take_best(self, model: Any) -> None:
        """Put the weights of the best pass into `model`, if a later one was worse."""
        from peft import set_peft_model_state_dict

        passes = self._run.passes
        if not passes or _best(passes) == len(passes) - 1:
            return
        set_peft_model_state_dict(model, self._run.best)
        best = passes[_best(passes)]
        log.info(
            f"  the adapter after step {best['steps']} is taken: held-out exact match over tasks "
            f"{best['exact_match']:.1%}, later none was better"
        )


def _best(passes: Sequence[dict[str, Any]]) -> int:
    """Return the index of the best pass, the first of equals; -1 where there is none."""
    return max(range(len(passes)), key=lambda at: (*_worth(passes[at]), -at), default=-1)


def _worth(found: dict[str, Any]) -> tuple[float, float]:
    loss = found["loss"]
    return found["exact_match"], -loss if math.isfinite(loss) else -math.inf
