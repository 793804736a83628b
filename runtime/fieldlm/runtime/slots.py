"""Where generations lie on a device, and which one it starts with.

    STATE/blobs/sha256/…        every file once, by digest
    STATE/releases/<gen>/       complete bundle folders, made of hard links into blobs
    STATE/slots.db              the journal: current, previous, factory, what failed, every step

`current` only ever names a generation that has been committed: an update is loaded beside it, tried, and committed or
forgotten, so that a start after a crash at any point finds a complete bundle that worked before. Loads are counted
before they begin; a release that did not survive three is not tried again. The factory bundle, the one that
`fieldlm serve` is given, is never collected. Given another one than before, that one becomes current: whoever stands
at the device wins over what came through the air.
"""

import fcntl
import shutil
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from fieldlm.formats.bundle import MANIFEST, SIGNATURE, Bundle, open_bundle, parse_manifest
from fieldlm.formats.errors import BundleError, FieldlmError, InputError, TrustError
from fieldlm.formats.files import disk_errors, link_or_copy, make_folder, sha256_file, sync_folder, whole_folder
from fieldlm.formats.keys import Signature, check_signature
from fieldlm.formats.release import Release
from fieldlm.runtime import terminal
from fieldlm.runtime.blobs import Blobs
from fieldlm.runtime.config import load_config
from fieldlm.runtime.journal import Journal, Known, Step

MAX_ATTEMPTS = 3  # loads of one release, and starts of one generation, that may end in a crash
TAIL = 20


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a release is not taken: a code for programs, a line for people."""

    reason: str
    detail: str


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What lies where: bundle ids by slot, the floor below which nothing is taken, failures, the journal's tail."""

    current: str
    previous: str
    factory: str
    trial: str
    seq: int
    floor: int
    failed: tuple[Known, ...]
    journal: tuple[Step, ...]


