"""Terms, sampling and constraints in the llama engine: who comes first, who gives way, how everything ends."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from fieldlm.core.errors import InputError
from fieldlm.engines import Chunk, EngineOptions, Outcome, RunningAnswer, Sampling, Schedule
from fieldlm.engines.llama import LlamaEngine
from fieldlm.engines.sampling import CERTAIN
from tests.support.engines import OneOf
from tests.support.material import lora_gguf

BATCH, NOW = Schedule(priority="batch"), Schedule(priority="safety")
# The model goes on counting, and every token of it is chosen clearly.
COUNT = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"
LETTERS = "a, b, c, d, e, f, g, h, i,"


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Iterator[LlamaEngine]:
    """An engine that answers one at a time, so that nothing is computed beside an answer."""
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=1024, parallel=1))
    yield made
    made.close()


def start(engine: LlamaEngine, text: str, tokens: int, terms: Schedule | None = None) -> RunningAnswer:
    return engine.start(engine.tokenize(text), Sampling(max_tokens=tokens), terms=terms or Schedule())


def text_of(chunks: Sequence[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def outcome(generation: RunningAnswer) -> Outcome | None:
    return list(generation)[-1].outcome


class Order:
    """Who ended when."""

    def __init__(self, count: int) -> None:
        self.names: list[str] = []
        self._count = count
        self._done = threading.Event()

    def note(self, name: str, generation: RunningAnswer) -> None:
        def receive(chunk: Chunk) -> None:
            if chunk.outcome:
                self.names.append(name)
                if len(self.names) == self._count:
                    self._done.set()

        generation.subscribe(receive)

    def wait(self) -> list[str]:
        assert self._done.wait(120)
        return self.names


def test_a_batch_answer_gives_way_and_goes_on_as_if_nothing_had_been(engine: LlamaEngine) -> None:
    undisturbed = list(start(engine, COUNT, 40))
    # What comes back is computed in other pieces, so only clear choices have to be the same.
    margins = [margin for chunk in undisturbed for margin in chunk.margins]
    clear = next((place for place, margin in enumerate(margins) if margin < 1.0), len(margins))
    assert clear > 20
    batch = start(engine, COUNT, 40, BATCH)
    chunks = iter(batch)
    begun = [next(chunks) for _ in range(4)]
    urgent = start(engine, LETTERS, 4)
    assert outcome(urgent) == "length"
    resumed = begun + list(chunks)
    tokens = [token for chunk in resumed for token in chunk.tokens]
    assert tokens[:clear] == [token for chunk in undisturbed for token in chunk.tokens][:clear]
    assert engine.detokenize(tokens) == text_of(resumed)
    assert resumed[-1].outcome == "length"
    assert batch.timings.completion_tokens == len(tokens) == 40


def test_a_batch_answer_ends_after_those_it_gave_way_to(engine: LlamaEngine) -> None:
    order = Order(4)
    batch = start(engine, COUNT, 60, BATCH)
    chunks = iter(batch)
    next(chunks)
    # It has 59 tokens to go; whoever comes now is before it.
    others = {"interactive": Schedule(), "again": Schedule(), "safety": NOW}
    for name, generation in [(name, start(engine, LETTERS, 3, terms)) for name, terms in others.items()]:
        order.note(name, generation)
    order.note("batch", batch)
    assert order.wait()[-1] == "batch"


def test_who_waits_is_taken_in_order_of_urgency(engine: LlamaEngine) -> None:
    order = Order(5)
    running = start(engine, COUNT, 900)
    next(iter(running))
    wanted = {
        "batch": BATCH,
        "any time": Schedule(),
        "by tonight": Schedule(deadline_s=20000),
        "by noon": Schedule(deadline_s=10000),
        "safety": NOW,
    }
    for name, terms in wanted.items():
        order.note(name, start(engine, LETTERS, 2, terms))
    running.cancel()
    assert order.wait() == ["safety", "by noon", "by tonight", "any time", "batch"]


def test_a_deadline_ends_an_answer_in_the_middle_of_its_prompt(engine: LlamaEngine) -> None:
    prompt = engine.tokenize("Seven brown foxes and a lazy dog. " * 100)[:600]
    late = engine.start(prompt, Sampling(), terms=Schedule(deadline_s=0.02))
    assert [chunk.outcome for chunk in late] == ["deadline_exceeded"]
    assert late.timings.completion_tokens == 0
    # The first piece of 256 tokens takes longer than that: it was interrupted, and nothing of it is remembered.
    after = engine.start(prompt, Sampling(max_tokens=1))
    while not engine.running:
        time.sleep(0.002)
    after.cancel()
    assert outcome(after) == "cancelled"
    assert after.timings.cached_tokens == 0


def test_a_deadline_ends_an_answer_that_is_being_written_with_what_there_is(engine: LlamaEngine) -> None:
    ends: list[Chunk] = []
    for limit_s in (0.5, 2.0, 8.0, 32.0):
        generation = start(engine, COUNT, 960, Schedule(deadline_s=limit_s))
        chunks = list(generation)
        ends.append(chunks[-1])
        if len(chunks) > 1:
            assert text_of(chunks).startswith(" ")
            assert generation.timings.completion_tokens == sum(len(chunk.tokens) for chunk in chunks)
            break
    assert {chunk.outcome for chunk in ends} <= {"deadline_exceeded", "length"}
    assert ends[0].outcome == "deadline_exceeded"


def test_limits_hold_while_an_answer_waits(engine: LlamaEngine) -> None:
    running = start(engine, COUNT, 900)
    chunks = iter(running)
    next(chunks)
    late, refused = (
        start(engine, LETTERS, 2, terms) for terms in (Schedule(deadline_s=0.05), Schedule(max_queue_s=0.05))
    )
    assert [list(late), list(refused)] == [
        [Chunk(text="", tokens=(), outcome="deadline_exceeded")],
        [Chunk(text="", tokens=(), outcome="rejected")],
    ]
    assert late.timings.queue_s > 0
    assert next(chunks).outcome is None
    running.cancel()
    assert list(chunks)[-1].outcome == "cancelled"


def test_a_batch_answer_that_has_begun_is_not_rejected_when_it_waits_again(engine: LlamaEngine) -> None:
    batch = start(engine, COUNT, 8, Schedule(priority="batch", max_queue_s=600))
    chunks = iter(batch)
    next(chunks)
    assert outcome(start(engine, LETTERS, 2)) == "length"
    assert list(chunks)[-1].outcome == "length"


def test_a_parked_answer_can_be_cancelled_and_has_its_text(engine: LlamaEngine) -> None:
    batch = start(engine, COUNT, 900, BATCH)
    chunks = iter(batch)
    first = next(chunks)
    running = start(engine, COUNT, 900)
    next(iter(running))
    batch.cancel()
    rest = list(chunks)
    assert rest[-1].outcome == "cancelled"
    assert engine.detokenize([t for c in [first, *rest] for t in c.tokens]) == text_of([first, *rest])
    running.cancel()
    assert outcome(running) == "cancelled"


def test_an_answer_that_was_pushed_out_until_its_deadline_says_so_and_has_its_text(engine: LlamaEngine) -> None:
    batch = start(engine, COUNT, 900, Schedule(priority="batch", deadline_s=1.0))
    chunks = iter(batch)
    first = next(chunks)
    running = start(engine, COUNT, 1000)
    said = [first, *chunks]
    assert said[-1].outcome == "preempted"
    assert engine.detokenize([t for c in said for t in c.tokens]) == text_of(said)
    assert batch.timings.queue_s > batch.timings.decode_s
    running.cancel()
    assert outcome(running) == "cancelled"


def test_an_engine_that_closes_tells_who_was_pushed_out_from_who_was_running(smollm2_gguf: Path) -> None:
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=512, parallel=1))
    batch = start(made, COUNT, 400, BATCH)
    chunks = iter(batch)
    next(chunks)
    running = start(made, COUNT, 400)
    next(iter(running))
    never_begun = start(made, COUNT, 400, BATCH)
    made.close()
    assert [list(chunks)[-1].outcome, outcome(running), outcome(never_begun)] == ["preempted", "cancelled", "cancelled"]


def test_forced_tokens_are_computed_in_one_piece_and_the_answer_is_what_it_has_to_be(engine: LlamaEngine) -> None:
    sequences = ['{"drink": "green tea", "size": 1}', '{"drink": "black coffee", "size": 2}']
    allowed = OneOf(tuple(tuple(engine.tokenize(sequence)) for sequence in sequences))
    chunks = list(engine.start(engine.tokenize(LETTERS), Sampling(constraint=allowed, logprobs=2)))
    assert text_of(chunks) in sequences
    assert chunks[-1].outcome == "stop"
    # One choice decides it all: what is common before it comes with the prompt, what follows with the choice.
    assert len(chunks) == 1
    margins = chunks[0].margins
    assert sum(margin < CERTAIN for margin in margins) <= 1
    assert [choice.token for choice in chunks[0].choices] == list(chunks[0].tokens)


def test_an_answer_goes_on_behind_forced_tokens(engine: LlamaEngine) -> None:
    pairs = [(a, b) for a in ("red", "blue") for b in ("tea", "milk")]
    allowed = OneOf(tuple(tuple(engine.tokenize(f"{a} cups of hot {b} for you")) for a, b in pairs))
    chunks = list(engine.start(engine.tokenize(LETTERS), Sampling(constraint=allowed)))
    assert text_of(chunks) in {f"{a} cups of hot {b} for you" for a, b in pairs}
    assert len(chunks) == 2


def test_a_broken_constraint_ends_its_own_answer_only(engine: LlamaEngine) -> None:
    broken = OneOf(((400, 500), (600, 700)), breaks_after=1)
    last = list(engine.start(engine.tokenize(LETTERS), Sampling(constraint=broken)))[-1]
    assert (last.outcome, last.error) == ("error", "the engine failed: this constraint is broken")
    assert outcome(start(engine, LETTERS, 2)) == "length"


def test_a_token_banned_by_its_bias_is_not_said(engine: LlamaEngine) -> None:
    prompt = engine.tokenize(COUNT)
    (first,) = [c.tokens[0] for c in engine.start(prompt, Sampling(max_tokens=1))]
    (other,) = [c.tokens[0] for c in engine.start(prompt, Sampling(max_tokens=1, logit_bias=((first, -100.0),)))]
    assert other != first
    with pytest.raises(InputError, match="logit_bias names token 99999999"):
        engine.start(prompt, Sampling(logit_bias=((99999999, 1.0),)))


def test_a_frequency_penalty_breaks_a_loop(engine: LlamaEngine) -> None:
    looping, free = (
        [token for chunk in engine.start(engine.tokenize(COUNT), sampling) for token in chunk.tokens]
        for sampling in (Sampling(max_tokens=24), Sampling(max_tokens=24, frequency_penalty=2.0))
    )
    assert len(set(free)) > len(set(looping))


def test_an_adapter_dropped_while_a_request_waits_for_it_answers_it(engine: LlamaEngine, tmp_path: Path) -> None:
    engine.load_adapter("leaving", lora_gguf(tmp_path / "leaving.gguf", scale=0.001))
    running = start(engine, COUNT, 900)
    next(iter(running))
    queued = engine.start(engine.tokenize(LETTERS), Sampling(max_tokens=2), adapter="leaving")
    engine.drop_adapter("leaving")
    running.cancel()
    assert outcome(queued) == "length"
    with pytest.raises(InputError, match="is not loaded"):
        engine.drop_adapter("leaving")
