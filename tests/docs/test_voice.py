"""docs/examples/voice: the Wyoming service with a real model, spoken to by Wyoming's own client."""

import asyncio
import importlib
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from wyoming.asr import Transcript
from wyoming.client import AsyncClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncServer
from wyoming.vad import VoiceStarted
from wyoming.wake import Detection

from docs.examples.voice.sentences import LONGEST, Sentences
from fieldlm import AsyncModel, Model
from fieldlm.engines import Sampling
from fieldlm.engines.llama import LlamaEngine

VOICE = Path(__file__).parents[2] / "docs/examples/voice"
PATIENCE_S = 300
WITHOUT_END = Sampling(max_tokens=1700, ignore_eos=True)  # so that there is something to cut, however fast it is


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Generator[Model]:
    with Model.open(smollm2_gguf, threads=1, context=2048, parallel=2) as opened:
        yield opened


@asynccontextmanager
async def house(model: Model, uri: str) -> AsyncGenerator[Any]:
    """Serve the example in this process, where one can see what its model does."""
    sys.path.insert(0, str(VOICE))
    try:
        example = importlib.import_module("wyoming_handle")
    finally:
        sys.path.remove(str(VOICE))
    made = example.House(AsyncModel(model), "en", PATIENCE_S)
    server = AsyncServer.from_uri(uri)
    await server.start(lambda reader, writer: example.Handler(reader, writer, made))
    try:
        yield made
    finally:
        await server.stop()


async def read(client: AsyncClient, *until: str) -> list[Event]:
    """Return the events up to one of these types."""
    events: list[Event] = []
    while not events or events[-1].type not in until:
        event = await asyncio.wait_for(client.read_event(), PATIENCE_S)
        assert event is not None, events
        events.append(event)
    return events


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await asyncio.sleep(0.01)


def running(model: Model) -> int:
    """Return how many sequences of the engine are answering."""
    return cast(LlamaEngine, model.engine).running


def heard(text: str, satellite: str | None = None, conversation: str | None = None) -> Event:
    context = {"satellite_id": satellite, "conversation_id": conversation}
    return Transcript(text, context={name: value for name, value in context.items() if value}).event()


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def test_sentences_are_the_same_wherever_the_text_is_cut() -> None:
    text = 'Dr. Who paid 3.50 euros. "Really?" He left!\nAt 8. e.g. now... 好的。再见 ' + "and so, " * 40
    whole = [*(cutter := Sentences()).push(text), *cutter.finish()]
    assert whole[:5] == ["Dr. Who paid 3.50 euros.", '"Really?"', "He left!", "At 8. e.g. now...", "好的。"]
    assert all(len(sentence) <= LONGEST for sentence in whole)
    assert "".join(whole).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    for size in (1, 2, 5, 17):
        cutter = Sentences()
        said = [each for at in range(0, len(text), size) for each in cutter.push(text[at : at + size])]
        assert [*said, *cutter.finish()] == whole


