"""Several models by name in the memory of fewer: loaded when a request asks for them, asleep to make room for others.

Which stays is decided here, before anything is loaded: asleep go first those that nobody uses, the one that was used
longest ago before all others; then one that is used, once its running answers have ended and new ones are held back.
What is pinned never goes. Models are loaded one at a time, in the order in which they were asked for, and each answers
at least those that waited for it before it can go again: no model starves, whoever keeps another one busy.
"""

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Any

from fieldlm.core.errors import ConflictError, EngineError, FieldlmError, InputError
from fieldlm.core.logs import logger
from fieldlm.core.tasks import PROCESS, BackgroundTask, Tasks
from fieldlm.engines import EngineOptions, engine_kind
from fieldlm.engines.memory_plan import NoRoomError
from fieldlm.formats.bundle import Bundle
from fieldlm.hardware.facts import read_facts
from fieldlm.inference.generations import Generations, Release, Serving

LOOK_S = 0.02
"""How often it is seen whether answers have ended that a model waits for."""
BUSY_LOOK_S = 1.0
"""How often it is seen whether a model is still used that is to go then."""
DAY_S = 86_400.0
LATEST = ":latest"
"""What Ollama, and who is used to it, calls the only version of a model."""

Ticket = Future[tuple[Serving, Release]]
"""Where a request for a model that is not awake waits: what answers it, and what gives that back."""
log = logger(__name__)


class PoolFullError(EngineError):
    """A model cannot be loaded beside those that have to stay."""


def _nothing(_: Serving) -> None:
    pass


def _give_back(ticket: Ticket) -> None:
    if error := ticket.exception():
        log.warning(f"what is pinned cannot be loaded: {error}")
    else:
        ticket.result()[1]()


class PooledModel:
    """One model of a pool, awake or asleep."""

    def __init__(
        self,
        live: Generations,
        *,
        name: str = "",
        need_mb: float = 0.0,
        prepare: Callable[[Serving], None] = _nothing,
        check: Callable[[], object] | None = None,
    ) -> None:
        """Make one of what is awake or asleep already; `need_mb` is what it is foreseen to take.

        `check` is called once, before it is first loaded; `prepare` has it each time, before the first request.
        """
        self.live = live
        self.own_name = name
        self.need_mb = need_mb
        self.is_pinned = False
        """By the owner: it stays whatever is asked for."""
        self.keep_s: float | None = None
        """How long it stays after its last request, as a client said it; infinity is until its room is needed."""
        self.is_leaving = False
        """Whether it goes as soon as nobody uses it."""
        self.wakes = 0
        self.load_s: float | None = None
        """What its last wake-up took."""
        self.is_loading = False
        self.prepare = prepare
        self.check = check

    @property
    def name(self) -> str:
        return self.own_name or self.live.current.called

    @property
    def bundle_name(self) -> str:
        """What its bundle calls it."""
        return self.live.current.bundle.manifest.model.name

    def is_called(self, name: str) -> bool:
        """Whether a request may call it so. The generation of the device's own model changes with an update."""
        known = {self.name, self.live.current.bundle.generation}
        return name in known or name.removesuffix(LATEST) in known

    @property
    def state(self) -> str:
        if self.is_loading:
            return "loading"
        return "asleep" if self.live.is_asleep else "replaced" if self.live.is_held else "awake"

    @property
    def is_awake(self) -> bool:
        return not self.live.is_asleep

    @property
    def idle_s(self) -> float:
        """Seconds since a request last began or ended."""
        return time.monotonic() - self.live.used_s


