"""The same request has the same answer, bit for bit: after other requests, beside them, with any number of threads.

The model is the small one cut to two layers, whose next words are often as likely as each other. What is compared is
stronger than the text: the log probability of each token as it came out.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from fieldlm.engines import EngineOptions, Priority, RunningAnswer, Sampling, Schedule
from fieldlm.engines.llama import LlamaEngine
from fieldlm.engines.llama_layout import BF16, F16, KV_TYPES, Layout
from fieldlm.engines.sequences.batch_invariance import PIECES, is_plain
from fieldlm.formats.gguf import read_header
from tests.support.depth import DEPTH, SEED, scaled
from tests.support.gguf_surgery import Gguf
from tests.support.material import cut_gguf, lora_gguf

SYSTEM = "<|im_start|>system\nYou keep the lift of a large house in order and answer politely.<|im_end|>\n"
WORDS = ("tea", "door", "lamp", "five", "north", "rain", "violin", "seven", "the", "of", "because", "copper", "slowly")
TIMES = 10
ROUNDS = scaled(2, most=60)
KINDS = {"q8_0": 8, "f16": F16, "strict": 8, **({"q4_0": 2, "q4_1": 3, "q5_1": 7} if DEPTH > 1 else {})}
OPTIONS = EngineOptions(threads=1, context=768, parallel=3, repeatable=True)


def prompt(engine: LlamaEngine, number: int, words: int = 12) -> list[int]:
    rng = random.Random(number)
    said = " ".join(rng.choices(WORDS, k=words))
    return engine.tokenize(f"{SYSTEM}<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n")


def bits(answer: RunningAnswer) -> list[tuple[int, float]]:
    """Return the tokens of an answer that ended well, and what their logits came to."""
    chunks = list(answer)
    assert chunks[-1].outcome in ("stop", "length"), chunks[-1]
    return [(choice.token, choice.logprob) for chunk in chunks for choice in chunk.choices]


def sampling(number: int, tokens: int = 12) -> Sampling:
    """Half of them are drawn, by a seed; of those and of the others some are drafted."""
    temperature, seed = (1.0, number) if number % 2 else (0.0, None)
    prediction = () if number % 3 == 0 else None
    return Sampling(
        max_tokens=tokens, logprobs=0, prediction=prediction, ignore_eos=True, temperature=temperature, seed=seed
    )


@pytest.fixture(scope="module", params=KINDS)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kinds whose rows are multiplied alike in any batch, on most processors; f16, which is not; one never tried."""
    path = cut_gguf(tmp_path_factory.mktemp("cut") / "model.gguf", layers=2, kind=KINDS[request.param])
    if request.param == "strict":
        gguf = Gguf.read(path)
        gguf.set_number("llama.attention.sliding_window", 512)  # a name that llama.cpp does not read in a Llama
        gguf.write(path)
    return path


