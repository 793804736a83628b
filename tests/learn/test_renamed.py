"""Functions that were renamed while records came in: two names that like requests call, one after the other."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.quality.renamed import Renaming, renamed, renamings

SAID = {
    "lamp": "dim the lamp in the {}", "music": "play some jazz in the {}", "taxi": "call a taxi to the {}",
    "weather": "will it rain at the {}",
}  # fmt: skip
WHERE = (
    "kitchen", "station", "garden", "office", "museum", "attic", "harbour", "library", "school", "market", "park",
    "hotel", "bakery", "castle", "bridge", "church", "garage", "cellar", "stadium", "airport", "theatre", "beach",
    "gym", "bank", "farm", "zoo", "lobby", "hall", "shop", "tower",
)  # fmt: skip


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"name": "lamp"}}}


def example(text: str, called: dict[str, Any] | str, at_ms: int, **more: Any) -> CuratedExample:
    made = CuratedExample(
        messages=[{"role": "user", "content": text}], answer=called if isinstance(called, str) else json.dumps(called),
        label_source="correction", session=f"s{at_ms}", response=f"r{at_ms}", split="train", at_ms=at_ms,
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def traffic(names: Sequence[tuple[str, str, str]]) -> list[CuratedExample]:
    """Return what is said of kinds of requests; of each, how it is called in the first half, and in the second."""
    return [
        example(SAID[kind].format(where), {"name": old if 2 * at < len(WHERE) else new, "arguments": {}}, 100 * at + n)
        for at, where in enumerate(WHERE, 1)
        for n, (kind, old, new) in enumerate(names)
    ]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_a_renamed_function_is_found_and_others_are_not(embedder: Embedder) -> None:
    said = traffic([("lamp", "lamp", "dim_v2"), ("music", "music", "music"), ("taxi", "taxi", "cab")])
    found = {each.old: (each.new, each.examples) for each in renamings(said, lambda: embedder)}
    assert found == {"lamp": ("dim_v2", 14), "taxi": ("cab", 14)}


def test_a_new_function_is_no_new_name_of_one_that_went_for_other_requests(embedder: Embedder) -> None:
    said = traffic([("lamp", "lamp", ""), ("weather", "", "weather"), ("music", "music", "music")])
    calls = [each for each in said if '"name": ""' not in each.answer]
    assert len(calls) < len(said)
    assert not renamings(calls, lambda: embedder)


def test_names_that_were_called_side_by_side_or_offered_together_are_two_functions(embedder: Embedder) -> None:
    said = traffic([("lamp", "lamp", "dim_v2"), ("music", "music", "music")])
    mixed = [msgspec.structs.replace(each, at_ms=1 + each.at_ms * 7919 % 4001) for each in said]
    assert not renamings(mixed, lambda: embedder)
    both = msgspec.structs.replace(said[0], tools=[tool("lamp"), tool("dim_v2")])
    assert not renamings([both, *said[1:]], lambda: embedder)
    assert not renamings([msgspec.structs.replace(each, at_ms=0) for each in said], lambda: embedder)


def test_a_function_whose_arguments_changed_is_found_and_its_old_calls_are_no_example(embedder: Embedder) -> None:
    said = traffic([("lamp", "lamp", "dim_v2"), ("music", "music", "music")])
    for at, each in enumerate(said):
        name = json.loads(each.answer)["name"]
        arguments = {"lamp": {"room": "x"}, "dim_v2": {"place": "x"}}.get(name, {})
        said[at] = msgspec.structs.replace(each, answer=json.dumps({"name": name, "arguments": arguments}))
    found = renamings(said, lambda: embedder)
    assert [(each.old, each.new_arguments) for each in found] == [("lamp", True)]
    assert renamed(said[0], found) is None
    assert renamed(said[-1], found) == said[-1]


def test_the_newest_name_stands_everywhere_and_what_is_said_stays() -> None:
    found = [
        Renaming(old="lamp", new="dim", examples=20, likeness=1.0),
        Renaming(old="dim", new="dim_v3", examples=20, likeness=1.0),
    ]
    call = {"type": "function", "function": {"name": "lamp", "arguments": {"name": "lamp"}}}
    old = example(
        "the lamp, please", '{"name":"lamp","arguments":{"name":"lamp","said":"é"}}', 1, tools=[tool("lamp")],
        tool_calls=[call],
        messages=[
            {"role": "system", "content": "Call lamp, or lamps."},
            {"role": "user", "content": "the lamp, please"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "lamp", "content": "lamp is on"},
        ],
    )  # fmt: skip
    now = renamed(old, found)
    assert now is not None
    assert now.answer == '{"name":"dim_v3","arguments":{"name":"lamp","said":"é"}}'
    new_call = {"type": "function", "function": {"name": "dim_v3", "arguments": {"name": "lamp"}}}
    assert now.tool_calls == [new_call]
    assert now.tools == [tool("dim_v3")]
    assert now.messages == [
        {"role": "system", "content": "Call dim_v3, or lamps."},
        {"role": "user", "content": "the lamp, please"},
        {"role": "assistant", "content": "", "tool_calls": [new_call]},
        {"role": "tool", "name": "dim_v3", "content": "lamp is on"},
    ]
    text = example("hello", "lamp", 2)
    assert renamed(text, found) is text


def test_a_rejected_answer_has_the_newest_names_too() -> None:
    found = [
        Renaming(old="lamp", new="dim", examples=20, likeness=1.0),
        Renaming(old="gone", new="other", examples=20, likeness=1.0, new_arguments=True),
    ]
    right = {"name": "lamp", "arguments": {"at": 1}}
    wrong = {"name": "lamp", "arguments": {"at": 2}}
    call = {"type": "function", "function": wrong}
    for rejected, calls, wanted in (
        (json.dumps(wrong), [call], json.dumps(wrong | {"name": "dim"})),
        ("a lamp", [], "a lamp"),
        (json.dumps({"name": "music"}), [], json.dumps({"name": "music"})),
        (json.dumps({"name": "gone"}), [], ""),
    ):
        now = renamed(example("dim it", right, 1, rejected=rejected, rejected_calls=calls), found)
        assert now is not None
        assert now.rejected == wanted
        assert [each["function"]["name"] for each in now.rejected_calls] == ["dim"] * len(calls)


def test_a_call_between_marks_keeps_them_with_its_newest_name() -> None:
    found = [Renaming(old="lamp", new="dim", examples=20, likeness=1.0)]
    text = '<tool_call>\n{"name":"lamp","arguments":{"at":"lamp"}}\n</tool_call>'
    now = renamed(example("dim it", text, 1), found)
    assert now is not None
    assert now.answer == text.replace('"name":"lamp"', '"name":"dim"')
