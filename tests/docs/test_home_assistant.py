"""docs/examples/home-assistant: the requests of Home Assistant's own integrations, by the clients that they use.

Ollama's integration and OpenAI's send what `Assist` here sends: every parameter, the conversation so far with its calls
and their results, streamed, again after each call until the model says something.
"""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import ollama
import openai
import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.api_server import ApiServer, api_server

MODEL = "smollm2-135m-instruct"
MOST_CALLS = 10
PROMPT = """You are a voice assistant for Home Assistant. Answer in plain text. Call the tools to control the home.
An overview of the devices in this smart home:
- names: Kitchen light
  domain: light
  areas: Kitchen
- names: Bath light
  domain: light
  areas: Bath
- names: Hall light
  domain: light
  areas: Hall
- names: Desk light
  domain: light
  areas: Study"""
TEXT = {"type": "string"}
LIST = {"type": "array", "items": TEXT}
AREAS = {"name": TEXT, "area": TEXT, "floor": TEXT, "domain": LIST, "device_class": LIST}
TOOLS = {
    "HassTurnOn": ("Turns on/opens/presses a device or entity.", AREAS),
    "HassTurnOff": ("Turns off/closes a device or entity.", AREAS),
    "HassLightSet": (
        "Sets the brightness percentage or color of a light",
        AREAS | {"color": TEXT, "brightness": {"type": "integer", "minimum": 0, "maximum": 100}},
    ),
    "GetLiveContext": ("Provides real-time information about the CURRENT state of devices.", {}),
}
EARLIER = ("Hall light", "Desk light", "Bath light")
"""Lights that were turned on before in this conversation, so that a model of 135 million parameters sees how."""


def parameters(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": []}


@dataclass
class House:
    """What Home Assistant does with calls."""

    on: list[str] = field(default_factory=list[str])

    def call(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        assert name == "HassTurnOn"
        self.on.append(arguments["name"])
        return {"response_type": "action_done", "data": {"success": [{"name": arguments["name"], "type": "entity"}]}}


@pytest.fixture(scope="module")
def server(base_bundle: Bundle) -> Iterator[ApiServer]:
    with api_server(base_bundle, context=2048, parallel=1) as running:
        yield running


async def by_ollama(client: ollama.AsyncClient, model: str, house: House, asked: str) -> str:
    """Answer as the integration `ollama` does; return what is spoken."""

    def call(name: str, arguments: dict[str, Any]) -> ollama.Message.ToolCall:
        return ollama.Message.ToolCall(function=ollama.Message.ToolCall.Function(name=name, arguments=arguments))

    def result(data: dict[str, Any]) -> ollama.Message:
        return ollama.Message(role="tool", content=json.dumps({"data": data, "error": None}))

    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters(fields), "description": what}}
        for name, (what, fields) in TOOLS.items()
    ]
    messages = [ollama.Message(role="system", content=PROMPT)]
    for light in EARLIER:
        messages += [
            ollama.Message(role="user", content=f"Turn on the {light}."),
            ollama.Message(role="assistant", content="", tool_calls=[call("HassTurnOn", {"name": light})]),
            result(House().call("HassTurnOn", {"name": light})),
            ollama.Message(role="assistant", content=f"Turned on the {light}."),
        ]
    messages.append(ollama.Message(role="user", content=asked))
    for _ in range(MOST_CALLS):
        text, calls = "", list[ollama.Message.ToolCall]()
        async for part in await client.chat(
            model=model,
            messages=list(messages),
            tools=tools,
            stream=True,
            keep_alive=-1,
            options={"num_ctx": 8192},
            think=False,
            format=None,
        ):
            text += part.message.content or ""
            calls += part.message.tool_calls or []
        messages.append(ollama.Message(role="assistant", content=text, tool_calls=calls or None))
        if not calls:
            return text
        messages += [result(house.call(each.function.name, dict(each.function.arguments))) for each in calls]
    raise AssertionError("it calls for ever")


