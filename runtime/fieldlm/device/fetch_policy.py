"""How a device that serves fetches its updates, as its settings say: at what speed, at which hours, with whom."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from fieldlm.blobs.fetch import FetchPolicy
from fieldlm.core.config import Config
from fieldlm.core.hours import parse_hours
from fieldlm.core.logs import logger
from fieldlm.core.tasks import Tasks

if TYPE_CHECKING:
    from fieldlm.blobs.swarm import Swarm

log = logger(__name__)


@contextmanager
def fetching(config: Config, *, host: str, tasks: Tasks | None = None) -> Generator[FetchPolicy]:
    """Yield the manner; meanwhile this device's blobs are there for its neighbours, where it listens on a network.

    A port that cannot be had is a line on stderr: the device then fetches alone.
    """
    with ExitStack() as stack:
        yield FetchPolicy(
            most_bytes_s=config.fetch_kb_s * 1000,
            window=parse_hours(config.fetch_hours) if config.fetch_hours else None,
            neighbours=_swarm(config, host, stack, tasks) if config.share and config.discovery and host else None,
        )


def _swarm(config: Config, host: str, stack: ExitStack, tasks: Tasks | None) -> "Swarm | None":
    # Who is not on a network does not wait for what speaks there.
    from fieldlm.blobs.server import BlobServer
    from fieldlm.blobs.swarm import Nearby, Swarm
    from fieldlm.network.discovery import addresses_of, open_zeroconf

    try:
        server = BlobServer(config.state, host=host, tasks=tasks)
    except OSError as error:
        log.warning(f"updates are not shared on this network: {error}")
        return None
    server.start()
    stack.callback(server.stop)
    nearby = Nearby(
        config.device,
        zeroconf=lambda: open_zeroconf(config.host),
        addresses=addresses_of(config.host),
        port=server.port,
        tasks=tasks,
    )
    nearby.start()
    stack.callback(nearby.stop)
    return Swarm(config.device, nearby.neighbours)
