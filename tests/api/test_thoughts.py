"""What a model thinks is no answer: apart in every API, no call, in no record; and thinking is asked for by name."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import pytest

from fieldlm.api.anthropic.requests import MessagesRequest
from fieldlm.api.anthropic.responses import MessagesVoice
from fieldlm.api.chat_format import Choices
from fieldlm.api.chat_request import ChatRequest, Exchange, parse
from fieldlm.api.choices import CHAT
from fieldlm.api.ollama.requests import OllamaChat, OllamaGenerate
from fieldlm.api.ollama.responses import OllamaVoice
from fieldlm.api.output_contract import OutputContract
from fieldlm.api.response_stream import AnswerFormat, ResponseStream, StreamedChoice
from fieldlm.api.responses_format import ResponseVoice
from fieldlm.api.responses_request import ResponsesRequest
from fieldlm.api.thoughts.wishes import ThinkingWish, Told
from fieldlm.api.tools import Function, Tool, toolbox
from fieldlm.engines import Chunk, TokenChoice
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.inference.thoughts.marks import KNOWN
from fieldlm.network.json_api import ApiError
from tests.inference.test_thoughts import CALL, OPENED, QWEN3, template
from tests.support import material
from tests.support.api_server import ApiServer, api_server

TOOLS = toolbox([Tool("function", Function("f"))], None, several=True)
THINKS = OutputContract(toolbox=TOOLS, thoughts=KNOWN[0])
SAID = f"<think>\nFirst {CALL} or not?\n</think>\n\nDone.\n{CALL}"
MODEL = "smollm2-135m-instruct"
THOUGHT = f"First {CALL} or not?"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the sea?"}]}


async def spoken(voice: AnswerFormat, pieces: Sequence[str], *, streams: bool) -> tuple[Any, Exchange]:
    """Return what `voice` makes of an answer that comes in `pieces`, a token each: its events, or all of it."""
    exchange = Exchange(id="x", generation="g", model="m", messages=[], started_wall_s=0.0)
    running = AnswerStream(prompt_tokens=3, wake=lambda: None)
    turn = ResponseStream(exchange, [running], THINKS)
    heard = b"".join(voice.opening(turn)) if streams else b""
    for i, piece in enumerate(pieces):
        running.put(Chunk(text=piece, tokens=(i,), outcome="stop" if i == len(pieces) - 1 else None))
        if streams:
            heard += b"".join(voice.said(turn, await turn.read()))
    if not streams:
        await turn.read_all()
        return voice.whole(turn), exchange
    heard += b"".join(voice.ending(turn))
    lines = [line.removeprefix("data: ") for line in heard.decode().splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")], exchange


def cuts() -> Iterator[list[str]]:
    yield [SAID]
    yield list(SAID)
    for at in range(1, len(SAID)):
        yield [SAID[:at], SAID[at:]]


def test_no_call_in_a_thought_is_called_and_no_thought_is_recorded() -> None:
    whole: dict[str, Any] = {}
    for pieces in cuts():
        whole, exchange = asyncio.run(spoken(Choices(CHAT, wants_usage=False), pieces, streams=False))
        message = whole["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == (THOUGHT, "Done.")
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["f"]
        assert exchange.answer == f"Done.\n{CALL}"
    assert 0 < whole["usage"]["completion_tokens_details"]["reasoning_tokens"] <= 2


def test_a_stream_of_chat_has_the_thought_in_pieces_of_its_own() -> None:
    for pieces in cuts():
        events, _ = asyncio.run(spoken(Choices(CHAT, wants_usage=False), pieces, streams=True))
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == THOUGHT
        assert "".join(delta.get("content", "") for delta in deltas).strip() == "Done."
        assert [call["function"]["name"] for delta in deltas for call in delta.get("tool_calls", [])] == ["f"]


@pytest.mark.parametrize(
    "pieces",
    [
        ["<think>", "a", "b", "</think>", "\n\n", "c", "d"],
        ["<", "think>", "</th", "ink>c", "d"],
        ["<think>a</think>", "\n", "<", "think>b</think>c", "d"],
    ],
)
def test_tokens_of_a_thought_are_counted_with_its_marks(pieces: list[str]) -> None:
    whole, _ = asyncio.run(spoken(Choices(CHAT, wants_usage=False), pieces, streams=False))
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == 4


@pytest.mark.parametrize("is_chat", [True, False])
def test_ollama_calls_it_thinking(is_chat: bool) -> None:
    for pieces in cuts():
        whole, _ = asyncio.run(spoken(OllamaVoice("m", is_chat=is_chat), pieces, streams=False))
        lines, _ = asyncio.run(spoken(OllamaVoice("m", is_chat=is_chat), pieces, streams=True))
        said = [line["message"] if is_chat else line for line in [whole, *lines]]
        assert said[0]["thinking"] == "".join(line.get("thinking", "") for line in said[1:]) == THOUGHT
        assert said[0]["content" if is_chat else "response"].strip() == "Done."


def test_anthropic_has_a_block_for_it() -> None:
    for pieces in cuts():
        whole, _ = asyncio.run(spoken(MessagesVoice(), pieces, streams=False))
        events, _ = asyncio.run(spoken(MessagesVoice(), pieces, streams=True))
        assert [block["type"] for block in whole["content"]] == ["thinking", "text", "tool_use"]
        begun = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
        assert begun == ["thinking", "text", "tool_use"]
        assert sum(event["type"] == "content_block_stop" for event in events) == 3
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        assert whole["content"][0]["thinking"] == "".join(delta.get("thinking", "") for delta in deltas) == THOUGHT


def test_responses_have_an_item_for_it() -> None:
    def voice() -> ResponseVoice:
        return ResponseVoice(parse(b'{"input": "Hi"}', ResponsesRequest))

    for pieces in cuts():
        whole, _ = asyncio.run(spoken(voice(), pieces, streams=False))
        events, _ = asyncio.run(spoken(voice(), pieces, streams=True))
        for items in (whole["output"], events[-1]["response"]["output"]):
            assert [item["type"] for item in items] == ["reasoning", "message", "function_call"]
            assert items[0]["content"] == [{"type": "reasoning_text", "text": THOUGHT}]
        told = "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta")
        assert told == THOUGHT
        added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
        done = [event["item"]["id"] for event in events if event["type"] == "response.output_item.done"]
        assert added == done


def test_what_is_only_thought_is_no_answer() -> None:
    for voice in (MessagesVoice(), OllamaVoice("m", is_chat=True), Choices(CHAT, wants_usage=False)):
        for streams in (False, True):
            heard, exchange = asyncio.run(spoken(voice, ["<think>", "hm"], streams=streams))
            assert heard
            assert exchange.answer == ""
    whole, _ = asyncio.run(
        spoken(ResponseVoice(parse(b'{"input": "Hi"}', ResponsesRequest)), ["<think>hm"], streams=False)
    )
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]


def test_earlier_thoughts_are_taken_in_every_api() -> None:
    thought = {"role": "assistant", "content": "Hi", "reasoning_content": "greet"}
    for name in ("reasoning_content", "reasoning"):
        chat = {"messages": [{"role": "assistant", "content": "Hi", name: "greet"}]}
        assert parse(msgspec.json.encode(chat), ChatRequest).conversation_so_far() == [thought]
    ollama = {"model": "m", "messages": [{"role": "assistant", "content": "Hi", "thinking": "greet"}]}
    assert parse(msgspec.json.encode(ollama), OllamaChat).asked().conversation_so_far() == [thought]
    blocks = [{"type": "thinking", "thinking": "greet", "signature": ""}, {"type": "text", "text": "Hi"}]
    claude = {"model": "m", "max_tokens": 1, "messages": [{"role": "assistant", "content": blocks}]}
    assert parse(msgspec.json.encode(claude), MessagesRequest).asked().conversation_so_far() == [thought]
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": []}
    reasoning["content"] = [{"type": "reasoning_text", "text": "greet"}]
    items = [reasoning, {"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}]
    assert parse(msgspec.json.encode({"input": items}), ResponsesRequest).conversation_so_far() == [thought]


def refusal(**given: Any) -> str:
    with pytest.raises(ApiError) as caught:
        parse(json.dumps(ASKED | given).encode(), ChatRequest).refuse()
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token", "eos_token", "a b", ""])
def test_no_request_sets_what_the_renderer_sets(name: str) -> None:
    assert refusal(chat_template_kwargs={name: 1}).endswith("is none that a request may set")


def test_variables_are_plain_values_and_say_one_thing() -> None:
    assert "want a text, a number, true, false or null" in refusal(chat_template_kwargs={"documents": [1]})
    assert "want true or false" in refusal(chat_template_kwargs={"enable_thinking": "false"})
    assert refusal(reasoning_effort="none", enable_thinking=True).endswith("ask for thinking and for none")
    assert "reasoning_effort is 'some'; want one of" in refusal(reasoning_effort="some")


ON = ThinkingWish(is_on=True)
TOLD: list[tuple[str, ThinkingWish, bool, Told | str]] = [
    (QWEN3, ThinkingWish(), False, Told({}, None)),
    (QWEN3, ThinkingWish(), True, Told({}, False)),
    (QWEN3, ThinkingWish(effort="none"), False, Told({}, False)),
    (QWEN3, ON, False, Told({}, True)),
    (QWEN3, ON, True, Told({}, True, is_bound=True)),
    (QWEN3, ThinkingWish(most=9), False, Told({}, None, is_bound=True)),
    (QWEN3, ThinkingWish(most=9), True, Told({}, False)),
    (QWEN3, ThinkingWish(variables={"enable_thinking": False}), False, Told({}, False)),
    (QWEN3, ThinkingWish(effort="high"), False, "reasoning_effort: this model's chat template cannot be told how much"),
    (QWEN3, ThinkingWish(variables={"mood": 1}), False, "chat_template_kwargs.mood: this model's chat template does"),
    (OPENED, ThinkingWish(), True, Told({}, False)),
    (OPENED, ON, False, Told({}, True)),
    (OPENED, ThinkingWish(effort="none"), False, "reasoning_effort: this model thinks, and its chat template has no"),
    ("{{ reasoning_effort }}", ThinkingWish(effort="low"), False, Told({"reasoning_effort": "low"}, True)),
    ("{{ reasoning_effort }}", ThinkingWish(effort="none"), False, "reasoning_effort: this model thinks"),
    ("{{ reasoning_effort }}", ThinkingWish(most=9), False, "thinking_token_budget: where this model's thoughts end"),
    ("{{ mood }}", ThinkingWish(variables={"mood": 1}), False, Told({"mood": 1}, None)),
    ("{{ messages }}", ThinkingWish(effort="none"), False, Told({}, False)),
    ("{{ messages }}", ThinkingWish(most=9), False, Told({}, None)),
    ("{{ messages }}", ON, False, "enable_thinking: this model does not think"),
]


@pytest.mark.parametrize(("source", "wish", "is_formed", "want"), TOLD)
def test_a_template_is_told_what_it_can_be_told_and_the_rest_is_refused_by_name(
    source: str, wish: ThinkingWish, is_formed: bool, want: Told | str
) -> None:
    if not isinstance(want, str):
        assert wish.told(template(source), is_formed=is_formed) == want
        return
    with pytest.raises(ApiError) as caught:
        wish.told(template(source), is_formed=is_formed)
    assert str(caught.value).startswith(want)
    assert caught.value.code == "unsupported_parameter"


def test_other_apis_ask_in_their_own_words() -> None:
    ollama = {"model": "m", "prompt": "Hi", "think": False}
    assert parse(msgspec.json.encode(ollama), OllamaGenerate).asked().thinking() == ThinkingWish(is_on=False)
    ollama["think"] = "low"
    assert parse(msgspec.json.encode(ollama), OllamaGenerate).asked().thinking() == ThinkingWish(effort="low")
    claude = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    for kind, is_on in (("enabled", True), ("disabled", False), ("adaptive", None)):
        body = msgspec.json.encode(claude | {"thinking": {"type": kind}})
        assert parse(body, MessagesRequest).asked().thinking() == ThinkingWish(is_on=is_on)
    body = b'{"input": "Hi", "reasoning": {"effort": "low", "summary": "auto"}}'
    assert parse(body, ResponsesRequest).thinking() == ThinkingWish(effort="low", effort_name="reasoning.effort")


@pytest.fixture(scope="module", params=["text", "token"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A small model that thinks to its first " is", which its vocabulary calls the end of a thought."""
    renamed = {"Ġis": "</think>"} | ({"<repo_name>": "<think>"} if request.param == "token" else {})
    bundle = material.tiny_bundle(tmp_path_factory.mktemp("thinker"), template=OPENED, renamed=renamed)
    with api_server(bundle, context=512) as server:
        yield server


