"""Answers for a voice assistant, sentence by sentence: python wyoming_handle.py [MODEL] [--uri tcp://127.0.0.1:10600].

A Wyoming service of type `handle`, as Home Assistant, wyoming-satellite and Rhasspy ask: what the ear understood comes
as a `transcript`, the answer goes as `handled-start`, a `handled-chunk` a sentence, `handled`, `handled-stop`.

Barge-in: who speaks is not spoken to. A new transcript of the same satellite (or connection), a wake word heard
(`detection`), a voice that begins (`voice-started`), a `handled-stop` from the other side and a closed connection each
end the running answer: not a sentence of it follows, `not-handled` closes it, and the model is free for the next.
"""

import argparse
import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from importlib.metadata import version
from typing import Any

from sentences import Sentences
from wyoming.asr import Transcript
from wyoming.event import Event
from wyoming.handle import Handled, HandledChunk, HandledStart, HandledStop, NotHandled
from wyoming.info import Attribution, Describe, HandleModel, HandleProgram, Info
from wyoming.ping import Ping, Pong
from wyoming.server import AsyncEventHandler, AsyncServer
from wyoming.vad import VoiceStarted
from wyoming.wake import Detection

from fieldlm import AsyncModel
from fieldlm.core.errors import FieldlmError
from fieldlm.engines import Sampling, Schedule
from fieldlm.inference.chat_template import Message

RULES = "You are a voice. Answer in one or two short spoken sentences, without lists and without marks."
SORRY = "I did not get that done in time."
TURNS, PEOPLE = 4, 64  # what is remembered of a conversation, and of how many
PATIENCE_S = 1.0  # for a client that does not read to be told that its answer is over


class House:
    """The model, what was said in each conversation, and who is being answered."""

    def __init__(self, model: AsyncModel, language: str, deadline_s: float) -> None:
        self.model = model
        self.terms = Schedule(deadline_s=deadline_s)
        self.sampling = Sampling(max_tokens=160)
        self.running: dict[str, asyncio.Task[None]] = {}
        self.told: OrderedDict[str, list[Message]] = OrderedDict()
        source = Attribution(name="fieldlm", url="")
        served = HandleModel(
            name=model.model.bundle.manifest.model.name,
            attribution=source,
            installed=True,
            description=repr(model),
            version=model.model.bundle.generation,
            languages=[language],
        )
        program = HandleProgram(
            name="fieldlm",
            attribution=source,
            installed=True,
            description="A small language model",
            version=version("fieldlm"),
            models=[served],
            supports_handled_streaming=True,
        )
        self.info = Info(handle=[program]).event()

    async def cut(self, speaker: str) -> None:
        """End the answer that this speaker hears; nothing of it is sent once this has returned."""
        while task := self.running.get(speaker):
            await end(task)

    def begin(self, speaker: str, answer: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let this speaker hear `answer` from now on."""

        def ended(task: asyncio.Task[None]) -> None:
            if self.running.get(speaker) is task:
                del self.running[speaker]

        task = self.running[speaker] = asyncio.create_task(answer, name=f"answer[{speaker}]")
        task.add_done_callback(ended)
        return task

    def remember(self, conversation: str, asked: str, said: str) -> None:
        """Keep a turn, as far as it was heard."""
        turns = self.told.pop(conversation, [])
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        self.told[conversation] = turns[-2 * TURNS :]
        while len(self.told) > PEOPLE:
            self.told.popitem(last=False)


async def end(task: asyncio.Task[None] | None) -> None:
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task])


class Handler(AsyncEventHandler):
    """One connection; several may belong to one speaker, as Home Assistant opens one for every utterance."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, house: House) -> None:
        super().__init__(reader, writer)
        self.house = house
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        with suppress(ConnectionError):  # a client that has gone
            await super().run()

    async def handle_event(self, event: Event) -> bool:
        if Describe.is_type(event.type):
            await self.write_event(self.house.info)
        elif Ping.is_type(event.type):
            await self.write_event(Pong(text=Ping.from_event(event).text).event())
        elif Transcript.is_type(event.type):
            await self.answer(Transcript.from_event(event))
        elif any(kind.is_type(event.type) for kind in (Detection, VoiceStarted, HandledStop)):
            await self.disconnect()
        return True

    async def disconnect(self) -> None:
        await end(self.task)

    async def answer(self, heard: Transcript) -> None:
        """Begin an answer in a task of its own: this connection goes on listening."""
        context = heard.context or {}
        conversation = str(context.get("conversation_id") or f"connection {id(self)}")
        speaker = str(context.get("satellite_id") or conversation)
        await end(self.task)
        await self.house.cut(speaker)
        self.task = self.house.begin(speaker, self.say(heard.text, conversation, context))
        await asyncio.sleep(0)  # a task that is cut before it has begun would not tell its client

    async def say(self, asked: str, conversation: str, context: dict[str, Any]) -> None:
        said: list[str] = []
        end = NotHandled(context=context).event()  # of an answer that is cut off
        with suppress(ConnectionError, TimeoutError):
            try:
                await self.write_event(HandledStart(context=context).event())
                async with aclosing(self.sentences(asked, conversation)) as sentences:
                    async for sentence in sentences:
                        said.append(sentence)
                        await self.write_event(HandledChunk(text=sentence + " ").event())
                end = (Handled(" ".join(said), context) if said else NotHandled(SORRY, context)).event()
            except asyncio.CancelledError:
                pass
            except FieldlmError as error:
                end = NotHandled(str(error), context).event()
            async with asyncio.timeout(PATIENCE_S):
                await self.write_event(end)
                await self.write_event(HandledStop().event())
        if said:
            self.house.remember(conversation, asked, " ".join(said))

    async def sentences(self, asked: str, conversation: str) -> AsyncGenerator[str]:
        """Yield each sentence when it is whole; what a deadline cut off is not said."""
        before = self.house.told.get(conversation, [])
        messages: list[Message] = [{"role": "system", "content": RULES}, *before, {"role": "user", "content": asked}]
        cutter, outcome = Sentences(), None
        async with aclosing(self.house.model.stream(messages, self.house.sampling, self.house.terms)) as chunks:
            async for chunk in chunks:
                outcome = chunk.outcome
                for sentence in cutter.push(chunk.text):
                    yield sentence
        if outcome in ("stop", "length"):
            for sentence in cutter.finish():
                yield sentence


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument(
        "--uri", default="tcp://127.0.0.1:10600", help="tcp://HOST:PORT or unix:///PATH; no keys are asked"
    )
    parser.add_argument("--language", default="en", help="what the model speaks")
    parser.add_argument("--parallel", type=int, default=2, help="answers at a time")
    parser.add_argument("--deadline-s", type=float, default=20.0, help="an answer may take")
    given = parser.parse_args()
    async with await AsyncModel.open(given.model, parallel=given.parallel) as model:
        house = House(model, given.language, given.deadline_s)
        print(f"answering at {given.uri} with {model}", flush=True)
        await AsyncServer.from_uri(given.uri).run(lambda reader, writer: Handler(reader, writer, house))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
