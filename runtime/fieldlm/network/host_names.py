"""Host names of this machine: what a browser may call it, beside its addresses, without DNS rebinding."""

import ipaddress
import socket

from fieldlm.core.files import sha256_bytes


def advertised_label(device: str) -> str:
    """Return what a device is called on the local network: its name, and a word that sets it apart."""
    return f"{device[:50]}-{sha256_bytes(device.encode())[:4]}"


def advertised_host(device: str) -> str:
    """Return the host name that mDNS answers to for a device."""
    return f"{advertised_label(device).replace('.', '-').replace('_', '-')}.local"


def own_names() -> frozenset[str]:
    """Return localhost and the machine's own name, whole, alone and as mDNS knows it, in small letters."""
    whole = socket.gethostname().lower().rstrip(".")
    label = whole.partition(".")[0]
    return frozenset({"localhost", whole, label, f"{label}.local"})


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return all(ipaddress.ip_address(_bare(info[4][0])).is_loopback for info in socket.getaddrinfo(host, None))
    except (OSError, UnicodeError):
        return False


def _bare(address: object) -> str:
    return str(address).partition("%")[0]