def post(server: ApiServer, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={"max_tokens": 48, **body}, timeout=120)


def test_a_model_that_is_served_has_its_thought_apart(served: ApiServer) -> None:
    goes_on = {str(token): -100 for token in served.engine.stop_tokens}
    whole = post(served, "/v1/chat/completions", **ASKED, logit_bias=goes_on).json()
    message, used = whole["choices"][0]["message"], whole["usage"]
    assert message["reasoning_content"]
    assert "</think>" not in message["reasoning_content"]
    assert "<think>" not in message["reasoning_content"] + message["content"]
    assert 0 < used["completion_tokens_details"]["reasoning_tokens"] <= used["completion_tokens"]
    assert served.exchanges[-1].answer == message["content"]
    heard = post(served, "/v1/chat/completions", **ASKED, logit_bias=goes_on, stream=True).text
    events = [json.loads(line[6:]) for line in heard.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert "".join(delta.get("content", "") for delta in deltas) == served.exchanges[-1].answer


def test_openais_client_reads_thoughts_and_sends_them_back(served: ApiServer) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    question: dict[str, Any] = {"role": "user", "content": "What is the sea?"}
    response = client.responses.create(model=MODEL, input=[question], max_output_tokens=24)  # pyright: ignore
    kinds = [item.type for item in response.output]
    assert kinds in (["reasoning", "message"], ["message"])
    streamed = client.responses.create(model=MODEL, input=[question], max_output_tokens=24, stream=True)  # pyright: ignore
    assert {event.type for event in streamed} >= {"response.created", "response.output_item.done"}
    told = [question, *(item.model_dump() for item in response.output), question]
    assert client.responses.create(model=MODEL, input=told, max_output_tokens=4).output  # pyright: ignore
    said = client.chat.completions.create(model=MODEL, messages=[question], max_tokens=24)  # pyright: ignore
    again = [question, said.choices[0].message.model_dump(exclude_none=True), question]
    assert client.chat.completions.create(model=MODEL, messages=again, max_tokens=4).choices  # pyright: ignore


def test_a_thought_that_was_told_is_in_no_record(served: ApiServer) -> None:
    told = [*ASKED["messages"], {"role": "assistant", "content": "Wet.", "reasoning_content": "secret"}]
    reply = post(served, "/v1/chat/completions", messages=[*told, *ASKED["messages"]])
    assert reply.status_code == 200
    assert "secret" not in json.dumps(served.exchanges[-1].messages)


def test_a_form_and_a_call_that_must_come_are_written_without_a_thought(served: ApiServer) -> None:
    reply = post(served, "/v1/chat/completions", regex="wet|dry", **ASKED).json()["choices"][0]["message"]
    assert reply["content"] in ("wet", "dry")
    assert "reasoning_content" not in reply
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    body = {**ASKED, "tools": tools, "tool_choice": "required"}
    message = post(served, "/v1/chat/completions", **body).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["f"]
    prompt = post(served, "/apply-template", **body).json()["prompt"]
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert post(served, "/apply-template", **ASKED).json()["prompt"].endswith("<think>\n")


def test_a_served_model_refuses_what_its_template_cannot_be_told(served: ApiServer) -> None:
    reply = post(served, "/v1/chat/completions", reasoning_effort="none", **ASKED)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "reasoning_effort")
    assert post(served, "/v1/chat/completions", chat_template_kwargs={"x": 1}, **ASKED).status_code == 400
    assert post(served, "/v1/completions", prompt="Hi", reasoning_effort="low").status_code == 400


