"""Calls as the small models' own templates spell them, read at every cut; and what is like one and none."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fieldlm.inference.call_spellings import MARKS
from fieldlm.inference.tool_calls import Call, CallReader

SPELLINGS: dict[str, dict[str, Any]] = tomllib.loads(
    (Path(__file__).parents[1] / "fixtures" / "calls.toml").read_text()
)
RICH = {"s": 'a, "b" }', "n": 7, "x": -1.5, "on": True, "l": ["a", 2], "o": {"k": "v"}}
WANTED: dict[Any, list[tuple[str, Any]]] = {
    1: [("go", {"to": "lift"})],
    2: [("go", {"to": "lift"}), ("stop", {})],
    "rich": [("rich", RICH)],
}
TEXT = {"type": "string"}
SCHEMAS = {
    "go": {"properties": {"to": TEXT}},
    "stop": {"properties": {}},
    "rich": {"properties": {"s": TEXT, "n": {"type": "integer"}}},
}


def read(pieces: list[str], *, names: tuple[str, ...] = tuple(SCHEMAS)) -> list[str | tuple[str, Any]]:
    reader = CallReader(frozenset(names), schemas=SCHEMAS)
    found = [piece for text in pieces for piece in reader.push(text)] + reader.finish()
    return [(piece.name, json.loads(piece.arguments)) if isinstance(piece, Call) else piece for piece in found]


def said(spelling: dict[str, Any]) -> str:
    return spelling["said"].replace("\\n", "\n")


def cuts(text: str) -> list[list[str]]:
    """Return `text` cut in two at every place, and into single characters."""
    return [[text[:at], text[at:]] for at in range(len(text))] + [list(text)]


def test_there_are_spellings_of_every_family() -> None:
    assert len(SPELLINGS) >= 75
    assert len({said(spelling) for spelling in SPELLINGS.values()}) == len(SPELLINGS)


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_call_is_read_in_its_models_own_spelling_at_every_cut(spelling: dict[str, Any]) -> None:
    for pieces in cuts(said(spelling)):
        found = [piece for piece in read(pieces) if not isinstance(piece, str) or piece.strip()]
        assert found == WANTED[spelling.get("calls", 1)], pieces


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_an_answer_that_breaks_off_shows_no_markup_and_calls_nothing_by_halves(spelling: dict[str, Any]) -> None:
    whole, wanted = said(spelling), WANTED[spelling.get("calls", 1)]
    marked = any(whole.startswith(mark) for mark in MARKS)
    for end in range(1, len(whole)):
        for before in ("", "On my way. "):
            reader = CallReader(frozenset(SCHEMAS), schemas=SCHEMAS)
            found = [*reader.push(before + whole[:end]), *reader.finish(is_cut=True)]
            called = [(piece.name, json.loads(piece.arguments)) for piece in found if isinstance(piece, Call)]
            assert called == wanted[: len(called)], whole[:end]
            text = "".join(piece for piece in found if isinstance(piece, str))
            # A bracket alone may be text.
            if marked and not whole[:end].isalpha():
                assert text.rstrip("<|｜[` \n") == before.strip(), whole[:end]


@pytest.mark.parametrize("text", ["a list of", "x <", "```toml\nx\n```", "a[", "<b", "{", "go", "see [1] <"])
def test_an_answer_that_breaks_off_keeps_what_may_be_text(text: str) -> None:
    reader = CallReader(frozenset(SCHEMAS), schemas=SCHEMAS)
    assert "".join(map(str, [*reader.push(text), *reader.finish(is_cut=True)])) == text


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_call_of_what_was_not_declared_is_text_to_the_letter(spelling: dict[str, Any]) -> None:
    for pieces in (cuts(said(spelling))[0], list(said(spelling))):
        assert "".join(map(str, read(pieces, names=("fly",)))) == said(spelling)


@pytest.mark.parametrize(
    "text",
    [
        "go on, I am listening",
        "go(ne) are the days",
        "go\nto the lift",
        "go{es without saying",
        "call:go to the lift",
        "[go, stop]",
        "[go(to=lift)]",
        "[go(__import__('os'))]",
        "[go(**{'to': 1})]",
        "[go(to=1j)]",
        "<function=go>lift</function>",
        "<function=go",
        "<tool_call>go</tool_cal",
        "```json\n{}\n```",
        "```python\nx = go\n```",
        "<｜tool▁calls▁begin｜>oh<｜tool▁calls▁end｜> dear",
        "<|tool_call_start|>[fly(to='lift')]<|tool_call_end|> dear",
        "[TOOL_CALLS]go[ARGS]{",
        '{"go": "lift"}',
        '{"name": "go"}',
        "(" * 5000,
        "[" * 5000,
        "call:go" + "{a:" * 5000,
    ],
)
def test_what_is_like_a_call_and_none_is_text_to_the_letter(text: str) -> None:
    for pieces in ([text], [*list(text)[:300], text[300:]]):
        assert "".join(map(str, read(pieces))) == text


@pytest.mark.parametrize("text", ['"lift"', "12", "true", "{}", "  lift "])
def test_a_text_is_no_number_where_its_schema_says_text(text: str) -> None:
    xml = f"<tool_call>\n<function=go>\n<parameter=to>\n{text}\n</parameter>\n</function>\n</tool_call>"
    glm = f"<tool_call>go\n<arg_key>to</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    assert read([xml]) == read([glm]) == [("go", {"to": text})]


def test_words_before_a_call_come_first_and_at_once() -> None:
    for name, spelling in SPELLINGS.items():
        if not said(spelling).startswith(("<", "[TOOL", "functools")):
            continue
        reader = CallReader(frozenset(SCHEMAS), schemas=SCHEMAS)
        assert reader.push("On my way. ")[0] == "On my way.", name
        found = [*reader.push(said(spelling)), *reader.finish()]
        assert len([piece for piece in found if isinstance(piece, Call)]) == len(WANTED[spelling.get("calls", 1)]), name


def test_code_that_an_answer_begins_with_is_said_as_it_comes() -> None:
    reader = CallReader(frozenset(SCHEMAS), schemas=SCHEMAS)
    assert "".join(map(str, [*reader.push("```ru"), *reader.push("st\nfn main")])) == "```rust\nfn main"


def test_arguments_without_names_are_those_of_the_schema_in_order() -> None:
    assert read(["[go('lift')]"]) == [("go", {"to": "lift"})]
    assert read(["[stop('lift')]"]) == ["[stop('lift')]"]


def test_a_backslash_that_begins_no_escape_is_one() -> None:
    assert read([r'[go(to="C:\dir \\ \n")]']) == [("go", {"to": "C:\\dir \\ \n"})]


def test_a_name_with_a_hyphen_is_one_name() -> None:
    reader = CallReader(frozenset({"go-to", "go"}))
    assert [*reader.push('[go-to(place="lift")]'), *reader.finish()] == [Call("go-to", '{"place": "lift"}')]
