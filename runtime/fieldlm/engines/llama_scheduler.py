"""Continuous batching: sequences, prefix cache, chunked prefill and decode steps. Runs in one thread.

A step takes one token of every answer that is being written, and then prompt tokens up to a bound, so that a long
prompt delays a running answer by one chunk. What a finished answer leaves in memory stays until its sequence is
needed: a prompt that begins like it starts where the two part. So does a batch answer that gave its sequence up: it
comes back as a prompt that is as long as it got.
"""

import time
from collections.abc import Sequence
from itertools import chain

from fieldlm.engines import Chunk, Outcome
from fieldlm.engines.fair_share import FairShare
from fieldlm.engines.llama_api import ABORTED, NO_ROOM, Batch, Context, LlamaWeights, LoraAdapter
from fieldlm.engines.memory_plan import PREFILL_ALONE
from fieldlm.engines.prompt_lookup import Costs, common_prefix
from fieldlm.engines.request_queue import RequestQueue
from fieldlm.engines.sequences.batch_invariance import BatchInvariance
from fieldlm.engines.sequences.mixing import MIXED, Group, mixed
from fieldlm.engines.sequences.slots import BatchSpan, LlamaRequest, Slot
from fieldlm.hardware.governor import Pace

# Prompt tokens a step while an answer is being written: what it waits between two tokens. And of a batch prompt: what
# another class waits for that comes, and what one waits for that is there.
PREFILL_BESIDE = 64
PREFILL_BEHIND = 16
WORTH_WAITING = 32  # tokens of prefix another sequence is just computing, for which a request waits a step


