"""Who computes next: sequences, shared prefixes, chunks of prompts and steps of answers. Runs in one thread.

A step takes one token of every answer that is being written, and then prompt tokens up to a bound, so that a long
prompt delays a running answer by one chunk. What a finished answer leaves in memory stays until its sequence is
needed: a prompt that begins like it starts where the two part.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fieldlm.formats.errors import EngineError
from fieldlm.runtime.engines import Chunk, Outcome, Sampling
from fieldlm.runtime.engines.answer import RunningAnswer
from fieldlm.runtime.engines.llama_api import ABORTED, NO_ROOM, Adapter, Batch, Context, Weights
from fieldlm.runtime.engines.sampling import choose, make_rng
from fieldlm.runtime.engines.text import TextStream

PREFILL_ALONE = 256  # prompt tokens a step while no answer is being written: enough to keep the cores busy
PREFILL_BESIDE = 64  # the same while one is: what it waits between two tokens
STEPS_PER_ADAPTER = 8  # a switch makes llama.cpp plan its memory again, so it is paid once for several tokens
WORTH_WAITING = 32  # tokens of prefix another sequence is just computing, for which a request waits a step


class Request:
    """A prompt on its way to an answer, and what its sampling has to remember."""

    def __init__(self, answer: RunningAnswer, prompt: list[int], sampling: Sampling, adapter: Adapter | None) -> None:
        self.answer = answer
        self.prompt = prompt
        self.sampling = sampling
        self.adapter = adapter
        self.text = TextStream(sampling.stop)
        self.rng = make_rng(sampling)
        self.asked_s = self.admitted_s = self.first_s = time.monotonic()
        self.count = 0
        self.margins = 0.0

    def admit(self, cached: int) -> None:
        self.admitted_s = time.monotonic()
        self.answer.timings.cached_tokens = cached
        self.answer.timings.queue_s = self.admitted_s - self.asked_s

    def accept(self, margin: float) -> None:
        """Count one token."""
        if not self.count:
            self.first_s = time.monotonic()
            self.answer.timings.prefill_s = self.first_s - self.admitted_s
        self.count += 1
        self.margins += margin

    def end(
        self,
        outcome: Outcome,
        *,
        text: str = "",
        tokens: tuple[int, ...] = (),
        margins: tuple[float, ...] = (),
        error: str | None = None,
    ) -> None:
        """Hand over the last chunk, with what was held back."""
        timings = self.answer.timings
        timings.completion_tokens = self.count
        if self.count:
            timings.margin = self.margins / self.count
            timings.decode_s = time.monotonic() - self.first_s
        text += self.text.finish()
        self.answer.put(Chunk(text=text, tokens=tokens, margins=margins, outcome=outcome, error=error))


@dataclass(eq=False)
class Slot:
    """One sequence: the tokens its memory holds, and those still to compute for the request that runs on it."""

    sequence: int
    tokens: list[int] = field(default_factory=list[int])
    pending: list[int] = field(default_factory=list[int])
    adapter: Adapter | None = None
    request: Request | None = None
    used: int = 0
    """The step this slot was last part of."""


@dataclass(frozen=True)
class Part:
    """What one slot computes in one step: `count` of its pending tokens; `row` is the last one's place in the batch."""

    slot: Slot
    request: Request
    count: int
    row: int


