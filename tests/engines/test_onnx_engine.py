"""The ONNX engine: many answers side by side, each as if it were alone, and every end has its name."""

import gc
import shutil
import threading
import weakref
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Chunk, Engine, EngineOptions, Sampling, Schedule, TokenChoice, memory_plan, open_engine
from fieldlm.engines.onnx import METADATA, OnnxEngine, open_graph
from fieldlm.engines.sampling import choose, make_rng
from fieldlm.engines.stop_text import TextStream
from tests.support import onnx_models
from tests.support.waiting import wait_until

QUESTIONS = ("Where is the lift?", "Turn the light on, please. " * 12, "7 × 8 = ")
GREEDY = Sampling(max_tokens=24)


@pytest.fixture(scope="module", params=["llama", "qwen3"], ids=["shared-cache", "grown-cache"])
def engine(request: pytest.FixtureRequest) -> Generator[OnnxEngine]:
    folder = onnx_models.fp32(request.param).folder
    opened = open_graph(folder / "model.onnx", folder / "tokenizer.json", EngineOptions(threads=1, parallel=3))
    # These models never end by themselves for sure; without stop tokens every answer has its full length.
    opened.stop_tokens = frozenset()
    yield opened
    opened.close()


def answer(engine: Engine, question: str, sampling: Sampling = GREEDY) -> tuple[list[int], str, Chunk]:
    chunks = list(engine.start(engine.tokenize(question), sampling))
    return [t for chunk in chunks for t in chunk.tokens], "".join(chunk.text for chunk in chunks), chunks[-1]


def test_answers_side_by_side_are_those_given_alone(engine: OnnxEngine) -> None:
    alone = [answer(engine, question) for question in QUESTIONS]
    running = [engine.start(engine.tokenize(question), GREEDY) for question in QUESTIONS * 3]
    together = [[token for chunk in one for token in chunk.tokens] for one in running]
    assert together == [tokens for tokens, _, _ in alone] * 3
    assert max(one.timings.batch_size for one in running) > 1
    assert engine.memory_mb()["kv"] == 0


