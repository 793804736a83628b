"""How a device that serves fetches its updates, as its settings say: at what speed, at which hours, with whom."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fieldlm.runtime import terminal
from fieldlm.runtime.config import Config
from fieldlm.runtime.fetch import Manner
from fieldlm.runtime.sources import read_window

if TYPE_CHECKING:
    from fieldlm.runtime.peers import Swarm


@contextmanager
def fetching(config: Config, *, host: str) -> Generator[Manner]:
    """Yield the manner; meanwhile this device's blobs are there for its neighbours, where it listens on a network.

    A port that cannot be had is a line on stderr: the device then fetches alone.
    """
    with ExitStack() as stack:
        yield Manner(
            most_bytes_s=config.fetch_kb_s * 1000,
            window=read_window(config.fetch_hours),
            neighbours=_swarm(config, host, stack) if config.share and config.discovery and host else None,
        )


def _swarm(config: Config, host: str, stack: ExitStack) -> "Swarm | None":
    # Who is not on a network does not wait for what speaks there.
    from fieldlm.runtime.discovery import addresses_of, open_zeroconf
    from fieldlm.runtime.peers import Nearby, Swarm
    from fieldlm.runtime.share import BlobServer

    try:
        server = BlobServer(config.state, host=host)
    except OSError as error:
        terminal.log(f"updates are not shared on this network: {error}")
        return None
    server.start()
    stack.callback(server.stop)
    nearby = Nearby(
        config.device,
        zeroconf=lambda: open_zeroconf(config.host),
        addresses=addresses_of(config.host),
        port=server.port,
    )
    nearby.start()
    stack.callback(nearby.stop)
    return Swarm(config.device, nearby.neighbours)
