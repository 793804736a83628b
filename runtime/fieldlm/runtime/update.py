"""Take a release: check → fetch → verify → load beside → probe → switch → observe → commit, or back to what worked.

Requests run on the old generation until the new one has answered its probes, and finish where they began. Every way
out that is not a commit says why, in a word for programs (`reason`) and a line for people, and every step is told to
`on_event`, so that the story of an update travels home with the telemetry.
"""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import urllib3
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import FieldlmError, GateError, InputError, LinkError, NoSpaceError
from fieldlm.formats.release import Pointer, Release
from fieldlm.runtime import probe, terminal
from fieldlm.runtime.config import Config, load_config
from fieldlm.runtime.fetch import Source, fetch, open_source
from fieldlm.runtime.slots import Slots
from fieldlm.runtime.trust import Trust
from fieldlm.runtime.update_report import OnEvent, Run, UpdateResult, UpdateState, reason_of

PROBE_SCORE = 0.5  # a near tie may still tip one of a few probes; garbage, a wrong template or base scores near 0
OBSERVE_STEP_S = 0.2
POLL_S = 0.2
Loaded = TypeVar("Loaded", bound=probe.Serving)


class Live(Protocol[Loaded]):
    """Which generation answers now."""

    @property
    def current(self) -> Loaded: ...
    def load(self, bundle: Bundle) -> Loaded: ...
    def switch(self, serving: Loaded) -> None: ...
    def discard(self, serving: Loaded) -> None: ...


