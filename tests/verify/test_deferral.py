"""A learned deferral: taken where several signals tell more than one, computed on a device as it was fitted."""

import math
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from fieldlm.core.errors import BundleError
from fieldlm.core.files import canonical_json
from fieldlm.engines import Engine, EngineOptions, Sampling, Timings, open_engine
from fieldlm.engines.onnx import open_graph
from fieldlm.formats.confidence import Confidence, LearnedDeferral, formed, read_confidence
from fieldlm.formats.growth import Growing, check_understood
from fieldlm.inference.confidence import BESIDE, SIGNALS, signals
from fieldlm_compiler.verify.confidence import TaskAnswer, auroc, describe, fit, form_of, signals_of
from fieldlm_compiler.verify.deferral import (
    LEARNABLE,
    LEAST_OF_EACH,
    Deferral,
    calibrate,
    fit_deferral,
    fit_score,
    formed_table,
    left_out_chances,
    left_out_scores,
    scores_of,
)
from tests.support import onnx_models
from tests.support.material import tiny_bundle

OPTIONS = EngineOptions(threads=1, context=256, parallel=1)


def answers(count: int, *, seed: int = 0, by_length: float = 0.0) -> list[TaskAnswer]:
    """Answers that are right by their mean log probability and, as far as `by_length`, by how short they are."""
    dice = random.Random(seed)
    made: list[TaskAnswer] = []
    for _ in range(count):
        surprise, length = dice.gauss(3.0, 1.5), dice.randrange(8, 80)
        mean = -math.exp(-surprise)
        told = {"mean_logprob": mean, "sum_logprob": mean * length, "min_logprob": 3 * mean}
        told |= {"min_margin": max(0.0, dice.gauss(3, 1)), "mean_margin": max(0.0, dice.gauss(8, 1))}
        told |= {"answer_tokens": float(length), "prompt_tokens": float(dice.randrange(20, 60)), "forced_share": 0.0}
        odds = surprise - 2 + by_length * (30 - length) / 10
        made.append(TaskAnswer(right=dice.random() < 1 / (1 + math.exp(-odds)), signals=signals_of(told)))
    return made


LENGTH_TELLS = answers(400, by_length=1.5)


def fitted(given: list[TaskAnswer], deferral: Deferral = "learned") -> Confidence:
    return read_confidence(canonical_json(fit_deferral(given, deferral)), what="it")


def learned(found: Confidence) -> LearnedDeferral:
    assert isinstance(found.learned, LearnedDeferral)
    return found.learned


@pytest.fixture(scope="module")
def length_tells() -> Confidence:
    return fitted(LENGTH_TELLS)


def test_it_knows_what_no_single_signal_does_and_says_so(length_tells: Confidence) -> None:
    alone = fitted(LENGTH_TELLS, "threshold")
    assert alone.learned is msgspec.UNSET
    assert alone.auroc is not None
    assert length_tells.auroc is not None
    assert length_tells.auroc > alone.auroc + 0.05
    assert length_tells.threshold(0.95).share > alone.threshold(0.95).share
    said = describe(length_tells)
    assert said[0].startswith("confidence by a learned score of 8 signals: AUROC 0.")
    assert said[-1].startswith("  deferral: learned of 8 signals: AUROC 0.")
    assert said[-1].endswith("taken, as asked for")
    # Who asks for one signal gets what was always made, to the byte.
    assert canonical_json(fit_deferral(LENGTH_TELLS)) == canonical_json(fit(LENGTH_TELLS))


def test_a_short_answer_is_more_likely_right_where_that_was_so(length_tells: Confidence) -> None:
    told = dict[str, float | None](LENGTH_TELLS[0].signals)
    short, long = (length_tells.chance(told | {"answer_tokens": tokens}) for tokens in (10.0, 75.0))
    assert short is not None
    assert long is not None
    assert short > long + 0.2


