"""A device as a process that something like systemd starts again, and what it tells at home: a broker, a collector."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fieldlm.cli.broker import EmbeddedBroker, free_port
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store

FIELDLM = str(Path(sys.executable).with_name("fieldlm"))
PATIENCE_S = 600.0  # a guard against waiting for ever, on however slow a machine
LOOK_S = 0.1
DEVICE, FLEET = "kiosk-1", "test"


class DeviceProcess:
    """`fieldlm serve`, started again whenever it ends by itself."""

    def __init__(self, arguments: list[str], folder: Path, *, environment: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.ends: list[int] = []
        self._command = [FIELDLM, "serve", *arguments, "--port", str(self.port)]
        self._log = folder / "device.log"
        self._environment = environment
        self._is_over = threading.Event()
        self._child = self._start()
        self._keeper = threading.Thread(target=self._keep, name="systemd", daemon=True)
        self._keeper.start()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, env=self._environment)

    def _keep(self) -> None:
        while not self._is_over.is_set():
            code = self._child.wait()
            if self._is_over.is_set():
                return
            self.ends.append(code)
            self._child = self._start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self) -> None:
        self._is_over.set()
        self._child.terminate()
        self._keeper.join(30)
        self._child.kill()
        self._child.wait()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and document; status 0 while nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read() or "null")
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            connection.close()

    def chat(self, text: str, tokens: int = 4) -> tuple[int, Any]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        return self.ask("POST", "/v1/chat/completions", body)

    def wait_until(self, what: str, is_true: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_true():
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:.0f} s: {what}\n{self.log[-2000:]}"
            time.sleep(LOOK_S)

    def wait_ready(self) -> None:
        self.wait_until("ready", lambda: self.ask("GET", "/ready")[0] == 200)

    def generation(self) -> str:
        document = self.ask("GET", "/v1/fieldlm/status")[1]
        return document["generation"] if document else ""

    def update(self) -> dict[str, Any] | None:
        """Ask for an update and wait for its end; None when the process ended first."""
        ends = len(self.ends)
        runs = self.ask("GET", "/v1/fieldlm/update")[1]["runs"]
        assert self.ask("POST", "/v1/fieldlm/update", {})[0] == 202
        return self.updated(runs, ends)

    def updated(self, runs: int, ends: int) -> dict[str, Any] | None:
        found: list[dict[str, Any] | None] = []

        def is_over() -> bool:
            if len(self.ends) > ends:
                found.append(None)
                return True
            state = self.ask("GET", "/v1/fieldlm/update")[1]
            if state and state["runs"] > runs:
                found.append(state["last"])
            return bool(found)

        self.wait_until("the update ends", is_over)
        return found[0]


class Home:
    """A broker and a collector with its store."""

    def __init__(self, folder: Path) -> None:
        self._parts = ExitStack()
        self.broker = EmbeddedBroker(port=0, folder=folder / "broker")
        self._store_folder = folder / "store"

    def __enter__(self) -> Self:
        self._parts.enter_context(self.broker)
        self.store = self._parts.enter_context(Store(self._store_folder))
        self._parts.enter_context(Collector(self.broker.url, FLEET, self.store))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parts.close()

    def told(self, bundle: str) -> list[dict[str, str]]:
        """Return what came home of the update to that bundle, oldest first."""
        rows = self.store.query("SELECT detail FROM records WHERE stream = 'ota' ORDER BY epoch, seq")
        details = [dict(row["detail"]) for row in rows]
        return [detail for detail in details if detail.get("bundle") == bundle]
