"""A request on its way: what was asked, of which generation, as which tokens; the answers that it starts."""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from fieldlm.api.chat_request import CompletionParams, Exchange
from fieldlm.api.classified.closed_request import ClosedRequest
from fieldlm.api.completion_request import CompletionRequest, answer_of_nothing
from fieldlm.api.output_contract import OutputContract
from fieldlm.api.response_stream import AnswerFormat
from fieldlm.engines import Constraint, RunningAnswer
from fieldlm.formats.record import LARGE
from fieldlm.formats.response_ids import ResponseIds
from fieldlm.inference.chat_template import as_served
from fieldlm.inference.classifiers.closed_answers import CLASSIFIER
from fieldlm.inference.confidence import confidence, is_unsure
from fieldlm.inference.generations import Serving
from fieldlm.inference.thoughts.thought_reader import OpenedThought, ThoughtFirst

if TYPE_CHECKING:
    from fieldlm.api.large import LargeSide


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked, of which generation, as which tokens."""

    serving: Serving
    asked: CompletionParams
    voice: AnswerFormat
    messages: list[dict[str, Any]]
    prompts: list[list[int]]
    prediction: tuple[int, ...] | None
    promise: OutputContract
    came_s: float
    """When the request came: its time runs from there, and not from when its form was compiled."""
    constraint: Constraint | None
    """What the small model's answer is held to: the rule that was promised, maybe behind a thought."""
    is_open: bool = False
    """Whether the prompt has begun a thought, with which the small model's answer goes on."""
    closed: ClosedRequest | None = None
    """What the bundle's classifier answers in the model's place."""
    large: "LargeSide | None" = None
    """Its way to the large model; a prompt that is empty then is one that the small model cannot answer."""

    def start(self) -> list[RunningAnswer]:
        """Start every answer that was asked for; what is the same in them is computed once."""
        started: list[RunningAnswer] = []
        try:
            for prompt in self.prompts:
                started.extend(self._begin(prompt, index) for index in range(self.asked.n or 1))
        except BaseException:
            for generation in started:
                generation.cancel()
            raise
        return started

    def _begin(self, prompt: list[int], index: int) -> RunningAnswer:
        if self.large is None:
            return self._start(prompt, index)
        start = partial(self._start, prompt, index) if prompt else None
        return self.large.answer(start, is_at_hand=self.closed is not None)

    def _start(self, prompt: list[int], index: int) -> RunningAnswer:
        if self.closed is not None:
            return self.closed.start(prompt)
        promise, marks = self.promise, self.promise.thoughts
        sampling = replace(
            self.asked.wanted(self.constraint, index),
            prediction=self.prediction,
            said=promise.said,
            preamble=ThoughtFirst(marks, self.is_open) if marks else None,
        )
        if not sampling.max_tokens:
            return answer_of_nothing(prompt)
        adapter, terms = self.serving.adapter, self.asked.terms(time.monotonic() - self.came_s)
        if self.large is not None:
            # Where it stands in for the large model, its queue is one that the request has not waited in yet.
            terms = replace(terms, max_queue_s=self.asked.terms().max_queue_s)
        answer = self.serving.engine.start(prompt, sampling, adapter=adapter, terms=terms)
        return OpenedThought(answer, marks) if self.is_open and marks else answer

    def context(self) -> dict[str, Any]:
        """Return what `render` put into the prompt beside the messages."""
        if isinstance(self.asked, CompletionRequest):
            return {"raw": True}
        system, toolbox = self.serving.bundle.manifest.system_prompt, self.asked.toolbox()
        has_own = len(as_served(self.messages, system)) > len(self.messages)
        return ({"system": system} if has_own else {}) | ({"tools": toolbox.plain} if toolbox else {})

    def exchange(self, ids: ResponseIds) -> Exchange:
        """Return what is told of the request; before `start`."""
        made = Exchange(
            id=ids.next(self.voice.prefix),
            generation=self.serving.bundle.generation,
            model=self.serving.called,
            adapter=self.serving.task_adapter,
            messages=self.messages,
            context=self.context(),
            started_wall_s=time.time(),
            session=self.asked.label("session"),
            consent=self.asked.label("consent"),
            # Only this device says that the large model answered: what it said may be a label one day.
            route=None if (route := self.asked.label("route")) == LARGE else route,
        )
        if self.large is not None:
            self.large.exchange, made.task = made, self.large.wanted.task
        return made


def note_confidence(ended: Exchange, serving: Serving) -> None:
    """Write down how sure the small model was; of the large one's answers nothing is known."""
    if (verdict := ended.verdict) is not None and verdict.by == "large":
        ended.adapter = ""
        ended.is_unsure = is_unsure(serving, verdict.small) if verdict.small is not None else None
        return
    if ended.timings.classified is not None:
        ended.adapter, ended.answered_by = "", CLASSIFIER
    ended.is_unsure = is_unsure(serving, ended.timings)
    ended.confidence = confidence(serving, ended.timings) if ended.outcome == "stop" else None