class Worker:
    """The sequences of one context. Everything but `look` and the counts is for the engine's thread alone."""

    def __init__(self, weights: Weights, context: Context, *, length: int, sequences: int) -> None:
        self.waiting: deque[Request] = deque()
        self._weights = weights
        self._context = context
        self._length = length
        self._slots = [Slot(sequence) for sequence in range(sequences)]
        self._batch = Batch(PREFILL_ALONE + sequences)
        self._adapter: Adapter | None = None
        self._turns = 0
        self._step = 0
        self._prefilling: tuple[RunningAnswer, ...] = ()
        self._retired: list[Adapter] = []

    @property
    def running(self) -> int:
        return sum(slot.request is not None for slot in self._slots)

    @property
    def busy(self) -> bool:
        return bool(self.waiting) or any(slot.request for slot in self._slots)

    def look(self) -> None:
        """Interrupt the decode that runs now if it computes the prompt of a cancelled answer. From any thread."""
        if any(answer.cancelled for answer in self._prefilling):
            self._context.abort()

    def step(self) -> None:
        """Start what can start, then compute one batch."""
        self._step += 1
        self._drop_cancelled()
        self._admit()
        if slots := self._turn():
            self._compute(slots)
        self._free_retired()

    def fail_all(self, outcome: Outcome, error: str | None = None) -> None:
        """End every answer with `outcome` and forget all sequences."""
        for slot in self._slots:
            if slot.request:
                self._finish(slot, outcome, error=error)
            self._clear(slot)
        while self.waiting:
            self.waiting.popleft().end(outcome, error=error)

    def retire(self, adapter: Adapter) -> None:
        """Free `adapter` once no answer uses it."""
        self._retired.append(adapter)
        self._free_retired()

    def _drop_cancelled(self) -> None:
        for slot in self._slots:
            if slot.request and slot.request.answer.cancelled:
                self._finish(slot, "cancelled")
        if any(request.answer.cancelled for request in self.waiting):
            for request in [request for request in self.waiting if request.answer.cancelled]:
                self.waiting.remove(request)
                request.end("cancelled")

    def _admit(self) -> None:
        for request in list(self.waiting) if self.waiting else ():
            free = [slot for slot in self._slots if slot.request is None]
            if not free:
                return
            if not self._prefix_is_coming(request):
                self.waiting.remove(request)
                self._place(request, free)

    def _prefix_is_coming(self, request: Request) -> bool:
        """Whether another sequence is computing much of this prompt right now; then copying it later is cheaper."""
        if not self._weights.keeps_positions:
            return False
        have = max(self._shared(slot, request) for slot in self._slots)
        coming = max(
            (
                common_prefix(slot.request.prompt, request.prompt)
                for slot in self._slots
                if slot.request and len(slot.pending) > 1 and slot.adapter is request.adapter
            ),
            default=0,
        )
        return coming >= have + WORTH_WAITING

    def _shared(self, slot: Slot, request: Request) -> int:
        """Tokens of the prompt that `slot` already holds; the last one is computed anyway, for its logits."""
        if slot.adapter is not request.adapter or not self._weights.keeps_positions:
            return 0
        return min(common_prefix(slot.tokens, request.prompt), len(request.prompt) - 1)

    def _place(self, request: Request, free: list[Slot]) -> None:
        best = max(self._slots, key=lambda slot: self._shared(slot, request))
        shared = self._shared(best, request)
        # A sequence that holds much else is somebody's conversation: take the beginning, leave the rest.
        in_place = best in free and 2 * shared >= len(best.tokens)
        slot = best if in_place else min(free, key=lambda slot: slot.used)
        if slot is best and not self._context.cut(slot.sequence, shared):
            shared = 0
        if slot is not best or not shared:
            self._clear(slot)
        if slot is not best and shared:
            self._context.copy(best.sequence, slot.sequence, shared)
        slot.tokens = request.prompt[:shared]
        slot.pending = request.prompt[shared:]
        slot.adapter = request.adapter
        slot.request = request
        request.admit(shared)

    def _turn(self) -> list[Slot]:
        """Return the slots of the adapter whose turn it is: one batch can have only one."""
        running = [slot for slot in self._slots if slot.request]
        others = [slot for slot in running if slot.adapter is not self._adapter]
        if others and (self._turns >= STEPS_PER_ADAPTER or len(others) == len(running)):
            self._adapter = min(others, key=lambda slot: slot.used).adapter
            self._turns = 0
        self._turns += 1
        return [slot for slot in running if slot.adapter is self._adapter]

    def _compute(self, slots: Sequence[Slot]) -> None:
        parts = self._pack(slots)
        self._context.allow()
        self._prefilling = tuple(part.request.answer for part in parts if part.count > 1)
        if any(answer.cancelled for answer in self._prefilling):
            return
        self._context.use(self._adapter)
        status = self._context.decode(self._batch)
        self._prefilling = ()
        if status:
            self._recover(status, parts)
            return
        for part in parts:
            self._advance(part)

    def _pack(self, slots: Sequence[Slot]) -> list[Part]:
        """Fill the batch: a token of every answer being written, then prompts in the order they came."""
        self._batch.clear()
        parts = [self._part(slot, 1) for slot in slots if len(slot.pending) == 1]
        writing = any(slot.request and len(slot.pending) == 1 for slot in self._slots)
        room = PREFILL_BESIDE if writing else PREFILL_ALONE
        reading = [slot for slot in slots if slot.request and len(slot.pending) > 1]
        for slot in sorted(reading, key=lambda slot: slot.request.asked_s if slot.request else 0.0):
            count = min(room, len(slot.pending))
            if count:
                parts.append(self._part(slot, count))
                room -= count
        return parts

    def _part(self, slot: Slot, count: int) -> Part:
        assert slot.request, "only a slot with a request computes"
        slot.used = self._step
        row = self._batch.add(
            slot.pending[:count],
            sequence=slot.sequence,
            position=len(slot.tokens),
            want_last=count == len(slot.pending),
        )
        return Part(slot, slot.request, count, row)

    def _recover(self, status: int, parts: list[Part]) -> None:
        """After a decode that remembered nothing: retry where that can help, else end the answer that cannot go on."""
        for part in parts:
            self._context.cut(part.slot.sequence, len(part.slot.tokens))
        if status == ABORTED or (status == NO_ROOM and self._forget_idle()):
            return
        if len(parts) > 1:
            for part in parts:
                self._compute([part.slot])
        else:
            self._finish(parts[0].slot, "error", error=f"llama.cpp cannot compute this answer (code {status})")
            self._clear(parts[0].slot)

    def _forget_idle(self) -> bool:
        idle = [slot for slot in self._slots if slot.tokens and slot.request is None]
        for slot in idle:
            self._clear(slot)
        return bool(idle)

    def _advance(self, part: Part) -> None:
        slot = part.slot
        slot.tokens += slot.pending[: part.count]
        slot.pending = slot.pending[part.count :]
        if not slot.pending:
            self._choose(slot, part)

    def _choose(self, slot: Slot, part: Part) -> None:
        """Pick the next token of an answer; end the answer or go on with it."""
        request = part.request
        try:
            token, margin = choose(self._context.logits(part.row), request.sampling, request.rng)
        except EngineError as error:
            self._finish(slot, "error", error=str(error))
            return
        if self._weights.is_end(token):
            self._finish(slot, "stop")
            return
        request.accept(margin)
        text, stopped = request.text.push(self._weights.piece(token))
        if stopped:
            self._finish(slot, "stop", text=text, tokens=(token,), margins=(margin,))
        elif request.count >= request.sampling.max_tokens or len(slot.tokens) + 1 >= self._length:
            self._finish(slot, "length", text=text, tokens=(token,), margins=(margin,))
        else:
            slot.pending = [token]
            request.answer.put(Chunk(text=text, tokens=(token,), margins=(margin,)))

    def _finish(
        self,
        slot: Slot,
        outcome: Outcome,
        *,
        text: str = "",
        tokens: tuple[int, ...] = (),
        margins: tuple[float, ...] = (),
        error: str | None = None,
    ) -> None:
        request, slot.request, slot.pending = slot.request, None, []
        assert request, "only a running answer ends"
        request.end(outcome, text=text, tokens=tokens, margins=margins, error=error)

    def _clear(self, slot: Slot) -> None:
        self._context.cut(slot.sequence)
        slot.tokens = []
        slot.adapter = None

    def _free_retired(self) -> None:
        for adapter in list(self._retired):
            users = [slot.request for slot in self._slots if slot.request] + list(self.waiting)
            if any(request.adapter is adapter for request in users):
                continue
            for slot in self._slots:
                if slot.adapter is adapter:
                    self._clear(slot)
            self._context.use(None)
            self._adapter = None
            self._retired.remove(adapter)
            adapter.close()


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens `a` and `b` begin with in common, by halving: slices compare at C's speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
