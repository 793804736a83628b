"""Fair shares of a pool of connections: nobody locks others out by holding many that ask for nothing."""

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

Held = TypeVar("Held")


def network_of(address: str) -> str:
    """Return whose an address is: IPv4 itself, also written as IPv6; of IPv6 the /64, of which one machine has all."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))
    return str(ip.ipv4_mapped or ip) if ip.version == 6 else str(ip)


def first_to_go(waiting: Sequence[tuple[Held, str, float]]) -> Held | None:
    """Return what has to make room: of (connection, network, time), the oldest of the network that holds the most."""
    holds = Counter(network for _, network, _ in waiting)
    # The oldest of all decides between networks that hold as many.
    return min(waiting, key=lambda one: (-holds[one[1]], one[2]))[0] if waiting else None
