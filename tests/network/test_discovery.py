"""Announce and find for real, on the loopback interface."""

import datetime
import json
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fieldlm.core.config import Config, load_config
from fieldlm.network import discovery
from fieldlm.network.discovery import AnnouncedDevice, Announcer, browse


def config(state: Path, device: str) -> Config:
    return load_config({"state": state, "device": device, "port": 18080}, env={})


def find(device: str, *, generation: str = "", patience: int = 6) -> list[AnnouncedDevice]:
    """Browse until `device` shows, with `generation` if given; multicast may take a moment, or lose a packet."""
    for _ in range(patience):
        found = [each for each in browse(2.5, host="127.0.0.1") if each.id == device]
        if found and generation in ("", found[0].generation):
            return found
    return []


def test_an_announced_device_is_found_and_a_switch_is_seen(tmp_path: Path) -> None:
    device = f"kiosk-{time.time_ns() % 10**6}"
    announcer = Announcer(config(tmp_path, device), generation="aaaa", model="smol", profile="rpi5-8gb")
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


def test_two_devices_of_one_name_are_both_found(tmp_path: Path) -> None:
    device = f"twin-{time.time_ns() % 10**6}"
    twins = [Announcer(config(tmp_path, device), generation=name, model="m", profile="p") for name in ("one", "two")]
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


def test_a_network_that_refuses_is_a_line_and_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_config({"state": tmp_path, "device": "x", "host": "no address at all"}, env={})
    announcer = Announcer(settings, generation="g", model="m", profile="p")
    announcer.start()
    said = ""
    while "not announced" not in said:
        time.sleep(0.01)
        said += capsys.readouterr().err
    announcer.refresh(generation="h")
    announcer.stop()


def test_an_announcement_follows_the_addresses_once_they_have_settled(tmp_path: Path) -> None:
    device = f"moved-{time.time_ns() % 10**6}"
    addresses = [frozenset({"127.0.0.1"})]
    announcer = Announcer(
        config(tmp_path, device),
        generation="aaaa",
        model="m",
        profile="p",
        addresses=lambda: addresses[0],
        look_s=0.05,
        settle_s=0.1,
    )
    announcer.start()
    try:
        assert find(device)
        before = announcer.zeroconf
        addresses[0] = frozenset({"127.0.0.1", "192.0.2.7"})
        while announcer.zeroconf in (before, None):
            time.sleep(0.05)
        announcer.refresh(generation="bbbb")
        assert find(device, generation="bbbb")
    finally:
        announcer.stop()


def test_the_certificate_is_announced_by_how_its_digest_begins(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kiosk")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=9000))
    certificate = builder.sign(key, hashes.SHA256())
    path = tmp_path / "cert.pem"
    path.write_bytes(b"a comment\n" + certificate.public_bytes(serialization.Encoding.PEM))
    assert discovery.certificate_fingerprint(path) == certificate.fingerprint(hashes.SHA256()).hex()[:16]
    assert discovery.certificate_fingerprint(tmp_path / "none.pem") == ""
    device = f"tls-{time.time_ns() % 10**6}"
    settings = {"state": tmp_path, "device": device, "port": 18080, "tls_cert": str(path), "tls_key": str(path)}
    announcer = Announcer(load_config(settings, env={}), generation="g", model="m", profile="p")
    announcer.start()
    try:
        (found,) = find(device)
        assert found.url.startswith("https://127.0.0.1:18080/")
        assert found.fingerprint == certificate.fingerprint(hashes.SHA256()).hex()[:16]
    finally:
        announcer.stop()


def test_what_strangers_announce_cannot_draw_on_the_terminal() -> None:
    assert discovery._text(b"\x1b[2Jkiosk\xff\n") == "?[2Jkiosk\ufffd?"  # pyright: ignore[reportPrivateUsage]


def test_the_command_lists_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = f"listed-{time.time_ns() % 10**6}"
    announcer = Announcer(config(tmp_path, device), generation="cccc", model="smol", profile="p")
    announcer.start()
    try:
        assert find(device)
        assert discovery.main(["--timeout", "3"]) == 0
        assert device in capsys.readouterr().out
        discovery.main(["--timeout", "3", "--json"])
        assert any(found["id"] == device for found in json.loads(capsys.readouterr().out))
    finally:
        announcer.stop()
