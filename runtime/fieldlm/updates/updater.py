"""The updater: check → fetch → verify → rehearse → load → probe (→ shadow) → switch → observe → commit, or back.

Requests run on the old generation until the new one has answered its probes, and finish where they began. A release is
tried in a process of its own first, where memory allows it: what crashes, hangs or eats memory does so there. Every
way out that is not a commit says why, in a word for programs (`reason`) and a line for people, and every step is told
to `on_event`, so that the story of an update travels home with the telemetry.
"""

import random
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic

import msgspec

from fieldlm.blobs.fetch import FetchPolicy, fetch
from fieldlm.blobs.sources import BlobSource, StoppedError
from fieldlm.core.errors import BundleError, FieldlmError, InputError, NoSpaceError, TrustError, UnavailableError
from fieldlm.core.files import write_whole
from fieldlm.core.logs import logger
from fieldlm.core.tasks import Tasks
from fieldlm.core.timing import within
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Offer, Pointer, Release
from fieldlm.formats.shadow import ShadowFigures
from fieldlm.inference import probe
from fieldlm.updates import gates
from fieldlm.updates.gates import Speed, TrialMeasurements, UnhealthyError
from fieldlm.updates.hold import DEADLINE_S, UpdateHold
from fieldlm.updates.preemption import Preemption
from fieldlm.updates.progress import OnEvent, UpdateResult, UpdateRun, UpdateState, reason_of
from fieldlm.updates.regression_monitor import Complaint
from fieldlm.updates.rehearsal import has_room, patience_s
from fieldlm.updates.shadow import Shadow, check_shadow
from fieldlm.updates.slots import Slots
from fieldlm.updates.trial import Loaded, ServesGenerations, Trial

if TYPE_CHECKING:
    from fieldlm.updates.trust import Trust

log = logger(__name__)

OBSERVE_STEP_S = 0.2
GUARD_STEP_S = 1.0
CLOSE_S = 20.0
Judge = Callable[[str, str], Complaint | None]
"""Given two generations, says what speaks against the first."""


