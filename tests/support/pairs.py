"""A small model beside a large one, served for a test: `Pair` asks it."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fieldlm.core.config import load_config
from fieldlm.escalation.policy import Escalation
from fieldlm.formats.bundle import Bundle
from tests.support.api_server import ApiServer, api_server
from tests.support.large_server import LargeServer, large_server

CHAT = "/v1/chat/completions"


def refuse(_: dict[str, Any]) -> int:
    return 503


def saying(what: str | int | list[dict[str, Any]]) -> Callable[[dict[str, Any]], str | int | list[dict[str, Any]]]:
    return lambda _: what


class Pair:
    """A served small model beside a large one."""

    def __init__(self, server: ApiServer, large: LargeServer, escalation: Escalation) -> None:
        self.server, self.large, self.escalation = server, large, escalation

    def ask(self, text: str = "Hello", **body: Any) -> httpx.Response:
        asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, **body}
        return httpx.post(self.server.url + CHAT, json=asked, timeout=60)

    def events(self, **body: Any) -> Iterator[dict[str, Any]]:
        asked = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True, **body}
        with httpx.stream("POST", self.server.url + CHAT, json=asked, timeout=60) as response:
            for line in response.iter_lines():
                if line.removeprefix("data: ") not in ("", "[DONE]"):
                    yield json.loads(line.removeprefix("data: "))


Start = Callable[..., Pair]


@contextmanager
def pair(bundle: Bundle, folder: Path, says: dict[str, Any], settings: dict[str, Any]) -> Generator[Pair]:
    with large_server(**says) as large:
        flags = {"large": large.url, "state": str(folder / "state")}
        joules = settings.pop("joules", lambda: None)
        flags |= {f"large_{name}": value for name, value in settings.items()}
        config = load_config(flags, {"HOME": str(folder)})
        escalation = Escalation(config, has_small=bundle.manifest.engine != "none", joules=joules)
        try:
            with api_server(bundle, large=escalation) as server:
                yield Pair(server, large, escalation)
        finally:
            escalation.close()