class Updater(Generic[Loaded]):
    """Keeps one device at the newest release of its profile, one update at a time.

    `probe_score` judges a loaded generation before it gets requests; `complaint` is asked during `observe_s` seconds
    after the switch, and what it returns undoes the update.
    """

    def __init__(
        self,
        slots: Slots,
        live: Live[Loaded],
        *,
        repository: str,
        trust: Path | None = None,
        profile: str = "",
        on_event: OnEvent = lambda event, **detail: None,
        probe_score: Callable[[Loaded], float] = probe.score,
        complaint: Callable[[], str | None] = lambda: None,
        observe_s: float = 0.0,
    ) -> None:
        self.slots = slots
        self.repository = repository
        self.profile = profile or live.current.bundle.manifest.profile
        self._live = live
        self._root = trust
        self._trust = Trust(slots.state / "trust")
        self._on_event = on_event
        self._probe_score = probe_score
        self._complaint = complaint
        self._observe_s = observe_s
        self._one_at_a_time = threading.RLock()
        self._is_queued = threading.Event()
        self._run: Run | None = None
        self._runs = 0
        self._last: UpdateResult | None = None

    @property
    def state(self) -> UpdateState:
        run = self._run
        if run is None:
            return UpdateState(running=self._is_queued.is_set(), runs=self._runs, last=self._last)
        return UpdateState(
            running=True, step=run.step, bytes_done=run.done, bytes_total=run.total, runs=self._runs, last=self._last
        )

    def start(self, hint: bytes | None = None) -> None:
        """Update in a thread of its own; while one is waiting to begin, another would find the same and is not made."""
        if not self._is_queued.is_set():
            self._is_queued.set()
            threading.Thread(target=self._in_turn, args=(hint,), name="update", daemon=True).start()

    def check_and_update(self, hint: bytes | None = None) -> UpdateResult:
        """Take the newest release, if there is one to take; `hint` is a release pointer, believed in nothing.

        Never raises for what the world does wrong: the result says it.
        """
        with self._one_at_a_time:
            run = self._run = Run(self._on_event)
            try:
                result = self._take(run, hint)
            except (FieldlmError, OSError) as error:
                result = run.result("failed", reason=reason_of(error), detail=str(error))
            finally:
                self._run = None
            self._last, self._runs = result, self._runs + 1
            if result.outcome not in ("current", "updated"):
                run.tell(f"update.{result.outcome}", reason=result.reason, detail=result.detail)
            return result

    def _in_turn(self, hint: bytes | None) -> None:
        with self._one_at_a_time:
            self._is_queued.clear()
            self.check_and_update(hint)

    def _take(self, run: Run, hint: bytes | None) -> UpdateResult:
        pointer = read_pointer(hint)
        if pointer and (pointer.profile != self.profile or pointer.seq <= self.slots.status().seq):
            return run.result("current", reason="hint", detail=f"release {pointer.seq} of {pointer.profile} is no news")
        repository = self.repository or (pointer.repository if pointer else "")
        if not repository:
            raise InputError("no repository is configured; pass --repository or set FIELDLM_REPOSITORY")
        run.source = open_source(repository)
        with run.doing("check"):
            release = self._offered(run.source)
        if release is None:
            return run.result("current", reason="none", detail=f"{repository} offers nothing for {self.profile}")
        run.release = release
        refusal = self.slots.refusal(release, profile=self.profile)
        if refusal:
            outcome = "current" if refusal.reason == "current" else "refused"
            return run.result(outcome, reason=refusal.reason, detail=refusal.detail)
        return self._try(run, self._bring(run, run.source, release))

    def _offered(self, source: Source) -> Release | None:
        if self._root and self._root.is_file():
            self._trust.adopt(self._root)
        self.slots.adopt(self._trust.id)
        return self._trust.latest(source, profile=self.profile)

    def _bring(self, run: Run, source: Source, release: Release) -> Bundle:
        with run.doing("fetch"):
            # The small signed parts first: a release that contradicts itself costs no more than them.
            fetch(source, release, self.slots.blobs, wanted=(release.manifest, release.signature))
            self.slots.inspect(release)
            fetch(source, release, self.slots.blobs, wanted=release.files, on_progress=run.moved)
        with run.doing("verify"):
            return self.slots.install(release)

    def _try(self, run: Run, bundle: Bundle) -> UpdateResult:
        self.slots.attempt(bundle)
        trial = Trial(self._live)
        try:
            self._prove(run, trial, bundle)
            with run.doing("commit"):
                self.slots.commit()
        except Exception as error:  # engines are foreign code: whatever they raise, the device goes back to what worked
            self._undo(trial, error)
            if isinstance(error, (NoSpaceError, LinkError)):
                raise
            return run.result("rolled-back", reason=reason_of(error), detail=str(error))
        return run.result("updated")

    def _undo(self, trial: "Trial[Loaded]", error: Exception) -> None:
        try:
            trial.undo(self.slots.current())
        finally:
            if isinstance(error, (NoSpaceError, LinkError)):
                self.slots.abandon(str(error))
            else:
                self.slots.rollback(f"{reason_of(error)}: {error}")

    def _prove(self, run: Run, trial: "Trial[Loaded]", bundle: Bundle) -> None:
        with run.doing("load"):
            serving = trial.load(bundle)
        with run.doing("probe"):
            found = self._probe_score(serving)
            if found < PROBE_SCORE:
                raise GateError(f"{found:.0%} of the probes are answered as expected, want {PROBE_SCORE:.0%}")
        with run.doing("switch"):
            self.slots.switched(bundle)
            trial.switch(serving)
        with run.doing("observe"):
            self._observe()

    def _observe(self) -> None:
        end_s = time.monotonic() + self._observe_s
        while True:
            if complaint := self._complaint():
                raise GateError(f"after the switch: {complaint}")
            if time.monotonic() >= end_s:
                return
            time.sleep(OBSERVE_STEP_S)


class Trial(Generic[Loaded]):
    """A generation beside the one that answers, until it takes its place or is undone."""

    def __init__(self, live: Live[Loaded]) -> None:
        self._live = live
        self._loaded: Loaded | None = None
        self._is_switched = False

    def load(self, bundle: Bundle) -> Loaded:
        self._loaded = self._live.load(bundle)
        return self._loaded

    def switch(self, serving: Loaded) -> None:
        self._live.switch(serving)
        self._is_switched = True

    def undo(self, before: Bundle) -> None:
        """Let `before` answer again, and free what was loaded."""
        if self._is_switched:
            self._live.switch(self._live.load(before))
        elif self._loaded is not None:
            self._live.discard(self._loaded)


