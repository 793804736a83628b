"""The router's file and features: the same on a device as where they were fitted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fieldlm.core.errors import BundleError
from fieldlm.formats.router import PLACES, Router, features, read_router


def router(least: float = 0.6) -> Router:
    weights = np.zeros((2, PLACES), np.int8)
    for task, word in enumerate(("tea", "bill")):
        weights[task, features(word)[0]] = 100
    return Router(
        tasks=("t1", "t2"),
        names=("order", "pay"),
        weights=weights,
        scales=np.full(2, 0.05, np.float32),
        biases=np.zeros(2, np.float32),
        least=least,
    )


def test_a_request_is_the_task_whose_words_it_has() -> None:
    made = router()
    assert [made.task(text) for text in ("a tea please", "TEA", "the bill")] == ["t1", "t1", "t2"]
    assert made.name("t2") == "pay"
    assert made.chances("tea").sum() == pytest.approx(1)


@pytest.mark.parametrize("text", ["", "   ", "?!", "what is the weather", "\ud800", "x" * 100_000])
def test_what_has_none_of_the_words_is_no_task(text: str) -> None:
    assert router().task(text) is None


def test_a_file_is_read_as_it_was_written_and_has_the_same_bytes_again(tmp_path: Path) -> None:
    made = router()
    (tmp_path / "router.npz").write_bytes(made.packed())
    found = read_router(tmp_path / "router.npz")
    assert (found.tasks, found.names, found.least) == (made.tasks, made.names, pytest.approx(made.least))
    assert found.packed() == made.packed()
    assert np.array_equal(found.chances("tea"), made.chances("tea"))


def test_what_is_no_router_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "router.npz"
    for content in (b"", b"no zip", router().packed()[:-40]):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="no router"):
            read_router(path)
    path.write_bytes(replace(router(), biases=np.zeros(3, np.float32)).packed())
    with pytest.raises(BundleError, match="shapes"):
        read_router(path)
    with pytest.raises(BundleError, match="no router"):
        read_router(tmp_path / "absent.npz")


def test_a_router_that_could_answer_nothing_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path, made = tmp_path / "router.npz", router()
    for damaged in (
        replace(made, biases=made.biases * np.nan),
        replace(made, scales=made.scales.astype(str)),
        replace(made, least=float("nan")),
        replace(made, names=made.names[:1]),
    ):
        path.write_bytes(damaged.packed())
        with pytest.raises(BundleError, match="no router"):
            read_router(path)
    np.save(path.with_suffix(".npy"), made.biases)
    with pytest.raises(BundleError, match="no router: it is one array alone"):
        read_router(path.with_suffix(".npy"))
    packed = bytearray(made.packed())
    for place in (packed.index(b"PK\x01\x02") + 10, 8):  # a method of compression that nobody knows, in both headers
        packed[place] = 99
    path.write_bytes(packed)
    with pytest.raises(BundleError, match="no router"):
        read_router(path)


def test_features_are_the_same_in_every_process_and_of_length_one() -> None:
    places, values = features("Two teas, please: two!")
    assert places.tolist() == sorted(set(places.tolist()))
    assert float(values @ values) == pytest.approx(1)
    # A hash that is salted anew in each process would give others.
    assert features("tea")[0].tolist() == [6066, 6962, 7223, 10844, 10999, 14039, 16002]
