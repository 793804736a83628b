"""`fieldlm broker`, an MQTT broker for one site: rumqttd inside the iotcore wheel, MQTT 5, in a process of its own.

It keeps everything in memory: kill it and it forgets. Nothing is lost by that, because a device deletes a record only
when the collector has committed it. For more than a bench or one shop, run Mosquitto or EMQX instead.
"""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError, MissingDependencyError, UnavailableError
from fieldlm.core.extras import install_advice
from fieldlm.core.tasks import PROCESS

MAX_PAYLOAD_BYTES = 4 << 20
# rumqttd speaks MQTT 5 only on listeners that stand under [v5.…].
_CONFIG = """\
id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 16
[v5.1]
name = "fieldlm"
listen = "{host}:{port}"
next_connection_delay_ms = 1
    [v5.1.connections]
    connection_timeout_ms = 60000
    max_payload_size = {payload}
    max_inflight_count = 100
    dynamic_filters = true
"""
# The child ends when its stdin closes, so it never outlives whoever started it.
_CHILD = "import sys; from fieldlm.cli.broker import serve; serve(sys.argv[1]); sys.stdin.buffer.read()"


class EmbeddedBroker:
    """The broker in a child process: `start`, `stop`, `kill`, and `start` again on the same port with empty memory."""

    def __init__(self, host: str = "127.0.0.1", port: int = 1883, folder: Path | None = None) -> None:
        """Port 0 means any free one. `folder` is where the configuration is written, by default a temporary one."""
        self.host = host
        self.port = port or free_port(host)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self, timeout_s: float = 20.0) -> None:
        """Start it and wait until it accepts connections; UnavailableError when it does not, or the port is taken."""
        check_free(self.host, self.port)
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fieldlm-broker-")
        config = write_config(self._folder or Path(self._temporary.name), self.host, self.port)
        self._process = subprocess.Popen([sys.executable, "-c", _CHILD, str(config)], stdin=subprocess.PIPE)
        try:
            wait_until_open(self.host, self.port, timeout_s=timeout_s, is_alive=self._is_running)
        except UnavailableError:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and free the port; more calls do nothing."""
        self._end(kill=False)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._end(kill=True)

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill() if kill else process.terminate()
        process.wait()
        assert process.stdin, "it was started with a pipe"
        process.stdin.close()
        if self._folder is None:
            self._temporary.cleanup()


def write_config(folder: Path, host: str, port: int) -> Path:
    """Write rumqttd's configuration for one MQTT 5 listener and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"broker-{port}.toml"
    path.write_text(_CONFIG.format(host=host, port=port, payload=MAX_PAYLOAD_BYTES))
    return path


def serve(config: str) -> None:
    """Start the broker in this process; it ends with the process, since rumqttd cannot be stopped."""
    try:
        from iotcore import IotCoreBroker
    except ModuleNotFoundError as error:
        how = install_advice("fieldlm", "broker")
        raise MissingDependencyError(f"the embedded broker is not installed; {how}") from error
    # It labels every packet's trace as an error.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    PROCESS.start("broker", IotCoreBroker(config_path=config).run_forever)


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_free(host: str, port: int) -> None:
    """Raise UnavailableError when somebody listens on the port, InputError when the address is none."""
    if not 0 < port < 65536:
        raise InputError(f"{port} is no port; use 1 to 65535")
    if _accepts(host, port):
        raise UnavailableError(f"port {port} on {host} is taken, perhaps by another broker; stop it or use --port")


def wait_until_open(
    host: str, port: int, *, timeout_s: float = 20.0, is_alive: Callable[[], bool] = lambda: True
) -> None:
    """Wait until somebody accepts connections; raises UnavailableError when time is up or the process has died."""
    deadline = time.monotonic() + timeout_s
    while not _accepts(host, port):
        if not is_alive() or time.monotonic() > deadline:
            raise UnavailableError(f"no broker came up on {host}:{port}; its messages are above")
        time.sleep(0.02)


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except socket.gaierror as error:
        raise InputError(f"there is no host {host}: {error.strerror}") from error
    except OSError:
        return False


def main(argv: Sequence[str]) -> int:
    """Run the embedded broker until it is stopped."""
    parser = terminal.parser(
        "broker",
        "Run an MQTT 5 broker for a bench or one site; it keeps its messages in memory.",
        "fieldlm broker",
        "fieldlm broker --host 192.168.1.2 --port 1884",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; it has no passwords and no TLS")
    parser.add_argument("--port", type=options.whole(*options.PORT), default=1883, help="port to listen on")
    args = parser.parse_args(argv)
    check_free(args.host, args.port)
    with tempfile.TemporaryDirectory(prefix="fieldlm-broker-") as folder:
        serve(str(write_config(Path(folder), args.host, args.port)))
        url = f"mqtt://{args.host}:{args.port}"
        terminal.show({"url": url, "pid": os.getpid()}, f"broker on {url}, stop with Ctrl-C", as_json=args.json)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    # The broker's threads are not Python's; a normal exit would pull the interpreter away under them.
    os._exit(0)
