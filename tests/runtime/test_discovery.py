"""Announce and find for real, on the loopback interface."""

import json
import threading
import time
from pathlib import Path

import pytest

from fieldlm.runtime import discovery
from fieldlm.runtime.config import Config, load_config
from fieldlm.runtime.discovery import Announcer, Device, browse


def config(state: Path, device: str) -> Config:
    return load_config({"state": state, "device": device, "port": 18080}, env={})


def find(device: str, *, generation: str = "", patience: int = 6) -> list[Device]:
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
    while "announce" in {thread.name for thread in threading.enumerate()}:
        time.sleep(0.01)
    announcer.refresh(generation="h")
    announcer.stop()
    assert "not announced" in capsys.readouterr().err


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
