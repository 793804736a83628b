"""Slots: one for each sequence of a llama.cpp context, the request that runs on it, and its part of a step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fieldlm.engines import Sampling, Schedule
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.engines.llama_api import LoraAdapter
from fieldlm.engines.prompt_lookup import Lookup
from fieldlm.engines.request import Request, Words


class LlamaRequest(Request):
    """A request, the adapter that is switched on for it, and what drafts its answer where that was asked for."""

    def __init__(
        self,
        answer: AnswerStream,
        prompt: Sequence[int],
        sampling: Sampling,
        terms: Schedule,
        *,
        words: Words,
        context: int,
        adapter: LoraAdapter | None,
    ) -> None:
        super().__init__(answer, prompt, sampling, terms, words=words, context=context)
        self.adapter = adapter
        self.lookup = None if sampling.prediction is None else Lookup(prompt, sampling.prediction)


@dataclass(eq=False)
class Slot:
    """One sequence: the tokens its memory holds, and those still to compute for the request that runs on it."""

    sequence: int
    tokens: list[int] = field(default_factory=list[int])
    pending: list[int] = field(default_factory=list[int])
    adapter: LoraAdapter | None = None
    request: LlamaRequest | None = None
    used: int = 0
    """The step this slot was last part of."""
    cache_salt: str | None = None
    shared: int = 0
    """How many of its first tokens serve everybody, whatever its salt is: they were computed without any."""

    def serves(self, request: LlamaRequest) -> int:
        """Return how many of its tokens `request` may begin with, if they are its own.

        How soon an answer begins tells what is remembered: another's prompt is not to be found out by guessing it.
        """
        if self.cache_salt is None or self.cache_salt == request.terms.cache_salt:
            return len(self.tokens)
        return self.shared


class BatchSpan(NamedTuple):
    """What one slot computes in one step: `width` of its pending tokens; `row` is the last one's place in the batch.

    The tokens of `draft`, guesses at what the answer says next, stand behind it.
    """

    slot: Slot
    request: LlamaRequest
    width: int
    row: int
    draft: Sequence[int] = ()