def test_the_better_one_is_kept_and_the_reason_is_said() -> None:
    better, no_better = fitted(LENGTH_TELLS, "best"), fitted(answers(400), "best")
    assert learned(better).steps
    assert str(better.deferral).endswith(": taken")
    assert no_better.learned is msgspec.UNSET
    assert str(no_better.deferral).endswith(": not taken: not better beyond chance")
    # All but that line is what one signal has.
    alone = fitted(answers(400), "threshold")
    assert msgspec.structs.replace(no_better, deferral=msgspec.UNSET) == alone
    assert describe(no_better)[:-1] == describe(alone)


def test_of_few_wrong_answers_nothing_is_learned() -> None:
    right = [each for each in answers(200) if each.right][:60]
    wrong = [each for each in answers(200) if not each.right][: LEAST_OF_EACH - 1]
    found = fitted([*right, *wrong])
    assert found.learned is msgspec.UNSET
    assert found.deferral == "nothing is learned: 60 right and 9 wrong answers, 10 of each are the fewest"
    assert found.chance(dict(right[0].signals)) == found.p(right[0].signals[found.signal])


@pytest.mark.parametrize("seed", range(3))
def test_who_is_surer_is_never_less_likely_right(seed: int) -> None:
    found = fitted(answers(120, seed=seed))
    dice = random.Random(seed)
    told = dict[str, float | None](answers(1, seed=seed + 9)[0].signals)
    for name in (name for name, kind in LEARNABLE.items() if kind.is_sureness):
        span = (-6.0, 0.0) if name.endswith("logprob") else (0.0, 20.0)
        rising = sorted(dice.uniform(*span) for _ in range(30))
        chances = [found.chance(told | {name: value}) for value in rising]
        assert all(chance is not None for chance in chances)
        assert chances == sorted(chances, key=lambda chance: chance or 0), name
    steps = [p for _, p in learned(found).steps]
    assert steps == sorted(steps)
    assert all(0 < p < 1 for p in steps)


def test_where_a_signal_is_missing_one_alone_decides(length_tells: Confidence) -> None:
    told = dict[str, float | None](LENGTH_TELLS[0].signals)
    alone = length_tells.p(LENGTH_TELLS[0].signals[length_tells.signal])
    assert length_tells.chance(told) != alone
    for missing in (told | {"answer_tokens": None}, {length_tells.signal: told[length_tells.signal]}):
        assert length_tells.chance(missing) == alone
        assert length_tells.is_below(missing, 0.5) is not None
    assert length_tells.chance({}) is None
    assert length_tells.is_below({}, 0.1) is None
    # Nor is it for an answer in which a form forced tokens, when those that were fitted had none.
    assert length_tells.chance(told | {"forced_share": 0.3}) == alone


def test_what_not_all_answers_tell_is_not_learned_from() -> None:
    partly = [
        msgspec.structs.replace(each, signals={name: x for name, x in each.signals.items() if at or name in SIGNALS})
        for at, each in enumerate(LENGTH_TELLS)
    ]
    assert {each.name for each in learned(fitted(partly)).score.signals} == set(SIGNALS)


def test_the_least_sure_tenth_is_that_of_the_score(length_tells: Confidence) -> None:
    told = [dict[str, float | None](each.signals) for each in LENGTH_TELLS]
    assert sum(length_tells.is_below(each, 0.1) is True for each in told) == pytest.approx(40, abs=12)


def test_what_is_said_of_it_was_found_without_the_answers_it_is_said_of() -> None:
    """Of eight signals that say nothing, what was fitted to the very answers would look well."""
    dice = random.Random(3)
    noise = [
        TaskAnswer(
            right=dice.random() < 0.6,
            signals={name: -dice.random() if "logprob" in name else round(10 * dice.random(), 2) for name in LEARNABLE}
            | {"forced_share": 0.0},
        )
        for _ in range(150)
    ]
    right = np.array([each.right for each in noise])
    table = formed_table(noise)
    seen = auroc(scores_of(fit_score(table, right), table), right)
    assert seen > auroc(left_out_scores(table, right), right) + 0.02
    assert auroc(left_out_chances(table, right), right) < 0.62
    assert fitted(noise, "best").learned is msgspec.UNSET


