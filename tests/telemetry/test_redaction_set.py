"""Recall and precision of redaction on texts that the project wrote and marked: tests/telemetry/redaction/*.txt.

Recall: the share of marked passages of which no letter or digit is left. Precision: the share of placeholders that
stand where something was marked. The second half was written before redaction was worked on, and counts as unseen.
"""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from fieldlm.telemetry.redaction.redact import redact

FOLDER = Path(__file__).with_name("redaction")
KINDS = ("NAME", "ADDRESS", "PHONE", "EMAIL", "CARD", "IBAN", "KEY")
MARK = re.compile(r"⟦(\w+):([^⟧]*)⟧")
PLACEHOLDER = re.compile(r'"?<(NAME|ADDRESS|PHONE|EMAIL|CARD|IBAN|KEY)>"?')
Span = tuple[int, int]


class Text(NamedTuple):
    """One line of the set: what a customer says, and where something personal stands."""

    plain: str
    marks: tuple[tuple[str, Span], ...]


class Score(NamedTuple):
    """How one half went, by kind; `missed` and `wrong` say where."""

    marked: Counter[str]
    found: Counter[str]
    placed: Counter[str]
    right: Counter[str]
    missed: list[str]
    wrong: list[str]

    def recall(self, kind: str) -> float:
        return self.found[kind] / self.marked[kind]

    def precision(self, kind: str) -> float:
        return self.right[kind] / max(1, self.placed[kind])


def texts(name: str) -> list[Text]:
    lines = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [parse(line) for line in lines if line and not line.startswith("#")]


def parse(line: str) -> Text:
    marks: list[tuple[str, Span]] = []
    plain, end = "", 0
    for match in MARK.finditer(line):
        plain += line[end : match.start()]
        marks.append((match[1], (len(plain), len(plain) + len(match[2]))))
        plain, end = plain + match[2], match.end()
    return Text(plain + line[end:], tuple(marks))


def placed(plain: str, clean: str) -> list[tuple[str, Span]]:
    """Return the placeholders of `clean` with the span of `plain` that each stands for."""
    kinds = PLACEHOLDER.findall(clean)
    around = PLACEHOLDER.split(clean)[::2]
    match = re.fullmatch("(.+?)".join(map(re.escape, around)), plain, re.S)
    assert match, f"{clean!r} is not {plain!r} with placeholders"
    return [(kind, match.span(number + 1)) for number, kind in enumerate(kinds)]


def score(name: str) -> Score:
    made = Score(Counter(), Counter(), Counter(), Counter(), [], [])
    for text in texts(name):
        clean = redact(text.plain)
        gone = placed(text.plain, clean)
        for kind, (start, end) in text.marks:
            left = [i for i in range(start, end) if not any(a <= i < b for _, (a, b) in gone)]
            is_found = not any(text.plain[i].isalnum() for i in left)
            made.marked[kind] += 1
            made.found[kind] += is_found
            made.missed.extend([f"{kind}: {clean}"] * (not is_found))
        for kind, (a, b) in gone:
            is_right = any(a < end and start < b for _, (start, end) in text.marks)
            made.placed[kind] += 1
            made.right[kind] += is_right
            made.wrong.extend([f"{kind}: {clean}"] * (not is_right))
    return made


def report(made: Score) -> str:
    rows = [
        f"{kind:<8} recall {made.found[kind]:>2}/{made.marked[kind]}  precision {made.right[kind]}/{made.placed[kind]}"
        for kind in KINDS
    ]
    return "\n".join([*rows, *made.missed, *made.wrong])


@pytest.fixture(scope="module", params=["known", "held_out"])
def half(request: pytest.FixtureRequest) -> Score:
    return score(request.param)


@pytest.mark.parametrize("kind", KINDS)
def test_what_identifies_a_person_is_found_and_little_else(half: Score, kind: str) -> None:
    print(f"\n{report(half)}")
    assert half.marked[kind] >= 10
    assert half.recall(kind) >= 0.95
    assert half.precision(kind) >= 0.95


def test_the_halves_share_no_text_and_hold_hard_negatives() -> None:
    known, unseen = texts("known"), texts("held_out")
    assert not {text.plain for text in known} & {text.plain for text in unseen}
    assert all(sum(not text.marks for text in part) >= 50 for part in (known, unseen))


@pytest.mark.parametrize("name", ["known", "held_out"])
def test_redacting_the_set_twice_changes_nothing_more(name: str) -> None:
    for text in texts(name):
        once = redact(text.plain)
        assert redact(once) == once
