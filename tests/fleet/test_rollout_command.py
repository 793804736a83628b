"""A rollout over a real store and a real repository, driven by the commands a person would type."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.core.errors import InputError
from fieldlm.formats import block
from fieldlm.formats.record import Record
from fieldlm.formats.shadow import ShadowFigures
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.fleet.rollout import main
from fieldlm_compiler.repository.metadata import Keyring
from fieldlm_compiler.repository.offers import change, offered
from fieldlm_compiler.repository.publish import in_shadow, make_offer, publish
from tests.support.update_simulators import small_bundle

PROFILES = ("jetson", "pi")
OLD = "0ld000000000"
BACK = {"event": "update.rolled-back", "reason": "garbage"}


@dataclass
class World:
    """Devices that exist in a store only: they take what is offered to them, and some come to harm."""

    folder: Path
    new: dict[str, str] = field(default_factory=dict[str, str])
    seq: dict[str, int] = field(default_factory=dict[str, int])

    def main(self, *words: str) -> int:
        return main([*words, "--store", str(self.folder / "store"), *self.where(), "--json"])

    def where(self) -> list[str]:
        return [
            "--to", str(self.folder / "repository"), "--keys", str(self.folder / "keys"), "--patience", "0",
            "--spread", "0", "--every", "0.1",
        ]  # fmt: skip

    def names(self, profile: str) -> list[str]:
        return [f"{profile}-{number}" for number in range(200)]

    def live(self, *, harmed: str = "") -> None:
        """Let every device take what its repository offers; those of `harmed` fall back from it."""
        repository = offered(self.folder / "repository")
        with Store(self.folder / "store") as store:
            for profile in PROFILES:
                (newest,) = [one for one in repository if one.profile == profile][-1:]
                for device in self.names(profile):
                    takes = bool(self.new) and newest.offer.reaches(device)
                    is_good = takes and profile != harmed
                    state = {"state": "ready", "profile": profile, "generation": self.new[profile] if is_good else OLD}
                    store.note_presence(device, json.dumps(state))
                    if takes and not is_good:
                        store.append(
                            [block.parse(block.encode([self.record(device, {**BACK, "bundle": self.new[profile]})]))]
                        )

    def shadow(self, profile: str, figures: ShadowFigures, *, devices: int) -> None:
        """Let so many devices tell how the new release did in the shadow; none switches to it."""
        told = {"event": "update.shadowed", "bundle": self.new[profile], **figures.told()}
        with Store(self.folder / "store") as store:
            store.append(
                [block.parse(block.encode([self.record(name, told)])) for name in self.names(profile)[:devices]]
            )

    def record(self, device: str, detail: dict[str, str]) -> Record:
        self.seq[device] = self.seq.get(device, 0) + 1
        return msgspec.convert(
            {
                "device": device, "epoch": 7, "stream": "ota", "seq": self.seq[device], "kind": "update",
                "detail": detail, "wall_ms": int(time.time() * 1000),
            },
            Record,
        )  # fmt: skip

    def offers(self) -> dict[str, Any]:
        return {one.profile: one.offer for one in offered(self.folder / "repository") if one.profile in PROFILES}

    def document(self) -> dict[str, Any]:
        return json.loads((self.folder / "store" / "rollout.json").read_text())


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two profiles with a release before, and a new one that nobody is offered yet."""
    world = World(tmp_path)
    for profile in PROFILES:
        for name, share in (("old", 100.0), ("new", 0.0)):
            bundle = small_bundle(
                tmp_path / f"{profile}-{name}", base=f"{profile}-{name}", base_bytes=500, profile=profile
            )
            publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys", offer=make_offer(share, 0.0))
        world.new[profile] = bundle.generation
    world.live()
    return world