class Updater(Generic[Loaded]):
    """Keeps one device at the newest release of its profile, one update at a time.

    `rehearse` tries a bundle elsewhere and `probe_score` judges a loaded generation before it gets requests; `compare`
    measures it and the one before. Of a model that serves already, `rehearse` and `compare` are left out, and
    `check_prompt` takes their place. `complaint` is asked during `observe_s` seconds after the switch and `guard_s`
    after the commit; what it returns undoes the update. The switch waits while the device is `busy`, for `hold_s` at
    most.
    Without `on_hang`, which has to end this process, a load in it may take for ever.
    """

    def __init__(
        self,
        slots: Slots,
        live: ServesGenerations[Loaded],
        *,
        repository: str,
        trust: Path | None = None,
        profile: str = "",
        device: str = "",
        on_event: OnEvent = lambda event, **detail: None,
        rehearse: Callable[[Bundle], TrialMeasurements] | None = None,
        probe_score: Callable[[Loaded], float] = probe.score,
        compare: Callable[[Loaded, Loaded], tuple[Speed, Speed] | None] | None = None,
        check_prompt: Callable[[Loaded], TrialMeasurements] | None = None,
        complaint: Judge = lambda generation, before: None,
        on_switch: Callable[[], None] = lambda: None,
        on_hang: Callable[[], None] | None = None,
        busy: UpdateHold | None = None,
        shadow: Shadow[Loaded] | None = None,
        manner: FetchPolicy | None = None,
        observe_s: float = 0.0,
        guard_s: float = 0.0,
        hold_s: float = DEADLINE_S,
        tasks: Tasks | None = None,
    ) -> None:
        self.slots = slots
        self.repository = repository
        self.profile = profile or live.current.bundle.manifest.profile
        self.device = device
        self._live = live
        self._root = trust
        self._adopted = slots.state / "trust" / "adopted.json"
        self._on_event = on_event
        self._rehearse = rehearse
        self._probe_score = probe_score
        self._compare = compare
        self._check_prompt = check_prompt
        self._complaint = complaint
        self._on_switch = on_switch
        self._on_hang = on_hang
        self._busy = busy or UpdateHold()
        self._shadow = shadow
        self._manner = manner
        self._observe_s = observe_s
        self._guard_s = guard_s
        self._hold_s = hold_s
        self._one_at_a_time = threading.RLock()
        self._queued = {is_asked: threading.Event() for is_asked in (True, False)}
        self._stop = threading.Event()
        self._way = Preemption()
        self._tasks = Tasks(tasks)
        self._run: UpdateRun | None = None
        self._runs = 0
        self._last: UpdateResult | None = None

    @property
    def state(self) -> UpdateState:
        run, shadow = self._run, self._shadow.figures if self._shadow else None
        state = UpdateState(running=self._is_queued, runs=self._runs, last=self._last, shadow=shadow)
        if run is None:
            return state
        return msgspec.structs.replace(state, running=True, step=run.step, bytes_done=run.done, bytes_total=run.total)

    @property
    def _is_queued(self) -> bool:
        return any(queued.is_set() for queued in self._queued.values())

    def close(self) -> None:
        """Give up what is under way, without a verdict, and wait for its end."""
        self._stop.set()
        self._way.ask()
        if self._one_at_a_time.acquire(timeout=CLOSE_S):
            self._one_at_a_time.release()
        self._tasks.close(CLOSE_S)

    def start(self, hint: bytes | None = None, *, repository: str = "") -> None:
        """Update in a thread of its own; while another that was asked for waits to begin, this one is not made.

        `repository` is used this once in the place of the configured one.
        """
        self._queue("update", hint, repository, is_asked=True)

    def on_hint(self, hint: bytes | None = None) -> None:
        """Look at what arrived by itself, or look because it is time to: at the device's own moment in its wave."""
        self._queue("hear", hint, "", is_asked=False)

    def poll(self, every_s: float) -> None:
        """Look every so often until `close`, at a moment that differs from device to device."""

        def look() -> None:
            wait_s = random.uniform(0.5, 1.5) * every_s
            while not self._stop.wait(wait_s):
                if self.repository:
                    self.on_hint()
                wait_s = every_s

        self._tasks.start("poll", look, restarts=True)

    def check_and_update(
        self, hint: bytes | None = None, *, repository: str = "", is_asked: bool = True
    ) -> UpdateResult:
        """Take the newest release, if there is one to take; `hint` is a release pointer, believed in nothing.

        Who `is_asked` does not wait for this device's moment in the wave. Never raises for what the world does wrong:
        the result says it.
        """
        with self._one_at_a_time:
            run = self._run = UpdateRun(self._on_event, is_asked=is_asked)
            try:
                result = self._take(run, hint, repository, is_asked=is_asked)
            except (FieldlmError, OSError) as error:
                result = run.result("failed", reason=reason_of(error), detail=str(error))
            finally:
                self._run = None
            self._last, self._runs = result, self._runs + 1
            if result.outcome in ("refused", "failed"):
                run.tell(f"update.{result.outcome}", reason=result.reason, detail=result.detail, **run.known())
            self.tell_failures(run.measured)
            return result

    def tell_failures(self, measured: TrialMeasurements | None = None) -> None:
        """Tell what failed here and was not told yet: by this update, or before a crash took who knew of it."""
        failures = self.slots.untold()
        for failure in failures:
            self._on_event(
                "update.rolled-back",
                reason=failure.reason,
                detail=failure.detail,
                seq=str(failure.seq),
                bundle=failure.bundle[:12],
                generation=self._live.current.bundle.generation,
                **(measured.told() if measured and failure is failures[-1] else {}),
            )
        self.slots.told()

    def adopt(self, repository: str, root: str) -> None:
        """Take updates from `repository` from now on, if it is `root`, a TUF root.json, that vouches for it.

        Raises TrustError when that is none. An empty value changes nothing.
        """
        with self._first():
            if root:
                write_whole(self._adopted, root.encode())
                self._trust.adopt(self._adopted)
                self._root = None
            self.repository = repository or self.repository

    def roll_back(self, reason: str) -> Bundle:
        """Go back to the generation before, for good; `reason` begins with a word for programs and a colon.

        Raises InputError when there is none, TrustError when it is below the floor, EngineError when it cannot be
        loaded; everything is as it was then. An update that is being fetched gives way, and goes on when it is time.
        """
        with self._first():
            trial = Trial(self._live)
            serving = trial.load(self.slots.before())
            self.slots.rollback(reason)
            trial.switch(serving)
            self.tell_failures()
            return serving.bundle

    @contextmanager
    def _first(self) -> Generator[None]:
        """Be alone, and first: what is being fetched, or waits for people to leave, gives way and loses nothing."""
        with self._way.asked():
            self._one_at_a_time.acquire()
        try:
            yield
        finally:
            self._one_at_a_time.release()

    def _queue(self, name: str, hint: bytes | None, repository: str, *, is_asked: bool) -> None:
        if not self._queued[is_asked].is_set():
            self._queued[is_asked].set()
            # A crash is the end of this try: the next look, at the latest in an hour, finds the same release.
            self._tasks.start(name, partial(self._in_turn, hint, repository, is_asked=is_asked))

    def _in_turn(self, hint: bytes | None, repository: str, *, is_asked: bool) -> None:
        run = self._run
        with self._first() if is_asked and run and not run.is_asked else self._one_at_a_time:
            self._queued[is_asked].clear()
            if not self._stop.is_set():
                self.check_and_update(hint, repository=repository, is_asked=is_asked)

    def _take(self, run: UpdateRun, hint: bytes | None, repository: str, *, is_asked: bool) -> UpdateResult:
        pointer = read_pointer(hint)
        if pointer and (pointer.profile != self.profile or pointer.seq <= self.slots.status().seq):
            return run.result("current", reason="hint", detail=f"release {pointer.seq} of {pointer.profile} is no news")
        repository = repository or self.repository or (pointer.repository if pointer else "")
        if not repository:
            raise InputError("no repository is configured; pass --repository or set FIELDLM_REPOSITORY")
        # Who looks into a repository imports an HTTP client; until then a device has no use for one.
        from fieldlm.blobs.web_source import open_source

        run.source = open_source(repository, self._way.is_wanted)
        with run.doing("check"):
            offered = self._offered(run.source)
        if offered is None:
            waits = self._trust.waits or f"it holds no release for {self.profile}"
            return run.result("current", reason="none", detail=f"{run.source.name} offers nothing: {waits}")
        release, offer = offered
        run.release, run.offer = release, offer
        refusal = self.slots.refusal(release, profile=self.profile)
        if refusal:
            outcome = "current" if refusal.reason == "current" else "refused"
            detail = "; ".join(filter(None, [refusal.detail, self._trust.waits if outcome == "current" else ""]))
            return run.result(outcome, reason=refusal.reason, detail=detail)
        wait_s = 0.0 if is_asked else offer.wait_s(self.device, time.time())
        if wait_s:
            self._tasks.start("later", lambda: self._stop.wait(wait_s) or self.on_hint())
            return run.result("current", reason="later", detail=f"this device's moment comes in {wait_s:.0f} s")
        return self._try(run, self._download(run, run.source, release))

    @cached_property
    def _trust(self) -> "Trust":
        # TUF is a tenth of what a device imports, and wanted once it can answer.
        from fieldlm.updates.trust import Trust

        return Trust(self.slots.state / "trust")

    def _offered(self, source: BlobSource) -> tuple[Release, Offer] | None:
        if self._root and self._root.is_file():
            self._trust.adopt(self._root)
        self.slots.adopt(self._trust.id)
        offered = self._trust.offered(source, profile=self.profile, device=self.device)
        self.slots.pulled(self._trust.pulled)
        return offered

    def _download(self, run: UpdateRun, source: BlobSource, release: Release) -> Bundle:
        with run.doing("fetch"):
            # The small signed parts first: a release that contradicts itself costs no more than them.
            fetch(source, release, self.slots.blobs, wanted=(release.manifest, release.signature))
            try:
                offered = self.slots.inspect(release).manifest
            except (TrustError, BundleError) as error:
                self.slots.reject(release, f"{reason_of(error)}: {error}")
                raise
            wanted, serving = release.files, self._live.current.bundle
            if gates.is_same_model(offered, serving.manifest):
                # Every byte that serves was read at the start; to read a model again takes longer than all the rest.
                wanted = tuple(blob for blob in wanted if not is_served(self.slots.blobs.path(blob.sha256), serving))
            fetch(source, release, self.slots.blobs, wanted=wanted, manner=self._manner, on_progress=run.moved)
        with run.doing("verify"):
            return self.slots.install(release)

    def _try(self, run: UpdateRun, bundle: Bundle) -> UpdateResult:
        before = self._live.current
        self.slots.attempt(bundle)
        trial = Trial(self._live)
        try:
            self._trial_run(run, trial, bundle, before)
            with run.doing("commit"):
                self.slots.commit()
        except Exception as error:  # engines are foreign code: whatever they raise, the device goes back to what worked
            self._undo(trial, error)
            if isinstance(error, (NoSpaceError, UnavailableError)):
                raise
            return run.result("rolled-back", reason=reason_of(error), detail=str(error))
        if self._guard_s:
            end_s = time.monotonic() + self._guard_s
            guard = partial(self._guard, bundle.generation, before.bundle.generation, end_s)
            self._tasks.start("guard", guard, restarts=True)
        return run.result("updated")

    def _undo(self, trial: Trial[Loaded], error: Exception) -> None:
        try:
            trial.undo(self.slots.current())
        finally:
            if isinstance(error, (NoSpaceError, UnavailableError)):
                self.slots.abandon(str(error))
            else:
                self.slots.rollback(f"{reason_of(error)}: {error}")

    def _trial_run(self, run: UpdateRun, trial: Trial[Loaded], bundle: Bundle, before: Loaded) -> None:
        # Weights that serve here already are rehearsed, timed and watched already: what is new is asked, not they.
        is_known = gates.is_same_model(bundle.manifest, before.bundle.manifest)
        run.weights_of = before.bundle.generation if is_known else ""
        if self._rehearse and not is_known and has_room(bundle):
            with run.doing("rehearse"):
                run.measured = self._rehearse(bundle)
        with run.doing("load"):
            limit = partial(within, patience_s(bundle), self._on_hanging)
            serving = trial.load(bundle, when_free=self._when_free, limit=limit)
        with run.doing("probe"):
            gates.check_score(self._probe_score(serving))
            if is_known and self._check_prompt:
                run.measured = self._check_prompt(serving)
            elif not is_known:
                self._check_speed(run, trial, serving, before)
        if run.offer.shadow:
            self._in_shadow(run, trial, serving, before)
        with run.doing("switch"):
            if not trial.is_replacing:
                self._when_free()
            self._on_switch()
            self.slots.switched(bundle)
            trial.switch(serving)
        with run.doing("observe"):
            # What watches after the commit takes back as well; where nothing does, the commit has to wait.
            watch_s = 0.0 if is_known and self._guard_s else self._observe_s
            self._observe(bundle.generation, before.bundle.generation, watch_s)

    def _on_hanging(self) -> None:
        if self._on_hang:
            self.slots.rollback("hang: it does not finish loading")
            self._on_hang()

    def _check_speed(self, run: UpdateRun, trial: Trial[Loaded], serving: Loaded, before: Loaded) -> None:
        pair = self._compare(serving, before) if self._compare and not trial.is_replacing else None
        if pair:
            run.measured = msgspec.structs.replace(run.measured or TrialMeasurements(), speed=pair[0], before=pair[1])
            gates.check_speed(*pair)

    def _in_shadow(self, run: UpdateRun, trial: Trial[Loaded], serving: Loaded, before: Loaded) -> None:
        """Let `serving` answer, for nobody to see, what people ask; raises UnhealthyError when it does so worse."""
        with run.doing("shadow") as told:
            if run.is_asked or self._shadow is None:
                figures = ShadowFigures(wanted=run.offer.shadow, end="asked")
            elif trial.is_replacing:
                figures = ShadowFigures(wanted=run.offer.shadow, end="memory")
            else:
                check, stop = partial(self._check_offered, run), self._way.is_wanted
                generation = before.bundle.generation
                figures = self._shadow.fulfil(run.offer, serving, generation, slots=self.slots, stop=stop, check=check)
            log.info(f"generation {serving.bundle.generation}: {figures.describe()}")
            run.measured = msgspec.structs.replace(run.measured or TrialMeasurements(), shadow=figures)
            told.update(figures.told())
            check_shadow(figures)

    def _check_offered(self, run: UpdateRun) -> None:
        """Raise StoppedError when another release, or none, is offered by now; who cannot ask goes on."""
        assert run.source, "it was fetched"
        assert run.release, "it was fetched"
        try:
            offered = self._offered(run.source)
        except StoppedError:
            raise
        except FieldlmError as error:
            log.warning(f"nobody can say whether release {run.release.seq} is still offered: {error}")
            return
        if offered is None or offered[0].seq != run.release.seq:
            raise StoppedError(f"release {run.release.seq} is not the one that is offered any more")

    def _when_free(self) -> None:
        if not self._busy.wait(self._hold_s, self._way.is_wanted):
            raise StoppedError("something more urgent came while people used the device; it is tried again later")

    def _observe(self, generation: str, before: str, watch_s: float) -> None:
        end_s = time.monotonic() + watch_s
        while True:
            if complaint := self._complaint(generation, before):
                raise UnhealthyError(complaint.reason, f"after the switch: {complaint.detail}")
            if time.monotonic() >= end_s:
                return
            if self._stop.wait(OBSERVE_STEP_S):
                raise StoppedError("the device was stopped while it was watched; the update is tried again later")

    def _guard(self, generation: str, before: str, end_s: float) -> None:
        """Go on looking after the commit, with more patience; what is found then takes the update back all the same."""
        while time.monotonic() < end_s and not self._stop.wait(GUARD_STEP_S):
            if self._live.current.bundle.generation != generation:
                return
            if complaint := self._complaint(generation, before):
                try:
                    self.roll_back(f"{complaint.reason}: after the commit: {complaint.detail}")
                except FieldlmError as error:
                    log.warning(f"generation {generation} should be taken back, and cannot be: {error}")
                return


def is_served(path: Path, bundle: Bundle) -> bool:
    """Whether `path`, a blob's, is here as the very file that `bundle`, which was booted, is served from."""
    served = (bundle.folder / file.path for file in bundle.manifest.files if file.sha256 == path.name)
    return path.exists() and any(each.exists() and path.samefile(each) for each in served)


def read_pointer(hint: bytes | None) -> Pointer | None:
    """Read a release pointer; one that cannot be read is as good as none."""
    if not hint:
        return None
    try:
        return msgspec.json.decode(hint, type=Pointer)
    except (msgspec.MsgspecError, RecursionError) as error:
        log.warning(f"a release pointer cannot be read ({error}); looking at the repository instead")
        return None
