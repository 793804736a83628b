"""What lies on the device, whatever happens to it."""

import contextlib
import json
import multiprocessing
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.cli.slots import main
from fieldlm.core.errors import BundleError, InputError, TrustError
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.release import FORMAT, Blob, Release
from fieldlm.updates.admission import refusal
from fieldlm.updates.journal import Known
from fieldlm.updates.slots import MAX_ATTEMPTS, Slots
from fieldlm_compiler.repository.publish import publish
from tests.support.update_simulators import Site, make_site, simulated_live, small_bundle, update_and_die

SIZE = 5_000


@pytest.fixture
def base(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "base", base_bytes=SIZE)


@pytest.fixture
def tuned(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "tuned", base_bytes=SIZE, adapter="coffee")


@pytest.fixture
def site(tmp_path: Path, base: Bundle, tuned: Bundle) -> Iterator[Site]:
    site = make_site(tmp_path, base)
    site.publish(tuned)
    yield site
    site.slots.close()


def crash(site: Site, fatal: int | str, *, has_come_up: bool = False) -> list[str]:
    """Update in a process that is killed after the step of that number or name; return the steps it took."""
    log = site.folder / "steps"
    log.unlink(missing_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.update_simulators"])
    arguments = (site.slots.state, site.repository, site.keys / "root.json", log, fatal)
    child = context.Process(target=update_and_die, args=arguments, kwargs={"has_come_up": has_come_up})
    child.start()
    child.join()
    steps = log.read_text().split()
    assert child.exitcode == (-signal.SIGKILL if fatal in (len(steps), steps[-1]) else 0)
    child.close()
    return steps


def test_a_device_killed_after_any_step_starts_complete_and_can_update(
    site: Site, base: Bundle, tuned: Bundle, tmp_path: Path
) -> None:
    site.slots.close()
    shutil.copytree(site.slots.state, tmp_path / "fresh")
    every_step = crash(site, 0)
    assert every_step == ["boot", "adopt", "stage", "built", "attempt", "switch", "commit", "collect"]
    for fatal in range(1, len(every_step) + 1):
        shutil.rmtree(site.slots.state)
        shutil.copytree(tmp_path / "fresh", site.slots.state)
        is_committed = "commit" in crash(site, fatal)
        site.slots = Slots(site.slots.state, boot_id="after a power cut")
        booted = site.slots.boot()
        assert booted.id == (tuned.id if is_committed else base.id)
        assert open_bundle(booted.folder).id == booted.id
        site.live = simulated_live(booted)
        assert site.update().outcome == ("current" if is_committed else "updated")
        assert open_bundle(site.slots.current().folder).id == tuned.id
        site.slots.close()


def test_a_first_start_killed_after_any_step_can_be_made_again(tmp_path: Path, base: Bundle) -> None:
    for fatal in range(1, 5):
        state = tmp_path / f"state{fatal}"
        taken = list[str]()

        def die(step: str, fatal: int = fatal, taken: list[str] = taken) -> None:
            taken.append(step)
            if len(taken) == fatal:
                raise KeyboardInterrupt

        slots = Slots(state, on_step=die)
        with pytest.raises(KeyboardInterrupt):
            slots.factory(base.folder)
        slots.close()
        slots = Slots(state)
        assert slots.factory(base.folder).id == slots.boot().id == base.id
        slots.close()


def test_a_release_that_kills_the_process_three_times_is_not_tried_a_fourth_time(site: Site, base: Bundle) -> None:
    site.slots.close()
    for _ in range(3):
        assert crash(site, "attempt")[-1] == "attempt"
    site.slots = Slots(site.slots.state)
    assert site.slots.boot().id == base.id
    assert site.update().reason == "failed-before"
    (failed,) = site.slots.status().failed
    assert failed.failed == "crash: it ended in 3 loads"


@pytest.mark.parametrize("fatal", ["switch", "commit"])
def test_a_process_that_dies_while_its_update_answers_has_crashed_and_a_power_cut_has_not(
    site: Site, base: Bundle, tuned: Bundle, tmp_path: Path, fatal: str
) -> None:
    site.slots.up()
    site.slots.close()
    assert crash(site, fatal, has_come_up=True)[-1] == fatal
    shutil.copytree(site.slots.state, tmp_path / "cut")
    site.slots = Slots(site.slots.state)
    assert site.slots.boot().id == base.id
    (failure,) = site.slots.untold()
    assert (failure.bundle, failure.seq, failure.reason) == (tuned.id, 1, "crash")
    after_a_cut = Slots(tmp_path / "cut", boot_id="another")
    assert after_a_cut.boot().id == (tuned.id if fatal == "commit" else base.id)
    assert after_a_cut.untold() == []
    after_a_cut.close()


def test_power_that_is_cut_in_the_shadow_is_no_fault_of_the_release_and_its_time_is_kept(
    site: Site, base: Bundle, tuned: Bundle
) -> None:
    for day in range(1, 2 + 2 * MAX_ATTEMPTS):
        site.slots.close()
        site.slots = Slots(site.slots.state, boot_id=f"day-{day}")
        assert site.slots.boot().id == base.id
        assert site.slots.status().failed == ()
        site.slots.attempt(tuned)
        assert site.slots.shadow_s(tuned) == 100 * (day - 1)
        assert site.slots.shadow_s(base) == 0
        site.slots.shadowed(tuned, 100 * day)


@pytest.mark.parametrize("is_in_shadow", [True, False])
def test_a_release_that_kills_its_process_is_given_up_whether_it_gets_into_the_shadow_or_not(
    site: Site, base: Bundle, tuned: Bundle, is_in_shadow: bool
) -> None:
    site.slots.close()
    site.slots = Slots(site.slots.state, boot_id="the day before")
    site.slots.attempt(tuned)
    site.slots.shadowed(tuned, 100)
    for _ in range(MAX_ATTEMPTS):
        site.slots.close()
        site.slots = Slots(site.slots.state, boot_id="today")
        assert site.slots.boot().id == base.id
        assert site.slots.status().failed == ()
        site.slots.attempt(tuned)
        if is_in_shadow:
            site.slots.shadowed(tuned, 200)
    site.slots.boot()
    (failed,) = site.slots.status().failed
    assert failed.failed == "crash: it ended in 3 loads"


def test_one_crash_may_be_a_requests_doing_and_three_are_the_releases(site: Site, base: Bundle) -> None:
    site.slots.up()
    site.slots.close()
    for _ in range(3):
        site.slots = Slots(site.slots.state)
        assert (site.slots.boot().id, site.slots.status().failed) == (base.id, ())
        site.slots.up()
        site.slots.close()
        assert crash(site, "commit", has_come_up=True)[-1] == "commit"
    site.slots = Slots(site.slots.state)
    assert site.slots.boot().id == base.id
    assert [failure.reason for failure in site.slots.untold()] == ["crash"] * 3
    assert site.update().reason == "failed-before"


def test_loads_of_a_release_that_serves_without_a_crash_are_not_counted(site: Site, tuned: Bundle) -> None:
    site.update()
    assert site.slots._journal.known(tuned.id).attempts == 1  # pyright: ignore[reportPrivateUsage]
    site.slots.confirm()
    assert site.slots._journal.known(tuned.id).attempts == 0  # pyright: ignore[reportPrivateUsage]


def test_an_update_that_has_served_for_a_while_is_not_blamed_for_the_next_crash(site: Site, tuned: Bundle) -> None:
    site.slots.up()
    site.update()
    site.slots.confirm()
    assert site.slots.boot().id == tuned.id


def test_a_failure_is_kept_until_it_was_told(site: Site, tuned: Bundle) -> None:
    site.update()
    assert site.slots.current().id == tuned.id
    site.slots.rollback("garbage: it was")
    assert [(failure.reason, failure.detail) for failure in site.slots.untold()] == [("garbage", "it was")]
    site.slots.told()
    assert site.slots.untold() == []


def test_the_floor_forbids_a_rollback_that_is_asked_for_and_not_one_that_a_crash_needs(
    site: Site, base: Bundle, tuned: Bundle
) -> None:
    site.update()
    publish(small_bundle(site.folder / "tea", base_bytes=SIZE, adapter="tea").folder, site.repository, keys=site.keys,
            min_seq=2)  # fmt: skip
    assert site.update().seq == 2
    with pytest.raises(TrustError, match="floor 2"):
        site.slots.before()
    assert site.slots.rollback("crash: again and again").id == base.id


def test_there_is_nothing_before_the_factory_bundle(site: Site) -> None:
    with pytest.raises(InputError, match="no generation to go back to"):
        site.slots.before()


def test_the_same_factory_bundle_again_leaves_the_update_current(site: Site, base: Bundle, tuned: Bundle) -> None:
    site.update()
    site.slots.factory(base.folder)
    assert site.slots.boot().id == tuned.id
    assert site.slots.status().factory == base.id


def test_another_factory_bundle_becomes_current(site: Site, tuned: Bundle, tmp_path: Path) -> None:
    site.update()
    other = small_bundle(tmp_path / "other", base="other", base_bytes=SIZE)
    site.slots.factory(other.folder)
    assert site.slots.boot().id == other.id
    assert site.slots.status().previous == tuned.id


def test_a_damaged_factory_bundle_is_refused_and_changes_nothing(site: Site, base: Bundle, tmp_path: Path) -> None:
    bad = small_bundle(tmp_path / "bad", base="bad", base_bytes=SIZE)
    (bad.folder / "model.gguf").write_bytes(bytes(SIZE))
    with pytest.raises(BundleError, match="damaged"):
        site.slots.factory(bad.folder)
    assert site.slots.boot().id == base.id


@pytest.mark.parametrize("damage", ["adapter.gguf", "manifest.json", "manifest.sig", "everything"])
def test_a_damaged_current_generation_gives_way_to_the_one_before(site: Site, base: Bundle, damage: str) -> None:
    site.update()
    folder = site.slots.current().folder
    shutil.rmtree(folder) if damage == "everything" else (folder / damage).unlink()
    assert site.slots.boot().id == base.id
    assert site.update().outcome == "updated"


def test_a_generation_that_never_comes_up_gives_way_after_three_starts(site: Site, base: Bundle, tuned: Bundle) -> None:
    site.update()
    assert [site.slots.boot().id for _ in range(4)] == [tuned.id, tuned.id, tuned.id, base.id]


def test_starts_that_were_confirmed_are_not_counted(site: Site, tuned: Bundle) -> None:
    site.update()
    for _ in range(6):
        assert site.slots.boot().id == tuned.id
        site.slots.confirm()


def test_the_factory_bundle_is_started_however_often_it_crashes(site: Site, base: Bundle) -> None:
    assert {site.slots.boot().id for _ in range(9)} == {base.id}


def test_only_current_previous_and_factory_are_kept(site: Site, base: Bundle, tmp_path: Path) -> None:
    made = [small_bundle(tmp_path / name, base_bytes=SIZE, adapter=name) for name in ("tea", "milk", "soup")]
    for bundle in made:
        site.publish(bundle)
        assert site.update().outcome == "updated"
    state = site.slots.state
    kept = {bundle.generation for bundle in (base, *made[1:])}
    assert {folder.name for folder in (state / "releases").iterdir()} == kept
    assert sum(1 for path in (state / "blobs").rglob("*") if path.is_file()) == 2 + 2 + 3 + 3
    assert not (state / "fetch").exists()


def test_a_local_rollback_goes_to_the_previous_generation_and_stays_there(site: Site, base: Bundle) -> None:
    site.update()
    assert site.slots.rollback("asked for").id == base.id
    assert site.slots.boot().id == base.id
    assert site.update().reason == "failed-before"


def test_a_journal_that_is_damaged_is_set_aside_and_the_factory_bundle_serves(site: Site, base: Bundle) -> None:
    site.slots.close()
    (site.slots.state / "slots.db").write_bytes(b"not a database" * 1000)
    site.slots = Slots(site.slots.state)
    site.slots.factory(base.folder)
    assert site.slots.boot().id == base.id
    assert list(site.slots.state.glob("slots.db.quarantine-*"))


def test_one_process_holds_a_state_folder(site: Site) -> None:
    program = "import sys; from pathlib import Path; from fieldlm.updates.slots import Slots; Slots(Path(sys.argv[1]))"
    child = subprocess.run(
        [sys.executable, "-c", program, str(site.slots.state)], check=False, capture_output=True, text=True
    )
    assert f"InputError: another fieldlm uses {site.slots.state}" in child.stderr.replace("fieldlm.core.errors.", "")


def test_a_state_folder_without_a_bundle_says_what_to_do(tmp_path: Path) -> None:
    slots = Slots(tmp_path)
    with pytest.raises(BundleError, match="fieldlm serve BUNDLE"):
        slots.boot()
    slots.close()


def boot_without_space(state: Path, told: Path) -> None:
    """Start as on a full disk: this process may not make any file longer."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    slots = Slots(state)
    bundle = slots.boot()
    slots.up()
    slots.confirm()
    told.symlink_to(f"{bundle.id} {bool(slots.problem)}")  # which takes no space
    slots.close()


@pytest.mark.parametrize("was_killed", [False, True])
def test_a_full_disk_does_not_keep_a_device_from_serving(site: Site, tuned: Bundle, was_killed: bool) -> None:
    site.update()
    site.slots.confirm()
    if was_killed:
        copy = site.folder / "killed"
        shutil.copytree(site.slots.state, copy)
    site.slots.close()
    state = site.folder / "killed" if was_killed else site.slots.state
    child = multiprocessing.get_context("forkserver").Process(
        target=boot_without_space, args=(state, site.folder / "told")
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    assert str((site.folder / "told").readlink()) == f"{tuned.id} True"
    with contextlib.closing(Slots(state)) as again:
        assert again.boot().id == tuned.id
        assert again.problem == ""


def test_the_command_shows_what_lies_where(site: Site, tuned: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    site.update()
    assert main(["--state", str(site.slots.state)]) == 0
    shown = capsys.readouterr().out
    assert tuned.generation in shown
    assert "commit" in shown
    assert main(["--state", str(site.slots.state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["current"] == tuned.id


def test_the_command_needs_a_state_folder_with_a_journal(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no generation yet"):
        main(["--state", str(tmp_path / "none")])
    assert not (tmp_path / "none" / "slots.db").exists()


NOTHING = Blob(sha256="b" * 64, size=0)
RELEASE = Release(
    format=FORMAT, seq=5, profile="test", bundle="b" * 64, signer="s", manifest=NOTHING, signature=NOTHING, files=()
)


@pytest.mark.parametrize(
    ("profile", "current", "tried", "floor", "reason"),
    [
        ("test", Known(bundle="a"), Known(bundle="b"), 0, None),
        ("test", Known(bundle="a", seq=4), Known(bundle="b"), 5, None),
        ("test", Known(bundle="a", seq=5), Known(bundle="b"), 0, "rollback"),
        ("test", Known(bundle="a", seq=6), Known(bundle="b"), 0, "rollback"),
        ("test", Known(bundle="a"), Known(bundle="b"), 6, "rollback"),
        ("test", Known(bundle="b" * 64, seq=5), Known(bundle="b" * 64), 0, "current"),
        ("other", Known(bundle="a"), Known(bundle="b"), 0, "profile"),
        ("test", Known(bundle="a"), Known(bundle="b", seq=5, failed="garbage"), 0, "failed-before"),
        ("test", Known(bundle="a"), Known(bundle="b", seq=4, failed="garbage"), 0, None),
    ],
)
def test_a_release_is_taken_when_it_is_newer_fits_and_has_not_failed(
    profile: str, current: Known, tried: Known, floor: int, reason: str | None
) -> None:
    found = refusal(RELEASE, profile=profile, current=current, tried=tried, floor=floor)
    assert (found.reason if found else None) == reason
