"""The composition root: a device wires all parts by hand and takes them down again.

slots ─ bundle ─ live ─ server ─ recorder ─ spool ─ sync ─ broker
└──────────── updater ──┘                      (a release pointer comes back down the same way)
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange, Feedback
from fieldlm.api.dashboard import Leaves
from fieldlm.api.models.listing import adapters_of, memory_mb
from fieldlm.blobs.fetch import FetchPolicy
from fieldlm.control.owner_commands import Action, Commands, command_route
from fieldlm.core.config import Config
from fieldlm.core.errors import InputError
from fieldlm.core.logs import RECENT, logger
from fieldlm.core.tasks import PROCESS, TaskStatus
from fieldlm.device import systemd
from fieldlm.device.fetch_policy import fetching
from fieldlm.device.listeners import ListenSettings
from fieldlm.device.local_models import LocalModels, OwnModel
from fieldlm.device.startup import Start, context_of, exit_hung
from fieldlm.engines import Engine
from fieldlm.formats.bundle import NO_MODEL
from fieldlm.formats.profile import Profile
from fieldlm.formats.response_ids import ResponseIds
from fieldlm.hardware.energy import EnergyMeter
from fieldlm.hardware.governor import GOVERNOR
from fieldlm.hardware.sensors import peak_rss_mb, rss_mb, temperature_c
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.engine_watchdog import EngineWatchdog, ProgressMonitor
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.model_pool import ModelPool
from fieldlm.network.broker_identity import Identity
from fieldlm.telemetry.alerts import Trouble, troubles
from fieldlm.telemetry.effective_policy import EffectivePolicy
from fieldlm.telemetry.forget import privacy_routes
from fieldlm.telemetry.recorder import Recorder, id_key, load_salt
from fieldlm.telemetry.spool import Spool
from fieldlm.updates.freshness import staleness
from fieldlm.updates.gates import check_prompt, compare
from fieldlm.updates.hold import UpdateHold, busy_routes
from fieldlm.updates.progress import UpdateState
from fieldlm.updates.regression_monitor import RegressionMonitor
from fieldlm.updates.rehearsal import RehearsalLimits, rehearse
from fieldlm.updates.routes import update_routes
from fieldlm.updates.shadow import Shadow
from fieldlm.updates.slots import CRASH_FREE_S
from fieldlm.updates.updater import Updater

if TYPE_CHECKING:
    from fieldlm.escalation.policy import Escalation
    from fieldlm.network.discovery import Announcer
    from fieldlm.telemetry.sync import Sync

log = logger(__name__)

READY_S = 120.0
"""How long the first answer may take; a large model on a small board needs its time."""
SLOTS_AGAIN_S = 10.0
"""So often what the disk did not take of the slots is tried again."""
OBSERVE_S, GUARD_S = 10.0, 3600.0
"""How long an update is watched before it is committed, and how long it is taken back for harm after that."""
POLL_S = 3600.0
"""How often a device looks into its repository without being told."""
ENDS = frozenset({"update.committed", "update.rolled-back", "update.failed", "update.refused"})
"""How an update ends, of all that it tells."""


class Device:
    """A running device: everything is loaded when it is made, `run` serves, `close` takes it down, `start` too.

    `on_ready` hears, once, where it answers and what.
    """

    def __init__(
        self,
        config: Config,
        profile: Profile,
        start: Start,
        *,
        local: LocalModels | None = None,
        on_ready: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._on_ready = on_ready
        self._local = local
        self.config = config
        self.profile = profile
        self._parts = ExitStack()
        self._is_stopping = threading.Event()
        self._last_end = ""
        self._large_routes = list[Route]()
        self._patience_end_s = time.monotonic() + READY_S
        try:
            self._wire(start)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything down, last part first; what is not acknowledged stays in the spool."""
        self._is_stopping.set()
        self._parts.close()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; being told to stop is no failure."""
        told = self.tasks.start("when-ready", self._when_ready, restarts=True)
        self._parts.callback(told.join)
        with suppress(KeyboardInterrupt):
            self.http.run()
        systemd.stopping()
        self.updater.close()
        self.slots.confirm()

    def _wire(self, start: Start) -> None:
        config, keep = self.config, self._parts
        self.tasks = start.tasks
        keep.callback(self.tasks.close)
        keep.callback(start.close)
        door = ListenSettings.of(config)
        self.slots, self.live, self._not_ready = start.wait()
        self.pool = self._local.pool(self.live, self.tasks) if self._local else ModelPool.alone(self.live)
        keep.callback(self.pool.close)
        self.spool = keep.enter_context(Spool(config.state / "spool.db", max_mb=config.spool_mb, tasks=self.tasks))
        salt = load_salt(config.state / "salt")
        self.recorder = Recorder(self.spool, device=config.device, salt=salt, terms=policy_of(config))
        keep.callback(self.recorder.sum_up)
        self.watch = RegressionMonitor(temperature_c=self._heat_c, throttle_c=self.profile.thermal.throttle_c)
        self.busy = UpdateHold()
        self.commands = Commands(config.state, config.device, self._actions())
        self.updater = self._updater(keep.enter_context(fetching(config, host=door.host or "", tasks=self.tasks)))
        keep.callback(self.updater.close)
        self.updater.poll(POLL_S)
        self.announcer = self._announcer() if config.discovery and door.host else None
        self.sync = self._sync() if config.broker else None
        for model in self.pool.models:
            keep.enter_context(EngineWatchdog(partial(_engine, model.live), log.warning, tasks=self.tasks))
        pulse, energy = ProgressMonitor(), EnergyMeter()
        self.large = self._large(energy)
        self._govern(energy)
        self.tasks.start("energy", lambda: energy.run(self._is_stopping), restarts=True)
        app = make_app(
            self.pool,
            self._on_exchange,
            on_feedback=self._on_feedback,
            ids=ResponseIds(id_key(salt)),
            ready=self._not_ready,
            extra_routes=[
                *update_routes(self.updater),
                *busy_routes(self.busy),
                *privacy_routes(self.recorder),
                command_route(self.commands),
                Route("/v1/fieldlm/status", self._status),
                *self._large_routes,
            ],
            keys=door.keys,
            names=door.names,
            origins=config.allowed_origins,
            pulse=pulse,
            shelf=Shelf(self.live, config.state / "adapters"),
            crashes=lambda: self._tasks_status().crashes,
            leaves=self._leaves,
            large=self.large,
            energy=energy,
            kiosk=door.kiosk,
            shadow=self.shadow,
        )
        self.http = door.server(app, heartbeat=systemd.heartbeat(pulse.is_alive))
        keep.callback(self.http.close)
        if self.announcer:
            self.announcer.start(port=self.http.port)
            keep.callback(self.announcer.stop)

    def _govern(self, energy: EnergyMeter) -> None:
        """Keep below the profile's throttle point and the owner's budget from now on, until this device is closed."""
        heat = self.profile.thermal
        GOVERNOR.limit(
            throttle_c=heat.throttle_c, zones=heat.zones, max_watts=self.config.max_watts, joules=energy.joules
        )
        self._parts.callback(GOVERNOR.limit)

    def _large(self, energy: EnergyMeter) -> "Escalation | None":
        if not self.config.large:
            return None
        from fieldlm.escalation.policy import Escalation
        from fieldlm.escalation.report import ledger_route

        has_small = self.live.current.bundle.manifest.engine != NO_MODEL
        large = Escalation(
            self.config,
            has_small=has_small,
            tasks=self.tasks,
            patterns=lambda: self.recorder.terms.patterns,
            joules=energy.running_joules,
        )
        self._parts.callback(large.close)
        self._large_routes.append(ledger_route(large))
        return large

    def _leaves(self) -> Leaves:
        """Return what leaves this device; with a broker at least that it is there and how it fares does."""
        if not self.config.broker:
            return "nothing"
        return "text" if self.config.consent and self.recorder.terms.mode in ("redacted", "full") else "figures"

    def _announcer(self) -> "Announcer":
        # What speaks DNS-SD is imported only where somebody listens.
        from fieldlm.network.discovery import Announcer

        return Announcer(
            self.config.device,
            host=self.config.host,
            port=self.config.port,
            certificate=self.config.tls_cert,
            generation=self._generation,
            model=self._model,
            profile=self.profile.id,
            tasks=self.tasks,
        )

    def _updater(self, manner: FetchPolicy) -> Updater[Serving]:
        config, memory = self.config, self.profile.memory
        limits = RehearsalLimits(
            context=context_of(config, self.profile, self.live.current.bundle),
            parallel=self.live.parallel,
            budget_mb=float(memory.model_budget_mb),
            profile=self.profile,
        )
        self.shadow = Shadow[Serving](
            is_busy=lambda: any(model.live.is_used for model in self.pool.models),
            on_pair=lambda response, told: self.recorder.system("shadow.answered", response=response, **told),
        )
        return Updater(
            self.slots,
            OwnModel(self.pool),
            repository=config.repository or (self.commands.owner.repository if self.commands.owner else ""),
            trust=Path(config.trust) if config.trust else None,
            profile=self.profile.id,
            device=config.device,
            on_event=self._on_event,
            rehearse=lambda bundle: rehearse(bundle, limits),
            # One that sleeps is not woken to be measured: nobody waits for its answers.
            compare=lambda new, old: None if old.is_asleep else compare(new, old),
            check_prompt=check_prompt,
            complaint=self.watch.complaint,
            on_switch=self.watch.begin,
            on_hang=exit_hung,
            busy=self.busy,
            shadow=self.shadow,
            manner=manner,
            observe_s=OBSERVE_S,
            guard_s=GUARD_S,
            tasks=self.tasks,
        )

    def _actions(self) -> dict[str, Action]:
        """Return what the owner may have this device do."""

        def update(args: dict[str, str]) -> UpdateState:
            del args
            before = self.updater.state
            self.updater.start()
            return before

        def adopt(args: dict[str, str]) -> dict[str, Any]:
            brings_updates = args.get("repository") or args.get("root")
            if brings_updates and not self.live.current.bundle.manifest.is_proved:
                raise InputError(f"this device serves {self._model}, which is unproved: no update could go back to it")
            self.updater.adopt(args.get("repository", ""), args.get("root", ""))
            return self._presence() | {"device": self.config.device}

        return {
            "adopt": adopt,
            "status": lambda args: self._facts() | {"update": self.updater.state},
            "update": update,
            "slots": lambda args: self.slots.status(),
            "rollback": lambda args: {"generation": self.updater.roll_back("asked: by the owner").generation},
            "logs": lambda args: RECENT.last(args.get("lines", "50")),
        }

    def _on_command(self, message: bytes) -> None:
        answer = self.commands.hear(message)
        if answer.id and self.sync:
            self.sync.tell(f"res/{answer.id}", msgspec.json.encode(answer))

    def _on_exchange(self, exchange: Exchange) -> None:
        if exchange.verdict is not None and exchange.verdict.by == "large":
            self.recorder.exchange(exchange)  # it says nothing of the generation that serves
            return
        if (model := self.pool.find(exchange.model)) is not None and model is not self.pool.own:
            self.recorder.exchange(exchange)  # no update brought it, and none takes it back
            return
        self.watch.answered(exchange.generation, exchange.id, exchange.outcome, exchange.timings)
        self.recorder.exchange(exchange)

    def _on_feedback(self, said: Feedback) -> bool:
        if said.correction is not None or said.rating == "down":
            self.watch.corrected(said.id)
        if said.correction is not None or said.rating is not None:
            self.shadow.judge(said.id, said.text, is_liked=said.rating == "up")
        return self.recorder.feedback(said.id, said.rating, said.text)

    def _sync(self) -> "Sync":
        # What speaks MQTT is imported only where there is a broker.
        from fieldlm.telemetry.sync import Sync

        sync = Sync(
            self.spool,
            broker_url=self.config.broker,
            fleet=self.config.fleet,
            device=self.config.device,
            profile=self.profile.id,
            on_release=self.updater.on_hint,
            on_command=self._on_command,
            terms=self.recorder.terms,
            identity=Identity(ca=self.config.broker_ca, cert=self.config.broker_cert, key=self.config.broker_key),
            daily_mb=self.config.daily_mb,
            id_key=id_key(self.recorder.salt),
            tasks=self.tasks,
        )
        sync.set_presence(self._presence())
        sync.start()
        self._parts.callback(sync.stop)
        return sync

    def _when_ready(self) -> None:
        """Tell everybody once the first answer is there; a generation that never gets there is not confirmed."""
        while (why := self._not_ready()) is not None:
            if time.monotonic() > self._patience_end_s:
                log.warning(f"not ready: {why}")
                return
            if self._is_stopping.wait(0.02):
                return
        self.slots.up()
        systemd.ready()
        self.updater.tell_failures()
        if self.commands.owner is None and (self.sync or self.config.discovery):
            name = self.config.device
            log.info(f"nobody owns {name} yet; to become its owner: fieldlm adopt {name} --code {self.commands.code}")
        log.info(f"ready: {self._model} ({self._generation}) for {self.profile.id} at {self.http.url}/v1")
        if self._on_ready:
            self._on_ready({"url": self.http.url, "device": self.config.device, **self._presence()})
        end_s = time.monotonic() + CRASH_FREE_S
        while not self._is_stopping.wait(SLOTS_AGAIN_S if self.slots.problem else end_s - time.monotonic()):
            is_over = time.monotonic() >= end_s
            self.slots.confirm() if is_over else self.slots.up()
            if is_over and not self.slots.problem:
                return

    @property
    def _generation(self) -> str:
        return self.live.current.bundle.generation

    @property
    def _model(self) -> str:
        return self.pool.own.name

    def _heat_c(self) -> float | None:
        return temperature_c(zones=self.profile.thermal.zones)

    def _presence(self) -> dict[str, Any]:
        return {"state": "ready", "generation": self._generation, "profile": self.profile.id, "model": self._model}

    def _on_event(self, event: str, **detail: str) -> None:
        self.recorder.update(event, **detail)
        if event == "update.rolled-back":
            # Before it counts as told it has to be where no crash can take it from.
            self.spool.flush()
        if event == "update.verified" and self.announcer:
            self.announcer.refresh(state="updating")
        if event in ENDS:
            self._log_end(event, detail)
            if self.announcer:
                self.announcer.refresh(generation=self._generation, model=self._model, state="ready")
            if self.sync:
                self.sync.set_presence(self._presence())

    def _log_end(self, event: str, detail: dict[str, str]) -> None:
        """Log how an update ended; what a device that is offline finds out each hour, once."""
        what = f"release {detail['seq']}" if detail.get("seq") else "update"
        why = f" ({detail['reason']}): {detail.get('detail', '')}" if detail.get("reason") else ""
        line = f"{what} {event.removeprefix('update.')}{why}"
        if line != self._last_end:
            log.info(line)
        self._last_end = line

    def _status(self, request: Request) -> Response:
        # In a thread of its own: it waits for the disk.
        return Response(msgspec.json.encode(self._facts()), media_type="application/json")

    def _update_troubles(self) -> list[Trouble]:
        found = [("slots-unwritable", self.slots.problem)] if self.slots.problem else []
        if self.updater.repository:
            found.append(staleness(self.slots.state / "trust" / "metadata"))
        return [Trouble(name=name, detail=detail) for name, detail in found if name]

    def _facts(self) -> dict[str, Any]:
        health, sync = self.spool.health(), self.sync.status() if self.sync else None
        return {
            "device": self.config.device,
            "profile": self.profile.id,
            "model": self._model,
            "generation": self._generation,
            "proved": self.live.current.bundle.manifest.is_proved,
            **adapters_of(self.live.current.bundle.manifest),
            "ready": self._not_ready() is None,
            "telemetry": self.config.telemetry,
            "health": [*troubles(health, sync, self.recorder.clock), *self._update_troubles()],
            "spool": {} if health.problem == "disk-hangs" else self.spool.counts(),
            "sync": sync,
            "memory_mb": {"rss": rss_mb(), "peak": peak_rss_mb(), **memory_mb(self.live.current)},
            "temperature_c": self._heat_c(),
            "governor": GOVERNOR.status(),
            "models": self.pool.status(),
            "shadow": self.shadow.figures,
            "large": self.large.status() if self.large else None,
            "tasks": self._tasks_status(),
        }

    def _tasks_status(self) -> TaskStatus:
        """Return the device's tasks and those of the engines in this process."""
        own, engines = self.tasks.status(), PROCESS.status()
        crashes = Counter(own.crashes) + Counter(engines.crashes)
        return TaskStatus(running=(*own.running, *engines.running), crashes=dict(crashes))


def _engine(live: Generations) -> Engine:
    return live.current.engine


def policy_of(config: Config) -> EffectivePolicy:
    """Return what this device tells: the setting `telemetry` is the ceiling, the kept policy may lower it."""
    path = config.state / "policy.json"
    return EffectivePolicy(
        config.telemetry, fleet=config.fleet, path=path, signer=config.policy_signer, consents=config.consent
    )
