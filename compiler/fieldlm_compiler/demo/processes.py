"""The processes of the story: a broker, a collector and a device, each a child of its own with a log in `logs/`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fieldlm.cli.broker import EmbeddedBroker, free_port
from fieldlm.core.errors import GateError, UnavailableError
from fieldlm.network.http_client import OK, HttpClient
from fieldlm_compiler.collect.parquet import Store
from fieldlm_compiler.demo.customers import CONSENT

Facts = dict[str, Any]

FLEET = "demo"
DEVICE = "kiosk-1"
STILL_S = 180.0
"""How long nothing at all may move before a wait is given up; while something moves, it goes on."""

COMMAND = "from fieldlm.cli.main import main; raise SystemExit(main())"
WEB = """\
import sys, uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
app = Starlette(routes=[Mount("/", StaticFiles(directory=sys.argv[1]))])
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
"""


class Process:
    """A Python program that runs until it is stopped; what it prints goes to a file."""

    def __init__(self, name: str, program: str, arguments: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", program, *arguments]
        with log.open("ab") as file:
            # A session of its own: Ctrl-C reaches the story, which takes its children down in order.
            self._child = subprocess.Popen(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def check(self) -> None:
        """Raise UnavailableError with the last line of the log when the process has ended."""
        if self._child.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise UnavailableError(
                f"the {self.name} ended: {lines[-1] if lines else 'it said nothing'} (log: {self.log})"
            )

    def computed_s(self) -> int:
        """Return the whole seconds of processor time that it and its children, which share its session, have used."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            # Between the listing and the reading a process may have gone.
            with suppress(OSError):
                # After the name in brackets, which may hold anything: state, parent, group, session, … (proc(5))
                told = path.read_text().rpartition(")")[2].split()
                ticks += int(told[11]) + int(told[12]) if int(told[3]) == self._child.pid else 0
        return ticks // os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Ask it to end; kill it when it does not."""
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()


@contextmanager
def device(bundle: Path, folder: Path, *, profile: str) -> Generator[HttpClient]:
    """Serve `bundle` alone, without telemetry, and yield the server."""
    port = free_port()
    server = HttpClient(f"http://127.0.0.1:{port}", key="")
    arguments = [
        "serve", str(bundle), "--state", str(folder), "--port", str(port), "--profile", profile,
        "--telemetry", "off", "--no-discovery",
    ]  # fmt: skip
    process = Process("device", COMMAND, arguments, folder / "device.log")
    try:
        wait(f"{bundle} is ready", lambda: is_ready(server), [process], moved=process.computed_s)
        yield server
    finally:
        process.stop()


def is_ready(server: HttpClient) -> bool:
    """Say whether the server can answer."""
    try:
        return server.get("/ready")[0] == OK
    except UnavailableError:
        return False


def wait(
    until: str,
    is_true: Callable[[], bool],
    processes: Sequence[Process],
    *,
    moved: Callable[[], object],
    still_s: float = STILL_S,
) -> None:
    """Look four times a second whether `is_true`, for as long as what `moved` returns changes now and then.

    Raises UnavailableError when a process has ended, or nothing has moved for `still_s`.
    """
    last, since_s = moved(), time.monotonic()
    while not is_true():
        for process in processes:
            process.check()
        if (now := moved()) != last:
            last, since_s = now, time.monotonic()
        elif time.monotonic() - since_s > still_s:
            raise UnavailableError(
                f"nothing has moved for {still_s:.0f} s while waiting until {until}; "
                f"logs: {', '.join(str(p.log) for p in processes)}; run it again to go on"
            )
        time.sleep(0.25)


class Outage:
    """Kills the broker when customer `first` has left and starts it again when customer `last` has."""

    def __init__(self, broker: EmbeddedBroker, *, first: int, last: int) -> None:
        self.seconds = 0.0
        self.is_on = False
        self._broker = broker
        self._first, self._last = first, last
        self._began_s = 0.0

    def customer(self, count: int) -> None:
        if not self.is_on and self._first <= count < self._last and not self.seconds:
            self._broker.kill()
            self.is_on, self._began_s = True, time.monotonic()
        elif self.is_on and count >= self._last:
            self._broker.start()
            self.is_on, self.seconds = False, time.monotonic() - self._began_s


