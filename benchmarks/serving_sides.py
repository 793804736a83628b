"""The two sides of a comparison: servers that are started and asked over HTTP, and the programs that need none."""

import http.client
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httptools
import msgspec

from benchmarks.anchors import llama_tool
from fieldlm.bench.measure import MeasureLine, Spec
from fieldlm.cli.broker import free_port
from fieldlm.core.errors import EngineError, UnavailableError
from fieldlm.formats.bundle import Bundle

COMMAND = "from fieldlm.cli.main import main; raise SystemExit(main())"
PATIENCE_S = 120.0
ANSWER_S = 300.0
BUSY = "while True: pass"

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What both sides have in common; 0 threads leaves them to each side's own judgement."""

    bundle: Bundle
    folder: Path
    threads: int
    context: int = 2048
    parallel: int = 1

    @property
    def gguf(self) -> Path:
        return self.bundle.need("base")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer as its client saw it; seconds from the request. `decode_s` is from the first piece to the last."""

    text: str
    tokens: int
    first_s: float
    whole_s: float
    decode_s: float

    @property
    def decode_tokens_s(self) -> float:
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s > 0 else math.nan


class Server:
    """A server that runs in a process of its own."""

    def __init__(self, name: str, command: Sequence[str], port: int, alive: str, log: Path) -> None:
        self.name = name
        self.log = log
        self.port = port
        log.parent.mkdir(parents=True, exist_ok=True)
        started_s = time.monotonic()
        # Python keeps what it compiled, as after an installation: else each start would compile our sources anew.
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with log.open("wb") as file:
            self._child = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=kept)
        try:
            self._wait(alive)
        except BaseException:
            self.stop()
            raise
        self.ready_s = time.monotonic() - started_s

    def _wait(self, path: str) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not self._is_well(path):
            if self._child.poll() is not None or time.monotonic() > end_s:
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise UnavailableError(f"{self.name} does not answer: {lines[-1]} (log: {self.log})")
            time.sleep(0.005)

    def _is_well(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def rss_mb(self) -> float:
        """Return the resident memory of the process and its children."""
        return sum(map(_rss_mb, [self._child.pid, *_children(self._child.pid)]))

    def stop(self) -> None:
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)
            try:
                self._child.wait(20)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def chat(self, body: Body) -> Reply:
        """Send one streamed chat and read it to its end; raises LinkError when the server refuses it."""
        return chat(self.name, self.port, body)

    def chat_all(self, bodies: Sequence[Body], clients: int) -> tuple[list[Reply], float]:
        """Let `clients` send all `bodies`; return the answers and the seconds they all took."""
        started_s = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            replies = list(pool.map(self.chat, bodies))
        return replies, time.monotonic() - started_s


def chat(name: str, port: int, body: Body) -> Reply:
    """Ask the server called `name` at `port`; see `Server.chat`.

    While the answer comes, this only notes what has come when: a client that reads events as they come takes as much
    from two cores as the servers differ by.
    """
    wanted = {**body, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
    data = msgspec.json.encode(wanted)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    asked_s = time.monotonic()
    pieces: list[tuple[float, bytes]] = []
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
            connection.sendall(head.encode() + data)
            while piece := connection.recv(1 << 16):
                pieces.append((time.monotonic(), piece))
    except OSError as error:
        raise UnavailableError(f"{name} broke off: {error}") from error
    return _read(name, pieces, asked_s)


class _Lines:
    """The lines of a response's body, each with the time of its end; called by httptools' parser."""

    def __init__(self) -> None:
        self.at_s = 0.0
        self.found: list[tuple[float, bytes]] = []
        self._rest = b""

    def on_body(self, body: bytes) -> None:
        *lines, self._rest = (self._rest + body).split(b"\n")
        self.found += [(self.at_s, line) for line in lines]

    @property
    def text(self) -> str:
        return b"\n".join([*(line for _, line in self.found), self._rest]).decode(errors="replace")


def _reason(said: str) -> str:
    try:
        return str(json.loads(said)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return said[:200]


def _read(name: str, received: Sequence[tuple[float, bytes]], asked_s: float) -> Reply:
    """Read an event stream; the first piece is the first that has text, not the one that opens the answer."""
    lines = _Lines()
    parser: Any = httptools.HttpResponseParser(lines)
    try:
        for lines.at_s, data in received:
            parser.feed_data(data)
        status = parser.get_status_code() if received else 0
    except httptools.HttpParserError as error:
        raise UnavailableError(f"{name} does not speak HTTP: {error}") from error
    if status != 200:
        raise UnavailableError(f"{name} answers {status}: {_reason(lines.text)}")
    pieces: list[tuple[float, str]] = []
    tokens = 0
    for at_s, line in lines.found:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        event = msgspec.json.decode(line[6:])
        if "error" in event:
            raise UnavailableError(f"the answer failed: {event['error']['message']}")
        text = "".join((choice.get("delta") or {}).get("content") or "" for choice in event.get("choices") or ())
        pieces += [(at_s, text)] * bool(text)
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    end_s = received[-1][0]
    first_s, last_s = (pieces[0][0], pieces[-1][0]) if pieces else (end_s, end_s)
    return Reply(
        text="".join(text for _, text in pieces),
        tokens=tokens,
        first_s=first_s - asked_s,
        whole_s=end_s - asked_s,
        decode_s=last_s - first_s,
    )


def _children(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [child for word in words for child in (int(word), *_children(int(word)))]


def _rss_mb(pid: int) -> float:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


@contextmanager
def fieldlm_server(
    setting: Setting, name: str = "fieldlm", *more: str, bundle: Bundle | None = None
) -> Generator[Server]:
    """Serve the bundle, or `bundle` in its place, without telemetry; `more` are other models and options."""
    port, folder = free_port(), setting.folder / f"{name}-state"
    models = [str((bundle or setting.bundle).folder), *more]
    command = [
        sys.executable, "-c", COMMAND, "serve", *models, "--state", str(folder), "--port", str(port),
        "--profile", setting.bundle.manifest.profile, "--telemetry", "off", "--no-discovery",
        "--context", str(setting.context), "--parallel", str(setting.parallel),
        *(["--threads", str(setting.threads)] if setting.threads else []),
    ]  # fmt: skip
    server = Server("fieldlm", command, port, "/ready", setting.folder / f"{name}.log")
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def llama_server(setting: Setting, name: str = "llama-server") -> Generator[Server]:
    """Serve the same GGUF with as much context for each of as many slots; all else is its default."""
    port = free_port()
    command = [
        str(llama_tool("llama-server")), "-m", str(setting.gguf), "--host", "127.0.0.1", "--port", str(port),
        "-c", str(setting.context * setting.parallel), "-np", str(setting.parallel),
        *(["-t", str(setting.threads)] if setting.threads else []),
    ]  # fmt: skip
    server = Server("llama-server", command, port, "/health", setting.folder / f"{name}.log")
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def busy(count: int) -> Generator[None]:
    """Keep `count` processes computing beside what is measured."""
    children = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


def llama_bench(setting: Setting, tokens: int) -> float:
    """Return llama-bench's tokens a second for an answer of `tokens`."""
    threads = ["-t", str(setting.threads)] if setting.threads else []
    command = [str(llama_tool("llama-bench")), "-m", str(setting.gguf), "-p", "0", "-n", str(tokens), "-r", "2"]
    done = subprocess.run([*command, *threads, "-o", "json"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"llama-bench failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return float(json.loads(done.stdout)[0]["avg_ts"])


def in_process(bundle: Bundle, threads: int, tokens: int) -> float:
    """Return the tokens a second of the engine without a server, in a process of its own."""
    spec = Spec(
        bundle=str(bundle.folder), prompt_tokens=1, gen_tokens=tokens, repetitions=2, threads=threads, seed=os.getpid()
    )
    command = [sys.executable, "-m", "fieldlm.bench.measure", msgspec.json.encode(spec).decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [msgspec.json.decode(text, type=MeasureLine) for text in done.stdout.splitlines() if text.startswith("{")]
    if not lines or (measured := lines[-1].measured) is None:
        raise EngineError(f"measuring failed: {lines[-1].error if lines else done.stderr.strip()[-200:]}")
    steps = sum(sample.decode_tokens for sample in measured.samples)
    return steps / sum(sample.decode_s for sample in measured.samples)