def test_the_same_answers_give_the_same_bytes_in_a_process_of_its_own() -> None:
    given = answers(80, by_length=1.0)
    assert canonical_json(calibrate(given, "learned").value) == canonical_json(fit_deferral(given, "learned"))


@pytest.fixture(params=["llama", "onnx"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    if request.param == "llama":
        opened = open_engine(tiny_bundle(tmp_path_factory.mktemp("deferral") / "bundle"), OPTIONS)
    else:
        folder = onnx_models.fp32("llama").folder
        opened = open_graph(folder / "model.onnx", folder / "tokenizer.json", OPTIONS)
    yield opened
    opened.close()


def test_a_device_computes_the_p_that_was_fitted(engine: Engine, length_tells: Confidence) -> None:
    """Through the file, from the signals of a real answer of either engine, and by the fitter's own arithmetic."""
    for tokens in (1, 6, 12):
        running = engine.start(engine.tokenize("Hello, how are you?"), Sampling(max_tokens=tokens))
        list(running)
        told = signals(running.timings)
        assert set(told) == {*SIGNALS, *BESIDE}
        known = {name: value for name, value in told.items() if value is not None}
        assert set(known) == set(told)
        found = learned(length_tells)
        table = {name: np.array([formed(form_of(name), known[name])]) for name in LEARNABLE}
        x, p = zip(*found.steps, strict=True)
        (wanted,) = np.interp(scores_of(found.score, table), x, p)
        assert length_tells.chance(told) == pytest.approx(float(wanted), abs=1e-6)


def test_of_all_fitted_answers_too(length_tells: Confidence) -> None:
    found = learned(length_tells)
    x, p = zip(*found.steps, strict=True)
    wanted = np.interp(scores_of(found.score, formed_table(LENGTH_TELLS)), x, p)
    got = [length_tells.chance(dict(each.signals)) for each in LENGTH_TELLS]
    assert got == pytest.approx(wanted.tolist(), abs=1e-6)


def test_an_answer_without_a_free_token_tells_nothing(length_tells: Confidence) -> None:
    told = signals(Timings(prompt_tokens=20, completion_tokens=9, forced_tokens=9))
    assert set(told.values()) == {None}
    assert length_tells.chance(told) is None


def test_an_older_version_refuses_it_by_its_name(length_tells: Confidence) -> None:
    fields = [(name, Any, None) for name in Confidence.__struct_fields__ if name not in ("learned", "deferral")]
    older: Any = msgspec.defstruct("Older", fields[1:], bases=(Growing,), frozen=True, kw_only=True)
    assert fields[0][0] == "must_understand"
    document = msgspec.json.decode(canonical_json(length_tells), type=older)
    with pytest.raises(BundleError, match="it needs learned, which this version does not know; update fieldlm"):
        check_understood(document, what="it", error=BundleError)
    # One that only says how the two compared is read as ever.
    compared = msgspec.json.decode(canonical_json(fitted(answers(400), "best")), type=older)
    check_understood(compared, what="it", error=BundleError)


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": []},
        {"quantiles": []},
        {"steps": [[0.0, 0.9], [1.0, 0.2]]},
        {"steps": [[0.0, 0.9], [1.0, 1.2]]},
        {"quantiles": [1.0, 0.0]},
        {"score": {"bias": 0.0, "signals": [{"name": "min_margin", "form": "odd"}]}},
    ],
)
def test_what_cannot_be_computed_is_refused(damage: dict[str, object], length_tells: Confidence) -> None:
    written = msgspec.json.decode(canonical_json(length_tells))
    written["learned"] |= damage
    with pytest.raises(BundleError, match=r"compile the bundle again|is no calibration"):
        read_confidence(canonical_json(written), what="it")


def test_a_scale_of_nothing_is_refused(length_tells: Confidence) -> None:
    written = msgspec.json.decode(canonical_json(length_tells))
    written["learned"]["score"]["signals"][0]["scale"] = 0.0
    with pytest.raises(BundleError, match="a learned score that cannot be computed"):
        read_confidence(canonical_json(written), what="it")
