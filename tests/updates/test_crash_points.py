"""Every point at which the power may go while a device takes an update, and what it makes of what is left.

Each scene is recorded once on the disk simulator; then every distinct state that the disk may be in afterwards is laid
out and started. How many there were is printed: `pytest -rP tests/updates/test_crash_points.py`.
"""

import contextlib
import errno
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fieldlm.core.errors import FieldlmError
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.updates.progress import UpdateResult
from fieldlm.updates.slots import Slots
from fieldlm_compiler.repository.publish import publish
from tests.support import depth
from tests.support.disk_simulator import Moment, Node, intercepted, lay_out, recording
from tests.support.update_simulators import Site, simulated_live, small_bundle

SIZE = 5_000
ONE_IN = 4  # at depth 1 one in so many of the states is started
UPDATED_EVERY = 3  # one in so many of those that start takes the update up again

OnStep = Callable[[str], None]


def nobody(step: str) -> None:
    del step


@dataclass
class World:
    """A publisher's folders, and a device on a disk of its own, which is recorded."""

    folder: Path
    base: Bundle
    releases: dict[str, Bundle]

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    def publish(self, name: str) -> None:
        publish(self.releases[name].folder, self.folder / "repository", keys=self.folder / "keys")

    def start(self, disk: Path, on_step: OnStep = nobody, *, boot_id: str = "before") -> Site:
        """Start what lies on `disk`, as `fieldlm serve BUNDLE` does; the caller closes its slots."""
        slots = Slots(disk / "state", on_step=on_step, boot_id=boot_id)
        try:
            slots.factory(self.base.folder)
            return Site(self.folder, slots, simulated_live(slots.boot()), self.base)
        except BaseException:
            slots.close()
            raise


@dataclass(frozen=True)
class Scene:
    """What is recorded: an update of a device that has taken `before` already, and how its probes come out."""

    release: str = "coffee"
    before: str = ""
    probe_score: float = 1.0
    complaint: str | None = None
    rollback: bool = False

    @property
    def is_good(self) -> bool:
        return self.probe_score == 1.0 and not self.complaint and not self.rollback

    def prepare(self, world: World) -> None:
        if self.release:
            world.start(world.disk).slots.close()
        if self.before:
            world.publish(self.before)
            self._run(world, world.disk, Scene(), nobody)
        if self.release:
            world.publish(self.release)

    def play(self, world: World, disk: Path, on_step: OnStep = nobody) -> UpdateResult | None:
        return self._run(world, disk, self, on_step)

    def update(self, site: Site) -> UpdateResult:
        return site.updater(probe_score=self.probe_score, complaint=self.complaint).check_and_update()

    @staticmethod
    def _run(world: World, disk: Path, scene: "Scene", on_step: OnStep) -> UpdateResult | None:
        site = world.start(disk, on_step)
        try:
            site.slots.confirm()
            if not scene.release:
                return None
            result = scene.update(site)
            if scene.rollback:
                site.slots.rollback("asked for")
            return result
        finally:
            site.slots.close()


