"""An update over a folder repository, with a simulated engine."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.blobs.sources import StoppedError
from fieldlm.core.errors import EngineError
from fieldlm.core.files import canonical_json
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Pointer
from fieldlm.updates.slots import MAX_ATTEMPTS
from fieldlm.updates.updater import Updater
from fieldlm_compiler.repository import offers
from fieldlm_compiler.repository.metadata import Keyring
from tests.support.update_simulators import BASE_BYTES, Site, make_site, several_adapters, small_bundle


@pytest.fixture
def tuned(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "tuned", adapter="coffee")


@pytest.fixture
def site(tmp_path: Path, tuned: Bundle) -> Iterator[Site]:
    """A device whose repository offers it an adapter for its base."""
    site = make_site(tmp_path, small_bundle(tmp_path / "base"))
    site.publish(tuned)
    yield site
    site.slots.close()


def test_an_adapter_update_moves_the_adapter_and_not_the_base(site: Site, tuned: Bundle) -> None:
    result = site.update()
    assert (result.outcome, result.seq, result.generation) == ("updated", 1, tuned.generation)
    assert site.live.current.bundle.id == site.slots.current().id == tuned.id
    assert 200_000 < result.bytes_fetched < 220_000
    assert result.bytes_bundle > BASE_BYTES
    steps = [moment.step for moment in result.timeline]
    assert steps == ["check", "fetch", "verify", "load", "probe", "switch", "observe", "commit"]


def test_of_several_adapters_the_changed_one_alone_travels(tmp_path: Path) -> None:
    before = several_adapters(tmp_path / "before", {"all": "all", "tea": "tea", "bill": "bill"})
    after = several_adapters(tmp_path / "after", {"all": "all", "tea": "other tea", "bill": "bill"})
    site = make_site(tmp_path, before)
    site.publish(after)
    result = site.update()
    assert (result.outcome, result.generation) == ("updated", after.generation)
    assert site.slots.current().manifest.task_adapters == after.manifest.task_adapters
    assert 200_000 < result.bytes_fetched < 230_000
    site.slots.close()


def test_the_story_of_an_update_is_told(site: Site) -> None:
    site.update()
    told = [event for event, _ in site.events]
    assert told == [f"update.{word}" for word in (
        "checked", "fetched", "verified", "loaded", "probed", "switched", "observed", "committed",
    )]  # fmt: skip
    assert int(site.events[1][1]["bytes"]) > 200_000


def test_a_device_that_is_up_to_date_fetches_only_metadata(site: Site) -> None:
    site.update()
    again = site.update()
    assert (again.outcome, again.reason) == ("current", "current")
    assert again.bytes_fetched < 10_000


def test_a_pointer_to_what_is_known_does_not_touch_the_repository(site: Site) -> None:
    site.update()
    hint = canonical_json(Pointer(seq=1, profile="test"))
    result = site.updater().check_and_update(hint)
    assert (result.outcome, result.reason, result.bytes_fetched) == ("current", "hint", 0)


@pytest.mark.parametrize("hint", [b"\xff", b"{}", b'{"seq": "x"}', b'{"seq": 9, "profile": "test"}'])
def test_whatever_a_pointer_says_the_repository_decides(site: Site, hint: bytes) -> None:
    assert site.updater().check_and_update(hint).outcome == "updated"


def test_answers_that_are_not_as_expected_undo_the_update_before_any_request_sees_it(site: Site, tuned: Bundle) -> None:
    result = site.updater(probe_score=0.4).check_and_update()
    assert (result.outcome, result.reason) == ("rolled-back", "garbage")
    assert "40%" in result.detail
    assert site.live.story == [f"load {tuned.generation}", f"discard {tuned.generation}"]
    assert site.slots.current().id == site.base.id
    assert site.events[-1][0] == "update.rolled-back"
    assert site.events[-1][1]["reason"] == "garbage"


def test_a_complaint_after_the_switch_brings_the_old_generation_back(site: Site) -> None:
    result = site.updater(complaint="every answer is empty").check_and_update()
    assert (result.outcome, result.reason) == ("rolled-back", "errors")
    assert site.live.current.bundle.id == site.slots.current().id == site.base.id


@pytest.mark.parametrize("error", [EngineError("wrong architecture"), MemoryError("no room"), RuntimeError("native")])
def test_whatever_an_engine_raises_the_old_generation_answers_on(site: Site, error: Exception) -> None:
    site.live.breaks_at_load = error
    result = site.update()
    assert result.outcome == "rolled-back"
    assert str(error) in result.detail
    assert site.live.current.bundle.id == site.slots.current().id == site.base.id


def test_an_update_that_is_called_off_again_and_again_is_taken_in_the_end(site: Site) -> None:
    site.live.breaks_at_load = StoppedError("the device is being stopped")
    for _ in range(MAX_ATTEMPTS + 1):
        assert site.update().reason == "stopped"
    site.live.breaks_at_load = None
    assert site.update().outcome == "updated"


def test_a_release_that_failed_is_not_tried_again_but_the_next_one_is(site: Site) -> None:
    site.updater(probe_score=0.0).check_and_update()
    again = site.update()
    assert (again.outcome, again.reason) == ("refused", "failed-before")
    better = small_bundle(site.folder / "better", adapter="tea")
    site.publish(better)
    assert site.update().generation == better.generation


def test_a_failed_bundle_is_tried_again_when_it_comes_as_a_new_release(site: Site, tuned: Bundle) -> None:
    site.updater(probe_score=0.0).check_and_update()
    site.publish(small_bundle(site.folder / "other", adapter="tea"))
    site.publish(tuned)
    assert site.update().generation == tuned.generation


def test_going_back_to_an_older_bundle_is_a_new_release(site: Site) -> None:
    site.update()
    site.publish(site.base)
    result = site.update()
    assert (result.outcome, result.seq, result.generation) == ("updated", 2, site.base.generation)


def test_no_device_goes_back_to_a_release_that_its_publisher_took_back(site: Site, tuned: Bundle) -> None:
    site.update()
    site.publish(small_bundle(site.folder / "other", adapter="tea"))
    site.update()
    offers.change(site.repository, Keyring(site.keys), "test", 2, what="pull", reason="garbage")
    updater = site.updater()
    assert updater.check_and_update().generation == tuned.generation
    assert updater.roll_back("asked: by the owner").id == site.base.id
    assert "pulled: garbage" in {known.failed for known in site.slots.status().failed}


def test_what_waits_in_a_repository_and_what_to_do_is_said(site: Site) -> None:
    site.update()
    site.publish(small_bundle(site.folder / "other", adapter="tea"))
    ring = Keyring(site.keys)
    offers.change(site.repository, ring, "test", 2, what="promote", percent=0)
    start = "in waves with: fieldlm rollout start --to REPOSITORY"
    promote = "to all with: fieldlm release promote test --share 100 --to REPOSITORY"
    result = site.update()
    assert result.reason == "current"
    assert result.detail.endswith(f"; release 2 of test waits, offered to none of its devices yet; {start}; {promote}")
    offers.change(site.repository, ring, "test", 1, what="promote", percent=0)
    result = site.update()
    assert (result.outcome, result.reason) == ("current", "none")
    assert "offers nothing: release 2 of test waits, offered to none" in result.detail
    offers.change(site.repository, ring, "test", 2, what="pause")
    said = site.update().detail
    assert "release 2 of test waits, paused by its publisher; this device's turn comes once that goes on" in said
    assert "promote" not in said


def test_a_device_waits_for_its_wave_and_is_not_told_how_to_go_around_it(site: Site) -> None:
    site.update()
    site.publish(small_bundle(site.folder / "other", adapter="tea"))
    offers.change(site.repository, Keyring(site.keys), "test", 2, what="promote", percent=0.0001)
    said = site.update().detail
    assert "release 2 of test waits, offered to 0.0001 % of its devices so far and not to this one" in said
    assert "its turn comes with a later wave of the rollout" in said
    assert "--share" not in said


def test_a_bundle_of_another_profile_is_not_offered_to_this_device(site: Site) -> None:
    site.publish(small_bundle(site.folder / "other", base="other", profile="other"))
    site.update()
    assert site.update().reason == "current"


def test_a_repository_that_is_away_is_a_reason_and_not_a_verdict(site: Site) -> None:
    aside = site.repository.rename(site.folder / "away")
    result = site.update()
    assert (result.outcome, result.reason) == ("failed", "link")
    aside.rename(site.repository)
    assert site.update().outcome == "updated"


def test_without_a_trusted_root_nothing_is_taken(site: Site) -> None:
    updater = Updater(site.slots, site.live, repository=str(site.repository))
    result = updater.check_and_update()
    assert (result.outcome, result.reason) == ("failed", "trust")


def test_updates_asked_for_at_once_run_one_after_the_other(site: Site, tuned: Bundle) -> None:
    updater = site.updater()
    for _ in range(5):
        updater.start()
    while (state := updater.state).running or not state.runs:
        time.sleep(0.01)
    assert site.slots.current().id == tuned.id
    assert [entry for entry in site.live.story if entry.startswith("load")] == [f"load {tuned.generation}"]
