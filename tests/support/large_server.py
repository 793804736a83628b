"""A large model's endpoint that says what a test has it say, over a real connection: OpenAI's shape and no more."""

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


@dataclass
class LargeServer:
    """What is answered, and what was asked. `say` returns the text, the calls or the HTTP status of an answer."""

    say: Callable[[dict[str, Any]], str | list[dict[str, Any]] | int] = lambda body: "from the large one"
    url: str = ""
    names: tuple[str, ...] = ("big-1",)
    asked: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str] = field(default_factory=list[str])
    prompt_tokens: int = 11
    completion_tokens: int = 7
    breaks_after: int | None = None
    """Characters after which the connection is cut."""
    waits_s: float = 0.0
    after_first: threading.Event | None = None
    """Waited for behind the first words."""
    refused: int = 0
    refusal: str = ""
    finish: str = "stop"
    connections: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, says: LargeServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.says = says


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def says(self) -> LargeServer:
        return cast(_Server, self.server).says

    def setup(self) -> None:
        super().setup()
        self.says.connections += 1

    def do_GET(self) -> None:
        self._document({"object": "list", "data": [{"id": name} for name in self.says.names]})

    def do_POST(self) -> None:
        says = self.says
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        says.asked.append(body)
        says.keys.append(self.headers.get("authorization", ""))
        time.sleep(says.waits_s)
        said = says.say(body)
        if isinstance(said, int):
            says.refused += 1
            self._document({"error": {"message": says.refusal or f"told to say {said}"}}, status=said)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with suppress(OSError):
            self._stream(said)

    def _stream(self, said: str | list[dict[str, Any]]) -> None:
        says = self.says
        pieces = [said[i : i + 4] for i in range(0, len(said), 4)] if isinstance(said, str) else []
        sent = 0
        for piece in pieces:
            if says.breaks_after is not None and sent >= says.breaks_after:
                return
            self._event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            sent += len(piece)
            if says.after_first is not None:
                says.after_first.wait(60)
        if not isinstance(said, str):
            calls = [{"index": i, "id": f"c{i}", "type": "function", "function": call} for i, call in enumerate(said)]
            self._event({"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]})
        reason = says.finish if isinstance(said, str) else "tool_calls"
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        usage = {"prompt_tokens": says.prompt_tokens, "completion_tokens": says.completion_tokens}
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")
        self.close_connection = False

    def _event(self, document: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(document).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _document(self, document: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def large_server(**says: Any) -> Generator[LargeServer]:
    """Run one on a free port; `url` ends in /v1."""
    made = LargeServer(**says)
    server = _Server(made)
    made.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
