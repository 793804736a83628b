"""Sockets that a server listens on: made, or only tried, before anything of the server itself is imported."""

import os
import socket
import ssl
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from fieldlm.core.errors import InputError

BACKLOG = 128
SO_PEERGROUPS = 59  # Linux; Python has no name for it
MOST_GROUPS = 65_536
LONGEST_PATH = 107
"""Bytes of a unix socket's path (sun_path in unix(7), less the zero that ends it)."""


@dataclass(frozen=True)
class Tls:
    """Paths of a certificate (with its chain) and its private key, both PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class Peers:
    """Who may use a unix socket: some users, and the members of a group."""

    users: frozenset[int]
    group: int | None = None

    @classmethod
    def own(cls, group: int | None = None) -> "Peers":
        return cls(frozenset({0, os.geteuid()}), group)

    def allow(self, connection: socket.socket) -> bool:
        """Whether the kernel says that one of them connected; elsewhere than on Linux the file's mode has to do."""
        if sys.platform != "linux":
            return True
        _, user, group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if user in self.users or self.group is None:
            return user in self.users
        listed = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
        return self.group in (group, *struct.unpack(f"{len(listed) // 4}I", listed))


def check_tls(tls: Tls) -> None:
    """Raise InputError unless certificate and key are there and belong together."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"TLS with {tls.certificate} and {tls.key} cannot be set up: {error}") from error


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def bind(host: str, port: int) -> socket.socket:
    """Listen on a TCP port; raises InputError where it is taken, not this machine's, or not for this user."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
        made.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        made.close()
        raise InputError(f"cannot listen on {host}:{port}: {error}; choose another with --port") from error
    return made


def bind_path(path: Path, group: int | None) -> socket.socket:
    """Bind the unix socket at `path`, which its owner and `group` may open; one that nobody serves is replaced."""
    made = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        made.bind(str(path))
        path.chmod(0o600)
        if group is not None:
            os.chown(path, -1, group)
            path.chmod(0o660)
        made.listen(BACKLOG)
    except OSError as error:
        made.close()
        raise InputError(f"cannot listen on {path}: {error}; choose another with --socket") from error
    return made


def check_path(path: Path) -> None:
    """Raise InputError where `bind_path` would; of it nothing is made but the folder."""
    why = ""
    if len(os.fsencode(path)) > LONGEST_PATH:
        why = f"the path has more than {LONGEST_PATH} bytes"
    elif path.exists() and not path.is_socket():
        why = "it is no socket"
    elif path.is_socket() and _answers(path):
        why = "another server answers there"
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = str(error)
        else:
            why = "" if os.access(path.parent, os.W_OK) else f"nothing can be written in {path.parent}"
    if why:
        raise InputError(f"cannot listen on {path}: {why}; choose another with --socket")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
