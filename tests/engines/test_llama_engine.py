import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Chunk, EngineOptions, RunningAnswer, Sampling, Schedule
from fieldlm.engines.llama import LlamaEngine
from fieldlm.engines.llama_api import Context, LlamaWeights, api
from tests.support.material import lora_gguf
from tests.support.waiting import wait_until

SYSTEM = "<|im_start|>system\nYou are the voice of a kiosk that sells coffee, tea and cakes.<|im_end|>\n"
ASK = SYSTEM + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LONG = Sampling(max_tokens=400)


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=1024, parallel=4))
    yield made
    made.close()


@pytest.fixture(scope="module")
def narrow(smollm2_gguf: Path) -> Iterator[LlamaEngine]:
    """An engine that answers one at a time."""
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=512, parallel=1))
    yield made
    made.close()


def ask(engine: LlamaEngine, text: str, sampling: Sampling | None = None, adapter: str | None = None) -> RunningAnswer:
    return engine.start(engine.tokenize(ASK.format(text)), sampling or Sampling(max_tokens=12), adapter=adapter)


def read(generation: RunningAnswer) -> tuple[str, list[int], Chunk]:
    """Return text, tokens and the last chunk, without its margins: they move with what is computed beside them."""
    chunks = list(generation)
    last = replace(chunks[-1], margins=())
    return "".join(c.text for c in chunks), [token for c in chunks for token in c.tokens], last


def endless(engine: LlamaEngine, adapter: str | None = None) -> RunningAnswer:
    """An answer that runs until it is cancelled or its context is full: it loops."""
    return ask(engine, "Repeat the word tea for ever: tea tea tea tea tea tea", LONG, adapter)


def first_text(generation: RunningAnswer) -> Iterator[Chunk]:
    chunks = iter(generation)
    next(chunks)
    return chunks


def test_the_same_question_gets_the_same_answer(engine: LlamaEngine) -> None:
    first, again = (read(ask(engine, "What do you sell?")) for _ in range(2))
    assert first == again
    assert first[0]


def test_the_text_is_that_of_the_tokens(engine: LlamaEngine) -> None:
    text, tokens, last = read(ask(engine, "What do you sell?"))
    assert engine.detokenize(tokens) == text
    assert last.outcome == "length"
    assert len(tokens) == 12


def test_an_answer_that_ends_by_itself_stops_without_its_stop_token(engine: LlamaEngine) -> None:
    generation = ask(engine, "Hello", Sampling(max_tokens=100))
    text, tokens, last = read(generation)
    assert last.outcome == "stop"
    assert not engine.stop_tokens & set(tokens)
    assert "<|im_end|>" not in text
    assert generation.timings.completion_tokens == len(tokens)


@pytest.mark.parametrize("text", ["naïve café", "日本語と🐍", "tabs\tand\nlines  ", "", "<b>&amp;</b> \x00 end"])
def test_text_survives_tokenizing(engine: LlamaEngine, text: str) -> None:
    assert engine.detokenize(engine.tokenize(text)) == text


def test_special_tokens_are_read_and_not_spoken(engine: LlamaEngine) -> None:
    (token,) = engine.tokenize("<|im_end|>")
    assert token in engine.stop_tokens
    assert engine.detokenize([token]) == ""


def test_a_stop_string_ends_the_answer_wherever_tokens_break(engine: LlamaEngine) -> None:
    whole, tokens, _ = read(ask(engine, "What do you sell?"))
    for start in range(1, len(whole) - 3):
        stop = whole[start : start + 3]
        text, _, last = read(ask(engine, "What do you sell?", Sampling(max_tokens=12, stop=("never", stop))))
        assert text == whole[: whole.index(stop)]
        assert last.outcome == "stop"
        if start > 12:
            break
    assert tokens


def test_a_shared_beginning_is_computed_once(engine: LlamaEngine) -> None:
    system = len(engine.tokenize(SYSTEM))
    read(ask(engine, "Is the cake fresh?"))
    second = ask(engine, "Do you take cards?")
    read(second)
    assert second.timings.cached_tokens >= system
    assert second.timings.prompt_tokens > second.timings.cached_tokens


def test_simultaneous_questions_share_the_beginning_too(smollm2_gguf: Path) -> None:
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=512, parallel=4))
    try:
        beginning = engine.tokenize(SYSTEM * 4)
        asked = [engine.start([*beginning, i], Sampling(max_tokens=2)) for i in range(100, 103)]
        for generation in asked:
            read(generation)
        assert [g.timings.cached_tokens for g in asked] == [0, len(beginning), len(beginning)]
    finally:
        engine.close()


