"""The one place that knows all parts: `fieldlm serve` wires them by hand and takes them down again.

slots ─ bundle ─ live ─ server ─ recorder ─ spool ─ sync ─ broker
└──────────── updater ──┘                      (a release pointer comes back down the same way)
"""

import signal
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.errors import BundleError, EngineError
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.runtime import notify, terminal
from fieldlm.runtime.config import Config, load_config
from fieldlm.runtime.discovery import Announcer
from fieldlm.runtime.door import Door
from fieldlm.runtime.hardware import detect, peak_rss_mb, rss_mb, temperature_c, usable_cores
from fieldlm.runtime.live import Live
from fieldlm.runtime.recorder import Recorder, load_salt
from fieldlm.runtime.server import make_app, warm
from fieldlm.runtime.slots import Slots
from fieldlm.runtime.spool import Spool
from fieldlm.runtime.sync import Sync
from fieldlm.runtime.update import Updater, update_routes
from fieldlm.runtime.watch import Pulse

READY_S = 120.0
"""How long the first answer may take; a large model on a small board needs its time."""


class Device:
    """A running device: everything is loaded when it is made, `run` serves, `close` takes it down."""

    def __init__(self, config: Config, profile: Profile, folder: Path | None) -> None:
        self.config = config
        self.profile = profile
        self._parts = ExitStack()
        self._patience_end_s = time.monotonic() + READY_S
        try:
            self._wire(folder)
        except BaseException:
            self._parts.close()
            raise

    def close(self) -> None:
        """Take everything down, last part first; what is not acknowledged stays in the spool."""
        self._parts.close()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; being told to stop is no failure."""
        threading.Thread(target=self._when_ready, name="when-ready", daemon=True).start()
        with suppress(KeyboardInterrupt):
            self._http.run()
        notify.stopping()
        self.slots.confirm()

    def _wire(self, folder: Path | None) -> None:
        config, keep = self.config, self._parts
        door = Door.of(config)
        self.slots = Slots(config.state)
        keep.callback(self.slots.close)
        if folder is not None:
            check_profile(folder, self.profile)
            self.slots.factory(folder)
        self.live = self._load()
        keep.callback(self.live.close)
        self.spool = keep.enter_context(Spool(config.state / "spool.db", max_mb=config.spool_mb))
        salt = load_salt(config.state / "salt")
        self.recorder = Recorder(self.spool, device=config.device, mode=config.telemetry, salt=salt)
        self.updater = Updater(
            self.slots,
            self.live,
            repository=config.repository,
            trust=Path(config.trust) if config.trust else None,
            profile=self.profile.id,
            on_event=self._on_event,
        )
        self.announcer = Announcer(config, generation=self._generation, model=self._model, profile=self.profile.id)
        self.sync = self._sync() if config.broker else None
        self._not_ready = warm(self.live)
        pulse = Pulse()
        app = make_app(
            self.live,
            self.recorder.exchange,
            on_feedback=lambda said: self.recorder.feedback(said.id, said.rating, said.correction),
            ready=self._not_ready,
            extra_routes=[*update_routes(self.updater), Route("/v1/fieldlm/status", self._status)],
            keys=door.keys,
            any_name=config.open,
            pulse=pulse,
        )
        self._http = door.server(app, heartbeat=notify.heartbeat(pulse.is_alive))
        keep.callback(self._http.close)
        if config.discovery and door.host:
            self.announcer.start(port=self._http.port)
            keep.callback(self.announcer.stop)

    def _sync(self) -> Sync:
        sync = Sync(
            self.spool,
            broker_url=self.config.broker,
            fleet=self.config.fleet,
            device=self.config.device,
            profile=self.profile.id,
            on_release=self.updater.start,
        )
        sync.set_presence(self._presence())
        sync.start()
        self._parts.callback(sync.stop)
        return sync

    def _load(self) -> Live:
        """Load what the slots name; an update that cannot be loaded gives way to what worked before it."""
        while True:
            bundle = self.slots.boot()
            try:
                return self._open_live(bundle)
            except EngineError as error:
                status = self.slots.status()
                if status.current == status.factory:
                    raise
                terminal.log(f"generation {bundle.generation} cannot be loaded ({error}); going back")
                self.slots.rollback(f"engine: {error}")

    def _open_live(self, bundle: Bundle) -> Live:
        config, profile = self.config, self.profile
        return Live(
            bundle,
            threads=config.threads or None,
            most_threads=max(1, min(profile.cpu.decode_threads, usable_cores())),
            context=config.context or min(profile.gguf.context, bundle.manifest.model.context),
            parallel=config.parallel or profile.runtime.parallel,
        )

    def _when_ready(self) -> None:
        """Tell everybody once the first answer is there; a generation that never gets there is not confirmed."""
        while (why := self._not_ready()) is not None:
            if time.monotonic() > self._patience_end_s:
                terminal.log(f"not ready: {why}")
                return
            time.sleep(0.02)
        self.slots.confirm()
        notify.ready()
        terminal.log(f"ready: {self._model} ({self._generation}) for {self.profile.id} at {self._http.url}/v1")

    @property
    def _generation(self) -> str:
        return self.live.current.bundle.generation

    @property
    def _model(self) -> str:
        return self.live.current.bundle.manifest.model.name

    def _presence(self) -> dict[str, Any]:
        return {"state": "ready", "generation": self._generation, "profile": self.profile.id, "model": self._model}

    def _on_event(self, event: str, **detail: str) -> None:
        self.recorder.update(event, **detail)
        if event in ("update.committed", "update.rolled-back"):
            self.announcer.refresh(generation=self._generation, model=self._model)
            if self.sync:
                self.sync.set_presence(self._presence())

    async def _status(self, request: Request) -> Response:
        status = {
            "device": self.config.device,
            "profile": self.profile.id,
            "model": self._model,
            "generation": self._generation,
            "ready": self._not_ready() is None,
            "telemetry": self.config.telemetry,
            "spool": self.spool.counts(),
            "sync": self.sync.status() if self.sync else None,
            "memory_mb": {"rss": rss_mb(), "peak": peak_rss_mb(), **self.live.current.engine.memory_mb()},
            "temperature_c": temperature_c(),
        }
        return Response(msgspec.json.encode(status), media_type="application/json")


def check_profile(folder: Path, profile: Profile) -> None:
    """Raise BundleError when the bundle in `folder` was compiled for another kind of device."""
    made_for = open_bundle(folder, digests=False).manifest.profile
    if made_for != profile.id:
        raise BundleError(
            f"{folder} was compiled for {made_for}, this device is {profile.id}; compile it again with "
            f"--profile {profile.id}, or say --profile {made_for} if that is what this device is"
        )


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm serve`."""
    args = vars(_parser().parse_args(argv))
    folder: Path | None = args.pop("bundle")
    args.pop("json")
    # uvicorn raises the signal again once the last answer is out; it must not end the process before its parts.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = load_config(args)
    profile = load_profile(config.profile) if config.profile else detect().best
    device = Device(config, profile, folder)
    try:
        device.run()
    finally:
        device.close()
    return 0