def test_a_thought_ends_after_its_budget_and_the_answer_begins(tmp_path: Path) -> None:
    for name, source in (("opened", OPENED), ("qwen", QWEN3)):
        bundle = material.tiny_bundle(tmp_path / name, template=source)  # its own words never end a thought
        with api_server(bundle, context=512) as server:
            form = {"regex": "wet|dry", "enable_thinking": True, "thinking_token_budget": 5}
            reply = post(server, "/v1/chat/completions", **ASKED, **form).json()
            message, used = reply["choices"][0]["message"], reply["usage"]["completion_tokens_details"]
            assert message["reasoning_content"]
            assert message["content"] in ("wet", "dry")
            assert used["reasoning_tokens"] >= 5
            half = post(server, "/v1/chat/completions", **ASKED, regex="wet|dry", enable_thinking=True).json()
            assert half["choices"][0]["message"]["content"] in ("wet", "dry")
            if source == OPENED:
                goes_on = {str(token): -100 for token in server.engine.stop_tokens}
                body = {**ASKED, "thinking_token_budget": 5, "logit_bias": goes_on}
                free = post(server, "/v1/chat/completions", **body).json()["choices"][0]["message"]
                assert free["reasoning_content"]
                assert free["content"]


def test_a_stop_string_ends_the_answer_and_no_thought(served: ApiServer) -> None:
    goes_on = {str(token): -100 for token in served.engine.stop_tokens}
    asked = {**ASKED, "logit_bias": goes_on}
    (choice,) = post(served, "/v1/chat/completions", **asked, stop=["e"]).json()["choices"]
    assert "e" in choice["message"]["reasoning_content"]
    assert "e" not in choice["message"]["content"]
    assert choice["finish_reason"] == "stop", "the answer had one, and nothing else could end it"
    (choice,) = post(served, "/v1/chat/completions", **asked, stop=["<think>", "</think>"]).json()["choices"]
    assert choice["message"]["reasoning_content"]
    assert choice["message"]["content"]
    assert "</think>" not in choice["message"]["content"]


