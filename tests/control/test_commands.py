"""What an owner may tell a device, and what nobody else may."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.cli import logs, rollback
from fieldlm.cli.adopt import main as adopt_main
from fieldlm.cli.slots import main as slots_main
from fieldlm.cli.update import main as update_main
from fieldlm.control.owner_commands import NONCE_S, Action, Commands
from fieldlm.control.remote import Remote
from fieldlm.core.errors import InputError, TrustError
from fieldlm.formats import command as wire
from fieldlm.formats.command import Command, CommandResult, Verb
from tests.support.bad_releases import Workshop
from tests.support.device_process import DEVICE, FLEET, DeviceProcess, Home


@dataclass
class Desk:
    """A device's commands without the device, on a clock of their own."""

    commands: Commands
    done: list[str]
    now_s: list[float] = field(default_factory=lambda: [1000.0])

    def remote(self, key: Ed25519PrivateKey) -> Remote:
        return Remote(self.commands.hear, key)


OWNER, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32) for seed in (1, 2))
PUBLIC = {key: key.public_key().public_bytes_raw().hex() for key in (OWNER, STRANGER)}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)


def make_desk(state: Path) -> Desk:
    done, now_s = list[str](), [1000.0]

    def action(name: str) -> Action:
        def act(args: dict[str, str]) -> Any:
            done.append(name)
            return {"did": name, **args}

        return act

    verbs: tuple[Verb, ...] = ("adopt", "status", "update", "slots", "rollback", "logs")
    commands = Commands(state, "kiosk-1", {verb: action(verb) for verb in verbs}, now_s=lambda: now_s[0])
    return Desk(commands, done, now_s)


def adopt(desk: Desk, key: Ed25519PrivateKey, code: str = "") -> Any:
    return desk.remote(key).do("adopt", {"owner": PUBLIC[key]}, code=code)


def test_who_knows_the_code_becomes_the_owner_and_stays_it_after_a_restart(desk: Desk, tmp_path: Path) -> None:
    adopt(desk, OWNER, desk.commands.code.lower().replace("-", ""))
    again = make_desk(tmp_path)
    assert again.remote(OWNER).do("rollback")["did"] == "rollback"
    assert again.done == ["rollback"]


def test_nobody_but_the_owner_is_obeyed(desk: Desk) -> None:
    with pytest.raises(TrustError, match=r"not trusted here.* its log: fieldlm adopt kiosk-1 --code CODE"):
        desk.remote(OWNER).do("rollback")
    adopt(desk, OWNER, desk.commands.code)
    for verb in ("status", "update", "slots", "rollback", "logs"):
        with pytest.raises(TrustError, match="not trusted here"):
            desk.remote(STRANGER).do(verb)
    with pytest.raises(TrustError):
        adopt(desk, STRANGER, desk.commands.code)
    assert desk.done == ["adopt"]


def test_wrong_codes_are_refused_and_five_make_another_code(desk: Desk) -> None:
    first = desk.commands.code
    for _ in range(5):
        with pytest.raises(TrustError, match="pairing code"):
            adopt(desk, STRANGER, "AAAA-AAAA")
    assert desk.commands.code != first
    with pytest.raises(TrustError, match="pairing code"):
        adopt(desk, STRANGER, first)
    assert desk.commands.owner is None


def test_an_owner_hands_a_device_on(desk: Desk) -> None:
    adopt(desk, OWNER, desk.commands.code)
    desk.remote(OWNER).do("adopt", {"owner": PUBLIC[STRANGER]})
    desk.remote(STRANGER).do("status")
    with pytest.raises(TrustError):
        desk.remote(OWNER).do("status")


def sealed(desk: Desk, key: Ed25519PrivateKey, **changed: Any) -> bytes:
    asked = msgspec.json.decode(desk.commands.hear(b'{"question": "q1"}').data)
    command = Command(id="c1", device=asked["device"], nonce=asked["nonce"], do="rollback")
    return wire.seal(msgspec.structs.replace(command, **changed), key)


def test_a_command_works_once_and_not_again(desk: Desk) -> None:
    adopt(desk, OWNER, desk.commands.code)
    message = sealed(desk, OWNER)
    assert desk.commands.hear(message).ok
    answer = desk.commands.hear(message)
    assert (answer.ok, answer.reason) == (False, "trust")
    assert desk.done == ["adopt", "rollback"]