def test_a_cached_prompt_gives_the_answer_of_a_fresh_one(engine: LlamaEngine) -> None:
    sampling = Sampling(max_tokens=6)
    fresh = read(ask(engine, "Name a cold drink.", sampling))
    cached = ask(engine, "Name a cold drink.", sampling)
    assert read(cached) == fresh
    assert cached.timings.cached_tokens == cached.timings.prompt_tokens - 1


def test_answers_run_side_by_side(engine: LlamaEngine) -> None:
    running = [endless(engine) for _ in range(4)]
    wait_until(lambda: engine.running == 4)
    for chunks in [first_text(generation) for generation in running]:
        assert next(chunks).outcome is None
    for generation in running:
        generation.cancel()
        assert list(generation)[-1].outcome == "cancelled"


def test_an_answer_says_in_how_much_company_it_was_written(engine: LlamaEngine) -> None:
    sampling = Sampling(max_tokens=48, ignore_eos=True)
    alone = ask(engine, "Name a colour.", sampling)
    read(alone)
    assert alone.timings.batch_size == 1.0
    together = [ask(engine, f"Name {i} colours.", sampling) for i in range(4)]
    for answer in together:
        read(answer)
    assert all(2.0 < answer.timings.batch_size <= 4.0 for answer in together)


def test_more_answers_than_sequences_wait_their_turn(engine: LlamaEngine) -> None:
    asked = [ask(engine, f"What is {i} plus {i}?", Sampling(max_tokens=3)) for i in range(10)]
    assert [read(generation)[2].outcome for generation in asked] == ["length"] * 10
    assert asked[-1].timings.queue_s > asked[0].timings.queue_s


def test_a_long_prompt_does_not_stall_a_running_answer(engine: LlamaEngine) -> None:
    seen: list[str] = []
    done = threading.Event()

    def of_long(chunk: Chunk) -> None:
        seen.append("long")
        if chunk.outcome:
            done.set()

    running = endless(engine)
    running.subscribe(lambda _: seen.append("running"))
    wait_until(lambda: len(seen) > 2)
    before = len(seen)
    engine.start(engine.tokenize("one more line of a novel. " * 100)[:600], Sampling(max_tokens=1)).subscribe(of_long)
    assert done.wait(60)
    running.cancel()
    # 600 tokens in chunks of 64, each beside one token of the running answer
    assert seen[before : seen.index("long")].count("running") >= 8


def test_a_cancelled_answer_frees_its_sequence(engine: LlamaEngine) -> None:
    generation = endless(engine)
    chunks = first_text(generation)
    assert engine.running == 1
    generation.cancel()
    generation.cancel()
    assert list(chunks)[-1].outcome == "cancelled"
    wait_until(lambda: engine.running == 0)


def test_an_answer_is_cancelled_while_it_is_queued(narrow: LlamaEngine) -> None:
    running, queued = endless(narrow), endless(narrow)
    wait_until(lambda: narrow.running == 1 and narrow.waiting == 1)
    queued.cancel()
    assert [chunk.outcome for chunk in queued] == ["cancelled"]
    assert narrow.running == 1
    running.cancel()
    assert list(running)[-1].outcome == "cancelled"


def test_an_answer_is_cancelled_in_the_middle_of_its_prompt(narrow: LlamaEngine) -> None:
    generation = narrow.start(narrow.tokenize("a quick brown fox. " * 200)[:500], LONG)
    wait_until(lambda: narrow.running == 1)
    generation.cancel()
    assert [chunk.outcome for chunk in generation] == ["cancelled"]
    assert generation.timings.completion_tokens == 0
    assert read(ask(narrow, "Hello", Sampling(max_tokens=2)))[2].outcome == "length"


def test_an_answer_ends_where_the_context_does(narrow: LlamaEngine) -> None:
    prompt = narrow.tokenize("a quick brown fox. " * 200)[: narrow.context - 3]
    generation = narrow.start(prompt, LONG)
    assert read(generation)[2].outcome in ("length", "stop")
    assert generation.timings.prompt_tokens + generation.timings.completion_tokens <= narrow.context