FORCED = {
    "tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": "required",
}


def test_what_is_forced_behind_a_thought_is_no_part_of_it(served: ApiServer) -> None:
    """It comes in one piece with the mark that ends the thought."""
    for more in (FORCED, {"regex": "all of this is forced"}):
        asked = {**ASKED, "enable_thinking": True, "thinking_token_budget": 4, **more}
        whole = post(served, "/v1/chat/completions", **asked).json()
        used, message = whole["usage"], whole["choices"][0]["message"]
        thought = used["completion_tokens_details"]["reasoning_tokens"]
        least = len(served.engine.tokenize('{"name": "w", "arguments": {}}')) if "tools" in more else 4
        assert message["content"] == (None if "tools" in more else "all of this is forced")
        assert 4 <= thought <= used["completion_tokens"] - least


def test_the_mark_of_an_empty_thought_is_no_answer(served: ApiServer) -> None:
    asked = {**ASKED, "enable_thinking": True, "thinking_token_budget": 0, "max_tokens": 12, "logprobs": True}
    whole = post(served, "/v1/chat/completions", **asked).json()
    (choice,), used = whole["choices"], whole["usage"]
    said = b"".join(bytes(each["bytes"]) for each in choice["logprobs"]["content"])
    assert said.strip() == choice["message"]["content"].encode().strip()
    assert used["completion_tokens_details"]["reasoning_tokens"] > 0


