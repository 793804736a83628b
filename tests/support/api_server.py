"""The API on a real model, in this process and on a port: its address, what it told telemetry, the engine behind it."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.engines import Engine, EngineOptions
from fieldlm.escalation.policy import Escalation
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.api_keys import Keys
from fieldlm.network.http_server import listening


@dataclass(kw_only=True)
class ApiServer:
    """A running server."""

    url: str
    engine: Engine
    exchanges: list[Exchange] = field(default_factory=list[Exchange])


@contextmanager
def api_server(
    bundle: Bundle,
    *,
    context: int = 512,
    parallel: int = 2,
    keys: Keys | None = None,
    large: Escalation | None = None,
    unix_socket: Path | None = None,
) -> Generator[ApiServer]:
    """Serve `bundle` with one thread, on a port or `unix_socket`; it is closed with the block."""
    live = Generations(bundle, EngineOptions(threads=1, context=context, parallel=parallel))
    exchanges: list[Exchange] = []
    try:
        app = make_app(live, exchanges.append, ready=lambda: None, keys=keys, large=large)
        with listening(app, unix_socket=unix_socket) as server:
            yield ApiServer(url=server.url, engine=live.current.engine, exchanges=exchanges)
    finally:
        live.close()