def test_a_release_that_harms_one_profile_is_taken_back_there_and_held_elsewhere(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    controller = begin(world)
    assert {profile: offer.share_ppm for profile, offer in world.offers().items()} == {"jetson": 150_000, "pi": 150_000}
    world.live(harmed="pi")
    assert world.main("watch", "--once") == 1
    document = world.document()
    assert (document["status"], document["wave"]) == ("reverted", 0)
    pulled = {one.profile: one.offer.pulled for one in offered(world.folder / "repository") if one.offer.pulled}
    assert list(pulled) == ["pi"]
    assert "rolled-back" in pulled["pi"]
    assert world.offers()["jetson"].paused
    assert world.offers()["pi"].is_open, "what was there before is offered again, under a number of its own"
    (bad,) = [each for each in document["evidence"] if each["profile"] == "pi"]
    assert bad["updated_bad"] == bad["updated"] > 10
    assert bad["control_bad"] == 0
    assert controller == document["tracks"]
    page = (world.folder / "store" / "rollout.html").read_text()
    assert "Reverted" in page
    assert f"{bad['updated_bad']} of {bad['updated']}" in page
    assert document["failed"] == {"pi": {"garbage": bad["updated"]}}
    assert f"{bad['updated']} garbage" in page
    capsys.readouterr()


def test_updates_that_fail_are_told_before_any_device_is_judged(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = [*world.where(), "--store", str(world.folder / "store"), "--patience", "86400"]
    assert main(["start", "--once", *patient]) == 0
    assert "failed" not in capsys.readouterr().out
    world.live(harmed="pi")
    assert main(["watch", "--once", *patient]) == 0
    number = sum(world.offers()["pi"].reaches(name) for name in world.names("pi"))
    assert f", {number} updates failed" in capsys.readouterr().out
    assert main(["show", "--store", str(world.folder / "store")]) == 0
    assert f"updates that failed on pi: {number} garbage" in capsys.readouterr().out
    assert "Updates that failed" in (world.folder / "store" / "rollout.html").read_text()


def test_what_failed_before_the_rollout_or_of_another_release_is_no_failure_of_it(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused generation comes again as a new release; devices that are not offered that yet refuse the old one."""
    patient = [*world.where(), "--store", str(world.folder / "store"), "--patience", "86400"]
    refused = {"event": "update.refused", "reason": "failed-before", "bundle": world.new["pi"]}
    told = {"event": "update.shadowed", "bundle": world.new["pi"], "seq": "1", **BAD.told()}

    def tell(device: str, detail: dict[str, str], *, is_clock_ok: bool = True) -> None:
        record = msgspec.structs.replace(world.record(device, detail), clock_ok=is_clock_ok)
        with Store(world.folder / "store") as store:
            store.append([block.parse(block.encode([record]))])

    for device, seq in (("pi-1", "1"), ("pi-2", "2")):
        tell(device, refused | {"seq": seq})
    time.sleep(0.01)
    assert main(["start", "--once", *patient]) == 0
    tell("pi-3", refused | {"seq": "1"})
    tell("pi-3", told)
    capsys.readouterr()
    assert main(["watch", "--once", *patient]) == 0
    assert "failed" not in capsys.readouterr().out
    assert (world.document()["failed"], world.document()["shadows"]) == ({}, {})
    tell("pi-4", {**BACK, "seq": "2", "bundle": world.new["pi"]})
    tell("pi-5", {**BACK, "seq": "2", "bundle": world.new["pi"]}, is_clock_ok=False)
    assert main(["watch", "--once", *patient]) == 0
    assert ", 2 updates failed" in capsys.readouterr().out
    assert world.document()["failed"] == {"pi": {"garbage": 2}}


def begin(world: World) -> Any:
    """Start a rollout and do not look yet; return its tracks."""
    assert world.main("start", "--once") == 0
    return world.document()["tracks"]


def test_a_rollout_can_be_paused_resumed_and_aborted(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    begin(world)
    with pytest.raises(InputError, match="not over"):
        world.main("start")
    assert world.main("pause") == 0
    assert all(offer.paused for offer in world.offers().values())
    assert world.document()["status"] == "paused"
    assert world.main("abort", "--reason", "the shop asked for it") == 0
    pulled = {one.offer.pulled for one in offered(world.folder / "repository") if one.offer.pulled}
    assert pulled == {"the shop asked for it"}
    capsys.readouterr()
    assert main(["show", "--store", str(world.folder / "store")]) == 1
    assert "aborted" in capsys.readouterr().out


def test_a_release_that_was_pulled_is_not_rolled_out(world: World) -> None:
    repository = world.folder / "repository"
    for seq in (1, 2):
        change(repository, Keyring(world.folder / "keys"), "pi", seq, what="pull", reason="too polite")
    with pytest.raises(InputError, match="was pulled"):
        world.main("start", "--once")
    assert not (world.folder / "store" / "rollout.json").exists()


def test_a_harmless_release_reaches_everybody(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    begin(world)
    shares = list[int]()
    while world.document()["status"] == "running":
        shares.append(world.offers()["pi"].share_ppm)
        world.live()
        assert world.main("watch", "--once") == 0
    assert world.document()["status"] == "done"
    assert shares == [150_000, 150_000, 150_000, 250_000, 500_000, 1_000_000]
    capsys.readouterr()
    (pi,) = [each for each in world.document()["evidence"] if each["profile"] == "pi"]
    assert pi["updated"] == 200
    assert pi["control"] > 0
    assert main(["show", "--store", str(world.folder / "store")]) == 0
    shown = capsys.readouterr().out
    assert "kept back" in shown.splitlines()[2]
    twice = "device that was kept back in one wave and updated in a later one is counted in both"
    assert f"a {twice}" in shown
    assert f"A {twice}." in (world.folder / "store" / "rollout.html").read_text()


def test_what_is_no_rollout_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fieldlm rollout start"):
        main(["show", "--store", str(tmp_path)])


def test_a_rollout_reads_a_store_that_is_no_folder(world: World, tmp_path: Path) -> None:
    where, memory = f"delta:{tmp_path / 'lake'}", tmp_path / "memory"
    with open_sink(where) as store:
        for profile in PROFILES:
            state = {"state": "ready", "profile": profile, "generation": OLD}
            store.note_presence(f"{profile}-1", json.dumps(state))
        store.tidy(finish=True)
    words = ["start", "--once", "--store", where, *world.where(), "--json"]
    with pytest.raises(InputError, match="--memory"):
        main(words)
    assert main([*words, "--memory", str(memory)]) == 0
    assert {track["size"] for track in json.loads((memory / "rollout.json").read_text())["tracks"]} == {1}


GOOD = ShadowFigures(wanted=50, answers=50, agreed=48, valid=50, valid_won=1, judged=4, right=3, right_won=2)
BAD = ShadowFigures(wanted=50, answers=50, agreed=40, valid=47, valid_lost=3)


def test_how_a_release_did_in_the_shadow_is_told_and_devices_are_judged_so_much_later(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.main("start", "--once", "--shadow", "50", "--shadow-hours", "6") == 0
    for offer in world.offers().values():
        assert (offer.shadow, offer.shadow_s, offer.share_ppm) == (50, 6 * 3600, 150_000)
    world.shadow("pi", GOOD, devices=3)
    world.shadow("pi", ShadowFigures(wanted=50, end="memory"), devices=1)
    assert world.main("watch", "--once") == 0
    document = world.document()
    assert (document["status"], document["looks"]) == ("running", []), "they may be in the shadow for six hours"
    seen = document["shadows"]["pi"]
    assert (seen["devices"], seen["none"], seen["answers"], seen["valid_better"]) == (2, 1, 100, 2)
    capsys.readouterr()
    assert main(["show", "--store", str(world.folder / "store")]) == 0
    said = "100 answers on 2 devices: 96 agree, 100 valid, before 98; of 8 judged by people 6 right, before 2"
    assert f"in the shadow on pi: {said}; 1 device went on without" in capsys.readouterr().out
    assert said in (world.folder / "store" / "rollout.html").read_text()


def test_a_release_that_does_worse_in_many_shadows_is_taken_back_before_any_device_is_judged(world: World) -> None:
    assert world.main("start", "--once", "--shadow", "50") == 0
    world.shadow("pi", BAD, devices=13)
    world.shadow("pi", GOOD, devices=1)
    world.shadow("jetson", BAD, devices=5)
    assert world.main("watch", "--once") == 0
    world.shadow("pi", BAD, devices=15)
    assert world.main("watch", "--once") == 1
    document = world.document()
    assert (document["status"], document["looks"]) == ("reverted", [])
    (pulled,) = {one.offer.pulled for one in offered(world.folder / "repository") if one.offer.pulled}
    assert "in the shadow fewer valid answers on 15 devices of 15, more on 0" in pulled
    assert world.offers()["jetson"].paused
    assert pulled in document["acts"][-1]["detail"]


def test_a_rollout_keeps_the_shadow_that_a_release_was_published_with(world: World) -> None:
    for profile in PROFILES:
        bundle = small_bundle(world.folder / profile, base=f"{profile}-newer", base_bytes=500, profile=profile)
        offer = in_shadow(make_offer(0.0, 0.0), 20, 2.0)
        publish(bundle.folder, world.folder / "repository", keys=world.folder / "keys", offer=offer)
    begin(world)
    assert {(offer.shadow, offer.shadow_s) for offer in world.offers().values()} == {(20, 7200)}


def test_hours_of_no_shadow_are_refused(world: World) -> None:
    with pytest.raises(InputError, match="say how many requests: --shadow REQUESTS"):
        world.main("start", "--once", "--shadow-hours", "6")
    assert not (world.folder / "store" / "rollout.json").exists()