def test_the_program_answers_sentence_by_sentence_and_remembers(smollm2_gguf: Path, tmp_path: Path) -> None:
    uri = f"unix://{tmp_path / 'voice.sock'}"

    async def talk() -> None:
        async with AsyncClient.from_uri(uri) as client:
            await client.write_event(Describe().event())
            (event,) = await read(client, "info")
            (program,) = Info.from_event(event).handle
            assert program.supports_handled_streaming
            assert program.models[0].languages == ["en"]
            await client.write_event(Ping(text="7").event())
            assert Pong.from_event((await read(client, "pong"))[0]).text == "7"
            for question in ("What is a robot? Answer in two sentences.", "And what is a map?"):
                await client.write_event(heard(question, conversation="c"))
                start, *chunks, whole, stop = await read(client, "handled-stop")
                assert types([start, whole, stop]) == ["handled-start", "handled", "handled-stop"]
                assert set(types(chunks)) == {"handled-chunk"}
                assert start.data["context"] == whole.data["context"] == {"conversation_id": "c"}
                assert "".join(chunk.data["text"] for chunk in chunks).strip() == whole.data["text"]

    command = [sys.executable, VOICE / "wyoming_handle.py", smollm2_gguf, "--uri", uri, "--deadline-s", str(PATIENCE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline().startswith(f"answering at {uri} with ")
            for _ in range(PATIENCE_S * 10):
                if (tmp_path / "voice.sock").exists():
                    break
                asyncio.run(asyncio.sleep(0.1))
            asyncio.run(talk())
        finally:
            child.terminate()
    assert child.returncode == 0


@pytest.mark.parametrize("word", [heard("Stop that. Say hello."), Detection().event(), VoiceStarted().event()])
def test_who_speaks_is_not_spoken_to(model: Model, tmp_path: Path, word: Event) -> None:
    async def talk() -> None:
        uri = f"unix://{tmp_path / 'voice.sock'}"
        async with house(model, uri) as made, AsyncClient.from_uri(uri) as client:
            made.sampling = WITHOUT_END
            await client.write_event(heard("Tell a long story of many short sentences."))
            assert types(await read(client, "handled-chunk")) == ["handled-start", "handled-chunk"]
            (old,) = made.running.values()
            assert running(model) == 1
            made.sampling = Sampling(max_tokens=24)
            await client.write_event(word)
            # What was under way before the word was heard may still come, then the end of it, and nothing behind that.
            *under_way, refused, _ = await read(client, "handled-stop")
            assert set(types(under_way)) <= {"handled-chunk"}
            assert refused.type == "not-handled"
            assert "text" not in refused.data
            assert old.done()
            if word.type == "transcript":
                start, *_, whole, _ = await read(client, "handled-stop")
                assert types([start, whole]) == ["handled-start", "handled"]
            await until(lambda: running(model) == 0)
            await client.write_event(Ping().event())
            assert types(await read(client, "pong")) == ["pong"], "a word of the old answer came after its end"
            assert not made.running

    asyncio.run(talk())


def test_a_satellite_cuts_its_own_answer_and_nobody_elses(model: Model, tmp_path: Path) -> None:
    async def talk() -> None:
        uri = f"unix://{tmp_path / 'voice.sock'}"
        async with (
            house(model, uri) as made,
            AsyncClient.from_uri(uri) as other,
            AsyncClient.from_uri(uri) as first,
            AsyncClient.from_uri(uri) as second,
        ):
            made.sampling = WITHOUT_END
            await other.write_event(heard("Tell a long story.", "bath"))
            await first.write_event(heard("Tell a long story.", "kitchen"))
            await read(other, "handled-chunk")
            await read(first, "handled-chunk")
            await second.write_event(heard("Tell another one.", "kitchen"))
            assert (await read(first, "handled-stop"))[-2].type == "not-handled"
            await read(second, "handled-chunk")
            # The connection whose answer was cut goes; the satellite is being answered over the other one.
            await first.disconnect()
            await read(second, "handled-chunk")
            assert set(made.running) == {"bath", "kitchen"}
            await second.disconnect()
            await until(lambda: set(made.running) == {"bath"} and running(model) == 1)
            await read(other, "handled-chunk")
        await until(lambda: running(model) == 0)

    asyncio.run(talk())


def test_what_was_cut_off_is_remembered_as_far_as_it_was_heard_and_of_a_bounded_number(
    model: Model, tmp_path: Path
) -> None:
    async def talk() -> None:
        uri = f"unix://{tmp_path / 'voice.sock'}"
        async with house(model, uri) as made, AsyncClient.from_uri(uri) as client:
            made.sampling = WITHOUT_END
            await client.write_event(heard("Tell a long story.", conversation="c"))
            said = [event.data["text"] for event in (await read(client, "handled-chunk"))[1:]]
            await client.write_event(Detection().event())
            said += [event.data["text"] for event in (await read(client, "handled-stop"))[:-2]]
            assert made.told["c"][-1] == {"role": "assistant", "content": "".join(said).strip()}
            for n in range(100):
                made.remember(str(n), "Hello", "Hi")
                made.remember("always", "Hello", "Hi")
            assert len(made.told) == 64
            assert len(made.told["always"]) == 8

    asyncio.run(talk())


def test_a_question_without_an_answer_says_why(model: Model, tmp_path: Path) -> None:
    async def talk() -> None:
        uri = f"unix://{tmp_path / 'voice.sock'}"
        async with house(model, uri), AsyncClient.from_uri(uri) as client:
            await client.write_event(heard("word " * 3000))
            *_, refused, _ = await read(client, "handled-stop")
            assert refused.type == "not-handled"
            assert "context" in refused.data["text"]

    asyncio.run(talk())
