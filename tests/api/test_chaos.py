"""A storm of requests, as many as the depth of this run asks for."""

from pathlib import Path

from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Generations
from tests.support import depth
from tests.support.chaos import run
from tests.support.material import lora_gguf, tiny_bundle

REQUESTS = depth.scaled(80, most=10_000)


def test_after_a_storm_all_is_where_it_was_and_every_outcome_is_accounted_for(
    base_bundle: Bundle, tmp_path: Path
) -> None:
    names = ("left", "right")
    for seed, name in enumerate(names):
        tiny_bundle(tmp_path / "shelf" / name, adapter=lora_gguf(tmp_path / f"{name}.gguf", seed=seed, scale=0.5))
    live = Generations(base_bundle, EngineOptions(threads=2, context=512, parallel=4))
    report = run(live, Shelf(live, tmp_path / "shelf"), names, REQUESTS, seed=1)
    live.close()
    assert report["complaints"] == [], report
    assert sum(report["outcomes"].values()) == REQUESTS
    # A storm in which nothing was late, refused or left, or nothing was answered, would prove nothing.
    assert {"stop", "length", "deadline_exceeded", "left"} <= set(report["outcomes"])
