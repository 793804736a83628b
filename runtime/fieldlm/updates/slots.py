"""A/B slots: where generations lie on a device, and which one it starts with.

    STATE/blobs/sha256/…        every file once, by digest
    STATE/releases/<gen>/       complete bundle folders, made of hard links into blobs
    STATE/slots.db              the journal: current, previous, factory, what failed, every step

`current` only ever names a generation that has been committed: an update is loaded beside it, tried, and committed or
forgotten, so that a start after a crash at any point finds a complete bundle that worked before. Loads are counted
before they begin; a release that did not survive three is not tried again. One that answered people when the process
ended, on trial or soon after, while the machine went on, has crashed: the device goes back at once. That may have been
a request's doing and not the release's, so it is told, and tried again until its three loads are used up; a power cut
is nobody's fault. The factory bundle, the one that `fieldlm serve` is given, is never collected. Given another one than
before, that one becomes current: whoever stands at the device wins over what came through the air. A journal that takes
no line, on a full disk, keeps nobody from being served by what is there.

What failed here is kept until it was told, so that a reason arrives at home even when the process that knew it is gone.
"""

import fcntl
import shutil
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from fieldlm.blobs.store import Blobs
from fieldlm.core.errors import BundleError, FieldlmError, InputError, TrustError
from fieldlm.core.files import disk_errors, make_private, sha256_file
from fieldlm.core.logs import logger
from fieldlm.core.signing import Signature, check_signature
from fieldlm.core.wording import counted
from fieldlm.formats.bundle import SIGNATURE, Bundle, open_bundle, parse_manifest
from fieldlm.formats.release import Release
from fieldlm.updates.admission import Refusal, check_release, refusal
from fieldlm.updates.folders import build, digests_of, holds_files_of, ingest
from fieldlm.updates.journal import Failure, Journal, Known, SlotStatus, UnwritableError, read_status, release_folder

log = logger(__name__)

