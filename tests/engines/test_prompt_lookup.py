"""Drafts of what has been written before: the same answers, in fewer steps."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fieldlm.engines import EngineOptions, RunningAnswer, Sampling, prompt_lookup
from fieldlm.engines.llama import LlamaEngine
from fieldlm.engines.prompt_lookup import COSTS, MOST_ROWS, Costs, Lookup
from tests.support.engines import OneOf

LIST = "kettle, lantern, whistle, blanket, ladder, mirror, anchor, candle"
COPY = f"Text: {LIST}.\nCopy: {LIST}.\n\nText: {LIST}.\nCopy:"
STORY = "<|im_start|>user\nTell me a story about a dog.<|im_end|>\n<|im_start|>assistant\n"
MOST = Sampling(max_tokens=40)
# Within 256 cells, on a machine like CI's, a token's logits are the same to the last bit whatever is computed with it.
CONTEXT = 256


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Iterator[LlamaEngine]:
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=CONTEXT, parallel=1))
    yield made
    made.close()


@pytest.fixture
def fresh(smollm2_gguf: Path) -> Iterator[LlamaEngine]:
    """An engine that has learned nothing of costs, which would decide what is drafted."""
    made = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=CONTEXT, parallel=1))
    yield made
    made.close()


@pytest.fixture
def drafts_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_lookup, "WORTH", 0.0)


def read(generation: RunningAnswer) -> list[int]:
    return [token for chunk in generation for token in chunk.tokens]


def known(engine: LlamaEngine, text: str) -> list[int]:
    """Return the tokens of a prompt that has been computed: each answer to it begins with the same last step."""
    tokens = engine.tokenize(text)
    read(engine.start(tokens, Sampling(max_tokens=1)))
    return tokens


def drafted(generation: RunningAnswer) -> tuple[int, int]:
    return generation.timings.drafted_tokens, generation.timings.accepted_tokens


def sureness(generation: RunningAnswer) -> tuple[float | None, ...]:
    found = generation.timings
    return found.free_tokens, found.margin, found.min_margin, found.min_logprob, found.mean_logprob


def dear() -> Costs:
    """Return the costs of a machine that loses with every long step."""
    costs = Costs()
    for _ in range(50):
        for rows in (1, *COSTS):
            costs.note(rows, 2.0 * rows if rows > 1 else 1.0)
    return costs


def told(said: Lookup, tokens: list[int], more: Sequence[int]) -> list[int]:
    tokens += more
    said.follow(tokens)
    return said.draft(1, 100, Costs())


def test_nothing_is_drafted_before_guesses_have_proved_right() -> None:
    said, tokens = Lookup(range(30)), list(range(30))
    assert told(said, tokens, []) == []
    assert told(said, tokens, [3, 4, 5]) == [], "what follows is known from here on, and was never right"
    found = [told(said, tokens, [token]) for token in range(6, 12)][-1]
    assert found == list(range(12, 12 + len(found)))
    assert found


def test_a_prediction_is_drafted_at_once_and_found_again_behind_an_edit() -> None:
    said, tokens = Lookup([1, 2, 3, 4], range(10, 40)), [1, 2, 3, 4]
    assert told(said, tokens, [])[:3] == [10, 11, 12]
    told(said, tokens, [10, 11, 12, 13, 14, 15])
    assert told(said, tokens, [99]) == []
    assert told(said, tokens, [20, 21, 22])[:3] == [23, 24, 25]


def test_what_repeats_itself_is_drafted_beyond_what_was_said() -> None:
    tokens = [1, 2, 3]
    found = told(Lookup(tokens), tokens, [7, 8] * 20)
    assert found == ([7, 8] * len(found))[: len(found)]
    assert len(found) > 2


def test_wrong_guesses_end_the_drafts() -> None:
    said, tokens = Lookup([1, 2, 3], [7, 8, 9] * 20), [1, 2, 3]
    assert told(said, tokens, [])
    assert [told(said, tokens, [7, 8, 9, word]) for word in range(100, 130)][-1] == []


def test_a_draft_is_as_long_as_it_may_be_and_none_where_it_would_not_pay() -> None:
    tokens = [1, 2, 3]
    assert len(Lookup(tokens, range(50)).draft(1, 3, Costs())) == 3
    assert len(Lookup(tokens, range(50)).draft(1, 100, Costs())) < MOST_ROWS
    assert Lookup(tokens, range(50)).draft(1, 100, dear()) == []
    assert Lookup(tokens, range(50)).draft(MOST_ROWS + 20, 100, Costs()) == []
    assert Lookup(tokens, range(50)).draft(1, 0, Costs()) == []


def test_what_long_steps_cost_is_learned_and_half_forgotten() -> None:
    costs = dear()
    assert costs.of(1) == 1
    assert costs.of(7) == costs.of(8) == pytest.approx(16, rel=0.01)
    costs.forget()
    assert costs.of(8) == pytest.approx((16 + COSTS[8]) / 2, rel=0.01)


WANTED = {
    "greedy": MOST,
    "seeded": replace(MOST, temperature=0.8, top_p=0.9, seed=0),
    "penalties": replace(MOST, repeat_penalty=1.3, frequency_penalty=0.5),
    "a stop string": replace(MOST, stop=("blanket, la", "dog")),
    "likelihoods": replace(MOST, max_tokens=12, logprobs=2),
}


@pytest.mark.parametrize("prompt", [COPY, STORY], ids=["copy", "story"])
@pytest.mark.parametrize("name", WANTED)
def test_the_answer_is_what_it_would_be_without(
    engine: LlamaEngine, drafts_always: None, prompt: str, name: str
) -> None:
    tokens, sampling = known(engine, prompt), WANTED[name]
    plain = list(undrafted := engine.start(tokens, sampling))
    said = [token for chunk in plain for token in chunk.tokens]
    wrong = [token + (i % 7 == 6) for i, token in enumerate(said)]
    for prediction in ((), said, wrong):
        generation = engine.start(tokens, replace(sampling, prediction=tuple(prediction)))
        chunks = list(generation)
        assert [token for chunk in chunks for token in chunk.tokens] == said
        assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in plain)
        assert [c for chunk in chunks for c in chunk.choices] == [c for chunk in plain for c in chunk.choices]
        assert chunks[-1].outcome == plain[-1].outcome
        assert sureness(generation) == sureness(undrafted)
        assert generation.timings.free_tokens >= len(said)
        asked, accepted = drafted(generation)
        assert 0 <= accepted <= asked
        if prediction:
            assert accepted > 0
        if prediction == wrong and len(said) > 7:
            assert accepted < asked


def test_a_form_is_kept_and_what_it_forces_may_be_drafted(engine: LlamaEngine, drafts_always: None) -> None:
    words = [tuple(engine.tokenize(f" {word} and then a candle")) for word in ("lantern", "whistle", "kettle")]
    prompt = known(engine, "Text: a lantern. Copy: a")
    sampling = Sampling(max_tokens=40, constraint=OneOf(tuple(words)))
    plain = read(engine.start(prompt, sampling))
    assert tuple(plain) in words
    for word in words:
        assert read(engine.start(prompt, replace(sampling, prediction=word))) == plain


def test_a_prediction_saves_steps_and_one_that_is_wrong_is_dropped(fresh: LlamaEngine) -> None:
    prompt = known(fresh, COPY)
    said = read(fresh.start(prompt, MOST))
    right, wrong = (replace(MOST, prediction=tuple(tokens)) for tokens in (said, said[::-1]))
    chunks = list(helped := fresh.start(prompt, right))
    asked, accepted = drafted(helped)
    assert len(chunks) <= len(said) - accepted + 1, "every token that was accepted saved a step"
    assert accepted == asked > 0
    assert read(misled := fresh.start(prompt, wrong)) == said
    assert misled.timings.drafted_tokens > misled.timings.accepted_tokens


def test_a_conversation_goes_on_from_what_was_said_and_not_from_what_was_drafted(
    engine: LlamaEngine, drafts_always: None
) -> None:
    prompt = known(engine, STORY)
    said = read(engine.start(prompt, MOST))
    follow_up = (
        prompt + said + engine.tokenize("<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n")
    )
    plain = read(engine.start(follow_up, MOST))
    read(engine.start(engine.tokenize(COPY), MOST))
    misled = engine.start(prompt, replace(MOST, prediction=(*said[:9], *said[:5], *said)))
    assert read(misled) == said
    assert misled.timings.drafted_tokens > misled.timings.accepted_tokens
    again = engine.start(follow_up, MOST)
    assert read(again) == plain
    assert again.timings.cached_tokens >= len(prompt) + len(said) - 1


def test_an_answer_can_be_cancelled_among_its_drafts(fresh: LlamaEngine) -> None:
    prompt = known(fresh, COPY)
    plain = read(fresh.start(prompt, MOST))
    loop = fresh.tokenize(" kettle, lantern, whistle, blanket, ladder, mirror, anchor, candle." * 8)
    generation = fresh.start(prompt, Sampling(max_tokens=100, prediction=tuple(loop)))
    chunks = iter(generation)
    next(chunks)
    next(chunks)
    generation.cancel()
    assert list(chunks)[-1].outcome == "cancelled"
    assert read(fresh.start(prompt, MOST)) == plain
    assert fresh.running == 0


def test_drafts_end_where_the_context_does(engine: LlamaEngine, drafts_always: None) -> None:
    prompt = known(engine, "tea " * 100)
    sampling = Sampling(max_tokens=1000, logit_bias=tuple((token, -100.0) for token in engine.stop_tokens))
    plain = read(engine.start(prompt, sampling))
    generation = engine.start(prompt, replace(sampling, prediction=()))
    assert read(generation) == plain
    assert len(prompt) + len(plain) == CONTEXT
    assert generation.timings.accepted_tokens > 0


def test_nobody_waits_for_the_drafts_of_another(smollm2_gguf: Path) -> None:
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=CONTEXT, parallel=2))
    try:
        prompt = known(engine, COPY)
        said = read(engine.start(prompt, MOST))
        bias = tuple((token, -100.0) for token in engine.stop_tokens)
        other = engine.start(engine.tokenize(STORY), Sampling(max_tokens=200, logit_bias=bias))
        beside = engine.start(prompt, replace(MOST, prediction=tuple(said)))
        read(beside)
        other.cancel()
        assert read(other)
        assert drafted(beside) == (0, 0)
        alone = engine.start(prompt, replace(MOST, prediction=tuple(said)))
        read(alone)
        assert drafted(alone) != (0, 0)
    finally:
        engine.close()
