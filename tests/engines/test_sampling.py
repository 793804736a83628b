"""How a token is chosen: penalties against a plain reading of their definitions, probabilities, refusals."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Sampling
from fieldlm.engines.sampling import CERTAIN, REPEAT_WINDOW, Floats, Sampler, check_sampling, logprob
from tests.support.engines import OneOf

VOCABULARY = 12
TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=2 * REPEAT_WINDOW)
# Quarters, so that a sum is exact in any order and no tie depends on rounding.
QUARTERS = st.integers(-8, 8).map(lambda number: number / 4)
SAMPLINGS = st.builds(
    Sampling,
    presence_penalty=QUARTERS,
    frequency_penalty=QUARTERS,
    repeat_penalty=st.sampled_from([0.5, 1.0, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), QUARTERS, max_size=3).map(lambda b: tuple(b.items())),
)


def shaped(logits: Floats, sampling: Sampling, prompt: list[int], answer: list[int]) -> list[float]:
    """What the definitions of OpenAI and llama.cpp make of `logits`, one token at a time."""
    values = [float(value) for value in logits]
    recent = (prompt[-REPEAT_WINDOW:] + answer)[-REPEAT_WINDOW:]
    for token, value in enumerate(values):
        changed = value + dict(sampling.logit_bias).get(token, 0.0)
        if token in recent:
            changed = changed / sampling.repeat_penalty if changed > 0 else changed * sampling.repeat_penalty
        changed -= sampling.presence_penalty * (token in answer) + sampling.frequency_penalty * answer.count(token)
        values[token] = changed
    return values


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), prompt=TOKENS, answer=TOKENS, sampling=SAMPLINGS)
def test_penalties_and_bias_do_what_their_definitions_say(
    seed: int, prompt: list[int], answer: list[int], sampling: Sampling
) -> None:
    logits: Floats = np.random.default_rng(seed).integers(-16, 17, VOCABULARY).astype(np.float32) / np.float32(4)
    sampler = Sampler(sampling, prompt)
    for token in answer:
        sampler.note(token)
    before = logits.copy()
    pick = sampler.pick(logits)
    expected = shaped(logits, sampling, prompt, answer)
    best, second = sorted(expected, reverse=True)[:2]
    assert pick.token == expected.index(best)
    assert pick.margin == pytest.approx(best - second)
    assert (logits == before).all()


def test_a_token_banned_by_its_bias_is_never_drawn() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=3, logit_bias=((0, -100.0),)), [])
    assert {sampler.pick(np.zeros(4, np.float32)).token for _ in range(200)} == {1, 2, 3}


def test_logprobs_of_all_tokens_sum_to_one_and_come_in_order() -> None:
    logits = np.random.default_rng(0).normal(size=100).astype(np.float32) * 5
    choice = Sampler(Sampling(logprobs=100), []).pick(logits).choice
    assert choice is not None
    assert math.fsum(math.exp(logprob) for _, logprob in choice.top) == pytest.approx(1)
    assert [token for token, _ in choice.top] == [int(token) for token in np.argsort(-logits, kind="stable")]
    assert choice.logprob == choice.top[0][1]


def test_logprobs_are_those_of_the_model_whatever_is_drawn() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    sampling = Sampling(temperature=3.0, seed=1, logprobs=2, logit_bias=((3, 50.0),))
    choice = Sampler(sampling, []).pick(logits).choice
    assert choice is not None
    assert choice.token == 3
    assert choice.logprob == pytest.approx(math.log(0.125))
    assert choice.top == ((0, pytest.approx(math.log(0.5))), (1, pytest.approx(math.log(0.25))))


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (5, 4)])
def test_as_many_of_the_best_are_named_as_there_are_and_were_asked_for(count: int, expected: int) -> None:
    choice = Sampler(Sampling(logprobs=count), []).pick(np.arange(4, dtype=np.float32)).choice
    assert choice is not None
    assert len(choice.top) == expected


def test_a_forced_token_is_certain() -> None:
    pick = Sampler(Sampling(logprobs=1), []).force(7)
    assert pick.margin == CERTAIN
    assert pick.choice is not None
    assert (pick.choice.logprob, pick.choice.top) == (0.0, ((7, 0.0),))
    assert Sampler(Sampling(), []).force(7).choice is None


def test_the_only_token_that_a_constraint_leaves_has_a_finite_margin() -> None:
    pick = Sampler(Sampling(), []).pick(np.arange(4, dtype=np.float32), OneOf(((2,),)).guide())
    assert (pick.token, pick.margin, pick.is_free) == (2, CERTAIN, False)


@pytest.mark.parametrize("spread", [0.01, 3.0, 40.0])
def test_a_log_probability_is_nearly_that_of_the_whole_vocabulary(spread: float) -> None:
    logits = np.random.default_rng(2).normal(size=50_000).astype(np.float32) * np.float32(spread)
    exact = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
    for token in (int(logits.argmax()), 7):
        assert logprob(logits, token) == pytest.approx(exact[token], abs=0.03)
        assert logprob(logits, token) <= 0


def test_a_constraint_that_leaves_nothing_is_an_error_that_says_so() -> None:
    logits = np.array([0.0, 1.0, -np.inf], np.float32)
    with pytest.raises(EngineError, match="allows no token"):
        Sampler(Sampling(), []).pick(logits, OneOf(((2,),)).guide())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"logit_bias": ((100, 1.0),)}, "logit_bias names token 100, the model has 0 to 99"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias names token -1"),
        ({"logit_bias": ((1, math.nan),)}, "logit_bias of token 1 is nan"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"presence_penalty": math.inf}, "presence_penalty is inf"),
        ({"repeat_penalty": 0.0}, "repeat_penalty is 0.0, want a number"),
        ({"logprobs": -1}, "logprobs is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_what_no_engine_can_do_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_sampling(Sampling(**wrong), 100)
