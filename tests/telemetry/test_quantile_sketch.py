import math
import random

import pytest

from fieldlm.formats.record import WireError
from fieldlm.telemetry.quantile_sketch import ACCURACY, NOT_KNOWN, Bin, Sketch, Summary, Sureness, calibration


def filled(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


def test_a_quantile_is_within_two_per_cent_of_the_true_one() -> None:
    values = [random.Random(7).lognormvariate(4, 1.5) for _ in range(1)] + [
        random.Random(seed).lognormvariate(4, 1.5) for seed in range(5000)
    ]
    sketch, ordered = filled(values), sorted(values)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        true = ordered[max(0, -(-int(share * 10_000) * len(values) // 10_000) - 1)]
        assert abs(sketch.quantile(share) - true) <= 1.001 * ACCURACY * true


def test_sketches_of_parts_merge_to_the_sketch_of_all() -> None:
    values = [random.Random(seed).expovariate(0.01) for seed in range(900)] + [0.0, -1.0, float("nan"), float("inf")]
    parts = [filled(values[start::3]) for start in range(3)]
    whole = Sketch()
    for part in reversed(parts):
        whole.merge(Sketch.decode(part.encode()))
    assert whole.encode() == filled(values).encode()
    assert (whole.count, whole.zeros) == (902, 2)


def test_what_is_no_sketch_is_refused() -> None:
    for text in ("", "x", "1 2", "0 1:-2", "-1", "0 999999999:1", "0 1:2:3"):
        with pytest.raises(WireError):
            Sketch.decode(text)


def test_calibration_counts_add_up_by_how_sure_the_model_was() -> None:
    summary = Summary()
    for confidence, rank in ((0.1, 0.02), (0.2, None), (0.9, 0.6), (0.999, 1.0)):
        summary.answered(Sureness(confidence, rank), duration_ms=100.0)
    summary.disputed(Sureness(0.2))
    summary.disputed(NOT_KNOWN)
    detail = summary.detail()
    assert detail["by_confidence"] == "2/1 0/0 0/0 0/0 1/0 0/0 1/0"
    assert detail["by_rank"] == "1/0 0/0 0/0 1/0 1/0"
    assert calibration(detail)["by_rank"][0] == Bin(0.1, 1, 0)
    assert Sketch.decode(detail["duration_ms"]).count == 4


def test_what_devices_counted_by_margin_is_still_read() -> None:
    (bins,) = calibration({"calibration": "2/1 0/0 0/0 1/0 0/0 1/0", "duration_ms": "0 3:1"}).values()
    assert bins == [(0.5, 2, 1), (1.0, 0, 0), (2.0, 0, 0), (4.0, 1, 0), (8.0, 0, 0), (math.inf, 1, 0)]


@pytest.mark.parametrize("text", ["", "1/2", "1/2 3", "a/b " * 6, "1/0 " * 7])
def test_what_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        calibration({"calibration": text})
