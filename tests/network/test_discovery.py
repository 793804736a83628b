"""Announce and find for real, on the loopback interface."""

import datetime
import ipaddress
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from zeroconf import IPVersion, Zeroconf

from fieldlm.blobs.swarm import Nearby
from fieldlm.cli import devices
from fieldlm.core.tasks import Tasks
from fieldlm.network import discovery
from fieldlm.network.certificates import certificate_sha256
from fieldlm.network.discovery import AnnouncedDevice, Announcer, browse


def announce(device: str, *, generation: str = "g", **more: Any) -> Announcer:
    made: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 18080,
        "generation": generation,
        "model": "smol",
        "profile": "p",
    }
    return Announcer(device, **made | more)


def find(device: str, *, generation: str = "", patience: int = 6) -> list[AnnouncedDevice]:
    """Browse until `device` shows, with `generation` if given; multicast may take a moment, or lose a packet."""
    for _ in range(patience):
        found = [each for each in browse(2.5, host="127.0.0.1") if each.id == device]
        if found and generation in ("", found[0].generation):
            return found
    return []


def test_an_announced_device_is_found_and_a_switch_is_seen() -> None:
    device = f"kiosk-{time.time_ns() % 10**6}"
    announcer = announce(device, generation="aaaa", profile="rpi5-8gb")
    announcer.start()
    try:
        (found,) = find(device)
        assert (found.profile, found.generation, found.model, found.state) == ("rpi5-8gb", "aaaa", "smol", "ready")
        assert found.url == "http://127.0.0.1:18080/v1"
        assert found.name.startswith(f"{device}-")
        announcer.refresh(generation="bbbb")
        assert find(device, generation="bbbb")
    finally:
        announcer.stop()


