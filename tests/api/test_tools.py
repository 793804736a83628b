import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.api.chat_request import ChatRequest
from fieldlm.inference.chat_template import render
from fieldlm.inference.tool_calls import Call, CallReader
from fieldlm.network.json_api import ApiError
from tests.inference.test_chat_template import bundle_of

NAMES = frozenset({"go", "stop"})
GO = Call("go", '{"to": "lift"}')
SPELLINGS = {
    "hermes": '<tool_call>\n{"name": "go", "arguments": {"to": "lift"}}\n</tool_call>',
    "hermes, never closed": '<tool_call>{"name": "go", "arguments": {"to": "lift"}}',
    "llama": '{"name": "go", "parameters": {"to": "lift"}}',
    "llama, marked": '<|python_tag|>{"name": "go", "parameters": {"to": "lift"}}',
    "mistral": '[TOOL_CALLS][{"name": "go", "arguments": {"to": "lift"}}]',
    "mistral, its mark being a special token": '[{"name": "go", "arguments": {"to": "lift"}}]',
    "openai": '{"type": "function", "function": {"name": "go", "arguments": {"to": "lift"}}}',
}
TEXTS = [
    "Hello",
    '{"name": "fly", "arguments": {}}',
    "[1, 2]",
    "<tool_call>oh</tool_call> dear",
    "a < b",
    '{"name": "go"',
]


def read(text: str, step: int) -> list[str | Call]:
    reader = CallReader(NAMES)
    found = [piece for at in range(0, len(text), step) for piece in reader.push(text[at : at + step])]
    return [*found, *reader.finish()]


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_a_call_is_found_however_it_is_spelt_and_cut(text: str, step: int) -> None:
    assert read(text, step) == [GO]


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("text", TEXTS)
def test_what_is_no_call_is_text_to_the_letter(text: str, step: int) -> None:
    assert "".join(piece for piece in read(text, step) if isinstance(piece, str)) == text


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_mark_within_an_argument_ends_no_call(step: int) -> None:
    arguments = {"to": 'a</tool_call>"\\', "via": "<tool_call>"}
    text = f"<tool_call>\n{json.dumps({'name': 'go', 'arguments': arguments})}\n</tool_call>"
    (call,) = read(text, step)
    assert isinstance(call, Call)
    assert json.loads(call.arguments) == arguments
    assert [piece for piece in read(text + "\n" + SPELLINGS["hermes"], step) if piece != "\n"] == [call, GO]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_arguments_that_are_no_json_are_no_call(number: str) -> None:
    text = f'<tool_call>{{"name": "go", "arguments": {{"x": [{number}]}}}}</tool_call>'
    assert "".join(piece for piece in read(text, 5) if isinstance(piece, str)) == text


def test_json_that_was_asked_for_is_no_call_that_nobody_marked() -> None:
    reader = CallReader(NAMES, marked_only=True)
    text = SPELLINGS["llama"]
    assert reader.push(text) == [text]
    assert reader.push("") + reader.finish() == []
    marked = CallReader(NAMES, marked_only=True)
    assert [*marked.push(SPELLINGS["hermes"]), *marked.finish()] == [GO]


def test_text_before_a_call_and_calls_in_a_row_are_kept_apart() -> None:
    found = read("On my way.\n" + (SPELLINGS["hermes"] + "\n") * 2, 4)
    assert "".join(piece for piece in found if isinstance(piece, str)).strip() == "On my way."
    assert [piece for piece in found if isinstance(piece, Call)] == [GO, GO]


def test_text_is_not_held_back_longer_than_a_mark_could_be() -> None:
    reader = CallReader(NAMES)
    assert reader.push("Hello") == ["Hello"]
    assert reader.push(" <tool") == [" "]
    assert reader.push("box") == ["<toolbox"]


TOOL = {"type": "function", "function": {"name": "go", "description": "Drive", "parameters": {}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "go", "arguments": {"to": "lift"}}}],
    },
    {"role": "tool", "content": "there"},
]


def test_a_template_without_tools_gets_them_as_text(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path, "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}")
    text = render(bundle, TALK, tools=[TOOL])
    assert text.startswith("[system:Be brief.\n\n# Tools")
    assert json.dumps(TOOL) in text
    assert text.endswith("[assistant:" + SPELLINGS["hermes"] + "][user:<tool_response>\nthere\n</tool_response>]")


def test_a_template_that_knows_tools_gets_calls_as_they_are(tmp_path: Path) -> None:
    template = (
        "{% for t in tools %}{{ t.function.name }}{% endfor %}"
        "{% for m in messages %}[{{ m.role }}:"
        "{{ m.tool_calls[0].function.arguments.to if m.tool_calls else m.content }}]{% endfor %}"
    )
    assert (
        render(bundle_of(tmp_path, template), TALK, tools=[TOOL]) == "go[system:Be brief.][assistant:lift][tool:there]"
    )


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def asked(choice: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [named("go"), named("stop"), named("wait")]}
    return msgspec.convert({**body, "tool_choice": choice}, ChatRequest)


@pytest.mark.parametrize(("mode", "must"), [("auto", False), ("required", True)])
def test_of_allowed_tools_no_other_is_called(mode: str, *, must: bool) -> None:
    chosen = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named("stop"), named("go")]}}
    toolbox = asked(chosen).toolbox()
    assert toolbox is not None
    assert toolbox.must == must
    assert [tool.function.name for tool in toolbox.tools] == ["go", "stop"]


def test_an_allowed_tool_that_nobody_declared_is_named() -> None:
    chosen = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named("fly")]}}
    with pytest.raises(ApiError, match="tool_choice allows 'fly', which is none of tools"):
        asked(chosen).toolbox()