@pytest.mark.parametrize(
    ("tokens", "sampling", "reason"),
    [
        ([], Sampling(), "the prompt is empty"),
        ([1] * 512, Sampling(), "the prompt has 512 tokens, the context holds 512"),
        ([1], Sampling(max_tokens=0), "max_tokens is 0"),
    ],
)
def test_an_impossible_request_is_refused(
    narrow: LlamaEngine, tokens: list[int], sampling: Sampling, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        narrow.start(tokens, sampling)


def test_a_request_that_llama_cpp_cannot_compute_fails_alone(engine: LlamaEngine) -> None:
    running = endless(engine)
    chunks = first_text(running)
    broken = engine.start([1, 10_000_000], Sampling(max_tokens=4))
    text, _, last = read(broken)
    assert (text, last.outcome) == ("", "error")
    assert last.error == "llama.cpp cannot compute this answer (code -1)"
    assert next(chunks).outcome is None
    running.cancel()
    assert list(chunks)[-1].outcome == "cancelled"


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1, -5])
def test_the_same_seed_gives_the_same_text(engine: LlamaEngine, seed: int) -> None:
    sampling = Sampling(max_tokens=8, temperature=1.0, top_k=40, seed=seed)
    assert read(ask(engine, "Tell me a story.", sampling)) == read(ask(engine, "Tell me a story.", sampling))


def test_different_seeds_give_different_texts(engine: LlamaEngine) -> None:
    asked = [Sampling(max_tokens=8, temperature=1.5, seed=seed) for seed in range(4)]
    assert len({read(ask(engine, "Tell me a story.", sampling))[0] for sampling in asked}) > 1


def test_the_margin_says_how_sure_the_model_was(engine: LlamaEngine) -> None:
    sure = engine.start(engine.tokenize("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,"), Sampling(max_tokens=12))
    unsure = ask(engine, "Tell me a story.", Sampling(max_tokens=12, temperature=2.0, seed=1))
    read(sure)
    read(unsure)
    assert sure.timings.margin > unsure.timings.margin > 0


def test_one_subscriber_gets_every_chunk_in_order(engine: LlamaEngine) -> None:
    whole = read(ask(engine, "What do you sell?"))[0]
    chunks: list[Chunk] = []
    done = threading.Event()

    def receive(chunk: Chunk) -> None:
        chunks.append(chunk)
        if chunk.outcome:
            done.set()

    ask(engine, "What do you sell?").subscribe(receive)
    assert done.wait(60)
    assert "".join(chunk.text for chunk in chunks) == whole
    assert [chunk.outcome for chunk in chunks if chunk.outcome] == ["length"]


def test_the_engine_says_what_it_holds(engine: LlamaEngine) -> None:
    memory = engine.memory_mb()
    assert 90 < memory["weights"] < 140
    # 30 layers, 192 wide, keys and values, two bytes each, for 4 × 1024 tokens
    assert memory["kv"] == pytest.approx(30 * 192 * 2 * 2 * 4096 / 1e6, rel=0.01)
    assert memory["compute"] > 0


def test_closing_cancels_what_runs_and_refuses_what_comes(smollm2_gguf: Path) -> None:
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=512, parallel=1))
    running, queued = endless(engine), endless(engine)
    engine.close()
    engine.close()
    assert list(running)[-1].outcome == list(queued)[-1].outcome == "cancelled"
    with pytest.raises(EngineError, match="the engine is closed"):
        ask(engine, "Hello")


def clear_beginning(generation: RunningAnswer) -> list[int]:
    """The answer's tokens before the first near tie, which rounding tips otherwise in another batch; one at least."""
    chunks = list(generation)
    tokens = [token for chunk in chunks for token in chunk.tokens]
    margins = [margin for chunk in chunks for margin in chunk.margins]
    return tokens[: max(1, next((at for at, margin in enumerate(margins) if margin < 1), len(margins)))]


def test_an_adapter_changes_its_answers_and_no_others(engine: LlamaEngine, tmp_path: Path) -> None:
    sampling = Sampling(max_tokens=6)
    alone = clear_beginning(ask(engine, "What do you sell?", sampling))
    engine.load_adapter("barista", lora_gguf(tmp_path / "barista.gguf", scale=0.5))
    changed = clear_beginning(ask(engine, "What do you sell?", sampling, "barista"))
    assert changed[:1] != alone[:1]
    mixed = [ask(engine, "What do you sell?", sampling, name) for name in (None, "barista", None, "barista")]
    for generation, expected in zip(mixed, (alone, changed, alone, changed), strict=True):
        assert read(generation)[1][: len(expected)] == expected
    assert mixed[1].timings.cached_tokens > 0
    engine.drop_adapter("barista")
    with pytest.raises(InputError, match="adapter 'barista' is not loaded"):
        ask(engine, "Hello", adapter="barista")


