"""mDNS discovery (zeroconf, DNS-SD): find devices on the local network, and be found as `_fieldlm._tcp`.

What is announced is a hint and no proof: the device's id, its profile, what it runs, where its API is, and how its
certificate's SHA-256 begins; nothing secret. Addresses come and go (a cable, another Wi-Fi): the announcement follows.
Two devices of one name both keep answering, one of them under a number. Whatever goes wrong here is a line on stderr,
never a reason not to serve.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from pathlib import Path

import ifaddr
import msgspec
from zeroconf import Error, InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from fieldlm.core.errors import UnavailableError
from fieldlm.core.logs import logger
from fieldlm.core.tasks import Tasks
from fieldlm.network.certificates import certificate_sha256
from fieldlm.network.host_names import advertised_host, advertised_label

log = logger(__name__)

SERVICE = "_fieldlm._tcp.local."
QUIET = (Error, OSError, ValueError)
"""What zeroconf raises for a network that is not as it wishes, and for names it does not like."""
FINGERPRINT = 16  # hex digits of the certificate's SHA-256
BLOCKED_S = 15.0  # after which a network that lets nothing be announced is given up
LOOK_S, SETTLE_S = 5.0, 2.0  # between two looks at the addresses, and until new ones count: a cable bounces


class AnnouncedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One announced device: `url` is where its API is, `fingerprint` how its certificate's SHA-256 begins, if any."""

    id: str
    name: str
    url: str
    profile: str
    generation: str
    model: str
    state: str
    fingerprint: str = ""


def own_addresses() -> tuple[str, ...]:
    """Return the addresses of this machine that others can use, IPv4 first; those of the loopback when it has no other.

    A network without a way out counts like any other: a cable, an access point, a switch in a field. IPv6 addresses of
    one link are left out: they say nothing without the name that the other side has for its interface.
    """
    found = [interface.ip for interface in _own_interfaces()]
    usable = [ip for ip in found if not ip.is_loopback and not (ip.version == 6 and ip.is_link_local)]
    return tuple(str(ip) for ip in sorted(usable, key=lambda ip: (ip.version, str(ip) != _outward()))) or ("127.0.0.1",)