def test_who_stops_while_he_is_announced_waits_for_nothing(logged: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()
    announcer = announce("kiosk", tasks=tasks)
    announcer.start()
    while announcer.zeroconf is None:
        time.sleep(0.01)
    announcer.stop()
    assert announcer.zeroconf is None
    assert tasks.status().running == ()
    assert not logged.messages


def test_neighbours_that_stop_while_they_are_announced_wait_for_nothing(logged: pytest.LogCaptureFixture) -> None:
    made, tasks = list[Zeroconf](), Tasks()

    def make() -> Zeroconf:
        made.append(Zeroconf(interfaces=["127.0.0.1"], ip_version=IPVersion.V4Only))
        return made[0]

    nearby = Nearby("kiosk-0", zeroconf=make, addresses=["127.0.0.1"], port=4000, tasks=tasks)
    nearby.start()
    while not (made and made[0].browsers):
        time.sleep(0.001)
    nearby.stop()
    assert tasks.status().running == ()
    assert not logged.messages


def test_two_devices_of_one_name_are_both_found() -> None:
    device = f"twin-{time.time_ns() % 10**6}"
    twins = [announce(device, generation=name) for name in ("one", "two")]
    for twin in twins:
        twin.start()
    try:
        generations = set[str]()
        for _ in range(6):
            generations |= {found.generation for found in browse(2.5, host="127.0.0.1") if found.id == device}
            if len(generations) == 2:
                break
        assert generations == {"one", "two"}
    finally:
        for twin in twins:
            twin.stop()


def test_a_network_that_refuses_is_a_line_and_no_failure(logged: pytest.LogCaptureFixture) -> None:
    announcer = announce("x", host="no address at all")
    announcer.start()
    while "not announced" not in logged.text:
        time.sleep(0.01)
    announcer.refresh(generation="h")
    announcer.stop()


def test_an_announcement_follows_the_addresses_once_they_have_settled() -> None:
    device = f"moved-{time.time_ns() % 10**6}"
    addresses: list[tuple[str, ...]] = [("127.0.0.1",)]
    announcer = announce(device, generation="aaaa", addresses=lambda: addresses[0], look_s=0.05, settle_s=0.1)
    announcer.start()
    try:
        assert find(device)
        before = announcer.zeroconf
        addresses[0] = ("127.0.0.1", "192.0.2.7")
        while announcer.zeroconf in (before, None):
            time.sleep(0.05)
        announcer.refresh(generation="bbbb")
        assert find(device, generation="bbbb")
    finally:
        announcer.stop()


def test_a_device_is_announced_at_every_address_that_its_server_hears() -> None:
    own = ("10.77.0.50", "169.254.8.9", "fd00::2")
    assert discovery.addresses_of("0.0.0.0", own) == ["10.77.0.50", "169.254.8.9"]
    assert discovery.addresses_of("::", own) == ["fd00::2"]
    assert discovery.addresses_of("192.0.2.9", own) == ["192.0.2.9"]
    assert discovery.addresses_of("localhost", own) == ["127.0.0.1"]


def test_without_a_default_route_a_device_is_announced_where_it_can_be_reached() -> None:
    found = in_a_network(
        "ip addr add 10.77.0.50/24 dev lo; ip addr add fd00::7/64 dev lo;",
        "from fieldlm.network.discovery import addresses_of, open_zeroconf; open_zeroconf('0.0.0.0').close();"
        "print(*addresses_of('0.0.0.0'), *addresses_of('::'))",
    )
    assert found == "10.77.0.50 fd00::7"


def test_a_network_of_ipv6_alone_is_announced_on() -> None:
    found = in_a_network(
        "ip addr del 127.0.0.1/8 dev lo; ip addr add fd00::7/64 dev lo;",
        "from fieldlm.network.discovery import addresses_of, open_zeroconf; open_zeroconf('::').close();"
        "print(*addresses_of('::'))",
    )
    assert found == "fd00::7"


def in_a_network(setup: str, code: str) -> str:
    """Run Python in a network namespace of its own, which `setup` has made ready; return what it printed."""
    command = f"ip link set lo up; {setup} exec {sys.executable} -c {shlex.quote(code)}"
    unshared = ["unshare", "--map-root-user", "--net", "sh", "-ec", command]
    run = subprocess.run(unshared, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_of_several_addresses_the_one_in_a_network_of_ours_is_taken() -> None:
    own = [ipaddress.ip_interface(each) for each in ("127.0.0.1/8", "192.168.4.7/24", "172.17.0.1/16")]
    assert discovery.nearest(["172.17.0.1", "10.0.0.4", "192.168.4.1"], own) == "192.168.4.1"
    assert discovery.nearest(["10.0.0.4", "10.1.0.4"], own) == "10.0.0.4"
    assert discovery.nearest(["192.168.4.7"], own) == "192.168.4.7"
    assert discovery.nearest([], own) == ""


def test_the_certificate_is_announced_by_how_its_digest_begins(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kiosk")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9000))
    certificate = builder.sign(key, hashes.SHA256())
    path = tmp_path / "cert.pem"
    path.write_bytes(b"a comment\n" + certificate.public_bytes(serialization.Encoding.PEM))
    assert certificate_sha256(path) == certificate.fingerprint(hashes.SHA256()).hex()
    assert certificate_sha256(tmp_path / "none.pem") == ""
    device = f"tls-{time.time_ns() % 10**6}"
    announcer = announce(device, certificate=str(path))
    announcer.start()
    try:
        (found,) = find(device)
        assert found.url.startswith("https://127.0.0.1:18080/")
        assert found.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()[:16]
    finally:
        announcer.stop()


def test_what_strangers_announce_cannot_draw_on_the_terminal() -> None:
    assert discovery._text(b"\x1b[2Jkiosk\xff\n") == "?[2Jkiosk\ufffd?"  # pyright: ignore[reportPrivateUsage]


def test_the_command_lists_devices(capsys: pytest.CaptureFixture[str]) -> None:
    device = f"listed-{time.time_ns() % 10**6}"
    announcer = announce(device, generation="cccc")
    announcer.start()
    try:
        assert find(device)
        assert devices.main(["--timeout", "3"]) == 0
        assert device in capsys.readouterr().out
        devices.main(["--timeout", "3", "--json"])
        assert any(found["id"] == device for found in json.loads(capsys.readouterr().out))
    finally:
        announcer.stop()
