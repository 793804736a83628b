"""A call that must come is written as the model's own template has it, in tokens of control where it has them."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from tests.inference.test_call_formats import TEMPLATES
from tests.support import material, onnx_models
from tests.support.api_server import ApiServer, api_server

CHATML = (
    "{% if tools %}<|im_start|>system\nTOOLS<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}CALLS<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SWITCH: dict[str, Any] = {
    "type": "object",
    "properties": {
        "device": {"enum": ["lamp", "fan"]},
        "room": {"type": "string", "maxLength": 20},
        "on": {"type": "boolean"},
        "level": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["device", "room", "on"],
}
TOOLS = [{"type": "function", "function": {"name": "switch", "description": "Switch a device", "parameters": SWITCH}}]
STRICT = [{"type": "function", "function": {"name": "switch", "parameters": SWITCH, "strict": True}}]
ASKED = [{"role": "user", "content": "Switch on the lamp in the kitchen, please"}]
MARKS: dict[str, tuple[dict[str, str], str, str]] = {
    # By the name of a template: the tokens that are its marks, what an answer begins with, and what it ends with.
    "qwen3_coder": ({}, "<tool_call>\n<function=switch>\n<parameter=device>\n", "</function>\n</tool_call>"),
    "lfm2": (
        {"<repo_name>": "<|tool_call_start|>", "<file_sep>": "<|tool_call_end|>"},
        "<|tool_call_start|>[switch(device=", ")]<|tool_call_end|>",
    ),
    "function_gemma": (
        {"<repo_name>": "<start_function_call>", "<file_sep>": "<end_function_call>", "<filename>": "<escape>"},
        "<start_function_call>call:switch{device:<escape>", "}<end_function_call>",
    ),
    "mistral_v13": ({"<repo_name>": "[TOOL_CALLS]", "<file_sep>": "[ARGS]"}, "[TOOL_CALLS]switch[ARGS]{", "}"),
    "llama3": ({}, '{"name": "switch", "parameters": {"device": ', "}}"),
}  # fmt: skip


def source(name: str) -> str:
    parts = TEMPLATES[name]
    return CHATML.replace("TOOLS", parts.get("tools", "{{ tools }}")).replace("CALLS", parts.get("calls", ""))


@pytest.fixture(scope="module", params=MARKS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ApiServer]]:
    folder = tmp_path_factory.mktemp("own")
    bundle = material.tiny_bundle(folder, template=source(request.param), renamed=MARKS[request.param][0])
    with api_server(bundle, context=512) as server:
        yield request.param, server


def ask(server: ApiServer, **more: Any) -> dict[str, Any]:
    body = {"messages": ASKED, "tools": TOOLS, "max_tokens": 96, "parallel_tool_calls": False, **more}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


@pytest.mark.parametrize("more", [{}, {"temperature": 1, "seed": 5}])
def test_a_forced_call_is_spelt_as_the_template_has_it(served: tuple[str, ApiServer], more: dict[str, Any]) -> None:
    name, server = served
    choice = ask(server, tool_choice="required", **more)
    _, begins, ends = MARKS[name]
    assert choice["finish_reason"] == "tool_calls", server.exchanges[-1].answer
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "switch"
    jsonschema.validate(json.loads(call["function"]["arguments"]), SWITCH)
    assert choice["message"]["content"] is None
    answer = server.exchanges[-1].answer
    assert (answer[: len(begins)], answer[-len(ends) :]) == (begins, ends)


def test_a_named_tool_and_a_stream_say_the_same(served: tuple[str, ApiServer]) -> None:
    _, server = served
    named = {"type": "function", "function": {"name": "switch"}}
    # The first answer is to a prompt that nothing of is in the cache yet: its last digits, and so a tie, may differ.
    _, whole = (ask(server, tool_choice=named)["message"]["tool_calls"][0]["function"] for _ in range(2))
    body = {"messages": ASKED, "tools": TOOLS, "max_tokens": 96, "tool_choice": named, "stream": True}
    heard = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).text
    events = [json.loads(line[6:]) for line in heard.splitlines() if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    (call,) = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert call == whole
    assert not "".join(delta.get("content") or "" for delta in deltas)


def test_a_strict_tool_that_need_not_be_called_is_called_right_or_not_at_all(served: tuple[str, ApiServer]) -> None:
    _, server = served
    for seed in range(3):
        choice = ask(server, tools=STRICT, temperature=1, seed=seed)
        for call in choice["message"].get("tool_calls") or ():
            jsonschema.validate(json.loads(call["function"]["arguments"]), SWITCH)


def test_words_alone_are_none_the_worse_for_tools_that_nobody_calls(served: tuple[str, ApiServer]) -> None:
    _, server = served
    choice = ask(server, tool_choice="none", max_tokens=8)
    assert choice["message"]["content"]


def test_onnxruntime_writes_the_mark_as_its_token(tmp_path: Path) -> None:
    export = onnx_models.int4("llama")
    folder = tmp_path / "renamed"
    shutil.copytree(export.folder, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    rare = max(words, key=words.__getitem__)
    words["<|tool_call|>"] = words.pop(rare)
    tokenizer["added_tokens"].append(
        {**tokenizer["added_tokens"][0], "id": words["<|tool_call|>"], "content": "<|tool_call|>", "special": True}
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    bundle = onnx_models.bundle(tmp_path / "bundle", replace(export, folder=folder), template=source("granite3"))
    with api_server(bundle, context=512) as server:
        tool = {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "properties": {}}}}
        choice = ask(server, messages=[{"role": "user", "content": "Go"}], tools=[tool], tool_choice="required")
        assert "tool_calls" in choice["message"], choice
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "go", "arguments": "{}"}
        assert server.exchanges[-1].answer == '<|tool_call|>[{"name": "go", "arguments": {}}]'