def test_who_is_measured_waits_for_people_and_is_told_only_what_its_own_steps_took(
    engine: LlamaEngine, tmp_path: Path
) -> None:
    engine.load_adapter("tried", lora_gguf(tmp_path / "tried.gguf", scale=0.001))
    terms = Schedule(priority="batch", alone=True)

    def waited_longer_than_it_computed() -> bool:
        people = endless(engine)
        next(iter(people))
        tried = engine.start(engine.tokenize("1, 2, 3,"), Sampling(max_tokens=12), adapter="tried", terms=terms)
        *_, last = tried
        people.cancel()
        assert last.outcome == "length"
        return tried.timings.queue_s > tried.timings.prefill_s + tried.timings.decode_s > 0

    # Sixteen steps of people come before each two of its own; a neighbour may take the core in one of those once.
    assert any(waited_longer_than_it_computed() for _ in range(3))
    engine.drop_adapter("tried")


def test_an_adapter_dropped_while_it_answers_lives_until_the_answer_ends(engine: LlamaEngine, tmp_path: Path) -> None:
    engine.load_adapter("leaving", lora_gguf(tmp_path / "leaving.gguf", scale=0.001))
    running = endless(engine, "leaving")
    chunks = first_text(running)
    engine.drop_adapter("leaving")
    assert next(chunks).outcome is None
    engine.load_adapter("leaving", lora_gguf(tmp_path / "again.gguf", scale=0.001))
    assert next(chunks).outcome is None
    running.cancel()
    assert list(chunks)[-1].outcome == "cancelled"
    engine.drop_adapter("leaving")


def test_an_adapter_is_loaded_once_under_a_name(engine: LlamaEngine, tmp_path: Path) -> None:
    path = lora_gguf(tmp_path / "one.gguf")
    engine.load_adapter("one", path)
    with pytest.raises(EngineError, match="'one' is already loaded"):
        engine.load_adapter("one", path)
    engine.drop_adapter("one")


def test_damaged_weights_end_in_an_error_and_not_in_noise(engine: LlamaEngine, tmp_path: Path) -> None:
    engine.load_adapter("broken", lora_gguf(tmp_path / "nan.gguf", scale=float("nan")))
    running = endless(engine)
    chunks = first_text(running)
    _, _, last = read(ask(engine, "Hello", adapter="broken"))
    assert last.outcome == "error"
    assert "weights are damaged" in str(last.error)
    assert next(chunks).outcome is None
    running.cancel()
    engine.drop_adapter("broken")
    assert read(ask(engine, "Hello", Sampling(max_tokens=2)))[2].outcome == "length"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "qwen2"}, "an adapter for 'qwen2', the base is 'llama'"),
        ({"rows": 1024}, "has shape .*belongs to another model"),
        ({"layer": 30}, "'blk.30.ffn_down.weight', which the base does not have"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    engine: LlamaEngine, tmp_path: Path, change: dict[str, str | int], reason: str
) -> None:
    path = lora_gguf(tmp_path / "other.gguf", **change)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EngineError, match=reason):
        engine.load_adapter("other", path)


def test_the_base_is_not_an_adapter(engine: LlamaEngine, smollm2_gguf: Path) -> None:
    with pytest.raises(EngineError, match="is not a LoRA adapter"):
        engine.load_adapter("base", smollm2_gguf)


def test_closing_gives_the_weights_back_at_once_and_the_collector_is_not_needed(smollm2_gguf: Path) -> None:
    gc.disable()
    try:
        engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=128, parallel=1))
        weights = engine._need().weights  # pyright: ignore[reportPrivateUsage]
        assert list(engine.start([1, 2, 3], Sampling(max_tokens=1), terms=Schedule(deadline_s=60)))[-1].outcome
        assert weights.is_loaded
        engine.close()
        assert not weights.is_loaded
        with pytest.raises(EngineError, match="closed"):
            weights.tokenize("Hello")
    finally:
        gc.enable()


def test_weights_wait_for_who_still_reads_them(smollm2_gguf: Path) -> None:
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=128, parallel=1))
    weights = engine._need().weights  # pyright: ignore[reportPrivateUsage]
    weights.hold()
    engine.close()
    assert weights.tokenize("Hello")
    weights.release()
    assert not weights.is_loaded


def test_prompts_are_read_with_threads_of_their_own_and_neighbours_take_of_both(smollm2_gguf: Path) -> None:
    weights = LlamaWeights(smollm2_gguf)
    context = Context(weights, cells=64, sequences=1, batch=16, ubatch=16, threads=2, prefill_threads=3)

    def threads() -> tuple[int, int]:
        pointer = context._context  # pyright: ignore[reportPrivateUsage]
        return api.llama_n_threads(pointer), api.llama_n_threads_batch(pointer)

    assert threads() == (2, 3)
    context.limit_threads(1)
    assert threads() == (1, 1)
    context.limit_threads(8)
    assert threads() == (2, 3)
    context.close()
    weights.release()