def read_pointer(hint: bytes | None) -> Pointer | None:
    """Read a release pointer; one that cannot be read is as good as none."""
    if not hint:
        return None
    try:
        return msgspec.json.decode(hint, type=Pointer)
    except msgspec.MsgspecError as error:
        terminal.log(f"a release pointer cannot be read ({error}); looking at the repository instead")
        return None


def update_routes(updater: Updater[Any]) -> list[Route]:
    """Return `POST /v1/fieldlm/update`, which starts an update, and `GET`, which says how it goes."""

    async def look(request: Request) -> Response:
        del request
        return Response(msgspec.json.encode(updater.state), media_type="application/json")

    async def ask(request: Request) -> Response:
        del request
        before = updater.state
        updater.start()
        return Response(msgspec.json.encode(before), status_code=202, media_type="application/json")

    return [
        Route("/v1/fieldlm/update", look, methods=["GET"]),
        Route("/v1/fieldlm/update", ask, methods=["POST"]),
    ]


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm update`: ask the running server, or, where none runs, update the state folder."""
    parser = terminal.parser("update", "Take the newest release of this device's profile.")
    parser.add_argument("--url", help="a running server; default: the configured one, or none")
    parser.add_argument("--state", help="update this state folder, without a server")
    parser.add_argument("--repository", help="folder or URL of updates, without a server")
    parser.add_argument("--trust", help="root.json that vouches for the repository")
    args = parser.parse_args(argv)
    config = load_config({"state": args.state, "repository": args.repository, "trust": args.trust})
    result = None
    if not (args.state or args.repository):
        result = ask_server(args.url or f"http://{config.host}:{config.port}", needed=bool(args.url))
    if result is None:
        result = update_offline(config)
    terminal.show(result, describe(result), as_json=args.json)
    return 0 if result.outcome in ("updated", "current") else 1


def ask_server(url: str, *, needed: bool) -> UpdateResult | None:
    """Let the server at `url` update itself and wait; None when nobody answers and nobody `needed` to."""
    address = f"{url.rstrip('/')}/v1/fieldlm/update"
    try:
        runs = _state(urllib3.request("POST", address, retries=False)).runs
    except urllib3.exceptions.HTTPError as error:
        if needed:
            raise LinkError(f"no server answers at {url}: {error}; start one with: fieldlm serve") from error
        return None
    with terminal.progress("update") as line:
        while (state := _state(urllib3.request("GET", address))).runs <= runs:
            line.total = state.bytes_total // 1_000_000
            line.update(state.bytes_done // 1_000_000, f"MB · {state.step}")
            time.sleep(POLL_S)
    assert state.last, "an update that has ended has a result"
    return state.last


def update_offline(config: Config) -> UpdateResult:
    """Update a state folder that no server uses: the same steps, in this process."""
    from fieldlm.runtime.live import Live as Loading

    slots = Slots(config.state)
    try:
        live = Loading(slots.current(), threads=config.threads or None, context=config.context or None, parallel=1)
        try:
            trust = Path(config.trust) if config.trust else None
            with terminal.progress("update"):
                return Updater(slots, live, repository=config.repository, trust=trust).check_and_update()
        finally:
            live.close()
    finally:
        slots.close()


def describe(result: UpdateResult) -> str:
    """Say in words how an update ended."""
    head = {
        "updated": f"now at release {result.seq}, generation {result.generation}",
        "current": f"nothing new: {result.detail}",
    }.get(result.outcome, f"{result.outcome} ({result.reason}): {result.detail}")
    moved = f"{result.bytes_fetched / 1e6:.2f} MB moved, the whole bundle has {result.bytes_bundle / 1e6:.2f} MB"
    steps = terminal.table([(m.step, f"{m.took_s:.2f}") for m in result.timeline], ("step", "s"))
    return "\n".join([head, moved, steps] if result.outcome == "updated" else [head])


def _state(response: urllib3.BaseHTTPResponse) -> UpdateState:
    try:
        return msgspec.json.decode(response.data, type=UpdateState)
    except msgspec.MsgspecError as error:
        raise LinkError(f"the server answers {response.status} and no update state; is it fieldlm?") from error