class Slots:
    """The generations of one device. One process holds a state folder at a time; any of its threads may call."""

    def __init__(self, state: Path, *, on_step: Callable[[str], None] = lambda step: None) -> None:
        self.state = state
        self.blobs = Blobs(state)
        self._mutex = threading.RLock()
        with disk_errors(state):
            make_folder(state)
            self._held = (state / "slots.lock").open("w")
        try:
            # A POSIX lock: a child process does not inherit it and so cannot keep it when this process is killed.
            fcntl.lockf(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._held.close()
            raise InputError(f"another fieldlm uses {state}; stop it or pass another folder with --state") from error
        try:
            self._journal = Journal(state / "slots.db", on_step)
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        """Let another process use the folder."""
        self._journal.close()
        self._held.close()

    def factory(self, folder: Path) -> Bundle:
        """Take the bundle in `folder` in and return it; the one that is the factory bundle already changes nothing.

        Raises what `open_bundle` raises; the slots are then as they were.
        """
        bundle = open_bundle(folder)
        with self._mutex:
            is_new = self._journal.slot("factory") != bundle.id
            if not is_new and self._is_whole(bundle.id):
                return bundle
            with self._journal.step("ingest", bundle.id):
                pass
            self._ingest(bundle)
            self._build(bundle, signature=sha256_file(bundle.folder / SIGNATURE))
            with self._journal.step("factory", bundle.id):
                self._journal.set_slot("factory", bundle.id)
                if is_new:
                    self._make_current(bundle.id)
                    self._journal.set_slot("trial", "")
            self._collect()
            return bundle

    def boot(self) -> Bundle:
        """Return the generation to start with: current, or, where that is damaged or keeps crashing, one before it.

        Counts the start before it happens. Call `confirm` once it serves, and when it is stopped in good order.
        """
        with self._mutex:
            self._interrupted()
            starts = int(self._journal.setting("starts", "0"))
            if starts >= MAX_ATTEMPTS and self._journal.slot("current") != self._journal.slot("factory"):
                self.rollback(f"crashed in {starts} starts")
                starts = 0
            bundle = self._first_whole()
            with self._journal.step("boot", bundle.id):
                self._journal.set("starts", str(starts + 1))
            return bundle

    def confirm(self) -> None:
        """Say that the generation that was booted came up."""
        with self._journal.step("confirm", self._journal.slot("current")):
            self._journal.set("starts", "0")

    def current(self) -> Bundle:
        """Return the committed generation; raises BundleError before the first `factory`."""
        return self._open(self._journal.slot("current"))

    def adopt(self, trust_id: str) -> None:
        """Start release numbers afresh when the trusted root is another one than before."""
        if self._journal.setting("trust") != trust_id:
            with self._journal.step("adopt", detail=trust_id):
                if self._journal.setting("trust"):
                    self._journal.forget_releases()
                self._journal.set("trust", trust_id)

    def refusal(self, release: Release, *, profile: str) -> Refusal | None:
        """Say why this device does not take the release; None when it does."""
        current = self._journal.known(self._journal.slot("current"))
        tried = self._journal.known(release.bundle)
        floor = int(self._journal.setting("floor", "0"))
        return refusal(release, profile=profile, current=current, tried=tried, floor=floor)

    def install(self, release: Release) -> Bundle:
        """Build the release's folder out of blobs, all of which have been fetched and checked."""
        with self._mutex:
            with self._journal.step("stage", release.bundle, f"release {release.seq}"):
                if release.seq != self._journal.known(release.bundle).seq:
                    known = Known(bundle=release.bundle, seq=release.seq, min_seq=release.min_seq)
                    self._journal.remember(known)
            bundle = self.inspect(release)
            if not self._is_whole(release.bundle):
                self._build(bundle, signature=release.signature.sha256)
            return open_bundle(bundle.folder, trusted=frozenset({release.signer}), digests=False)

    def inspect(self, release: Release) -> Bundle:
        """Read the fetched manifest and check its signature and that it tells the same story as the release."""
        what = f"the manifest of release {release.seq}"
        data = self.blobs.path(release.bundle).read_bytes()
        try:
            signature = msgspec.json.decode(self.blobs.path(release.signature.sha256).read_bytes(), type=Signature)
        except msgspec.MsgspecError as error:
            raise TrustError(f"{what} has no readable signature: {error}; publish it again") from error
        check_signature(data, signature, trusted=frozenset({release.signer}), what=what)
        bundle = Bundle(
            folder=self._folder(release.bundle), id=release.bundle, manifest=parse_manifest(data, what=what)
        )
        check_release(release, bundle)
        return bundle

    def attempt(self, bundle: Bundle) -> None:
        """Count a load before it begins; raises TrustError when three before it ended in a crash."""
        with self._mutex:
            known = self._journal.known(bundle.id)
            if known.attempts >= MAX_ATTEMPTS:
                self._fail(bundle.id, f"crashed in {known.attempts} loads")
                raise TrustError(f"release {known.seq} crashed in {known.attempts} loads; it is not tried again")
            with self._journal.step("attempt", bundle.id, f"{known.attempts + 1} of {MAX_ATTEMPTS}"):
                self._journal.remember(msgspec.structs.replace(known, attempts=known.attempts + 1))
                self._journal.set_slot("trial", bundle.id)

    def switched(self, bundle: Bundle) -> None:
        """Note that requests go to the generation on trial from now on."""
        with self._journal.step("switch", bundle.id):
            pass

    def commit(self) -> None:
        """Make the generation on trial current, raise the floor to what its release asks, drop what is not needed."""
        with self._mutex:
            trial = self._journal.slot("trial")
            assert trial, "commit ends an attempt"
            known = self._journal.known(trial)
            with self._journal.step("commit", trial):
                self._make_current(trial)
                self._journal.set_slot("trial", "")
                self._journal.set("starts", "0")
                self._journal.remember(msgspec.structs.replace(known, attempts=0))
                self._journal.set("floor", str(max(known.min_seq, int(self._journal.setting("floor", "0")))))
            self._collect()

    def rollback(self, reason: str) -> Bundle:
        """Give up the generation on trial or, without one, the current one, for good; return the one that stays."""
        with self._mutex:
            trial = self._journal.slot("trial")
            if trial:
                self._fail(trial, reason)
            else:
                current, factory = self._journal.slot("current"), self._journal.slot("factory")
                with self._journal.step("rollback", current, reason):
                    self._journal.set_slot("current", self._journal.slot("previous") or factory)
                    self._journal.set_slot("previous", "")
                    self._journal.set("starts", "0")
                    if current != factory:
                        self._journal.remember(msgspec.structs.replace(self._journal.known(current), failed=reason))
            self._collect()
            return self.current()

    def abandon(self, reason: str) -> None:
        """End the trial without a verdict: the release may be tried again."""
        with self._journal.step("abandon", self._journal.slot("trial"), reason):
            self._journal.set_slot("trial", "")

    def status(self) -> Status:
        return read_status(self._journal)

    def _interrupted(self) -> None:
        """Close what a crash left open: the trial was counted when it began, and is over."""
        trial = self._journal.slot("trial")
        if not trial:
            return
        if self._journal.known(trial).attempts >= MAX_ATTEMPTS:
            self._fail(trial, f"crashed in {MAX_ATTEMPTS} loads")
        else:
            self.abandon("interrupted")

    def _fail(self, bundle_id: str, reason: str) -> None:
        with self._journal.step("fail", bundle_id, reason):
            self._journal.remember(msgspec.structs.replace(self._journal.known(bundle_id), failed=reason))
            self._journal.set_slot("trial", "")

    def _make_current(self, bundle_id: str) -> None:
        before = self._journal.slot("current")
        if before != bundle_id:
            self._journal.set_slot("previous", before)
        self._journal.set_slot("current", bundle_id)

    def _first_whole(self) -> Bundle:
        slots = self._journal.slots()
        for name in ("current", "previous", "factory"):
            try:
                bundle = self._open(slots.get(name, ""), digests=True)
            except FieldlmError as error:
                if name in slots:
                    terminal.log(f"the {name} generation cannot be used: {error}")
                continue
            if name != "current":
                with self._journal.step("damaged", slots.get("current", ""), f"the {name} generation takes its place"):
                    self._journal.set_slot("current", bundle.id)
                    self._journal.set_slot("previous", "")
            return bundle
        raise BundleError(f"{self.state} holds no complete bundle; run: fieldlm serve BUNDLE")

    def _folder(self, bundle_id: str) -> Path:
        return self.state / "releases" / bundle_id[:12]

    def _open(self, bundle_id: str, *, digests: bool = False) -> Bundle:
        if not bundle_id:
            raise BundleError(f"{self.state} holds no bundle yet; run: fieldlm serve BUNDLE")
        bundle = open_bundle(self._folder(bundle_id), digests=digests)
        if bundle.id != bundle_id:
            raise BundleError(f"{bundle.folder} holds another bundle than the journal says; fetch it again")
        return bundle

    def _is_whole(self, bundle_id: str) -> bool:
        try:
            self._open(bundle_id, digests=True)
        except FieldlmError:
            return False
        return True

    def _ingest(self, bundle: Bundle) -> None:
        for file in bundle.manifest.files:
            self.blobs.keep(bundle.folder / file.path, file.sha256, file.size)
        for name in (SIGNATURE, MANIFEST):
            path = bundle.folder / name
            self.blobs.keep(path, sha256_file(path), path.stat().st_size)

    def _build(self, bundle: Bundle, *, signature: str) -> None:
        """Make the bundle's folder; the manifest is linked last, the folder appears whole or not at all."""
        with whole_folder(self._folder(bundle.id)) as aside:
            names = [(file.path, file.sha256) for file in bundle.manifest.files]
            for path, sha256 in [*names, (SIGNATURE, signature), (MANIFEST, bundle.id)]:
                make_folder((aside / path).parent)
                link_or_copy(self.blobs.path(sha256), aside / path)
            for folder in {(aside / path).parent for path, _ in names} | {aside}:
                sync_folder(folder)
        with self._journal.step("built", bundle.id):
            pass

    def _collect(self) -> None:
        """Remove what no slot names. Never fails: what has been decided stands, and the next commit collects again."""
        kept = set(self._journal.slots().values())
        try:
            digests = {sha256 for bundle_id in kept for sha256 in self._digests(bundle_id)}
            with self._journal.step("collect", detail=f"keep {len(kept)} generations"):
                pass
            for folder in (self.state / "releases").iterdir():
                if folder.name not in {bundle_id[:12] for bundle_id in kept}:
                    shutil.rmtree(folder, ignore_errors=True)
            self.blobs.sweep(digests)
            # Partial fetches belonged to a release that is settled now.
            shutil.rmtree(self.state / "fetch", ignore_errors=True)
        except (FieldlmError, OSError) as error:
            terminal.log(f"the slots are not tidied up: {error}")

    def _digests(self, bundle_id: str) -> set[str]:
        folder = self._folder(bundle_id)
        manifest = parse_manifest((folder / MANIFEST).read_bytes(), what=str(folder))
        return {bundle_id, sha256_file(folder / SIGNATURE), *(file.sha256 for file in manifest.files)}


def refusal(release: Release, *, profile: str, current: Known, tried: Known, floor: int) -> Refusal | None:
    """Decide, without looking at anything else, whether a device takes a release."""
    if release.profile != profile:
        return Refusal(reason="profile", detail=f"the release is for {release.profile}, this device is {profile}")
    if release.seq < floor:
        return Refusal(reason="rollback", detail=f"release {release.seq} is below this device's floor {floor}")
    if release.bundle == current.bundle:
        return Refusal(reason="current", detail=f"release {release.seq} is what this device runs")
    if release.seq <= current.seq:
        return Refusal(
            reason="rollback", detail=f"release {release.seq} is not newer than {current.seq}, the current one"
        )
    if tried.failed and tried.seq >= release.seq:
        return Refusal(reason="failed-before", detail=f"release {tried.seq} failed here: {tried.failed}")
    return None


def check_release(release: Release, bundle: Bundle) -> None:
    """Raise TrustError unless release and manifest tell the same story."""
    manifest = bundle.manifest
    told = {(file.path, file.role, file.size, file.sha256) for file in release.files}
    if told != {(file.path, file.role, file.size, file.sha256) for file in manifest.files}:
        raise TrustError(f"release {release.seq} lists other files than its manifest; publish it again")
    if manifest.profile != release.profile:
        raise TrustError(f"release {release.seq} for {release.profile} holds a bundle for {manifest.profile}")


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm slots`."""
    parser = terminal.parser("slots", "Show which generations this device holds, and the last steps it took.")
    parser.add_argument("--state", help="the device's state folder")
    args = parser.parse_args(argv)
    state = load_config({"state": args.state}).state
    if not (state / "slots.db").exists():
        raise InputError(f"{state} holds no generation yet; run: fieldlm serve BUNDLE")
    journal = Journal(state / "slots.db", read_only=True)
    try:
        status = read_status(journal)
    finally:
        journal.close()
    terminal.show(status, _page(status), as_json=args.json)
    return 0


def _page(status: Status) -> str:
    slots = [(name, getattr(status, name)[:12] or "–") for name in ("current", "previous", "factory", "trial")]
    parts = [terminal.table(slots, ("slot", "generation")), f"release {status.seq}, floor {status.floor}"]
    if status.failed:
        rows = [(known.seq, known.bundle[:12], known.failed) for known in status.failed]
        parts.append(terminal.table(rows, ("failed", "generation", "reason")))
    steps = [(_clock(step.wall_ms), step.step, step.bundle[:12], step.detail) for step in status.journal]
    return "\n\n".join([*parts, terminal.table(steps, ("time", "step", "generation", ""))])


def _clock(wall_ms: int) -> str:
    return datetime.fromtimestamp(wall_ms / 1000).isoformat(" ", "seconds")


def read_status(journal: Journal) -> Status:
    """Read the status out of a journal."""
    slots = journal.slots()
    return Status(
        **{name: slots.get(name, "") for name in ("current", "previous", "factory", "trial")},
        seq=journal.known(slots.get("current", "")).seq,
        floor=int(journal.setting("floor", "0")),
        failed=tuple(journal.failed()),
        journal=tuple(journal.tail(TAIL)),
    )