MAX_ATTEMPTS = 3  # loads of one release, and starts of one generation, that may end in a crash
CRASH_FREE_S = 300.0  # of answering people, after which a generation counts as one that does not crash
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Slots:
    """The generations of one device. One process holds a state folder at a time; any of its threads may call."""

    def __init__(
        self, state: Path, *, on_step: Callable[[str], None] = lambda step: None, boot_id: str | None = None
    ) -> None:
        self.state = state
        self._boot_id = boot_id or (BOOT_ID.read_text().strip() if BOOT_ID.exists() else "")
        self.blobs = Blobs(state)
        self.problem = ""
        """Why the journal took no line the last time that somebody was served all the same."""
        self._mutex = threading.RLock()
        self._checked = ""  # the bundle whose every byte was read a moment ago
        with disk_errors(state):
            make_private(state / "slots.lock")
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
            if not is_new and self._is_whole(bundle.id, digests=not holds_files_of(self._folder(bundle.id), bundle)):
                self._checked = bundle.id
                return bundle
            with self._journal.step("ingest", bundle.id):
                pass
            ingest(self.blobs, bundle)
            self._build(bundle, signature=sha256_file(bundle.folder / SIGNATURE))
            with self._journal.step("factory", bundle.id):
                self._journal.set_slot("factory", bundle.id)
                if is_new:
                    self._make_current(bundle.id)
                    self._end_trial()
            self._collect()
            if holds_files_of(self._folder(bundle.id), bundle):
                self._checked = bundle.id
            return bundle

    def boot(self) -> Bundle:
        """Return the generation to start with: current, or, where that is damaged or keeps crashing, one before it.

        Counts the start before it happens. Call `up` once it serves, and `confirm` when it has done so for a while
        without a crash, or is stopped in good order.
        """
        with self._mutex:
            try:
                self._interrupted()
                self._crashed_young()
                starts = self._crashed_starts()
                if starts >= MAX_ATTEMPTS and self._journal.slot("current") != self._journal.slot("factory"):
                    self.rollback(f"crash: it ended in {starts} starts")
                    starts = 0
                bundle = self._first_whole()
                with self._journal.step("boot", bundle.id):
                    self._journal.set("starts", str(starts + 1))
                    self._journal.set("boot", self._boot_id)
                    self._journal.set("up", "")
            except UnwritableError as error:
                self.problem = str(error)
                log.warning(f"starting without a memory of it: {error}")
                bundle = self._first_whole()
            return bundle

    def _crashed_young(self) -> None:
        """Give up a generation with which the process ended soon after its commit, while the machine went on."""
        boot_id, _, at_s = self._journal.setting("committed").partition(" ")
        if boot_id and boot_id == self._boot_id and self._journal.setting("up"):
            age_s = time.monotonic() - float(at_s)
            if age_s < CRASH_FREE_S and self._journal.slot("current") != self._journal.slot("factory"):
                attempts = self._journal.known(self._journal.slot("current")).attempts
                reason = f"crash: the process ended {age_s:.0f} s after the commit"
                self.rollback(reason, is_final=attempts >= MAX_ATTEMPTS)

    def _crashed_starts(self) -> int:
        """Return the starts that ended in a crash since the last that did not."""
        is_power_cut = self._journal.setting("boot") != self._boot_id
        return 0 if is_power_cut and self._journal.setting("up") else int(self._journal.setting("starts", "0"))

    def up(self) -> None:
        """Say that the generation that was booted serves."""
        with self._if_writable(), self._journal.step("up", self._journal.slot("current")):
            self._journal.set("up", "yes")

    def confirm(self) -> None:
        """Say that the generation that was booted serves without crashing."""
        with self._if_writable(), self._journal.step("confirm", self._journal.slot("current")):
            self._journal.set("up", "yes")
            self._journal.set("starts", "0")
            self._journal.set("committed", "")
            known = self._journal.known(self._journal.slot("current"))
            self._journal.remember(msgspec.structs.replace(known, attempts=0))

    @contextmanager
    def _if_writable(self) -> Generator[None]:
        """Let go on who serves well whatever is written down of it."""
        try:
            yield
            self.problem = ""
        except UnwritableError as error:
            if str(error) != self.problem:
                log.warning(str(error))
            self.problem = str(error)

    def untold(self) -> list[Failure]:
        """Return what failed here and was not told at home yet, oldest first."""
        return msgspec.json.decode(self._journal.setting("untold", "[]"), type=list[Failure])

    def told(self) -> None:
        """Say that all failures have been told."""
        if self.untold():
            with self._if_writable(), self._journal.step("told"):
                self._journal.set("untold", "[]")

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
        except (msgspec.MsgspecError, RecursionError) as error:
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
                self._fail(bundle.id, f"crash: it ended in {known.attempts} loads")
                raise TrustError(f"release {known.seq} crashed in {known.attempts} loads; it is not tried again")
            with self._journal.step("attempt", bundle.id, f"{known.attempts + 1} of {MAX_ATTEMPTS}"):
                self._journal.remember(msgspec.structs.replace(known, attempts=known.attempts + 1))
                self._journal.set_slot("trial", bundle.id)
                _, shadow, spent_s = self._shadow()
                self._journal.set("shadow", f" {shadow} {spent_s:.0f}")  # this load has yet to come so far

    def switched(self, bundle: Bundle) -> None:
        """Note that requests go to the generation on trial from now on."""
        with self._journal.step("switch", bundle.id):
            self._journal.set("serving", self._boot_id)

    def shadowed(self, bundle: Bundle, spent_s: float) -> None:
        """Note for how many seconds the generation on trial has answered in the shadow, before this boot and in it."""
        with self._if_writable():
            self._journal.note("shadow", f"{self._boot_id} {bundle.id} {spent_s:.0f}")

    def shadow_s(self, bundle: Bundle) -> float:
        """Return for how many seconds the bundle has answered in the shadow, as far as it was noted."""
        _, known, spent_s = self._shadow()
        return spent_s if known == bundle.id else 0.0

    def _shadow(self) -> tuple[str, str, float]:
        """Return boot, bundle and seconds of the last shadow period."""
        boot_id, bundle, spent_s = (self._journal.setting("shadow") or "  0").rsplit(" ", 2)
        return boot_id, bundle, float(spent_s)

    def reject(self, release: Release, reason: str) -> None:
        """Remember that the release is not to be tried, and why, before anything of it was loaded."""
        with self._mutex, self._journal.step("reject", release.bundle, reason):
            self._remember_failure(Known(bundle=release.bundle, seq=release.seq, min_seq=release.min_seq), reason)

    def pulled(self, releases: Mapping[int, str]) -> None:
        """Remember that the publisher took these releases back, and why: nothing here goes back to them."""
        with self._mutex:
            for name in ("previous", "current"):
                known = self._journal.known(self._journal.slot(name))
                if known.seq in releases and not known.failed:
                    reason = f"pulled: {releases[known.seq]}"
                    with self._journal.step("pulled", known.bundle, reason):
                        self._journal.remember(msgspec.structs.replace(known, failed=reason))

    def commit(self) -> None:
        """Make the generation on trial current, raise the floor to what its release asks, drop what is not needed."""
        with self._mutex:
            trial = self._journal.slot("trial")
            assert trial, "commit ends an attempt"
            known = self._journal.known(trial)
            with self._journal.step("commit", trial):
                self._make_current(trial)
                self._end_trial()
                self._journal.set("starts", "0")
                self._journal.set("committed", f"{self._boot_id} {time.monotonic()}")
                self._journal.set("floor", str(max(known.min_seq, int(self._journal.setting("floor", "0")))))
            self._collect()

    def rollback(self, reason: str, *, is_final: bool = True) -> Bundle:
        """Give up the generation on trial or, without one, the current one; return the one that stays.

        It is not tried again, unless that is not the final word.
        """
        with self._mutex:
            trial = self._journal.slot("trial")
            if trial:
                self._fail(trial, reason)
            else:
                current, factory = self._journal.slot("current"), self._journal.slot("factory")
                with self._journal.step("rollback", current, reason):
                    self._journal.set_slot("current", self._before(current))
                    self._journal.set_slot("previous", "")
                    self._journal.set("starts", "0")
                    if current != factory:
                        self._remember_failure(self._journal.known(current), reason, is_final=is_final)
            self._collect()
            return self.current()

    def before(self) -> Bundle:
        """Return the generation that a rollback of the current one would lead to.

        Raises InputError where there is none, TrustError where the floor forbids it.
        """
        current, floor = self._journal.slot("current"), int(self._journal.setting("floor", "0"))
        before = self._before(current)
        if before == current:
            raise InputError("there is no generation to go back to: the device runs its factory bundle")
        if self._journal.known(before).seq < floor:
            raise TrustError(
                f"generation {before[:12]} came with release {self._journal.known(before).seq}, below this device's "
                f"floor {floor}; publish what is wanted as a new release"
            )
        return self._open(before)

    def _before(self, current: str) -> str:
        """Return the previous generation, or, where floor or publisher forbid it, the factory's: something boots."""
        previous, factory = self._journal.slot("previous"), self._journal.slot("factory")
        known = self._journal.known(previous)
        is_allowed = known.seq >= int(self._journal.setting("floor", "0")) and not known.failed
        return previous if previous and previous != current and is_allowed else factory

    def abandon(self, reason: str) -> None:
        """End the trial without a verdict: the release may be tried again, as if this load had not begun."""
        with self._mutex:
            known = self._journal.known(self._journal.slot("trial"))
            with self._journal.step("abandon", known.bundle, reason):
                self._journal.remember(msgspec.structs.replace(known, attempts=max(0, known.attempts - 1)))
                self._end_trial()

    def status(self) -> SlotStatus:
        return read_status(self._journal)

    def _interrupted(self) -> None:
        """Close what a crash left open: the trial was counted when it began, and is over."""
        trial = self._journal.slot("trial")
        if not trial:
            return
        shadow_boot, shadow, _ = self._shadow()
        if shadow_boot not in ("", self._boot_id) and shadow == trial:
            self.abandon("the power was cut while it answered in the shadow")
        elif self._boot_id and self._journal.setting("serving") == self._boot_id:
            reason, attempts = "crash: the process ended while it answered people", self._journal.known(trial).attempts
            self._fail(trial, reason, is_final=attempts >= MAX_ATTEMPTS)
        elif self._journal.known(trial).attempts >= MAX_ATTEMPTS:
            self._fail(trial, f"crash: it ended in {MAX_ATTEMPTS} loads")
        else:
            with self._journal.step("abandon", trial, "interrupted"):
                self._end_trial()

    def _fail(self, bundle_id: str, reason: str, *, is_final: bool = True) -> None:
        with self._journal.step("fail", bundle_id, reason):
            self._remember_failure(self._journal.known(bundle_id), reason, is_final=is_final)
            self._end_trial()

    def _end_trial(self) -> None:
        self._journal.set_slot("trial", "")
        self._journal.set("serving", "")

    def _remember_failure(self, known: Known, reason: str, *, is_final: bool = True) -> None:
        if is_final:
            self._journal.remember(msgspec.structs.replace(known, failed=reason))
        word, _, detail = reason.partition(": ")
        failure = Failure(bundle=known.bundle, seq=known.seq, reason=word if detail else "asked", detail=detail or word)
        self._journal.set("untold", msgspec.json.encode([*self.untold(), failure]).decode())

    def _make_current(self, bundle_id: str) -> None:
        before = self._journal.slot("current")
        if before != bundle_id:
            self._journal.set_slot("previous", before)
        self._journal.set_slot("current", bundle_id)

    def _first_whole(self) -> Bundle:
        slots = self._journal.slots()
        checked, self._checked = self._checked, ""
        for name in ("current", "previous", "factory"):
            try:
                bundle_id = slots.get(name, "")
                bundle = self._open(bundle_id, digests=bundle_id != checked)
            except FieldlmError as error:
                if name in slots:
                    log.warning(f"the {name} generation cannot be used: {error}")
                continue
            if name != "current":
                place = f"the {name} generation takes its place"
                with suppress(UnwritableError), self._journal.step("damaged", slots.get("current", ""), place):
                    self._journal.set_slot("current", bundle.id)
                    self._journal.set_slot("previous", "")
            return bundle
        raise BundleError(f"{self.state} holds no complete bundle; run: fieldlm serve BUNDLE")

    def _folder(self, bundle_id: str) -> Path:
        return release_folder(self.state, bundle_id)

    def _open(self, bundle_id: str, *, digests: bool = False) -> Bundle:
        if not bundle_id:
            raise BundleError(f"{self.state} holds no bundle yet; run: fieldlm serve BUNDLE")
        bundle = open_bundle(self._folder(bundle_id), digests=digests)
        if bundle.id != bundle_id:
            raise BundleError(f"{bundle.folder} holds another bundle than the journal says; fetch it again")
        return bundle

    def _is_whole(self, bundle_id: str, *, digests: bool = True) -> bool:
        try:
            self._open(bundle_id, digests=digests)
        except FieldlmError:
            return False
        return True

    def _build(self, bundle: Bundle, *, signature: str) -> None:
        build(self.blobs, self._folder(bundle.id), bundle, signature=signature)
        with self._journal.step("built", bundle.id):
            pass

    def _collect(self) -> None:
        """Remove what no slot names. Never fails: what has been decided stands, and the next commit collects again."""
        kept = set(self._journal.slots().values())
        try:
            digests = {sha256 for bundle_id in kept for sha256 in digests_of(self._folder(bundle_id), bundle_id)}
            with self._journal.step("collect", detail=f"keep {counted(len(kept), 'generation')}"):
                pass
            for folder in (self.state / "releases").iterdir():
                if folder.name not in {bundle_id[:12] for bundle_id in kept}:
                    shutil.rmtree(folder, ignore_errors=True)
            self.blobs.sweep(digests)
            # Partial fetches belonged to a release that is settled now.
            shutil.rmtree(self.state / "fetch", ignore_errors=True)
        except (FieldlmError, OSError) as error:
            log.warning(f"the slots are not tidied up: {error}")
