"""Listeners: where the device listens and whom it lets in; every setting that would leak is refused.

What the server itself is made of is imported only for `server`: all this is looked at before anything else is done.
"""

import grp
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldlm.core.config import NO_NETWORK, Config
from fieldlm.core.errors import ConfigError
from fieldlm.formats.kiosk import Kiosk, load_kiosk
from fieldlm.network.api_keys import Keys
from fieldlm.network.cors import ANY
from fieldlm.network.host_names import advertised_host, is_local
from fieldlm.network.sockets import Peers, Tls, bind, check_path, check_tls

if TYPE_CHECKING:
    from fieldlm.network.http_server import Heartbeat, HttpServer


@dataclass(frozen=True, kw_only=True)
class ListenSettings:
    """Where to listen, for whom, and under which names (None: any); `host` None is no network."""

    host: str | None
    port: int
    keys: Keys | None
    tls: Tls | None
    unix_socket: Path | None
    peers: Peers
    names: frozenset[str] | None
    kiosk: Kiosk | None

    @classmethod
    def of(cls, config: Config) -> "ListenSettings":
        """Read what the settings name; raises ConfigError for what is missing, contradicts or leaks."""
        host = None if config.host == NO_NETWORK else config.host
        _check(config, host)
        return cls(
            host=host,
            port=config.port,
            keys=Keys.read(Path(config.api_keys)) if config.api_keys else None,
            tls=Tls(Path(config.tls_cert), Path(config.tls_key)) if config.tls_cert else None,
            unix_socket=Path(config.socket) if config.socket else None,
            peers=Peers.own(_group(config.socket_group) if config.socket_group else None),
            names=None if config.open else frozenset({config.host, advertised_host(config.device), *config.host_names}),
            kiosk=load_kiosk(Path(config.kiosk)) if config.kiosk else None,
        )

    def check(self) -> None:
        """Raise InputError where `server` would, for the port, the socket or the certificate; nothing stays behind."""
        if self.tls:
            check_tls(self.tls)
        if self.host:
            bind(self.host, self.port).close()
        if self.unix_socket:
            check_path(self.unix_socket)

    def server(self, app: Any, *, heartbeat: "Heartbeat | None" = None) -> "HttpServer":
        from fieldlm.network.http_server import HttpServer

        return HttpServer(
            app,
            host=self.host,
            port=self.port,
            unix_socket=self.unix_socket,
            tls=self.tls,
            peers=self.peers,
            heartbeat=heartbeat,
        )


def _check(config: Config, host: str | None) -> None:
    if host is None and not config.socket:
        raise ConfigError("--host none listens nowhere; give --socket PATH, too")
    if bool(config.tls_cert) != bool(config.tls_key):
        raise ConfigError("TLS needs both --tls-cert and --tls-key")
    if config.tls_cert and config.socket:
        raise ConfigError("--tls-cert and --socket do not go together; leave out one")
    if ANY in config.allowed_origins and not config.api_keys:
        raise ConfigError("--allowed-origins * would let every web page in; name the origins, or give --api-keys FILE")
    if host and not config.api_keys and not config.open and not is_local(host):
        raise ConfigError(
            f"--host {host} would answer the whole network; give --api-keys FILE, or --open if anyone may ask"
        )


def _group(name: str) -> int:
    try:
        return int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigError(f"there is no group {name!r} on this machine for the socket") from error
