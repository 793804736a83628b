"""A bundle is measured where it lies, held against its profile, and the better point of its frontier is named."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fieldlm.bench import calibration
from fieldlm.bench.calibration import (
    Figure,
    ForeseenPoint,
    Overlay,
    foreseen_tokens_per_s,
    instead,
    judge,
    measure,
    overlay_path,
    points,
    words,
)  # fmt: skip
from fieldlm.bench.remarks import Remark
from fieldlm.cli import verify
from fieldlm.core.errors import BundleError
from fieldlm.core.files import sha256_file
from fieldlm.core.signing import load_or_create_key
from fieldlm.engines import Reading
from fieldlm.formats.bundle import Bundle, describe, write_bundle
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.hardware.bandwidth import Bandwidth
from fieldlm.hardware.detect import detect
from tests.support import material

FRONTIER = [{"bytes": size * 1_000_000, "predicted_kl": 1 / size} for size in (60, 70, 80, 93, 110, 140)]
KNOWN = tuple(ForeseenPoint(bytes=size * 1_000_000) for size in (60, 80, 100, 120))


def nothing(*_: object) -> list[Remark]:
    return []


def neighbours(*_: object) -> list[Remark]:
    return [Remark("something waited for a processor 100 % of the time", voids=True)]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Nothing is seen beside a measurement: what is judged here is right beside busy neighbours, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "findings", nothing)
        yield


def profile_with(**memory: float) -> Profile:
    profile = load_profile("generic-x86-64-avx2")
    return msgspec.structs.replace(profile, memory=msgspec.structs.replace(profile.memory, **memory))


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return a bundle whose report knows a frontier."""
    folder = tmp_path_factory.mktemp("searched") / "bundle"
    bare = material.tiny_bundle(folder)
    (folder / "report.json").write_text(json.dumps({"candidates": [], "search": {"frontier": FRONTIER}}))
    files = (*bare.manifest.files, describe(folder, "report.json", "report"))
    manifest = msgspec.structs.replace(bare.manifest, files=files, profile="generic-x86-64-avx2")
    return write_bundle(folder, manifest, load_or_create_key(folder.parent / "key.pem"))


def near(measured: float) -> Figure:
    return Figure(foreseen=100.0, measured=measured)


@pytest.mark.parametrize(
    ("measured", "over_mb", "megabytes"),
    [
        (100.0, 0.0, None),  # as foreseen
        (86.0, -5.0, None),  # near enough
        (81.0, 0.0, 80),  # four fifths of the speed: four fifths of the bytes
        (130.0, 0.0, 120),  # faster: it bears more
        (50.0, 0.0, None),  # even the smallest is too slow
        (116.0, 0.0, None),  # nothing lies between
        (100.0, 25.0, 60),  # as fast as foreseen, and too large
        (130.0, 15.0, 80),  # memory has the last word
    ],
)
def test_the_point_to_take_gives_what_was_foreseen_of_this_one(
    measured: float, over_mb: float, megabytes: int | None
) -> None:
    found = instead(KNOWN, 100_000_000, near(measured), over_mb)
    assert found == (None if megabytes is None else ForeseenPoint(bytes=megabytes * 1_000_000))


def test_speed_is_foreseen_by_what_was_reached_on_the_device_else_by_the_band_of_what_is_measured() -> None:
    here = Bandwidth(read_gb_s=20.0, samples_gb_s=(20.0,), threads=2, array_mb=100, cache_mb=1.0, is_beyond_cache=True)
    read = Reading(weights=100_000_000, kv_of_token=0, is_exact=True)
    assert foreseen_tokens_per_s(profile_with(read_gb_s=11.2), here, read) == pytest.approx(112.0)
    band = profile_with()
    assert band.expect.bandwidth_percent_low, "the profile has a band"
    assert band.expect.bandwidth_percent_high, "the profile has a band"
    middle = (band.expect.bandwidth_percent_low + band.expect.bandwidth_percent_high) / 200
    assert foreseen_tokens_per_s(band, here, read) == pytest.approx(200 * middle)
    assert foreseen_tokens_per_s(load_profile("apple-silicon"), here, read) is None


@pytest.fixture(scope="module")
def judged(searched: Bundle) -> Callable[..., Overlay]:
    """Hold one measurement of the bundle against profiles that foresee other things."""
    result, found = measure(searched, profile_with()), detect()

    def judge_by(**memory: float) -> Overlay:
        return judge(searched, profile_with(**memory), found, result, probes=1.0)

    return judge_by