@pytest.mark.parametrize("wall_s", [0.0, 4_102_444_800.0], ids=["1970", "2100"])
def test_a_command_expires_by_the_devices_own_clock_whatever_the_wall_says(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, wall_s: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: wall_s)
    adopt(desk, OWNER, desk.commands.code)
    early, late = sealed(desk, OWNER), sealed(desk, OWNER)
    desk.now_s[0] += NONCE_S - 1
    assert desk.commands.hear(early).ok
    desk.now_s[0] += 2
    assert "too late" in desk.commands.hear(late).detail
    assert desk.done == ["adopt", "rollback"]


@pytest.mark.parametrize("changed", [{"device": "kiosk-2"}, {"nonce": "0" * 32}, {"v": 2}, {"id": "../x"}])
def test_a_command_for_another_device_or_of_another_kind_is_refused(desk: Desk, changed: dict[str, Any]) -> None:
    adopt(desk, OWNER, desk.commands.code)
    assert not desk.commands.hear(sealed(desk, OWNER, **changed)).ok
    assert desk.done == ["adopt"]


def test_a_command_whose_bytes_were_changed_is_refused_wherever_they_were(desk: Desk) -> None:
    adopt(desk, OWNER, desk.commands.code)
    for at in range(0, len(sealed(desk, OWNER)), 7):
        message = bytearray(sealed(desk, OWNER))
        message[at] ^= 1
        assert not desk.commands.hear(bytes(message)).ok
    assert desk.done == ["adopt"]


@pytest.mark.parametrize("message", [b"", b"{}", b"\xff" * 100, b'{"question": "' + b"a" * 100 + b'"}', b"[" * 70_000])
def test_whatever_comes_is_answered_and_nothing_is_done(desk: Desk, message: bytes) -> None:
    answer = desk.commands.hear(message)
    assert isinstance(answer, CommandResult)
    assert not answer.ok
    assert desk.done == []


@dataclass
class Site:
    device: DeviceProcess
    shop: Workshop
    reach: dict[str, list[str]]

    def code(self) -> str:
        (line,) = [line for line in self.device.log.splitlines() if "--code" in line]
        return line.rsplit(" ", 1)[-1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A device that nobody owns, on a LAN and on a broker; it knows of no repository."""
    folder = tmp_path_factory.mktemp("site")
    shop = Workshop.open(folder / "shop")
    shop.publish(shop.base)
    with Home(folder) as home:
        arguments = [
            str(shop.base.folder), "--state", str(folder / "state"), "--profile", str(shop.profile), "--no-discovery",
            "--device", DEVICE, "--fleet", FLEET, "--broker", home.broker.url, "--context", "256", "--parallel", "1",
        ]  # fmt: skip
        device = DeviceProcess(arguments, folder)
        keys = ["--keys", str(folder / "owner")]
        lan = [f"http://127.0.0.1:{device.port}", *keys]
        mqtt = [DEVICE, "--broker", home.broker.url, "--fleet", FLEET, *keys]
        try:
            device.wait_ready()
            device.wait_until("the code is in the log", lambda: "--code" in device.log)
            yield Site(device, shop, {"lan": lan, "mqtt": mqtt})
        finally:
            device.stop()


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_device_is_adopted_updated_looked_at_and_taken_back_from_elsewhere(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    lan, mqtt, shop = site.reach["lan"], site.reach["mqtt"], site.shop
    with pytest.raises(TrustError, match="pairing code"):
        adopt_main([*mqtt, "--code", "AAAA-AAAA"])
    where = ["--repository", str(shop.repository), "--root", str(shop.root)]
    assert adopt_main([*mqtt, "--code", site.code(), *where, "--json"]) == 0
    assert said(capsys)["device"] == DEVICE
    tuned = shop.bundle("tuned", adapter=shop.lora("tuned", scale=0.01))
    shop.publish(tuned)
    assert update_main([*lan, "--json"]) == 0
    result = said(capsys)
    assert (result["outcome"], result["generation"]) == ("updated", tuned.generation)
    assert slots_main([*mqtt, "--json"]) == 0
    assert said(capsys)["current"] == tuned.id
    assert rollback.main([*mqtt, "--json"]) == 0
    assert said(capsys)["generation"] == shop.base.generation
    assert site.device.chat("Hello.")[1]["fieldlm"]["generation"] == shop.base.generation
    with pytest.raises(InputError, match="no generation to go back to"):
        rollback.main(lan)
    assert logs.main([*lan, "--json", "--lines", "5"]) == 0
    assert any("is owned by key" in line for line in said(capsys))
