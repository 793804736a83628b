"""The `openai` package is the client that people have; everything here goes through it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from fieldlm.api.app import make_app
from fieldlm.engines import EngineOptions
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening

MODEL = "smollm2-135m-instruct"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
ENDLESS: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Repeat for ever: tea tea tea tea tea tea"}]


@pytest.fixture(scope="module")
def live(base_bundle: Bundle) -> Iterator[Generations]:
    made = Generations(base_bundle, EngineOptions(threads=1, context=512, parallel=3))
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(live: Generations) -> Iterator[str]:
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url + "/v1"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "this never became true"
        time.sleep(0.005)


def test_it_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=5)
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_a_prediction_changes_no_word_and_is_counted(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> ChatCompletion:
        return client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=24, **more)

    plain = ask().choices[0].message.content
    helped = ask(prediction={"type": "content", "content": plain})
    assert helped.choices[0].message.content == plain
    assert helped.usage is not None
    details = helped.usage.completion_tokens_details
    assert details is not None
    assert details.accepted_prediction_tokens
    assert details.rejected_prediction_tokens is not None
    with pytest.raises(openai.BadRequestError, match=r"prediction\.content"):
        ask(prediction={"type": "content", "content": [{"type": "image_url"}]})


def test_it_streams_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


def test_its_stream_helper_collects_the_whole_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, max_tokens=40, stop=[" "]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content


def test_it_completes_plain_text(client: openai.OpenAI) -> None:
    stream = client.completions.create(model=MODEL, prompt="one two three", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream)


def test_it_lists_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "fieldlm"


def test_its_errors_are_typed(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-5", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 900}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO, n=9)
    assert refused.value.param == "n"


def test_leaving_a_stream_in_the_middle_frees_its_sequence(client: openai.OpenAI, live: Generations) -> None:
    engine = cast(LlamaEngine, live.current.engine)
    stream = client.chat.completions.create(model=MODEL, messages=ENDLESS, max_tokens=450, stream=True)
    for _ in zip(range(3), stream, strict=False):
        pass
    assert engine.running == 1
    stream.close()
    wait_until(lambda: engine.running == 0)


def test_many_clients_at_once_each_get_their_own_answer(url: str, client: openai.OpenAI) -> None:
    async def one(mate: openai.AsyncOpenAI, number: int) -> str:
        messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": f"Say {number} and nothing else."}]
        if number % 2:
            stream = await mate.chat.completions.create(model=MODEL, messages=messages, max_tokens=6, stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        answer = await mate.chat.completions.create(model=MODEL, messages=messages, max_tokens=6)
        return answer.choices[0].message.content or ""

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as mate:
            return await asyncio.gather(*(one(mate, number) for number in range(12)))

    assert all(asyncio.run(all_of_them()))
