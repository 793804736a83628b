"""Ollama's API, through the `ollama` client: what Open WebUI, Home Assistant and the like speak."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import ollama
import openai
import pytest
from pydantic import BaseModel

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening
from tests.support.api_server import api_server

MODEL = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "Hello"}]
SHORT = {"num_predict": 5, "temperature": 0}
LIGHT: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Switch the light",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
    },
}


class Order(BaseModel):
    drink: Literal["coffee", "tea"]
    count: Literal[1, 2, 3]


class Kiosk:
    def __init__(self, url: str, exchanges: list[Exchange]) -> None:
        self.exchanges = exchanges
        self.http = httpx.Client(base_url=url, timeout=120)
        self.client = ollama.Client(host=url)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def kiosk(base_bundle: Bundle) -> Iterator[Kiosk]:
    with api_server(base_bundle) as server:
        made = Kiosk(server.url, server.exchanges)
        yield made
        made.client.close()
        made.http.close()
        made.openai.close()


def test_a_chat_says_what_chat_completions_say(kiosk: Kiosk) -> None:
    answer = kiosk.client.chat(MODEL, HELLO, options=SHORT)
    same = kiosk.openai.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=5
    )
    assert answer.message.content == same.choices[0].message.content
    assert (answer.model, answer.message.role) == (MODEL, "assistant")
    assert (answer.done, answer.done_reason) == (True, "length")
    assert answer.eval_count == 5
    assert answer.prompt_eval_count == same.usage.prompt_tokens  # pyright: ignore[reportOptionalMemberAccess]
    assert answer.eval_duration
    assert answer.total_duration
    assert answer.total_duration >= answer.eval_duration > 0


def test_a_stream_adds_up_to_the_same_and_is_the_default(kiosk: Kiosk) -> None:
    whole = kiosk.client.chat(MODEL, HELLO, options=SHORT)
    pieces = list(kiosk.client.chat(f"{MODEL}:latest", HELLO, options=SHORT, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 2
    asked = {"model": MODEL, "messages": HELLO, "options": SHORT}
    raw = kiosk.http.post("/api/chat", json=asked)
    assert raw.headers["content-type"] == "application/x-ndjson"
    last = json.loads(raw.text.splitlines()[-1])
    assert last["fieldlm"]["id"] == kiosk.exchanges[-1].id
    assert last["eval_count"] == 5


def test_an_answer_can_be_corrected_by_its_id(base_bundle: Bundle) -> None:
    live = Generations(base_bundle, EngineOptions(threads=1, context=512, parallel=1))
    seen: list[str] = []

    def remember(feedback: Any) -> bool:
        seen.append(feedback.id)
        return True

    with listening(make_app(live, lambda _: None, ready=lambda: None, on_feedback=remember)) as server:
        answer = httpx.post(
            f"{server.url}/api/chat",
            json={"model": MODEL, "messages": HELLO, "options": SHORT, "stream": False},
            timeout=60,
        ).json()
        given = {"id": answer["fieldlm"]["id"], "rating": "up"}
        assert httpx.post(f"{server.url}/v1/feedback", json=given).status_code == 200
    live.close()
    assert seen == [answer["fieldlm"]["id"]]


def test_a_generation_has_a_system_prompt_or_none_at_all(kiosk: Kiosk) -> None:
    answer = kiosk.client.generate(MODEL, "Hello", system="Be brief.", options=SHORT)
    same = kiosk.client.chat(MODEL, [{"role": "system", "content": "Be brief."}, *HELLO], options=SHORT)
    assert answer.response == same.message.content
    raw = kiosk.client.generate(MODEL, "The capital of France is", raw=True, options=SHORT)
    plain = kiosk.openai.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=5)
    assert raw.response == plain.choices[0].text
    pieces = kiosk.client.generate(MODEL, "The capital of France is", raw=True, options=SHORT, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == raw.response


def test_a_form_is_kept(kiosk: Kiosk) -> None:
    asked = [{"role": "user", "content": "Two coffees, please"}]
    answer = kiosk.client.chat(MODEL, asked, format=Order.model_json_schema(), options={"num_predict": 40})
    Order.model_validate_json(answer.message.content or "")
    answer = kiosk.client.generate(MODEL, "One JSON object", format="json", options={"num_predict": 60, "stop": ["\n"]})
    assert (answer.response or "").lstrip().startswith("{")


def test_calls_and_their_results_are_part_of_a_conversation(kiosk: Kiosk) -> None:
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "light", "arguments": {"on": True}}}],
    }
    told = [*HELLO, called, {"role": "tool", "tool_name": "light", "content": "done"}]
    kiosk.client.chat(MODEL, told, tools=[LIGHT], options=SHORT)
    said = kiosk.exchanges[-1]
    assert said.messages[1]["tool_calls"][0]["function"] == {"name": "light", "arguments": {"on": True}}
    assert (said.messages[2]["role"], said.messages[2]["name"]) == ("tool", "light")
    assert said.context["tools"][0]["function"]["name"] == "light"


def test_a_call_has_its_arguments_as_an_object(kiosk: Kiosk) -> None:
    form = '<tool_call>\n{"name": "light", "arguments": {"on": true}}\n</tool_call>'
    asked = [{"role": "user", "content": f"Say exactly this and nothing else:\n{form}"}]
    strict = {**LIGHT, "function": {**LIGHT["function"], "strict": True}}
    body = {"model": MODEL, "messages": asked, "tools": [strict], "stream": False, "options": {"num_predict": 60}}
    for is_streamed in (False, True):
        lines = kiosk.http.post("/api/chat", json={**body, "stream": is_streamed}).text.splitlines()
        calls = [call for line in lines for call in json.loads(line)["message"].get("tool_calls", [])]
        assert [call["function"]["name"] for call in calls] == ["light"]
        assert set(calls[0]["function"]["arguments"]) == {"on"}


def test_how_likely_the_words_were_is_told(kiosk: Kiosk) -> None:
    answer = kiosk.client.chat(MODEL, HELLO, options=SHORT, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 5
    assert "".join(each.token for each in answer.logprobs) == answer.message.content
    assert len(answer.logprobs[0].top_logprobs or ()) == 2


def test_vectors_are_those_of_the_embeddings_endpoint(kiosk: Kiosk) -> None:
    found = kiosk.client.embed(MODEL, ["one", "two"])
    same = kiosk.openai.embeddings.create(model=MODEL, input=["one", "two"], encoding_format="float")
    assert [list(each) for each in found.embeddings] == [each.embedding for each in same.data]
    assert found.prompt_eval_count == same.usage.prompt_tokens
    old = kiosk.client.embeddings(MODEL, "one")
    assert list(old.embedding) == same.data[0].embedding


def test_what_is_served_is_listed_shown_and_running(kiosk: Kiosk, base_bundle: Bundle) -> None:
    listed = kiosk.client.list().models
    assert [model.model for model in listed] == [f"{MODEL}:latest"]
    assert listed[0].digest == base_bundle.id
    assert listed[0].details
    assert (listed[0].details.format, listed[0].details.quantization_level) == ("gguf", "Q4_1")
    assert kiosk.client.chat(listed[0].model or "", HELLO, options=SHORT).done
    shown = kiosk.client.show(MODEL)
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo
    assert shown.modelinfo["llama.context_length"] == 512
    running = kiosk.client.ps().models
    assert (running[0].model, running[0].context_length) == (f"{MODEL}:latest", 512)
    assert kiosk.http.get("/api/version").json() == {"version": "0.12.0"}


def test_asking_for_nothing_says_that_the_model_is_there(kiosk: Kiosk) -> None:
    assert kiosk.client.generate(MODEL, keep_alive=-1).done_reason == "load"
    assert kiosk.client.chat(MODEL, []).done_reason == "load"
    with pytest.raises(ollama.ResponseError, match="'llama3' is not here"):
        kiosk.client.generate("llama3")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"options": {"mirostat": 2}}, "mirostat: use temperature"),
        ({"options": {"num_predict": "many"}}, "num_predict: Expected `int | null`"),
        ({"options": {"temperature": 9}}, "temperature: Expected `float` <= 2"),
        ({"think": True}, "enable_thinking: this model does not think"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aaaa"]}]}, "this model reads text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role is 'robot'"),
        ({"format": "yaml"}, "format is neither json nor a schema"),
        ({"model": "llama3"}, "the model 'llama3' is not here"),
        ({"messages": [{"role": "user", "content": "x " * 3000}]}, "context"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(kiosk: Kiosk, body: dict[str, Any], line: str) -> None:
    answer = kiosk.http.post("/api/chat", json={"model": MODEL, "messages": HELLO, **body})
    assert answer.status_code in (400, 404)
    assert line in answer.json()["error"]


def test_what_a_loader_is_told_changes_nothing(kiosk: Kiosk) -> None:
    loading = {"num_ctx": 8192, "num_gpu": 99, "num_thread": 8, "use_mmap": True, "num_batch": 512, "repeat_last_n": -1}
    answer = kiosk.client.chat(MODEL, HELLO, options={**SHORT, **loading}, keep_alive="10m")
    assert answer.message.content == kiosk.client.chat(MODEL, HELLO, options=SHORT).message.content


def test_models_do_not_come_by_a_clients_word(kiosk: Kiosk) -> None:
    for call in (kiosk.client.pull, kiosk.client.delete):
        with pytest.raises(ollama.ResponseError, match="signed updates"):
            call(MODEL)