def test_space_between_a_thought_and_its_answer_is_in_no_log_probability() -> None:
    words = ["<think>", "hm", "</think>", "\n\n", " ", "Yes", "\n", "sir"]
    contract = OutputContract(thoughts=KNOWN[0], vocabulary=[word.encode() for word in words])
    for said, want in ((words, words[5:]), (words[3:], words[3:])):
        choice = StreamedChoice(0, AnswerStream(prompt_tokens=3, wake=lambda: None), contract)
        for token in map(words.index, said):
            how_likely = TokenChoice(token=token, logprob=-1.0)
            choice.take([Chunk(text=words[token], tokens=(token,), choices=(how_likely,))])
        assert [words[each.token] for each in choice.whole.tokens] == want
        assert choice.whole.text == "".join(want)


def test_how_sure_the_model_was_says_its_answer_alone(served: ApiServer) -> None:
    goes_on = {str(token): -100 for token in served.engine.stop_tokens}
    whole = post(served, "/v1/chat/completions", **ASKED, logit_bias=goes_on, logprobs=True).json()
    (choice,), used = whole["choices"], whole["usage"]
    thought = used["completion_tokens_details"]["reasoning_tokens"]
    assert 0 < thought < used["completion_tokens"]
    # Nothing is forced and no token ends it: what is left is the answer and space before it, which is of neither.
    told = len(choice["logprobs"]["content"])
    assert 0 < served.exchanges[-1].timings.free_tokens == told <= used["completion_tokens"] - thought