async def by_openai(client: openai.AsyncOpenAI, house: House, asked: str) -> str:
    """Answer as the integration `openai_conversation` does, told to be as sure as it can; return what is spoken."""
    tools: list[Any] = [
        {"type": "function", "name": name, "parameters": parameters(fields), "description": what, "strict": False}
        for name, (what, fields) in TOOLS.items()
    ]
    said: list[Any] = [{"type": "message", "role": "developer", "content": PROMPT}]
    for n, light in enumerate(EARLIER):
        arguments = {"name": light}
        output = json.dumps(House().call("HassTurnOn", arguments))
        said += [
            {"type": "message", "role": "user", "content": f"Turn on the {light}."},
            {"type": "function_call", "name": "HassTurnOn", "arguments": json.dumps(arguments), "call_id": f"call_{n}"},
            {"type": "function_call_output", "call_id": f"call_{n}", "output": output},
            {"type": "message", "role": "assistant", "content": f"Turned on the {light}."},
        ]
    said.append({"type": "message", "role": "user", "content": asked})
    for _ in range(MOST_CALLS):
        text, calls, kinds = "", list[Any](), list[str]()
        async for event in await client.responses.create(
            model=MODEL,
            input=said,
            max_output_tokens=600,
            top_p=1.0,
            temperature=0.0,
            user="01JH6ZJZ7Q1S9",
            store=False,
            stream=True,
            tools=tools,
        ):
            kinds.append(event.type)
            if event.type == "response.output_item.added" and event.item.type == "function_call":
                calls.append(event.item)
            elif event.type == "response.function_call_arguments.delta":
                calls[-1].arguments += event.delta
            elif event.type == "response.output_text.delta":
                text += event.delta
        assert kinds[-1] == "response.completed"
        assert kinds.count("response.function_call_arguments.done") == len(calls)
        if not calls:
            return text
        for each in calls:
            output = json.dumps(house.call(each.name, json.loads(each.arguments)))
            said += [
                {"type": "function_call", "name": each.name, "arguments": each.arguments, "call_id": each.call_id},
                {"type": "function_call_output", "call_id": each.call_id, "output": output},
            ]
    raise AssertionError("it calls for ever")


def test_ollamas_integration_turns_a_light_on(server: ApiServer) -> None:
    async def talk() -> None:
        async with ollama.AsyncClient(host=server.url, headers=None) as client:
            # The form where it is set up: it connects, and offers the models that are there.
            (model,) = [each["model"] for each in (await client.list())["models"]]
            assert model.startswith(MODEL)
            spoken = await by_ollama(client, model, house := House(), "Turn on the Kitchen light.")
            assert house.on == ["Kitchen light"]
            assert "Kitchen light" in spoken

    asyncio.run(talk())
    assert [each.outcome for each in server.exchanges] == ["stop", "stop"]


def test_openais_integration_turns_a_light_on(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # It has no field for an address; the client that it makes reads this.
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")

    async def talk() -> None:
        async with openai.AsyncOpenAI(api_key="none") as client:
            assert [model.id async for model in client.with_options(timeout=60).models.list()] == [MODEL]
            spoken = await by_openai(client, house := House(), "Turn on the Kitchen light.")
            assert house.on == ["Kitchen light"]
            assert "Kitchen light" in spoken

    asyncio.run(talk())


def test_an_ai_task_of_ollamas_integration_gets_its_structure(server: ApiServer) -> None:
    structure = {
        "type": "object",
        "properties": {"lights": {"type": "integer", "description": "How many are on"}, "dark": {"type": "boolean"}},
        "required": ["lights", "dark"],
    }

    async def ask() -> str:
        async with ollama.AsyncClient(host=server.url) as client:
            stream = await client.chat(
                model=f"{MODEL}:latest",
                messages=[ollama.Message(role="user", content="Two lights are on. Fill in the form.")],
                tools=None,
                stream=True,
                keep_alive="60s",
                options={"num_ctx": 8192},
                think=None,
                format=structure,
            )
            return "".join([part.message.content or "" async for part in stream])

    filled = json.loads(asyncio.run(ask()))
    assert set(filled) == {"lights", "dark"}
    assert isinstance(filled["lights"], int)


def test_a_model_that_is_not_here_is_refused_where_the_integration_would_fetch_it(server: ApiServer) -> None:
    async def fetch() -> None:
        async with ollama.AsyncClient(host=server.url) as client:
            await client.pull("llama3.2:latest")

    with pytest.raises(ollama.ResponseError, match="updates"):
        asyncio.run(fetch())