class ModelPool:
    """The models that a server answers with: the device's own first. Safe from any thread.

    `budget_mb` is what all that are awake may take together, by what they are foreseen to take; whether the machine has
    it is checked at each load. `sleep_after_s` is how long a model stays that nobody asks for; 0 is for ever.
    """

    def __init__(
        self,
        own: PooledModel,
        others: Sequence[PooledModel] = (),
        *,
        budget_mb: float = math.inf,
        sleep_after_s: float = 0.0,
        tasks: Tasks | None = None,
    ) -> None:
        self.own = own
        self.models = (own, *others)
        self.budget_mb = budget_mb
        self.sleep_after_s = sleep_after_s
        self.is_alone = not others and not sleep_after_s
        """Whether its one model never sleeps, so that there is nothing to decide."""
        if others:
            self._check_names()
        self._changed = threading.Condition()
        self._queue: list[tuple[PooledModel, Ticket]] = []
        self._draining: list[PooledModel] = []
        self._is_over = False
        self._tasks = tasks
        self._task: BackgroundTask | None = None
        if not self.is_alone:
            self._task = (tasks or PROCESS).start("models", self._run, restarts=True)

    @classmethod
    def alone(cls, live: Generations) -> "ModelPool":
        """Return the pool of one model that stays."""
        return cls(PooledModel(live))

    def find(self, name: str) -> PooledModel | None:
        """Return the model of that name or generation, else the first whose bundle is called so."""
        found = (model for model in self.models if model.is_called(name))
        by_bundle = (model for model in self.models if model.bundle_name in (name, name.removesuffix(LATEST)))
        return next(found, None) or next(by_bundle, None)

    def aliases(self, model: PooledModel) -> list[str]:
        """Return what `model` may be called beside its name: as its bundle is, where no other one is called so."""
        name = model.bundle_name
        return [name] if name != model.name and self.find(name) is model else []

    def pin(self, names: Sequence[str]) -> None:
        """Load the models of these names and keep them, whatever is asked for; they are loaded in the background.

        Raises InputError for one that is not here.
        """
        for name in names:
            if (model := self.find(name)) is None:
                raise InputError(f"pinned names {name!r}, which is not served; {self.listed()}")
            model.is_pinned = True
            if model.live.is_asleep:
                self.ask(model).add_done_callback(_give_back)

    def listed(self) -> str:
        """Return what is here, for errors."""
        names = [repr(model.name) for model in self.models]
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} served"

    def ask(self, model: PooledModel) -> Ticket:
        """Return where `model` will be given, awake; cancel it when nobody waits any more.

        It ends with PoolFullError where there is no room, or with what went wrong when the model was loaded.
        """
        ticket: Ticket = Future()
        with self._changed:
            if self._is_over or self.is_alone:
                ticket.set_exception(EngineError("the models are being closed"))
                return ticket
            self._queue.append((model, ticket))
            self._changed.notify()
        return ticket

    def keep(self, model: PooledModel, seconds: float | None) -> None:
        """Let `model` stay that long after its last request: infinity is until its room is needed, None as before.

        With 0 it goes now, or when its last request has ended; what is pinned stays.
        """
        model.is_leaving = seconds == 0
        if seconds:
            model.keep_s = seconds
        if seconds is not None:
            self.nudge()

    def nudge(self) -> None:
        """Look again at who has to go."""
        with self._changed:
            self._changed.notify()

    def waiting(self, model: PooledModel) -> int:
        """Return how many requests wait for `model` to be loaded."""
        with self._changed:
            return sum(each is model and not ticket.cancelled() for each, ticket in self._queue)

    def expires_in_s(self, model: PooledModel) -> float | None:
        """Return when `model` will sleep if nobody asks for it; None for never."""
        kept_s = self._kept_s(model)
        if model.live.is_asleep or math.isinf(kept_s):
            return None
        return max(kept_s, BUSY_LOOK_S) if model.live.is_used else max(0.0, kept_s - model.idle_s)

    def sleep_another(self) -> bool:
        """Put one to sleep beside the device's own, that nobody uses and that is not pinned; False without one."""
        return any(self._sleep(model) for model in self._leaving(self.own))

    def close(self) -> None:
        """Let nobody wait any more, and free all but the device's own model, which has an owner."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if self._task:
            self._task.join()
        self._fail(EngineError("the server is stopping"))
        for model in self.models[1:]:
            model.live.close()

    def described(self, model: PooledModel) -> dict[str, Any]:
        """Return what is to be told of one model's memory and state."""
        expires_s = self.expires_in_s(model)
        return {
            "state": model.state,
            "pinned": model.is_pinned,
            "aliases": self.aliases(model),
            "needs_mb": round(model.need_mb, 1),
            "idle_s": round(model.idle_s, 1),
            "expires_s": None if expires_s is None else round(expires_s, 1),
            "waiting": self.waiting(model),
            "wakes": model.wakes,
            "load_s": None if model.load_s is None else round(model.load_s, 3),
        }

    def status(self) -> dict[str, Any]:
        """Return what the plan is, and how each model fares."""
        rows = [{"model": model.name, **self.described(model)} for model in self.models]
        budget = None if math.isinf(self.budget_mb) else self.budget_mb
        return {"budget_mb": budget, "sleep_after_s": self.sleep_after_s, "models": rows}

    def _check_names(self) -> None:
        seen: dict[str, PooledModel] = {}
        for model in self.models:
            if model.name in seen:
                raise ConflictError(f"two models are called {model.name!r}; give one another name: NAME=MODEL")
            seen[model.name] = model

    def _kept_s(self, model: PooledModel) -> float:
        if self.is_alone or model.is_pinned:
            return math.inf
        if model.is_leaving:
            return 0.0
        if model.keep_s is not None:
            return model.keep_s
        return self.sleep_after_s or math.inf

    def _run(self) -> None:
        while not self._is_over:
            with self._changed:
                if not self._is_over and not self._queue:
                    self._changed.wait(self._until_expiry_s())
            if self._is_over:
                return
            self._sleep_expired()
            model = self._first()
            try:
                self._serve(model)
            except Exception as error:  # engines are foreign code, and who waits has to be told
                if not isinstance(error, FieldlmError):
                    (self._tasks or PROCESS).crashed("models", error)
                self._stop_draining()
                self._fail(error, model)

    def _until_expiry_s(self) -> float:
        ends = [end_s for model in self.models if (end_s := self.expires_in_s(model)) is not None]
        return max(LOOK_S, min(ends, default=DAY_S))

    def _sleep_expired(self) -> None:
        for model in self.models:
            if self.expires_in_s(model) == 0.0 and not self.waiting(model):
                self._sleep(model)

    def _serve(self, model: PooledModel | None) -> None:
        """Do what the longest wait, for `model`, needs: hand out, make room, or load."""
        if model is None or model in self._draining:
            self._stop_draining()  # who they made room for has left
        elif self._hand_out(model):
            return
        elif model.is_awake or not self._has_room(model):
            # An update holds it, or answers have to end first.
            with self._changed:
                self._changed.wait(LOOK_S)
        else:
            self._load(model)

    def _first(self) -> PooledModel | None:
        with self._changed:
            self._queue = [(model, ticket) for model, ticket in self._queue if not ticket.cancelled()]
            return self._queue[0][0] if self._queue else None

    def _hand_out(self, model: PooledModel) -> bool:
        """Give `model` to all who wait for it; False when it is not awake."""
        with self._changed:
            waiting = [ticket for each, ticket in self._queue if each is model]
        for ticket in waiting:
            if (leased := model.live.try_lease()) is None:
                return False
            with self._changed:
                self._queue.remove((model, ticket))
            if ticket.set_running_or_notify_cancel():
                ticket.set_result(leased)
            else:
                leased[1]()
        return True

    def _has_room(self, wanted: PooledModel) -> bool:
        """Make room for `wanted`; False while running answers are in its way. Raises PoolFullError when none can be."""
        leaving = self._leaving(wanted)
        stays = [model for model in self._awake(wanted) if model not in leaving]
        if not self._fits(wanted, stays):
            names = ", ".join(f"{model.name} ({model.need_mb:.0f} MB)" for model in stays)
            raise PoolFullError(
                f"{wanted.name} needs {wanted.need_mb:.0f} MB, all models together may take {self.budget_mb:.0f} MB "
                f"and {names} stays; pin fewer models, give them more (--models-mb) or a smaller --context"
            )
        for model in leaving:
            if self._fits(wanted, self._awake(wanted)):
                return True
            self._sleep(model)
        self._drain_until(wanted, lambda left: self._fits(wanted, left))
        return self._fits(wanted, self._awake(wanted))

    def _drain_until(self, wanted: PooledModel, is_enough: Callable[[list[PooledModel]], bool]) -> None:
        """Hold requests back from models that are used, the longest unused first, until what is left is enough."""
        left = self._awake(wanted)
        for model in self._leaving(wanted):
            if is_enough(left):
                return
            left = [each for each in left if each is not model]
            if model not in self._draining:
                model.live.drain(True)
                self._draining.append(model)

    def _stop_draining(self) -> None:
        for model in self._draining:
            model.live.drain(False)
        self._draining.clear()

    def _awake(self, wanted: PooledModel) -> list[PooledModel]:
        return [model for model in self.models if model is not wanted and model.is_awake]

    def _leaving(self, wanted: PooledModel) -> list[PooledModel]:
        """Return who may go for `wanted`, first who goes first: what somebody wants kept for ever is last."""
        leaving = [model for model in self._awake(wanted) if not model.is_pinned]
        return sorted(leaving, key=lambda model: (model.keep_s == math.inf, model.live.used_s))

    def _fits(self, wanted: PooledModel, beside: Sequence[PooledModel]) -> bool:
        """Whether `wanted` fits beside these; alone it is tried whatever the plan says."""
        return not beside or wanted.need_mb + sum(model.need_mb for model in beside) <= self.budget_mb

    def _sleep(self, model: PooledModel) -> bool:
        if not model.live.try_sleep():
            return False
        log.info(f"{model.name} sleeps")
        return True

    def _load(self, model: PooledModel) -> None:
        began_s = time.monotonic()
        model.is_loading = True
        try:
            if model.check is not None:
                model.check()
                model.check = None
            model.live.wake(model.prepare)
        except NoRoomError as error:
            # The machine has less than the plan allows: another one has to go.
            leaving = self._leaving(model)
            if not leaving:
                raise PoolFullError(f"{error}; no other model can make room") from error
            if not any(self._sleep(each) for each in leaving):
                self._drain_until(model, lambda left: len(left) < len(self._awake(model)))
                time.sleep(LOOK_S)
            return
        finally:
            model.is_loading = False
        model.wakes += 1
        model.load_s = time.monotonic() - began_s
        if held_mb := sum(model.live.current.engine.memory_mb().values()):
            model.need_mb = held_mb
        log.info(f"{model.name} is awake after {model.load_s:.2f} s")
        self._stop_draining()
        self._hand_out(model)

    def _fail(self, error: Exception, model: PooledModel | None = None) -> None:
        """Tell those that wait for `model`, or all, what is wrong."""
        with self._changed:
            failed = [ticket for each, ticket in self._queue if model in (None, each)]
            self._queue = [(each, ticket) for each, ticket in self._queue if ticket not in failed]
        for ticket in failed:
            with suppress(InvalidStateError):  # who left meanwhile is told nothing
                ticket.set_exception(error)


def foreseen_mb(bundle: Bundle, options: EngineOptions) -> float:
    """Return the megabytes that `bundle` will take: what its engine foresees, or else the size of its files."""
    files_mb = sum(file.size for file in bundle.manifest.files) / 1e6
    try:
        found = engine_kind(bundle.manifest.engine).foreseen_mb(
            bundle,
            context=min(options.context or bundle.manifest.model.context, bundle.manifest.model.context),
            parallel=options.parallel,
            isa=read_facts().isa,
            profile=options.profile,
        )
    except FieldlmError as error:
        log.warning(f"what {bundle.manifest.model.name} needs is not foreseen: {error}")
        return files_mb
    return files_mb if found is None else found