def _own_interfaces() -> list[ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
    ips = (each for adapter in ifaddr.get_adapters() for each in adapter.ips)
    return [ipaddress.ip_interface(f"{each.ip if each.is_IPv4 else each.ip[0]}/{each.network_prefix}") for each in ips]


def _outward() -> str:
    """Return the IPv4 address of the default route's interface, "" where there is none: the likeliest to be meant."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("224.0.0.251", 5353))  # sends nothing
            return str(probe.getsockname()[0])
        except OSError:
            return ""


class Announcer:
    """Announces one device from `start` to `stop`, and never raises for what the network does.

    `certificate` is the path of the PEM that `device` serves https with. `addresses` says which addresses of the
    machine others can use now.
    """

    def __init__(
        self,
        device: str,
        *,
        host: str,
        port: int,
        certificate: str = "",
        generation: str,
        model: str,
        profile: str,
        state: str = "ready",
        addresses: Callable[[], tuple[str, ...]] = own_addresses,
        look_s: float = LOOK_S,
        settle_s: float = SETTLE_S,
        tasks: Tasks | None = None,
    ) -> None:
        self._device, self._host, self._port = device, host, port
        self._own_addresses = addresses
        self._look_s, self._settle_s = look_s, settle_s
        self._stopping = threading.Event()
        self._tasks = Tasks(tasks)
        fingerprint = certificate_sha256(Path(certificate))[:FINGERPRINT] if certificate else ""
        self._text = {
            **({"fp": fingerprint, "tls": "1"} if fingerprint else {}),
            "txtvers": "1",
            "id": device,
            "prof": profile,
            "gen": generation,
            "mdl": model,
            "api": "openai1",
            "path": "/v1",
            "st": state,
        }
        self._lock = threading.Lock()
        self._is_stopped = False
        self._zeroconf: Zeroconf | None = None
        self._info: ServiceInfo | None = None
        self._registration: Future[None] | None = None

    @property
    def zeroconf(self) -> Zeroconf | None:
        """What announces it now; another one after the addresses have changed."""
        return self._zeroconf

    def start(self, *, port: int = 0) -> None:
        """Announce the device soon; `port` is the real one where the configured one was 0."""
        # Asking whether the name is free takes over a second, which the start of a service does not wait for.
        self._tasks.start("announce", lambda: self._follow(port or self._port), restarts=True)

    def _follow(self, port: int) -> None:
        """Announce, and announce anew whenever the machine has had other addresses for a moment."""
        while not self._stopping.is_set():
            announced = self._own_addresses()
            self._register(port)
            while self._own_addresses() == announced or not self._is_settled():
                if self._stopping.wait(self._look_s):
                    return
            with self._lock:
                self._withdraw()

    def _is_settled(self) -> bool:
        now = self._own_addresses()
        self._stopping.wait(self._settle_s)
        return self._own_addresses() == now

    def _register(self, port: int) -> None:
        with self._lock:
            if self._is_stopped:
                return
            self._withdraw()
            try:
                self._zeroconf = open_zeroconf(self._host)
                self._info = self._describe(port)
                self._registration = register(self._zeroconf, self._info)
                if self._stopping.is_set():
                    self._registration.cancel()
                with suppress(CancelledError):
                    self._registration.result(BLOCKED_S)
            except QUIET as error:
                log.warning(f"this device is not announced on the network: {error or type(error).__name__}")

    def refresh(self, *, generation: str = "", model: str = "", state: str = "") -> None:
        """Say what has changed; an empty value stays as it was."""
        news = {"gen": generation, "mdl": model, "st": state}
        self._text |= {key: value for key, value in news.items() if value}
        with self._lock:
            if self._zeroconf is None or self._info is None:
                return
            try:
                # The name may have been changed at registration, so the new description starts from that.
                self._info = self._describe(self._info.port or 0, name=self._info.name)
                self._zeroconf.update_service(self._info)
            except QUIET as error:
                log.warning(f"the announcement on the network is out of date: {error or type(error).__name__}")

    def stop(self) -> None:
        """Take the announcement back."""
        self._stopping.set()
        # Asking whether the name is free holds the lock; who stops does not wait for that.
        if self._registration is not None:
            self._registration.cancel()
        with self._lock:
            self._is_stopped = True
            self._withdraw()
        self._tasks.close()

    def _withdraw(self) -> None:
        if self._zeroconf is None:
            return
        try:
            self._zeroconf.unregister_all_services()
            self._zeroconf.close()
        except QUIET as error:
            log.warning(f"the announcement on the network was not taken back: {error or type(error).__name__}")
        self._zeroconf = self._info = None

    def _describe(self, port: int, *, name: str = "") -> ServiceInfo:
        return ServiceInfo(
            SERVICE,
            name or f"{advertised_label(self._device)}.{SERVICE}",
            port=port,
            properties=self._text,
            server=f"{advertised_host(self._device)}.",
            parsed_addresses=addresses_of(self._host, self._own_addresses()),
        )


def browse(timeout_s: float = 2.0, *, host: str = "") -> list[AnnouncedDevice]:
    """Listen for `timeout_s` seconds and return who announced itself; `host` 127.0.0.1 looks on this machine only.

    Raises UnavailableError when there is no network to listen on.
    """
    heard = _Heard()
    try:
        with open_zeroconf(host) as zeroconf:
            browser = ServiceBrowser(zeroconf, SERVICE, listener=heard)
            time.sleep(timeout_s)
            browser.cancel()
            devices = [device for name in sorted(heard.names) if (device := _device(zeroconf, name))]
    except QUIET as error:
        raise UnavailableError(f"cannot listen for devices: {error or type(error).__name__}") from error
    return devices


class _Heard(ServiceListener):
    """Remembers the names that are announced now."""

    def __init__(self) -> None:
        self.names = set[str]()

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.names.add(name)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.names.add(name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.names.discard(name)


def _device(zeroconf: Zeroconf, name: str) -> AnnouncedDevice | None:
    info = zeroconf.get_service_info(SERVICE, name, timeout=1000)
    if info is None:
        return None
    text = {_text(key): _text(value or b"") for key, value in info.properties.items()}
    address = nearest(info.parsed_addresses(IPVersion.V4Only) or info.parsed_addresses())
    host = f"[{address}]" if ":" in address else address or info.server
    scheme = "https" if text.get("tls") == "1" else "http"
    return AnnouncedDevice(
        id=text.get("id", ""),
        name=name.removesuffix(f".{SERVICE}"),
        url=f"{scheme}://{host}:{info.port}{text.get('path', '/v1')}",
        profile=text.get("prof", ""),
        generation=text.get("gen", ""),
        model=text.get("mdl", ""),
        state=text.get("st", ""),
        fingerprint=text.get("fp", ""),
    )


def _text(value: bytes) -> str:
    # Anyone on the network may announce anything: nothing of it may move the cursor or colour the terminal.
    return "".join(c if c.isprintable() else "?" for c in value.decode("utf-8", "replace"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_zeroconf(host: str) -> Zeroconf:
    """Open zeroconf on the networks that a server at `host` is reached from, in both versions of IP where there are."""
    if _is_loopback(host):
        return Zeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only)
    versions = {interface.version for interface in _own_interfaces() if not interface.is_loopback} or {4}
    version = {4: IPVersion.V4Only, 6: IPVersion.V6Only}[versions.pop()] if len(versions) == 1 else IPVersion.All
    return Zeroconf(interfaces=InterfaceChoice.All, ip_version=version)


def register(zeroconf: Zeroconf, info: ServiceInfo) -> Future[None]:
    """Begin to announce `info`, under another name where its own is taken; done when it is, cancelled at once.

    zeroconf's own `register_service` cannot be cancelled: closed meanwhile, it waits ten seconds for a loop that is no
    more, and its tasks complain on stderr.
    """

    async def announce() -> None:
        await (await zeroconf.async_register_service(info, allow_name_change=True))

    assert zeroconf.loop, "zeroconf has its loop from its constructor on"
    return asyncio.run_coroutine_threadsafe(announce(), zeroconf.loop)


def addresses_of(host: str, own: Sequence[str] | None = None) -> list[str]:
    """Return the addresses others can use for a server that listens on `host`; `own` are those of this machine."""
    if _is_loopback(host):
        return ["127.0.0.1"]
    if host not in ("", "0.0.0.0", "::"):
        return [host]
    found = own_addresses() if own is None else own
    # A server at 0.0.0.0 does not hear IPv6, and one at :: nothing else.
    heard = [each for each in found if host == "" or (":" in each) == (host == "::")]
    return heard or ["::1" if host == "::" else "127.0.0.1"]


def nearest(
    addresses: Sequence[str], own: Sequence[ipaddress.IPv4Interface | ipaddress.IPv6Interface] | None = None
) -> str:
    """Return which of somebody's `addresses` to use: one in a network of this machine's, "" when there is none.

    An address that this machine has, too, is another machine's only by accident: each Docker has 172.17.0.1.
    """
    own = _own_interfaces() if own is None else own
    mine = {str(interface.ip) for interface in own}
    others = [each for each in addresses if each not in mine] or list(addresses)
    near = (each for each in others if any(ipaddress.ip_address(each) in interface.network for interface in own))
    return next(near, others[0] if others else "")