class LlamaScheduler:
    """The sequences of one context. Everything but `look`, the line and the counts is for the engine's thread alone."""

    def __init__(
        self, weights: LlamaWeights, context: Context, sequences: int, *, prefill: int = PREFILL_ALONE,
        pace: Pace, invariance: BatchInvariance | None = None,
    ) -> None:  # fmt: skip
        self.waiting: RequestQueue[LlamaRequest] = RequestQueue()
        self._weights = weights
        self._context = context
        self._pace = pace
        self._slots = [Slot(sequence) for sequence in range(sequences)]
        self._prefill = prefill
        self._batch = Batch(prefill + sequences)
        self._adapter: LoraAdapter | None = None
        self._is_mixed = False
        self._turns = FairShare[Group]()
        self._invariance = invariance
        self._step = 0
        self._prefilling: tuple[LlamaRequest, ...] = ()
        self._retired: list[LoraAdapter] = []
        self._spoke: list[Slot] = []
        self._costs = Costs()

    @property
    def running(self) -> int:
        return sum(slot.request is not None for slot in self._slots)

    @property
    def busy(self) -> bool:
        for slot in self._slots:
            if slot.request is not None:
                return True
        return len(self.waiting) > 0

    def look(self) -> None:
        """End who waits in vain, and interrupt the decode that computes a prompt in vain. From any thread."""
        self.waiting.sweep()
        if any(request.terminal_outcome() for request in self._prefilling):
            self._context.abort()

    def step(self) -> None:
        """Start what can start, then compute one batch."""
        self._step += 1
        asked = chain((slot.request for slot in self._slots), self.waiting)
        self._context.limit_threads(self._pace.threads(asked))
        self._end_over()
        if len(self.waiting):
            self.waiting.sweep()
            self._admit()
        if slots := self._turn():
            self._compute(slots)
        if self._retired:
            self._free_retired()
        self._pace.rest(len(self._spoke))

    def fail_all(self, error: str) -> None:
        """End every answer with `error` and forget all sequences."""
        self._end_running("error", error)
        self.waiting.end_all("error", error)

    def close(self) -> None:
        """End every answer, for there will be no more steps."""
        self._end_running("cancelled")
        self.waiting.close_all()

    def _end_running(self, outcome: Outcome, error: str | None = None) -> None:
        for slot in self._slots:
            if slot.request:
                self._finish(slot, outcome, error)
            self._clear(slot)

    def abandon(self, error: str) -> list[LlamaRequest]:
        """Tell those that run that nothing will come, and return those that wait. From any thread: its own hangs."""
        for slot in self._slots:
            if request := slot.request:
                request.answer.put(Chunk(text="", tokens=(), outcome="error", error=error))
        return [request for request in self.waiting if self.waiting.take(request)]

    def remembered(self, tokens: Sequence[int], adapter: LoraAdapter | None) -> tuple[list[int], bytes] | None:
        """Return `tokens` and the memory of a sequence that begins with them and is idle, where there is one.

        What it holds beyond them, which is somebody's conversation, is forgotten first: a memory may go to a disk.
        """
        count = len(tokens)
        ours = [slot for slot in self._slots if slot.adapter is adapter and slot.request is None]
        alike = [slot for slot in ours if slot.tokens and common_prefix(slot.tokens, tokens) == count]
        best = min(alike, key=lambda slot: len(slot.tokens), default=None)
        if best is None or not self._weights.keeps_positions:
            return None
        if len(best.tokens) > count:
            self._context.cut(best.sequence, count)
            best.tokens = best.tokens[:count]
        return list(best.tokens), self._context.state(best.sequence)

    def remember(self, tokens: Sequence[int], adapter: LoraAdapter | None, state: bytes) -> bool:
        """Begin a sequence that holds `tokens` with what was `remembered` of them; False when that is not possible."""
        slot = next((slot for slot in self._slots if not slot.tokens and slot.request is None), None)
        if slot is None or not self._weights.keeps_positions:
            return False
        if not self._context.restore(slot.sequence, state):
            self._clear(slot)
            return False
        slot.tokens, slot.adapter, slot.cache_salt = list(tokens), adapter, None
        return True

    def retire(self, adapter: LoraAdapter) -> None:
        """Free `adapter` once no answer uses it."""
        self._retired.append(adapter)
        self._free_retired()

    def _end_over(self) -> None:
        for slot in self._slots:
            if slot.request is not None and (fate := slot.request.terminal_outcome()):
                self._finish(slot, fate)

    def _admit(self) -> None:
        """Give sequences to who waits, the most urgent first."""
        kept = 0
        for request in self.waiting:
            if self._prefix_is_coming(request):
                kept += 1
            elif (len(self._free()) > kept or self._make_room(request)) and self.waiting.take(request):
                self._place(request)

    def _is_strict(self, adapter: LoraAdapter | None) -> bool:
        """Whether answers with `adapter` are computed alone and from their beginning, so that they can be repeated."""
        return self._invariance is not None and not self._invariance.holds(adapter)

    def _free(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.request is None]

    def _make_room(self, request: LlamaRequest) -> bool:
        """Have the least urgent batch answer give its sequence up for one of another class."""
        # What is computed strictly cannot be taken up again: as a prompt, its words would come out otherwise.
        batch = [
            (slot.request.urgency, slot)
            for slot in self._slots
            if slot.request and slot.request.is_batch and not self._is_strict(slot.adapter)
        ]
        if request.is_batch or not batch:
            return False
        _, slot = max(batch, key=lambda pair: pair[0])
        parked, slot.request, slot.pending = slot.request, None, []
        assert parked, "it was found by its request"
        if parked.hand_over():
            parked.park()
            self.waiting.add(parked)
        return True

    def _prefix_is_coming(self, request: LlamaRequest) -> bool:
        """Whether a sequence as urgent is computing much of this prompt right now; then copying it later is cheaper."""
        if not self._weights.keeps_positions or self._is_strict(request.adapter):
            return False
        have = max(self._shared(slot, request) for slot in self._slots)
        coming = max(
            (
                common_prefix(slot.request.tokens, request.tokens)
                for slot in self._slots
                if slot.request
                and len(slot.pending) > 1
                and slot.adapter is request.adapter
                and slot.cache_salt in (None, request.terms.cache_salt)
                and slot.request.is_batch <= request.is_batch
            ),
            default=0,
        )
        return coming >= have + WORTH_WAITING

    def _shared(self, slot: Slot, request: LlamaRequest) -> int:
        """Tokens of `request` that `slot` already holds; the last one is computed anyway, for its logits."""
        if slot.adapter is not request.adapter or not self._weights.keeps_positions or self._is_strict(slot.adapter):
            return 0
        return min(common_prefix(slot.tokens, request.tokens), slot.serves(request), len(request.tokens) - 1)

    def _place(self, request: LlamaRequest) -> None:
        if not request.prepare():
            return
        free = self._free()
        if self._invariance is not None and not self._invariance.is_known:
            self._clear(free[0])
            self._invariance.find_out(free[0].sequence)
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
        slot.shared = min(shared, len(best.tokens) if best.cache_salt is None else best.shared)
        slot.cache_salt = request.terms.cache_salt
        slot.tokens = request.tokens[:shared]
        slot.pending = request.tokens[shared:]
        slot.adapter = request.adapter
        slot.request = request
        request.begin(shared)
        if request.lookup is not None:
            self._costs.forget()

    def _turn(self) -> list[Slot]:
        """Return the slots of the next step: all slots of one adapter; a slot that must run alone comes alone.

        Where llama.cpp can mix adapters, all answers that are being written come together.
        """
        groups: dict[Group, list[Slot]] = {}
        for slot in self._slots:
            if slot.request is not None:
                is_alone = slot.request.terms.alone or self._is_strict(slot.adapter)
                groups.setdefault((slot.adapter, slot.sequence if is_alone else None), []).append(slot)
        if not groups:
            return []
        if len(groups) > 1 and self._context.mixes_adapters:
            groups = mixed(groups)
        ways = {group: all(slot.request and slot.request.is_batch for slot in slots) for group, slots in groups.items()}
        group = self._turns.next(ways)
        self._adapter, self._is_mixed = group[0], group == MIXED
        return groups[group]

    def _compute(self, slots: Sequence[Slot]) -> None:
        self._context.allow()
        parts = self._pack(slots)
        if self._prefilling and any(request.terminal_outcome() for request in self._prefilling):
            return
        if self._is_mixed:
            self._context.use_by_sequence({slot.sequence: slot.adapter for slot in slots})
        else:
            self._context.use(self._adapter)
        if not self._hand_over():
            return
        rows, began_s = self._rows_of_one(parts), time.monotonic()
        measured = [part.request for part in parts if part.request.terms.alone]
        for request in measured:
            request.resume()
        status = self._context.decode(self._batch)
        for request in measured:
            request.rest()
        self._prefilling = ()
        if status:
            self._recover(status, parts)
            return
        batch_size = self.running
        for part in parts:
            self._advance(part, batch_size)
        if rows:
            self._costs.note(rows, time.monotonic() - began_s)

    def _rows_of_one(self, parts: Sequence[BatchSpan]) -> int:
        """Return how many tokens of an answer that may be drafted are computed, alone; 0 for any other step."""
        part = parts[0] if len(parts) == 1 else None
        if part is None or part.request.lookup is None or not part.request.count:
            return 0
        return part.width + len(part.draft)

    def _hand_over(self) -> bool:
        """Let all readers have what was said; False when one could not take it, so that what is packed is stale."""
        spoke, self._spoke = self._spoke, []
        all_took = True
        for slot in spoke:
            if slot.request is not None and not slot.request.hand_over():
                slot.request, slot.pending, all_took = None, [], False
        return all_took

    def _pack(self, slots: Sequence[Slot]) -> list[BatchSpan]:
        """Fill the batch: a token of every answer being written, then what is longer, the most urgent first."""
        self._batch.clear()
        if self._is_mixed:
            self._prefilling = ()
            return [self._part(slot, len(slot.pending)) for slot in slots]
        if len(slots) == 1 and (draft := self._draft(slots[0])):
            return [self._part_with(slots[0], draft)]
        parts: list[BatchSpan] = []
        longer: list[tuple[LlamaRequest, Slot]] = []
        for slot in slots:
            if len(slot.pending) == 1:
                parts.append(self._part(slot, 1))
            elif slot.request is not None:
                longer.append((slot.request, slot))
        prompts = self._pack_longer(longer) if longer else ()
        self._prefilling = tuple([part.request for part in prompts])
        return [*parts, *prompts] if prompts else parts

    def _draft(self, slot: Slot) -> list[int]:
        """Return what the answer in `slot` may say next; nothing while somebody else would wait for the longer step."""
        request = slot.request
        if request is None or request.lookup is None or not request.count or not self._weights.keeps_positions:
            return []
        request.lookup.follow(request.tokens)
        if len(self.waiting) or self.running > 1 or self._is_strict(slot.adapter):
            return []
        # One less than is left to say: the last one follows from the logits behind the draft.
        return request.lookup.draft(len(slot.pending), request.capacity - len(request.tokens) - 1, self._costs)

    def _pack_longer(self, longer: list[tuple[LlamaRequest, Slot]]) -> list[BatchSpan]:
        room = self._room([request for request, _ in longer])
        parts: list[BatchSpan] = []
        # Tokens that a constraint forced belong to an answer that is being written.
        for _, slot in sorted(longer, key=lambda pair: (not pair[0].count, pair[0].urgency)):
            if count := min(room, len(slot.pending)):
                parts.append(self._part(slot, count))
                room -= count
        return parts

    def _room(self, longer: Sequence[LlamaRequest]) -> int:
        """Return how many tokens of prompts one step may take, so that nobody waits long for the next one."""
        if self._is_strict(self._adapter):
            return self._prefill
        if all(request.is_batch for request in longer):
            has_people = any(slot.request and not slot.request.is_batch for slot in self._slots)
            return PREFILL_BEHIND if has_people else PREFILL_BESIDE
        is_writing = any(slot.request and len(slot.pending) == 1 for slot in self._slots)
        return PREFILL_BESIDE if is_writing else self._prefill

    def _part(self, slot: Slot, count: int) -> BatchSpan:
        assert slot.request, "only a slot with a request computes"
        slot.used = self._step
        row = self._batch.add(
            slot.pending[:count],
            sequence=slot.sequence,
            position=len(slot.tokens),
            want_last=count == len(slot.pending),
            want_all=self._is_mixed,
        )
        return BatchSpan(slot, slot.request, count, row)

    def _part_with(self, slot: Slot, draft: list[int]) -> BatchSpan:
        """Pack all that is pending and `draft` behind it, whose logits are wanted token by token."""
        part = self._part(slot, len(slot.pending))._replace(draft=draft)
        for position, token in enumerate(draft, start=len(slot.tokens) + part.width):
            self._batch.add([token], sequence=slot.sequence, position=position, want_last=True)
        self._prefilling = (part.request,)
        return part

    def _recover(self, status: int, parts: list[BatchSpan]) -> None:
        """After a decode that remembered nothing: retry where that can help, else end the answer that cannot go on."""
        for part in parts:
            self._context.cut(part.slot.sequence, len(part.slot.tokens))
        if status == ABORTED or (status == NO_ROOM and self._forget_idle()):
            return
        if len(parts) > 1:
            for part in parts:
                self._compute([part.slot])
        else:
            self._finish(parts[0].slot, "error", f"llama.cpp cannot compute this answer (code {status})")
            self._clear(parts[0].slot)

    def _forget_idle(self) -> bool:
        idle = [slot for slot in self._slots if slot.tokens and slot.request is None]
        for slot in idle:
            self._clear(slot)
        return bool(idle)

    def _advance(self, part: BatchSpan, batch_size: int) -> None:
        slot, request = part.slot, part.request
        slot.tokens += slot.pending[: part.width]
        slot.pending = slot.pending[part.width :]
        if slot.pending:
            return
        if self._choose_on(part) if part.draft else request.advance(self._context.logits(part.row), batch_size):
            slot.pending = request.tokens[len(slot.tokens) :]
            self._spoke.append(slot)
        else:
            slot.request = None
        if part.draft:
            self._context.cut(slot.sequence, len(slot.tokens))

    def _choose_on(self, part: BatchSpan) -> bool:
        """Have the answer go on while it says what was drafted; False when it has ended."""
        slot, request, row, draft = part.slot, part.request, part.row, part.draft
        timings = request.answer.timings
        timings.drafted_tokens += len(draft)
        while request.advance(self._context.logits(row)):
            said = request.tokens[len(slot.tokens) :]
            right = common_prefix(said, draft)
            slot.tokens += said[:right]
            timings.accepted_tokens += right
            if right < len(said):
                return True
            row, draft = row + right, draft[right:]
        return False

    def _finish(self, slot: Slot, outcome: Outcome, error: str | None = None) -> None:
        request, slot.request, slot.pending = slot.request, None, []
        assert request, "only a running answer ends"
        request.end(outcome, error)

    def _clear(self, slot: Slot) -> None:
        self._context.cut(slot.sequence)
        slot.tokens, slot.shared = [], 0
        slot.adapter = slot.cache_salt = None

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
