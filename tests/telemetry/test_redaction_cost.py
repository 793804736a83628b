"""Redaction takes time in proportion to a text's length, whatever is in it: its patterns are bounded by their form.

A clock is not asked: where no repetition is unbounded and none stands within another without an end, a search looks at
so many characters from each place and at no more.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

from fieldlm.telemetry import redaction
from fieldlm.telemetry.redaction.redact import redact

_parser = importlib.import_module("re._parser")
REPEATS = {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}
TO_THE_END = {"_KEY"}
"""A private key ends with the text where it has no end: nothing is looked at twice."""


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    for module in pkgutil.iter_modules(redaction.__path__):
        loaded = importlib.import_module(f"{redaction.__name__}.{module.name}")
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern):
                yield f"{module.name}.{name}", value


FOUND = dict(patterns())


def repeats(node: Any, inside: int = 1) -> Iterator[int]:
    """Yield for each repetition how often it can turn, those around it multiplied in."""
    for item in node:
        if not isinstance(item, tuple):
            yield from repeats(item, inside) if hasattr(item, "__iter__") else ()
            continue
        kind, argument = item
        if str(kind) in REPEATS:
            _, most, body = argument
            turns = inside * int(most)
            yield turns
            yield from repeats(body, turns if int(most) > 1 else inside)
        elif isinstance(argument, tuple | list) or hasattr(argument, "data"):
            yield from repeats(argument, inside)


@pytest.mark.parametrize("name", FOUND)
def test_every_repetition_has_an_end(name: str) -> None:
    parsed = _parser.parse(FOUND[name].pattern, FOUND[name].flags)
    most = max(repeats(parsed), default=0)
    limit = 1024 if not any(name.endswith(each) for each in TO_THE_END) else int(_parser.MAXREPEAT)
    assert most <= limit, f"{name}: a repetition of up to {most} characters"


@pytest.mark.parametrize(
    "unit",
    ["a", "1", "1 ", "A", "Ab ", "Anna ", "-", ":", "@", "a@", "12-", "AB1 ", "password is ", "my name is ", "é", "张",
     "김", "1.", "+1 ", "AB12", "a dot ", "five ", "sk-", "<", "{", "born on ", "passport "],
)  # fmt: skip
def test_hostile_texts_come_through_and_stay_through(unit: str) -> None:
    text = (unit * 6000)[:6000]
    once = redact(text)
    assert redact(once) == once