# No machine reads a petabyte a second, or as little as a megabyte.
HOPEFUL, FEARFUL = 1e6, 1e-3


def test_a_device_that_is_slower_than_every_point_is_told_so(judged: Callable[..., Overlay]) -> None:
    overlay = judged(read_gb_s=HOPEFUL)
    assert not overlay.holds
    assert overlay.tokens_per_s.measured > 0
    assert overlay.instead is None
    assert "no point that asks for less" in words(overlay)


def test_a_faster_device_is_told_the_larger_point(judged: Callable[..., Overlay]) -> None:
    overlay = judged(read_gb_s=FEARFUL)
    assert overlay.holds
    assert overlay.instead == ForeseenPoint(bytes=140_000_000, predicted_kl=1 / 140)
    assert "fieldlm compile … --max-bundle-mb 140.3" in words(overlay)


def test_too_small_a_budget_is_told_the_point_that_fits(judged: Callable[..., Overlay], searched: Bundle) -> None:
    weights_mb = searched.need("base").stat().st_size / 1e6
    over_mb = weights_mb - 72
    overlay = judged(read_gb_s=FEARFUL, model_budget_mb=judged().serving_mb - over_mb)
    assert not overlay.holds
    assert overlay.instead == ForeseenPoint(bytes=70_000_000, predicted_kl=1 / 70)


def test_memory_is_foreseen_from_the_header(judged: Callable[..., Overlay]) -> None:
    assert judged().memory_mb.is_near, judged().memory_mb


def test_without_a_search_the_candidates_are_the_points_and_a_strange_report_is_named(tmp_path: Path) -> None:
    assert points(material.tiny_bundle(tmp_path / "bare")) == ()
    for number, (report, sizes) in enumerate(
        [('{"candidates": [{"bytes": 9}, {"bytes": 7}], "search": null}', (7, 9)), ("[]", None), ("{", None)]
    ):
        bare = material.tiny_bundle(tmp_path / str(number))
        (bare.folder / "report.json").write_text(report)
        files = (*bare.manifest.files, describe(bare.folder, "report.json", "report"))
        bundle = msgspec.structs.replace(bare, manifest=msgspec.structs.replace(bare.manifest, files=files))
        if sizes is None:
            with pytest.raises(BundleError, match=r"report\.json is not a compiler's report"):
                points(bundle)
        else:
            assert tuple(point.bytes for point in points(bundle)) == sizes


def optimist(folder: Path) -> str:
    """Write a profile that foresees more than any machine gives; return its path."""
    profile = folder / "optimist.toml"
    profile.write_text(
        'inherits = "generic-x86-64-avx2"\nformat = "fieldlm.profile/1"\nid = "optimist"\ntitle = "An optimist"\n'
        f'[memory]\nread_gb_s = {{ value = {HOPEFUL}, kind = "policy", source = "a test" }}\n'
    )
    return str(profile)


def test_the_command_writes_beside_the_bundle_and_answers_no_when_the_device_is_slower(
    searched: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: sha256_file(path) for path in searched.folder.iterdir()}
    assert verify.main([str(searched.folder), "--on-device", "--profile", optimist(tmp_path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["probes"] == 1.0
    assert report["overlay"]["profile"] == "optimist"
    assert report["overlay"]["bundle"] == searched.id
    assert json.loads(overlay_path(searched).read_bytes()) == report["overlay"]
    assert {path.name: sha256_file(path) for path in searched.folder.iterdir()} == before


def test_a_void_measurement_is_neither_judged_nor_written(
    searched: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(searched.folder), "--on-device", "--profile", optimist(tmp_path)]
    monkeypatch.setattr(calibration, "findings", neighbours)
    overlay_path(searched).unlink(missing_ok=True)
    assert verify.main(command) == 75
    said = capsys.readouterr().out
    assert "! void: something waited for a processor" in said
    assert "run it again when the machine is quiet" in said
    assert "foreseen, and its" not in said
    assert "written to" not in said
    assert not overlay_path(searched).exists()
    # What an earlier, quiet run found stays.
    overlay_path(searched).write_text("{}")
    assert verify.main([*command, "--json"]) == 75
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is None
    assert report["overlay"]["is_void"]
    assert overlay_path(searched).read_text() == "{}"
