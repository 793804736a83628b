"""The brokers that the end-to-end tests run on: the embedded one, and Mosquitto where it is installed."""

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from fieldlm.cli.broker import EmbeddedBroker, free_port, wait_until_open

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
# In CI a missing Mosquitto must fail; elsewhere its tests are not made.
NAMES = ["embedded", "mosquitto"] if MOSQUITTO or os.environ.get("CI") == "true" else ["embedded"]


class Broker(Protocol):
    @property
    def url(self) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...


class Mosquitto:
    """A real Mosquitto with persistence; `kill` is SIGKILL, and takes what it had on its disk."""

    def __init__(self, folder: Path, settings: str = "", *, is_open: bool = True) -> None:
        assert MOSQUITTO, "CI needs Mosquitto: apt-get install mosquitto"
        self.folder = folder
        self.settings = settings
        self.is_open = is_open
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self) -> None:
        state = self.folder / "state"
        state.mkdir(parents=True)
        config = self.folder / "mosquitto.conf"
        # Started by root it would become the user `mosquitto`, who may not write here.
        config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous {str(self.is_open).lower()}\nuser root\n"
            f"persistence true\npersistence_location {state}/\nautosave_interval 1\nlog_type error\n{self.settings}"
        )
        assert MOSQUITTO, "checked when it was made"
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)
        wait_until_open("127.0.0.1", self.port)

    def stop(self) -> None:
        self._end(kill=False)

    def kill(self) -> None:
        self._end(kill=True)

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process:
            process.kill() if kill else process.terminate()
            process.wait()
            shutil.rmtree(self.folder / "state")


def make(name: str, folder: Path) -> Broker:
    return Mosquitto(folder) if name == "mosquitto" else EmbeddedBroker(port=0, folder=folder)


@contextmanager
def mosquitto(folder: Path, *lines: str, tls: bool = False) -> Generator[str]:
    """Run one with these lines in its configuration; yields its URL."""
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text("\n".join([f"listener {port} 127.0.0.1", "user root", "log_type error", *lines]) + "\n")
    assert MOSQUITTO, "these tests need Mosquitto: apt-get install mosquitto"
    process = subprocess.Popen([MOSQUITTO, "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        wait_until_open("127.0.0.1", port)
        yield f"mqtt{'s' if tls else ''}://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
