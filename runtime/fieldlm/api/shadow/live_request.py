"""A live request that has been answered, asked again of a candidate: its prompt and form are made anew for that one.

Calls of tools are compared and go nowhere: fieldlm hands calls to whoever asked, and here nobody has.
"""

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from fieldlm.api.classified.closed_request import closed_request
from fieldlm.api.completion_request import CompletionRequest
from fieldlm.api.job import Job
from fieldlm.api.metrics import Reading
from fieldlm.api.output_contract import OutputContract, output_contract
from fieldlm.api.preparation import task_of, tokens_of
from fieldlm.api.response_stream import ResponseStream, StreamedChoice
from fieldlm.api.thoughts.asked_prompt import AskedPrompt
from fieldlm.core.errors import FieldlmError
from fieldlm.engines import Chunk, RunningAnswer, Schedule
from fieldlm.formats.router import question_of
from fieldlm.formats.shadow import ShadowAnswer, meaning
from fieldlm.inference.adapters import Chosen, routed
from fieldlm.inference.confidence import confidence
from fieldlm.inference.generations import Serving
from fieldlm.inference.thoughts.thought_reader import OpenedThought
from fieldlm.network.json_api import ApiError

ENDED = ("stop", "length", "error")
"""How answers end that say something of their generation; others ran out of time, or of readers."""
LOOK_S = 0.02
LONGEST_S, SLOWEST = 120.0, 4
"""How long a candidate may take for one answer: so many seconds, and so many times what the one that serves took."""


class HearsRequests(Protocol):
    """Who takes note of live requests, and says in figures what came of them."""

    def hear(self, request: "LiveRequest") -> None: ...
    def readings(self) -> Iterable[Reading]: ...


class LiveRequest:
    """One answer of the generation that serves, and its request. Holds both texts; what leaves are numbers."""

    def __init__(self, job: Job, turn: ResponseStream) -> None:
        self._job = job
        self._exchange = turn.exchange
        self._choice = turn.answers[0]

    @staticmethod
    def of(job: Job, turn: ResponseStream) -> "LiveRequest | None":
        """Return what can be asked again: a conversation, answered once, by the device's own model, which had time."""
        verdict = turn.exchange.verdict
        is_small = verdict is None or verdict.by != "large"
        is_own = is_small and not job.serving.is_beside and not isinstance(job.serving, Chosen)
        is_one = len(turn.answers) == 1 and not isinstance(job.asked, CompletionRequest)
        return LiveRequest(job, turn) if is_own and is_one and turn.exchange.outcome in ENDED else None

    @property
    def id(self) -> str:
        return self._exchange.id

    @property
    def generation(self) -> str:
        return self._exchange.generation

    @property
    def task(self) -> str:
        return task_of(self._job.asked, self._job.serving, question_of(self._job.messages))[0]

    @property
    def question(self) -> bytes:
        return hashlib.blake2b(array("Q", self._job.prompts[0]).tobytes(), digest_size=16).digest()

    @property
    def is_formed(self) -> bool:
        return self._job.promise.is_formed or bool(self._choice.whole.calls)

    @property
    def served(self) -> ShadowAnswer:
        exchange = self._exchange
        return ShadowAnswer(
            is_valid=_is_valid(self._choice, self._job.promise),
            meaning=_meaning(self._choice),
            tokens=exchange.completion_tokens,
            duration_s=exchange.duration_s,
            confidence=exchange.confidence,
        )

    def ask(self, candidate: Serving, gives_way: Callable[[], bool]) -> ShadowAnswer | None:
        """Return what `candidate` answers, None when `gives_way` said that somebody comes first."""
        began_s, job = time.monotonic(), self._job
        candidate = routed(candidate, job.messages, task=job.asked.label("task") or "")
        try:
            contract, answer = self._start(candidate)
        except (ApiError, FieldlmError):
            # It has no room for what the other one answers, or no words for the form.
            return ShadowAnswer(is_valid=False)
        choice, come = StreamedChoice(0, answer, contract), SimpleQueue[Chunk]()
        answer.subscribe(come.put)
        end_s = began_s + max(LONGEST_S, SLOWEST * self._exchange.duration_s)
        try:
            while choice.outcome is None and time.monotonic() < end_s:
                if gives_way():
                    return None
                with suppress(Empty):
                    choice.take([come.get(timeout=LOOK_S)])
        finally:
            answer.cancel()
        if choice.outcome in ("cancelled", "preempted"):  # the engine is being closed
            return None
        timings = answer.timings
        return ShadowAnswer(
            is_valid=_is_valid(choice, contract),
            meaning=_meaning(choice),
            tokens=timings.completion_tokens,
            duration_s=time.monotonic() - began_s,
            confidence=confidence(candidate, timings) if choice.outcome == "stop" else None,
        )

    def _start(self, candidate: Serving) -> tuple[OutputContract, RunningAnswer]:
        asked, engine = self._job.asked, candidate.engine
        toolbox = asked.toolbox()
        contract = output_contract(candidate, asked, toolbox)
        written = AskedPrompt.of(candidate, asked, asked.conversation_so_far(), toolbox)
        prompt = tokens_of(engine, written.text(), param="messages", room=1)
        sampling = replace(asked.wanted(written.held_to(contract)), said=contract.said)
        if (closed := closed_request(candidate, asked, self._job.messages, toolbox, contract)) is not None:
            return contract, closed.start(prompt)
        terms = Schedule(priority="batch", cache_salt=asked.cache_salt or "")
        answer = engine.start(prompt, sampling, adapter=candidate.adapter, terms=terms)
        if written.is_open and contract.thoughts:
            return contract, OpenedThought(answer, contract.thoughts)
        return contract, answer


def _is_valid(choice: StreamedChoice, contract: OutputContract) -> bool:
    """Whether it is an answer: a whole call, what the form asks for, or some words."""
    if choice.whole.calls:
        return choice.outcome == "stop"
    if contract.is_formed or (contract.toolbox is not None and contract.toolbox.must):
        return choice.outcome == "stop" and contract.accepts(choice.raw)
    return choice.outcome in ("stop", "length") and bool(choice.whole.text.strip())


def _meaning(choice: StreamedChoice) -> bytes:
    calls = [{"name": call.name, "arguments": _arguments(call.arguments)} for call in choice.whole.calls]
    spelt = [{"type": "function", "function": call} for call in calls]
    return meaning(json.dumps({"tool_calls": spelt}) if spelt else choice.whole.text)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
