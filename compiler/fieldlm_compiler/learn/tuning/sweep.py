"""A sweep: an adapter for each combination of some values of the recipe, and the one that does best is kept.

Each is tuned as it would be alone, and lies beside until the sweep has ended, so that one that was stopped goes on. The
best has the greatest share of held-out answers right to the token, as a mean over tasks; of equals the one with the
lowest loss, and then the first (`early_stopping` judges passes alike).
"""

import math
import shutil
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, whole_folder, write_whole
from fieldlm.core.logs import logger
from fieldlm_compiler.learn.tokenized import read_examples
from fieldlm_compiler.learn.tuning.recipe import SWEPT, TrainingRecipe, alpha_of, field_of

log = logger(__name__)
MOST = 64
HEAD = ("recipe", "right to the token", "loss", "seconds", "")
Swept = tuple[str, tuple[Any, ...]]
Make = Callable[[TrainingRecipe, Path], dict[str, Any]]
Wanted = Sequence[tuple[TrainingRecipe, Path]]


def swept(text: str) -> Swept:
    """Read `NAME=VALUE,VALUE`; raises ArgumentTypeError with what is wrong in it."""
    name, _, values = text.partition("=")
    if name not in SWEPT:
        near = terminal.did_you_mean(name, SWEPT)
        raise ArgumentTypeError(f"{text!r}; want a name with values, as rank=8,32; names: {', '.join(SWEPT)}{near}")
    try:
        read = tuple(dict.fromkeys(SWEPT[name](value) for value in values.split(",")))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from error
    return name, read


def recipes(recipe: TrainingRecipe, asked: Sequence[Swept]) -> list[TrainingRecipe]:
    """Return `recipe` with every combination of the values that are `asked` for; alpha follows the rank.

    Raises InputError for a name that is asked for twice, and for too many combinations.
    """
    names = [name for name, _ in asked]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"--sweep {twice} is there twice; name all its values at once: --sweep {twice}=VALUE,VALUE")
    count = math.prod(len(values) for _, values in asked)
    if count > MOST:
        raise InputError(f"--sweep asks for {count} adapters, {MOST} are the most; name fewer values")
    found: list[TrainingRecipe] = []
    for values in product(*(values for _, values in asked)):
        given = {field_of(name): value for name, value in zip(names, values, strict=True)}
        found.append(
            replace(recipe, **given | ({"alpha": alpha_of(given["rank"], recipe.kind)} if "rank" in given else {}))
        )
    return found


def refuse_both(args: Namespace, asked: Sequence[Swept]) -> None:
    """Raise InputError where a flag is given beside a sweep of it: one of the two would do nothing."""
    for name, values in asked:
        if (given := getattr(args, field_of(name))) is not None:
            listed = ",".join(map(_written, values))
            what = f"--{name} {_written(given)} does nothing beside --sweep {name}={listed}"
            raise InputError(f"{what}; leave one of them out")


def check_held_out(path: Path, checkpoint: Path, max_tokens: int) -> None:
    """Raise InputError unless `path` holds an example for this model: without one no recipe is the best."""
    if not read_examples(path, checkpoint, max_tokens).examples:
        raise InputError(f"{path} has no examples, so --sweep cannot say which recipe is the best; hold some out")


def asked_for(tried: Sequence[TrainingRecipe]) -> list[dict[str, Any]]:
    """Return what tune.json says was tried."""
    return [recipe.facts() for recipe in tried]


def is_best_of(tried: Sequence[TrainingRecipe], out: Path) -> bool:
    """Whether the adapter in `out` says that a sweep over just these recipes took it."""
    try:
        return msgspec.json.decode((out / "tune.json").read_bytes())["sweep"]["asked"] == asked_for(tried)
    except (OSError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError, LookupError, TypeError):
        return False


def sweep(
    tried: Sequence[TrainingRecipe], out: Path, make: Make, *, ahead: Callable[[Wanted], None] | None = None
) -> dict[str, Any]:
    """Have `make` tune an adapter of each recipe into a folder, and write the best one to `out`.

    `ahead` is given all recipes and their folders before, and may fill these. Returns what the tune.json in `out` holds
    then, with all of them under `sweep`. Raises InputError where nothing is held out, so that none is the best.
    """
    place = out.with_name(f".{out.name}.sweep")
    place.mkdir(parents=True, exist_ok=True)
    if ahead:
        ahead([(recipe, place / f"{number:02d}") for number, recipe in enumerate(tried)])
    made: list[dict[str, Any]] = []
    for number, recipe in enumerate(tried):
        log.info(f"▸ {number + 1} of {len(tried)}: {_differing(recipe, tried)}")
        made.append(make(recipe, place / f"{number:02d}"))
        if made[-1]["eval_loss_after"] is None:
            raise InputError("nothing is held out in eval.jsonl, so no recipe can be shown to be better than another")
    best = max(range(len(made)), key=lambda at: (*_worth(made[at]), -at))
    rows = [
        {
            "recipe": _differing(recipe, tried),
            "exact_match": _exact(document),
            "loss": document["eval_loss_after"],
            "seconds": document["seconds"],
            "is_taken": at == best,
        }
        for at, (recipe, document) in enumerate(zip(tried, made, strict=True))
    ]
    document = made[best] | {"sweep": {"asked": asked_for(tried), "trials": rows}}
    with whole_folder(out) as folder:
        shutil.copytree(place / f"{best:02d}", folder, dirs_exist_ok=True)
        write_whole(folder / "tune.json", canonical_json(document))
    shutil.rmtree(place, ignore_errors=True)
    return document


def table(document: Mapping[str, Any]) -> str:
    """Return the trials of a sweep for a terminal."""
    rows = [
        (
            each["recipe"],
            "–" if each["exact_match"] is None else f"{each['exact_match']:.1%}",
            f"{each['loss']:.4f}",
            f"{each['seconds']:.0f}",
            "← taken" if each["is_taken"] else "",
        )
        for each in document["sweep"]["trials"]
    ]
    return terminal.table(rows, HEAD)


def _differing(recipe: TrainingRecipe, tried: Sequence[TrainingRecipe]) -> str:
    """Return by which values a recipe differs from others, as flags."""
    names = [name for name in SWEPT if len({getattr(each, field_of(name)) for each in tried}) > 1]
    return " ".join(f"--{name} {_written(getattr(recipe, field_of(name)))}" for name in names) or "the only one"


def _written(value: float) -> str:
    """Return a value as a flag takes it, with all its digits: two that differ never look alike."""
    return f"{value}".removesuffix(".0")


def _exact(document: Mapping[str, Any]) -> float | None:
    found: Mapping[str, Sequence[int]] = document["eval_exact_after"]
    return sum(right / total for right, total in found.values()) / len(found) if found else None


def _worth(document: Mapping[str, Any]) -> tuple[float, float]:
    loss: float = document["eval_loss_after"]
    return _exact(document) or 0.0, -loss if math.isfinite(loss) else -math.inf