@pytest.fixture(scope="module")
def engine(weights: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(weights, OPTIONS)
    yield made
    made.close()


def fresh(weights: Path, number: int, words: int, options: EngineOptions = OPTIONS) -> list[tuple[int, float]]:
    """Return what an engine says that has never computed anything else."""
    engine = LlamaEngine(weights, options)
    try:
        return bits(engine.start(prompt(engine, number, words), sampling(number)))
    finally:
        engine.close()


@pytest.mark.parametrize(("number", "words"), [(1, 12), (2, 280)])
def test_an_answer_is_the_same_ten_times_of_ten_whatever_ran_before_it(
    weights: Path, engine: LlamaEngine, number: int, words: int
) -> None:
    first = fresh(weights, number, words)
    rng = random.Random(SEED)
    for _ in range(TIMES):
        assert bits(engine.start(prompt(engine, number, words), sampling(number))) == first
        for other in rng.sample(range(100, 200), rng.randrange(3)):
            # Some begin with the same words, which are then taken from one another.
            bits(engine.start(prompt(engine, other, rng.choice((3, 40))), sampling(other, rng.randrange(1, 16))))


def test_an_answer_is_the_same_whatever_is_computed_beside_it(weights: Path, engine: LlamaEngine) -> None:
    rng = random.Random(SEED)
    asked = {number: rng.choice((5, 60)) for number in range(5)}
    first = {number: fresh(weights, number, words) for number, words in asked.items()}
    for _ in range(ROUNDS):
        order = rng.sample(list(asked), len(asked))
        classes: list[Priority] = rng.choices(("batch", "interactive", "safety"), k=len(order))
        running = [
            engine.start(prompt(engine, number, asked[number]), sampling(number), terms=Schedule(priority=each))
            for number, each in zip(order, classes, strict=True)
        ]
        assert {number: bits(answer) for number, answer in zip(order, running, strict=True)} == first


def test_a_conversation_goes_on_as_it_would_have_elsewhere(weights: Path, engine: LlamaEngine) -> None:
    """Its second turn begins with words that were computed one by one, as an answer."""
    question = prompt(engine, 7)
    said = [token for token, _ in bits(engine.start(question, sampling(0)))]
    second = [*question, *said, *prompt(engine, 8)]
    warm = bits(engine.start(second, sampling(2)))
    other = LlamaEngine(weights, OPTIONS)
    assert bits(other.start(second, sampling(2))) == warm
    other.close()


def test_the_number_of_threads_is_of_no_account(weights: Path) -> None:
    one, two = (EngineOptions(threads=n, context=768, parallel=2, repeatable=True) for n in (1, 2))
    assert fresh(weights, 2, 280, one) == fresh(weights, 2, 280, two)


def test_an_adapter_changes_answers_and_not_that_they_are_the_same(
    weights: Path, engine: LlamaEngine, tmp_path: Path
) -> None:
    engine.load_adapter("left", lora_gguf(tmp_path / "left.gguf", layer=1, scale=0.5))
    asked = prompt(engine, 0)
    bare, first = bits(engine.start(asked, sampling(0))), bits(engine.start(asked, sampling(0), adapter="left"))
    assert bare != first
    for _ in range(3):
        beside = [engine.start(prompt(engine, 50 + n), sampling(n), adapter=("left", None)[n]) for n in range(2)]
        assert bits(engine.start(asked, sampling(0), adapter="left")) == first
        for each in beside:
            bits(each)
    engine.drop_adapter("left")


def test_prompts_are_computed_whole_where_nobody_tried(weights: Path, engine: LlamaEngine) -> None:
    """Elsewhere a shared beginning is computed once, as ever, if the processor's kernels agree."""
    for number in (20, 22):
        answer = engine.start(prompt(engine, number), sampling(number))
        bits(answer)
        if not is_plain(read_header(weights)):
            assert answer.timings.cached_tokens == 0


def test_which_layouts_can_be_repeatable() -> None:
    layout = Layout().repeatable()
    assert (layout.key_type, layout.value_type, layout.has_own_cells) == (F16, BF16, True)
    assert layout.is_row_by_row
    assert layout.name != Layout(value_type=BF16).name
    eight = KV_TYPES["q8_0"]
    assert Layout(key_type=eight, value_type=eight).repeatable().value_type == eight
    assert not Layout(flash_attention=False).repeatable().is_row_by_row


def test_what_is_not_tried_is_known_by_its_header(tmp_path: Path) -> None:
    assert sum(PIECES) > 64, "more than a tile"
    path = cut_gguf(tmp_path / "model.gguf", layers=2, kind=KINDS["q8_0"])
    assert is_plain(read_header(path))
    mixed = Gguf.read(path)
    shape, _, data = mixed.tensors["blk.1.attn_q.weight"]
    floats = dequantize(data.reshape(shape[1], -1), GGMLQuantizationType(KINDS["q8_0"]))
    mixed.tensors["blk.1.attn_q.weight"] = (shape, F16, floats.astype(np.float16).view(np.uint8).reshape(-1))
    assert not is_plain(read_header(mixed.write(tmp_path / "mixed.gguf")))
