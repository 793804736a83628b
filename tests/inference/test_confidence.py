"""What a generation says of how likely its answers are right: by its own bundle's calibration, and by no other."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.core.files import canonical_json
from fieldlm.engines import EngineOptions, Timings
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.confidence import Confidence
from fieldlm.inference.confidence import SIGNALS, confidence, is_unsure
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.model import Model
from tests.support.material import lora_gguf, tiny_bundle

STEPS = ((-2.0, 0.2), (-1.0, 0.6), (0.0, 0.9))
FOUND = Confidence(signal="min_logprob", steps=STEPS, quantiles=(-2.0, -1.0, 0.0))
OTHER = Confidence(signal="sum_logprob", steps=((-20.0, 0.1), (0.0, 0.3)), quantiles=(-20.0, 0.0))


def timings(*tokens: tuple[float, float]) -> Timings:
    made = Timings()
    for margin, logprob in tokens:
        made.chose(margin, logprob)
    return made


SAID = timings((3.0, -0.1), (0.5, -1.5), (9.0, -0.5))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generations]:
    bundle = tiny_bundle(tmp_path_factory.mktemp("sure") / "base", confidence=canonical_json(FOUND))
    made = Generations(bundle, EngineOptions(threads=1, context=256, parallel=1))
    yield made
    made.close()


def serving(live: Generations, bundle: Bundle) -> Serving:
    return Serving(bundle=bundle, engine=live.current.engine, adapter=None)


def test_every_signal_says_what_its_name_says() -> None:
    assert {name: signal(SAID) for name, signal in SIGNALS.items()} == pytest.approx(
        {"min_logprob": -1.5, "mean_logprob": -0.7, "sum_logprob": -2.1, "min_margin": 0.5}
    )
    assert all(signal(Timings()) is None for signal in SIGNALS.values())


def test_confidence_is_that_of_the_bundles_own_steps(live: Generations) -> None:
    assert confidence(live.current, SAID) == pytest.approx(0.4)
    assert confidence(live.current, timings((5.0, -0.5))) == pytest.approx(0.75)


def test_a_program_gets_it_with_its_answer(live: Generations) -> None:
    current = live.current
    model = Model(current.bundle, current.engine, current.adapter)
    whole, cut = (model.chat("Hello", max_tokens=tokens, stop=stop) for tokens, stop in ((40, ("e",)), (1, ())))
    assert whole.outcome == "stop"
    assert whole.confidence == confidence(current, whole.timings) is not None
    assert (cut.outcome, cut.confidence) == ("length", None)


def test_an_answer_without_a_free_token_has_no_confidence(live: Generations) -> None:
    assert confidence(live.current, Timings(completion_tokens=9)) is None
    assert is_unsure(live.current, Timings(completion_tokens=9)) is None


def test_the_least_sure_tenth_of_what_the_bundle_answered_is_unsure(live: Generations) -> None:
    assert is_unsure(live.current, timings((0.1, -1.9))) is True
    assert is_unsure(live.current, timings((0.1, -1.7))) is False


def test_an_adapters_bundle_has_a_confidence_of_its_own(live: Generations, tmp_path: Path) -> None:
    lora = lora_gguf(tmp_path / "lora.gguf")
    chosen = live.load(tiny_bundle(tmp_path / "tuned", adapter=lora, confidence=canonical_json(OTHER)))
    plain = live.load(tiny_bundle(tmp_path / "plain", adapter=lora))
    assert confidence(chosen, SAID) == pytest.approx(0.279)
    assert confidence(plain, SAID) is None
    assert is_unsure(plain, SAID) is None
    assert confidence(live.current, SAID) == pytest.approx(0.4)
    live.discard(chosen)
    live.discard(plain)


@pytest.mark.parametrize(
    "written",
    [
        b"{",
        canonical_json(Confidence(format="fieldlm.confidence/2", signal="min_logprob", steps=STEPS)),
        canonical_json(Confidence(signal="of a newer version", steps=STEPS, quantiles=(-1.0, 0.0))),
        canonical_json(Confidence(signal="min_logprob", reason="12 answered examples, 30 are the fewest")),
    ],
)
def test_a_calibration_that_cannot_be_used_is_none(live: Generations, tmp_path: Path, written: bytes) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", confidence=written)
    assert confidence(serving(live, bundle), SAID) is None
    assert is_unsure(serving(live, bundle), SAID) is None