class Machines:
    """Broker, collector, update repository and device, up while the block runs."""

    def __init__(self, folder: Path, bundle: Path, *, profile: str) -> None:
        self.folder = folder
        self.device = DEVICE
        self.broker = EmbeddedBroker("127.0.0.1", free_port(), folder / "broker")
        self.broker_url = self.broker.url
        port, web_port = free_port(), free_port()
        self.server = HttpClient(f"http://127.0.0.1:{port}", key="")
        self.repository_url = f"http://127.0.0.1:{web_port}"
        repository = folder / "repository"
        serve = [
            "serve", str(bundle), "--state", str(folder / "device"), "--port", str(port), "--profile", profile,
            "--device", DEVICE, "--fleet", FLEET, "--broker", self.broker_url, "--telemetry", "redacted",
            "--consent", CONSENT,
            "--repository", self.repository_url, "--trust", str(repository / "tuf" / "root.json"),
        ]  # fmt: skip
        collect = ["collect", "--broker", self.broker_url, "--store", str(folder / "store"), "--fleet", FLEET]
        self._programs = [
            ("collector", COMMAND, collect),
            ("repository", WEB, [str(repository), str(web_port)]),
            ("device", COMMAND, serve),
        ]
        self._processes: list[Process] = []
        self._parts = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._parts.enter_context(self.broker)
            for name, program, arguments in self._programs:
                process = Process(name, program, arguments, self.folder / "logs" / f"{name}.log")
                self._parts.callback(process.stop)
                self._processes.append(process)
            device = self._processes[-1]
            wait("the device is ready", lambda: is_ready(self.server), self._processes, moved=device.computed_s)
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parts.close()

    def status(self) -> Facts:
        """Return what the device says of itself."""
        return self._read("/v1/fieldlm/status")

    def drain(self) -> None:
        """Wait until the collector has confirmed everything that the device recorded."""

        def is_empty() -> bool:
            return all(count["held"] == 0 for count in self.status()["spool"].values())

        def held() -> object:
            status = self.status()
            return status["spool"], status["sync"]["sent_bytes"]

        wait("the last record is home", is_empty, self._processes, moved=held)

    def produced(self) -> dict[str, int]:
        """Return how many records the device has made, by stream."""
        return {stream: count["last"] for stream, count in self.status()["spool"].items() if count["last"]}

    def hear(self, count: Callable[[], int], wanted: int) -> None:
        """Wait until customers have heard `wanted` answers of the kind that `count` counts."""
        wait(f"customers have heard {wanted} answers", lambda: count() >= wanted, self._processes, moved=count)

    def wait_for_update(self, generation: str) -> Facts:
        """Wait until the device answers with `generation` and return how the update went.

        What an updater does has its own deadlines: while it says that it is at work, there is nothing to give up.
        """
        runs: int = self._read("/v1/fieldlm/update")["runs"]

        def has_ended() -> bool:
            state = self._read("/v1/fieldlm/update")
            return not state["running"] and (state["runs"] > runs or self.status()["generation"] == generation)

        def moved() -> object:
            state = self._read("/v1/fieldlm/update")
            return time.monotonic() if state["running"] else state

        wait(f"the device answers with {generation}", has_ended, self._processes, moved=moved)
        result: Facts = self._read("/v1/fieldlm/update")["last"]
        if result["outcome"] != "updated":
            raise GateError(f"the device did not take the update: {result['outcome']}, {result['detail']}")
        return result

    def sent_bytes(self) -> int:
        """Return the bytes of telemetry that the device has published, those sent again included."""
        return self.status()["sync"]["sent_bytes"]

    def update_steps(self) -> list[Facts]:
        """Return the steps of updates as they came home: name, and when each ended in seconds since the epoch."""
        self.drain()
        with Store(self.folder / "store", read_only=True) as store:
            rows = store.query("SELECT wall_ms, detail FROM records WHERE stream = 'ota' ORDER BY wall_ms, seq")
        details = [(row["wall_ms"], dict(row["detail"])) for row in rows]
        return [{"name": detail["event"].removeprefix("update."), "at_s": at / 1000} for at, detail in details]

    def _read(self, path: str) -> Facts:
        try:
            return self.server.get(path)[1]
        except UnavailableError as error:
            raise UnavailableError(f"{error}; look at logs/device.log") from error
