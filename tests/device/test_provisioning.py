"""The file that provisions a device: what it may say, what is refused in one line, and what survives a power cut."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fieldlm.cli.main import main
from fieldlm.core.config import load_config
from fieldlm.core.errors import FieldlmError
from fieldlm.device.provisioning import apply
from fieldlm.device.provisioning.provision_file import read_provision, said
from tests.support import depth

SHIPPED = Path(__file__).parents[2] / "packaging/deb/config.toml"
TEMPLATE = Path(__file__).parents[2] / "packaging/image/fieldlm-template.toml"
KEY = "0123456789abcdef"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHk you@desk"
WHOLE = f"""
name = "kiosk-17"
ssh_keys = ["{SSH_KEY}"]

[wifi]
ssid = "Café & Shop"
password = ' two words\\'
country = "DE"

[settings]
fleet = "north"
host = "0.0.0.0"
broker = "mqtts://broker.example.org"
repository = "https://example.org/models"
consent = ["terms-1"]

[keys]
trust = "root.json"
broker_ca = '''
-----BEGIN CERTIFICATE-----
'''
api_keys = ["{KEY}"]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a system as the package leaves it, without a group of the service."""
    (tmp_path / "root/etc/fieldlm").mkdir(parents=True)
    (tmp_path / "root/etc/fieldlm/config.toml").write_text(SHIPPED.read_text())
    return tmp_path / "root"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """Return a boot partition with the whole file on it."""
    folder = tmp_path / "card"
    folder.mkdir()
    (folder / "root.json").write_text("{}")
    (folder / "fieldlm.toml").write_text(WHOLE)
    (folder / "grub.cfg").write_text("stays")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_the_file_says_is_where_a_device_looks_for_it_and_leaves_the_card(root: Path, card: Path) -> None:
    told = apply.provision(card / "fieldlm.toml", root)
    assert told == (
        "name kiosk-17; Wi-Fi Café & Shop; settings fleet, host, broker, repository, consent; "
        "keys trust, broker_ca, api_keys; 1 SSH key"
    )
    assert set(files(card)) == {"grub.cfg"}
    found = files(root)
    assert found["etc/hostname"] == b"kiosk-17\n"
    assert found["root/.ssh/authorized_keys"].decode() == f"{SSH_KEY}\n"
    assert found["etc/iwd/main.conf"] == b"[General]\nCountry=DE\n\n"
    assert b"Passphrase=\\stwo\\swords\\\\\n" in found["var/lib/iwd/=436166c3a920262053686f70.psk"]
    assert found["etc/fieldlm/keys/api_keys"].decode() == f"{KEY}\n"
    assert not any(name.startswith("var/lib/fieldlm-provision/") for name in found)
    settings = (root / "etc/fieldlm/config.toml").read_text()
    assert 'trust = "/etc/fieldlm/keys/trust"' in settings
    (root / "etc/fieldlm/config.toml").write_text(settings.replace('"/etc', f'"{root}/etc'))
    config = load_config(env={}, file=root / "etc/fieldlm/config.toml", strict=True)
    assert (config.device, config.fleet, config.consent) == ("kiosk-17", "north", ("terms-1",))
    assert str(config.state) == "/var/lib/fieldlm", "what the package had set stays"


def test_nobody_else_can_read_the_secrets(root: Path, card: Path) -> None:
    apply.provision(card / "fieldlm.toml", root)
    modes = {str(path.relative_to(root)): path.stat().st_mode & 0o777 for path in root.rglob("*")}
    assert modes["etc/fieldlm/keys"] == 0o750
    assert modes["etc/fieldlm/keys/api_keys"] == 0o640
    assert modes["var/lib/iwd"] == 0o700
    assert modes["var/lib/iwd/=436166c3a920262053686f70.psk"] == 0o600
    assert modes["root/.ssh/authorized_keys"] == 0o600
    assert modes["etc/fieldlm/config.toml"] == modes["etc/hostname"] == 0o644


def test_a_second_file_changes_what_it_names_and_keeps_the_rest(root: Path, card: Path) -> None:
    apply.provision(card / "fieldlm.toml", root)
    (root / "etc/fieldlm/config.toml").write_text(
        (root / "etc/fieldlm/config.toml").read_text().replace('"/etc', f'"{root}/etc')
    )
    (card / "fieldlm.toml").write_text('[settings]\nfleet = "south"\n')
    assert apply.provision(card / "fieldlm.toml", root) == "settings fleet"
    config = load_config(env={}, file=root / "etc/fieldlm/config.toml", strict=True)
    assert (config.device, config.fleet, config.host) == ("kiosk-17", "south", "0.0.0.0")
    with pytest.raises(FieldlmError, match="does not exist"):
        apply.provision(card / "fieldlm.toml", root)


def test_the_template_says_nothing_as_it_is_and_each_of_its_lines_is_right(root: Path, card: Path) -> None:
    template = TEMPLATE.read_text()
    (card / "fieldlm.toml").write_text(template)
    assert said(read_provision(card / "fieldlm.toml")) == "nothing"
    lines = [line.removeprefix("# ") for line in template.split("\n\n", 1)[1].splitlines()]
    text = "\n".join(lines).replace("AAAA… you", "AAAA you").replace('"…"', f'"{KEY}"')
    (card / "fieldlm.toml").write_text(text)
    for name in ("ca.pem", "device.pem", "device.key"):
        (card / name).write_text("PEM")
    found = read_provision(card / "fieldlm.toml", root / apply.CONFIG)
    assert set(found.keys) == {"trust", "broker_ca", "broker_cert", "broker_key", "api_keys"}
    assert set(found.files) == {"root.json", "ca.pem", "device.pem", "device.key"}


WRONG = {
    "name = ": "cannot be used",
    'name = "Kiosk 17"': "name is 'Kiosk 17'; want 1–63 small letters",
    "name = 17": "cannot be used: Expected `str`, got `int` - at `$.name`",
    'nam = "x"': "unknown field `nam`",
    'ssh_keys = ["-----BEGIN"]': "want the line of a .pub file",
    '[wifi]\npassword = "12345678"': "required field `ssid`",
    '[wifi]\nssid = ""': "want the network's name",
    '[wifi]\nssid = "a"\npassword = "s3cret"': "wifi.password has 6 characters; want 8–63",
    '[wifi]\nssid = "a"\ncountry = "Germany"': "want two capital letters",
    "[settings]\nport = 99999": "port is 99999",
    "[settings]\nfleet = 2026-11-29": "fleet",
    '[settings]\nflet = "north"': "'flet' under [settings] is no setting, did you mean 'fleet'?",
    '[settings]\ndevice = "a"': "write it as name",
    '[settings]\ntrust = "/root.json"': "write it as [keys] trust",
    '[settings]\nhost = "0.0.0.0"': "would answer the whole network",
    '[keys]\nroot = "root.json"': "'root' under [keys] takes no file",
    '[keys]\ntrust = "rot.json"': "rot.json does not exist",
    '[keys]\ntrust = "../root.json"': "no name of a file beside this one",
    '[keys]\napi_keys = ["short"]': "shorter than 16 characters",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_is_wrong_is_one_line_and_nothing_is_written(
    text: str, root: Path, card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (card / "fieldlm.toml").write_text(text)
    before = files(root), files(card)
    assert main(["provision", str(card / "fieldlm.toml"), "--root", str(root)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert WRONG[text] in err
    assert str(card) in err
    assert "s3cret" not in err
    assert (files(root), files(card)) == before


def test_checking_writes_nothing_and_shows_no_secret(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(card)
    assert main(["provision", str(card / "fieldlm.toml"), "--check", "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["says"].startswith("name kiosk-17; Wi-Fi Café & Shop;")
    assert KEY not in out
    assert "two words" not in out
    assert files(card) == before


KILLED = """
import os, sys
from pathlib import Path
from fieldlm.device.provisioning.apply import provision
left = int(sys.argv[3])
def count(name, *rest):
    global left
    is_writing = name == "open" and rest[0][2] & (os.O_WRONLY | os.O_RDWR)
    if is_writing or name in ("os.rename", "os.remove", "os.chmod", "os.mkdir"):
        left -= 1
        if left < 0:
            os._exit(9)
sys.addaudithook(count)
provision(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_wherever_it_is_cut_short_the_next_start_finishes_it(tmp_path: Path) -> None:
    """Before each step that changes a disk the process ends; then it runs again, as at the next start."""
    ends: set[int] = set()
    for step in range(0, 200, max(1, round(7 / depth.DEPTH))):
        folder = tmp_path / str(step)
        (folder / "card").mkdir(parents=True)
        (folder / "card/root.json").write_text("{}")
        (folder / "card/fieldlm.toml").write_text(WHOLE)
        paths = [str(folder / "card/fieldlm.toml"), str(folder / "root")]
        end = subprocess.run([sys.executable, "-c", KILLED, *paths, str(step)], check=False).returncode
        ends.add(end)
        if end == 0:
            break
        apply.provision(folder / "card/fieldlm.toml", folder / "root")
        assert files(folder / "card") == {}
        assert b'device = "kiosk-17"' in files(folder / "root")["etc/fieldlm/config.toml"]
        assert files(folder / "root")["etc/fieldlm/keys/trust"] == b"{}"
    assert ends == {0, 9}