def test_requests_from_many_threads_do_not_disturb_each_other(engine: OnnxEngine) -> None:
    alone = {question: answer(engine, question)[0] for question in QUESTIONS}
    found: list[bool] = []

    def ask(question: str) -> None:
        found.extend(answer(engine, question)[0] == alone[question] for _ in range(3))

    threads = [threading.Thread(target=ask, args=(question,)) for question in QUESTIONS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 9


def test_a_short_answer_overtakes_a_long_one_that_came_first(engine: OnnxEngine) -> None:
    ended: list[str] = []
    done = threading.Event()

    def note(name: str, chunk: Chunk) -> None:
        if chunk.outcome:
            ended.append(name)
        if len(ended) == 2:
            done.set()

    long = engine.start(engine.tokenize("long"), Sampling(max_tokens=200))
    short = engine.start(engine.tokenize("short"), Sampling(max_tokens=4))
    long.subscribe(lambda chunk: note("long", chunk))
    short.subscribe(lambda chunk: note("short", chunk))
    assert done.wait(60)
    assert ended == ["short", "long"]


def test_cancel_frees_the_sequence_and_the_next_answer_is_right(engine: OnnxEngine) -> None:
    expected = answer(engine, QUESTIONS[0])[0]
    running = engine.start(engine.tokenize(QUESTIONS[1]), Sampling(max_tokens=200))
    next(iter(running))
    assert engine.memory_mb()["kv"] > 0
    running.cancel()
    running.cancel()
    assert list(running)[-1].outcome == "cancelled"
    assert answer(engine, QUESTIONS[0])[0] == expected
    assert engine.memory_mb()["kv"] == 0


def test_cancel_works_while_the_request_still_waits(engine: OnnxEngine) -> None:
    running = [engine.start(engine.tokenize("x"), Sampling(max_tokens=400)) for _ in range(3)]
    waiting = engine.start(engine.tokenize("y"), GREEDY)
    waiting.cancel()
    assert list(waiting) == [Chunk(text="", tokens=(), outcome="cancelled")]
    for one in running:
        one.cancel()
        assert list(one)[-1].outcome == "cancelled"


def test_a_seed_reproduces_an_answer_and_another_seed_gives_another(engine: OnnxEngine) -> None:
    drawn = [answer(engine, QUESTIONS[0], Sampling(max_tokens=24, temperature=1.5, seed=seed))[0] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_text_is_that_of_the_tokens_and_the_counts_agree(engine: OnnxEngine) -> None:
    prompt = engine.tokenize(QUESTIONS[1])
    running = engine.start(prompt, GREEDY)
    chunks = list(running)
    tokens = [token for chunk in chunks for token in chunk.tokens]
    assert "".join(chunk.text for chunk in chunks) == engine.detokenize(tokens)
    assert running.timings.prompt_tokens == len(prompt)
    assert running.timings.completion_tokens == len(tokens) == 24
    assert running.timings.prefill_s > 0
    assert running.timings.decode_s > 0
    assert running.timings.margin > 0
    assert running.timings.free_tokens == len(tokens)
    assert running.timings.min_logprob is not None
    assert running.timings.min_logprob == pytest.approx(min(choice.logprob for choice in described(engine)), abs=0.1)


def described(engine: OnnxEngine) -> list[TokenChoice]:
    """The choices of the same answer by the whole vocabulary, as who asks for log probabilities gets them."""
    running = engine.start(engine.tokenize(QUESTIONS[1]), replace(GREEDY, logprobs=0))
    return [choice for chunk in running for choice in chunk.choices]


def test_a_stop_token_ends_an_answer_and_is_no_part_of_it(engine: OnnxEngine) -> None:
    tokens = answer(engine, QUESTIONS[0])[0]
    last = next(place for place in range(4, 24) if tokens[place] not in tokens[:place])
    engine.stop_tokens = frozenset({tokens[last]})
    try:
        found, _, end = answer(engine, QUESTIONS[0])
    finally:
        engine.stop_tokens = frozenset()
    assert (found, end.outcome) == (tokens[:last], "stop")


def test_a_stop_string_ends_an_answer_before_it(engine: OnnxEngine) -> None:
    text = answer(engine, QUESTIONS[0])[1]
    stop = text[3:5]
    _, found, end = answer(engine, QUESTIONS[0], Sampling(max_tokens=24, stop=(stop,)))
    assert (found, end.outcome) == (text[: text.index(stop)], "stop")


def test_an_answer_ends_where_the_context_ends(engine: OnnxEngine) -> None:
    prompt = [65] * (engine.context - 5)
    chunks = list(engine.start(prompt, Sampling(max_tokens=100)))
    assert sum(len(chunk.tokens) for chunk in chunks) == 5
    assert chunks[-1].outcome == "length"


def test_a_prompt_without_room_for_an_answer_is_refused(engine: OnnxEngine) -> None:
    with pytest.raises(InputError, match="no room in the context of 512"):
        engine.start([65] * engine.context, GREEDY)
    with pytest.raises(InputError, match="it is empty"):
        engine.start([], GREEDY)


def test_a_token_that_the_model_does_not_have_ends_only_its_own_answer(engine: OnnxEngine) -> None:
    good = engine.start(engine.tokenize(QUESTIONS[0]), GREEDY)
    bad = list(engine.start([10**6], GREEDY))
    assert bad[-1].outcome == "error"
    assert bad[-1].error is not None
    assert list(good)[-1].outcome == "length"


def test_special_tokens_written_in_text_become_their_ids(engine: OnnxEngine) -> None:
    assert engine.tokenize("<|im_start|>a<|im_end|>")[::2] == [1, 2]
    assert engine.detokenize(engine.tokenize("<|im_start|>Grüße 😀<|im_end|>")) == "Grüße 😀"


def test_adapters_are_refused_with_what_to_do_instead(engine: OnnxEngine) -> None:
    with pytest.raises(EngineError, match="merge it"):
        engine.load_adapter("lights", Path("adapter.gguf"))
    with pytest.raises(InputError, match="is not loaded"):
        engine.start([65], GREEDY, adapter="lights")


def test_closing_cancels_what_runs() -> None:
    folder = onnx_models.fp32("llama").folder
    engine = open_graph(folder / "model.onnx", folder / "tokenizer.json", EngineOptions(threads=1, parallel=1))
    engine.stop_tokens = frozenset()
    running = [engine.start([65], Sampling(max_tokens=400)) for _ in range(2)]
    engine.close()
    assert [list(one)[-1].outcome for one in running] == ["cancelled", "cancelled"]
    with pytest.raises(EngineError, match="closed"):
        engine.start([65], GREEDY)


def test_a_closed_engine_is_gone_and_the_collector_is_not_needed() -> None:
    folder = onnx_models.fp32("llama").folder
    gc.disable()
    try:
        engine = open_graph(folder / "model.onnx", folder / "tokenizer.json", EngineOptions(threads=1, parallel=1))
        assert list(engine.start([65], Sampling(max_tokens=2), terms=Schedule(deadline_s=60)))[-1].outcome
        left = weakref.ref(engine)
        engine.close()
        del engine
        wait_until(lambda: left() is None)
    finally:
        gc.enable()


def test_caches_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = onnx_models.fp32("llama").folder

    def nothing(_: Path) -> int:
        return 0

    monkeypatch.setattr(memory_plan, "memory_available_mb", nothing)
    with pytest.raises(EngineError, match=r"model.onnx needs \d+ MB for keys and values of 4 × \d+ tokens and 0 MB"):
        open_graph(folder / "model.onnx", folder / "tokenizer.json", EngineOptions(threads=1))


def test_a_quantised_bundle_opens_and_answers(tmp_path: Path) -> None:
    engine = open_engine(onnx_models.bundle(tmp_path / "bundle", onnx_models.int4("llama")), EngineOptions(threads=1))
    tokens, _, end = answer(engine, QUESTIONS[0])
    assert (end.outcome, len(tokens)) == ("length", 24)
    assert engine.context == onnx_models.CONTEXT
    assert engine.memory_mb()["weights"] > 0
    engine.close()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path: Path, name: str, damage: str) -> None:
    bundle = onnx_models.bundle(tmp_path / "bundle", onnx_models.int4("llama"))
    path = bundle.folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    if damage == "foreign":
        path.write_bytes(b"not what you think")
    with pytest.raises(EngineError) as caught:
        open_engine(bundle)
    assert name.removesuffix(".data") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_of_a_later_format_is_refused(tmp_path: Path) -> None:
    import onnx

    shutil.copytree(onnx_models.fp32("llama").folder, tmp_path / "later")
    model = onnx.load(tmp_path / "later" / "model.onnx", load_external_data=False)
    about = msgspec.json.decode(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {METADATA: msgspec.json.encode(about | {"format": "fieldlm.onnx/2"}).decode()})
    (tmp_path / "later" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="update fieldlm"):
        open_graph(tmp_path / "later" / "model.onnx", tmp_path / "later" / "tokenizer.json")


def test_sampling_draws_from_what_the_filters_leave() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    left = {
        Sampling(temperature=1): {0, 1, 2, 3},
        Sampling(temperature=1, top_k=3): {0, 1, 2},
        Sampling(temperature=1, top_p=0.79): {0, 1},
        Sampling(temperature=1, min_p=0.5): {0, 1},
        Sampling(temperature=1e-9): {0},
        Sampling(temperature=0): {0},
    }
    for sampling, tokens in left.items():
        rng = make_rng(Sampling(seed=7))
        assert {choose(logits, sampling, rng)[0] for _ in range(400)} == tokens, sampling


def test_the_margin_is_the_gap_between_the_two_best() -> None:
    logits = np.array([1.0, 4.5, -3.0, 4.0], dtype=np.float32)
    assert choose(logits, Sampling(), make_rng(Sampling())) == (1, 0.5)


def test_logits_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(EngineError, match="not numbers"):
        choose(np.array([0.0, np.nan], dtype=np.float32), Sampling(), make_rng(Sampling()))


def test_half_a_character_waits_for_its_other_half() -> None:
    stream = TextStream()
    halves = "é".encode()
    assert [stream.push(halves[:1]), stream.push(halves[1:])] == [("", False), ("é", False)]
    assert stream.push(b"\xe2\x82") == ("", False)
    assert stream.finish() == "\ufffd"


def test_half_a_character_of_an_answer_that_is_cut_is_left_out() -> None:
    for stream in (TextStream(), TextStream(("stop",))):
        text, _ = stream.push(b"st\xe2\x82")
        assert text + stream.finish(is_cut=True) == "st"


def test_a_stop_string_is_found_across_pieces_and_never_shown() -> None:
    stream = TextStream(("</s>", "\nUser:"))
    assert stream.push(b"yes <") == ("yes ", False)
    assert stream.push(b"b>\nUs") == ("<b>", False)
    assert stream.push(b"er: and") == ("", True)
    assert stream.finish() == ""