SCENES = {
    "the first start": Scene(release=""),
    "an adapter": Scene(),
    "another base": Scene(release="other"),
    "a third generation": Scene(release="tea", before="coffee"),
    "garbage": Scene(probe_score=0.0),
    "a complaint after the switch": Scene(complaint="every answer is empty", before="tea"),
    "a rollback that was asked for": Scene(rollback=True),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    names = ("coffee", "tea")
    releases = {name: small_bundle(tmp_path / name, base_bytes=SIZE, adapter=name) for name in names}
    releases["other"] = small_bundle(tmp_path / "other", base="other", base_bytes=SIZE)
    (tmp_path / "disk").mkdir()
    return World(tmp_path, small_bundle(tmp_path / "base", base_bytes=SIZE), releases)


@pytest.mark.parametrize("name", SCENES)
def test_whatever_a_power_cut_leaves_starts_with_what_was_committed(world: World, name: str) -> None:
    scene = SCENES[name]
    scene.prepare(world)
    with recording(world.disk) as recorder:
        scene.play(world, world.disk, recorder.note)
    states = started = 0
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        for states, (what, nodes) in enumerate(distinct(recorder.moments), start=1):
            if not depth.is_tried(states, ONE_IN):
                continue
            started += 1
            disk = Path(folder) / str(started)
            lay_out(nodes, disk)
            try:
                revive(world, scene, disk, is_updated=started % UPDATED_EVERY == 0)
            except (AssertionError, FieldlmError, OSError) as error:
                raise AssertionError(f"{name}, {what}: {error}") from error
    print(f"{name}: {len(recorder.moments)} points, {started} of {states} states")
    assert states > (250 if scene.release else 25)
    assert started >= states // ONE_IN


def memory() -> Path | None:
    """Where states are laid out: what is lost there is lost on purpose, so a disk would only be slower."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None


def distinct(moments: list[Moment]) -> Iterator[tuple[str, list[Node]]]:
    """Yield what may be left at each point, every state once."""
    seen = set[bytes]()
    for number, moment in enumerate(moments):
        torn = torn_journal(moments[number - 1], moment) if number else []
        for kind, nodes in itertools.chain(moment.outcomes(f"{number}"), torn):
            digest = hashlib.sha256(repr(nodes).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield f"point {number} ({moment.label}), {kind}", nodes


def torn_journal(before: Moment, after: Moment) -> list[tuple[str, list[Node]]]:
    """Return what is left when the power goes while SQLite writes a transaction: half of its log."""
    old, new = (wal(moment) for moment in (before, after))
    if len(new) <= len(old) or not new.startswith(old):
        return []
    half = new[: (len(old) + len(new)) // 2]
    _, nodes = next(before.outcomes(""))
    kept = [node for node in nodes if not node.path.endswith("slots.db-shm")]
    return [("half a transaction", [n._replace(content=half) if n.path.endswith("-wal") else n for n in kept])]


def wal(moment: Moment) -> bytes:
    _, nodes = next(moment.outcomes(""))
    content = next((node.content for node in nodes if node.path.endswith("slots.db-wal")), b"")
    assert isinstance(content, bytes)
    return content


def revive(world: World, scene: Scene, disk: Path, *, is_updated: bool) -> None:
    """Start what lies on `disk`: it has to come up with what its journal says was committed, and to go on."""
    slots = Slots(disk / "state")
    try:
        committed = slots.status().current or world.base.id
    finally:
        slots.close()
    site = world.start(disk, boot_id="after")
    try:
        assert site.live.current.bundle.id == committed, "another generation than the committed one"
        assert "damaged" not in {step.step for step in site.slots.status().journal}, "the committed one was damaged"
        if is_updated:
            go_on(world, scene, site, committed)
    finally:
        site.slots.close()


def go_on(world: World, scene: Scene, site: Site, committed: str) -> None:
    """Update again: a good release is taken in the end, one that has failed is never loaded again."""
    failed = {known.bundle[:12] for known in site.slots.status().failed}
    if not scene.release:
        return
    result = scene.update(site)
    assert not [entry for entry in site.live.story if entry.removeprefix("load ") in failed], "a failed one was loaded"
    if scene.is_good:
        assert result.outcome in ("updated", "current"), result.detail
        assert site.slots.current().id == world.releases[scene.release].id
    elif not scene.rollback:
        assert result.outcome in ("rolled-back", "refused"), result.detail
        assert site.slots.current().id == committed
    assert open_bundle(site.slots.current().folder).id == site.slots.current().id


@pytest.mark.parametrize("name", ["an adapter", "garbage"])
def test_an_operation_that_fails_costs_an_update_and_not_the_device(world: World, name: str) -> None:
    scene = SCENES[name]
    scene.prepare(world)
    with recording(world.disk) as recorder:
        recorder.note("at rest")
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        _, fresh = next(recorder.moments[-1].outcomes(""))
        number, is_over = -1, False
        while not is_over:
            number += 1
            disk = Path(folder) / str(number)
            lay_out(fresh, disk)
            is_over = play_until(world, scene, disk, number)
            revive(world, scene, disk, is_updated=True)
    print(f"{name}: {number} operations")
    assert number > 20


def play_until(world: World, scene: Scene, disk: Path, number: int) -> bool:
    """Play the scene on a disk that fails in the operation of that number; say whether it ended before it."""
    left = number

    def strike(label: str) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(errno.EIO if number % 2 else errno.ENOSPC, label)

    with intercepted(before=strike, after=nobody), contextlib.suppress(FieldlmError):
        scene.play(world, disk)
    return left >= 0