def _parser() -> Any:
    parser = terminal.parser("serve", "Serve a bundle on this device: an OpenAI-compatible API, telemetry, updates.")
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle folder; without it, what the state folder holds")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default 8080)")
    parser.add_argument("--api-keys", metavar="FILE", help="keys, one a line, that open the API")
    parser.add_argument("--open", action="store_const", const="true", help="answer the network without keys")
    parser.add_argument("--tls-cert", metavar="PEM", help="certificate to serve https with")
    parser.add_argument("--tls-key", metavar="PEM", help="the certificate's private key")
    parser.add_argument("--socket", metavar="PATH", help="unix socket to serve, too; alone with --host none")
    parser.add_argument("--socket-group", metavar="GROUP", help="who may use it beside this user and root")
    parser.add_argument("--state", help="folder for the spool and the generations")
    parser.add_argument("--profile", help="device profile (default: detected)")
    parser.add_argument("--device", help="this device's name")
    parser.add_argument("--fleet", help="the fleet it belongs to")
    parser.add_argument("--broker", help="mqtt://HOST:PORT to send usage to and hear of releases from")
    parser.add_argument("--telemetry", help="off, metrics, redacted or full")
    parser.add_argument("--repository", help="folder or URL of updates")
    parser.add_argument("--trust", help="root.json that vouches for the repository")
    parser.add_argument("--threads", help="threads for decoding (default: as many as there are free cores for)")
    parser.add_argument("--context", help="tokens of context for each request")
    parser.add_argument("--parallel", help="answers at a time")
    parser.add_argument("--no-discovery", dest="discovery", action="store_const", const="false", help="not on the LAN")
    return parser
