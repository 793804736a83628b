"""How long a repository's word is good, who renews it, and what a device says when nobody does (a freeze attack)."""

import json
import re
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from fieldlm.blobs.sources import FolderSource
from fieldlm.core.errors import InputError
from fieldlm.updates.freshness import staleness
from fieldlm.updates.trust import Trust
from fieldlm_compiler.repository.metadata import TIMESTAMP_DAYS
from fieldlm_compiler.repository.publish import main, publish, refresh
from tests.support.update_simulators import Site, make_site, small_bundle

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = make_site(tmp_path, small_bundle(tmp_path / "base", base_bytes=5_000))
    site.publish(small_bundle(tmp_path / "tuned", base_bytes=5_000, adapter="tuned"))
    yield site
    site.slots.close()


def lasts(site: Site) -> timedelta:
    """Return for how long the repository is good from now on, to the minute."""
    left = Metadata.from_file(str(site.repository / "tuf" / "timestamp.json")).signed.expires - datetime.now(UTC)
    return timedelta(minutes=round(left / timedelta(minutes=1)))


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """Let the device's clock be ahead."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86_400)


def test_a_repository_is_good_for_two_weeks_and_a_refresh_needs_the_timestamps_key_alone(site: Site) -> None:
    assert lasts(site) == timedelta(days=TIMESTAMP_DAYS) == timedelta(days=14)
    before = {path.name: path.read_bytes() for path in (site.repository / "tuf").iterdir()}
    renewer = site.folder / "renewer"
    renewer.mkdir()
    shutil.copy(site.keys / "timestamp.pem", renewer)
    refresh(site.repository, keys=renewer)
    after = {path.name: path.read_bytes() for path in (site.repository / "tuf").iterdir()}
    assert [name for name in after if after[name] != before.get(name)] == ["timestamp.json"]
    assert sorted(path.name for path in renewer.iterdir()) == ["root.json", "timestamp.pem"], "no key was made"
    assert site.update().outcome == "updated"


def test_how_long_it_is_good_is_said_once_and_kept(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--to", str(site.repository), "--keys", str(site.keys)]
    assert main(["--refresh", "--timestamp-days", "90", *where, "--json"]) == 0
    until = datetime.fromisoformat(json.loads(capsys.readouterr().out)["until"].removesuffix(" UTC"))
    assert abs(until - datetime.now(UTC).replace(tzinfo=None) - timedelta(days=90)) < timedelta(minutes=2)
    site.publish(small_bundle(site.folder / "other", base_bytes=5_000, adapter="other"))
    assert lasts(site) == timedelta(days=90)
    publish(site.base.folder, site.repository, keys=site.keys, days=3)
    assert lasts(site) == timedelta(days=3)


@pytest.mark.parametrize("words", [[], ["bundle", "--refresh"], ["--refresh", "--timestamp-days", "0"]])
def test_a_refresh_without_sense_is_refused(site: Site, words: list[str]) -> None:
    with pytest.raises(InputError):
        main([*words, "--to", str(site.repository)])


def test_a_folder_without_releases_is_not_made_a_repository(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no repository with releases"):
        refresh(tmp_path / "repository", keys=tmp_path / "keys")
    assert list(tmp_path.iterdir()) == []


def test_a_device_names_a_repository_that_is_not_renewed_before_and_after_its_time_is_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = site.folder / "state" / "trust" / "metadata"
    assert staleness(seen) == ("", ""), "nothing was seen yet"
    site.update()
    with monkeypatch.context() as clock:
        later(clock, 6)
        assert staleness(seen) == ("", "")
        later(clock, 3)
        name, detail = staleness(seen)
        assert name == "repository-not-renewed"
        assert "was not renewed for 9 days" in detail
        assert "fieldlm publish --refresh" in detail
        later(clock, 11)
        name, detail = staleness(seen)
        assert name == "repository-expired"
        assert "was not renewed for 20 days" in detail
        later(clock, 365 * 60)
        assert staleness(seen) == ("", ""), "a clock that cannot be right says nothing"
    refresh(site.repository, keys=site.keys, days=-1)
    result = site.update()
    assert (result.outcome, result.reason) == ("failed", "trust")
    assert "fieldlm publish --refresh" in result.detail


def test_a_repository_of_version_0_1_is_good_for_its_year_and_two_weeks_after_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "left"
    shutil.copytree(ROOT / "tests/fixtures/version_0_1", left)
    timestamp = left / "repository/tuf/timestamp.json"
    ends = json.loads(timestamp.read_bytes())["signed"]["expires"]
    year = datetime.fromisoformat(ends).timestamp() - 365 * 86_400
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: year + 150 * 86_400)
        assert staleness(timestamp.parent) == ("", "")
        clock.setattr(time, "time", lambda: year + 200.5 * 86_400)
        assert "was not renewed for 200 days" in staleness(timestamp.parent)[1]
    until = refresh(left / "repository", keys=left / "keys")
    assert abs(until - datetime.now(UTC) - timedelta(days=14)) < timedelta(minutes=2)
    trust = Trust(tmp_path / "trust")
    trust.adopt(left / "keys/root.json")
    release = trust.latest(FolderSource(left / "repository"), profile="generic-x86-64-avx2")
    assert release
    assert release.seq == 1


def test_the_timer_of_the_packaging_folder_renews_often_enough() -> None:
    folder = ROOT / "packaging" / "publisher"
    command = re.search(r"^ExecStart=\S+/fieldlm publish (.*)$", (folder / "fieldlm-refresh.service").read_text(), re.M)
    assert command
    assert "--refresh --to" in command[1]
    assert "OnCalendar=daily" in (folder / "fieldlm-refresh.timer").read_text()
