"""No command and no setting repeats the password of a URL that it was given, right or wrong."""

from pathlib import Path

import pytest

from fieldlm.cli.main import main
from fieldlm.core.config import SETTINGS, load_config
from fieldlm.core.errors import ConfigError
from fieldlm_compiler.collect.parquet import Store

PASSWORD = "Open5esame"
URL_SETTINGS = [name for name, setting in SETTINGS.items() if setting.metavar == "URL"]
RIGHT = {"broker": "mqtts://kiosk:{}@host:8883", "large": "https://me:{}@host/v1", "repository": "https://me:{}@host"}
WRONG = [
    "mqt://u:{}@host", "u:{}@host", "mqtt:/u:{}@host", "mqtt://u:{}/x@host", "http://u:{}/x@host", "http://u:{}@[host",
    "mqtt://u:{}@[host", "mqtt://u:{}@host:99999", "http://u:{}@host:0", "http://u:{}\N{ACCOUNT OF}@host",
    "mqtt://u:{}\N{ACCOUNT OF}@host", "ftp://u:{}@host", "https://{}@",
]  # fmt: skip
COMMANDS = [
    "collect --store STORE --broker", "collect --store", "collect --show --store", "fleet STORE --otlp",
    "doctor --broker", "ps --url", "ledger --url", "chat --url", "bench --url", "slots --url",
    "slots kiosk --broker", "update --state FOLDER --trust FILE --repository", "policy POLICY --publish",
    "evaluate LINES --url", "bench --compare A B --url", "pull", "config --url",
    "rm", "serve", "publish FOLDER --to", "collect --show --store delta:STORE --store", "compile --out OUT",
    "release show --repository", "curate", "verify", "detect --sysroot", "update --state", "unpack",
]  # fmt: skip


def test_every_url_setting_has_a_right_one_here() -> None:
    assert sorted(RIGHT) == sorted(URL_SETTINGS)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", [*URL_SETTINGS, "allowed_origins"])
def test_a_wrong_url_among_the_settings_is_named_without_its_password(name: str, wrong: str, tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), f"FIELDLM_{name.upper()}": wrong.format(PASSWORD)}
    if name == "repository" and "://" not in wrong:
        assert load_config({}, env).repository, "it may be a folder, too"
        return
    with pytest.raises(ConfigError) as caught:
        load_config({}, env)
    assert PASSWORD not in str(caught.value)
    assert f"(from FIELDLM_{name.upper()})" in str(caught.value)


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_config_shows_urls_without_their_passwords(
    as_json: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIELDLM_STATE", str(tmp_path / "state"))
    for name, url in RIGHT.items():
        monkeypatch.setenv(f"FIELDLM_{name.upper()}", url.format(PASSWORD))
    monkeypatch.setenv("FIELDLM_ALLOWED_ORIGINS", "https://app.example,https://other.example")
    assert main(["config", *as_json]) == 0
    said = capsys.readouterr().out
    assert PASSWORD not in said
    assert all(each in said for each in ("mqtts://host:8883", "https://host/v1", "https://other.example"))


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_repeats_the_password_of_a_wrong_url(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FIELDLM_STATE", str(tmp_path / "state"))
    with Store(tmp_path / "STORE"):
        pass
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FILE").write_text("{}")
    (tmp_path / "LINES").write_text('{"v": 1, "messages": [{"role": "user", "content": "a"}]}\n')
    (tmp_path / "POLICY").write_text('fleet = "shop"\nversion = 1\n')
    for wrong in ("mqt://u:{}@host", "mqt://u:{}/x@host", "x://u:{}@[host"):
        assert main([*command.split(), wrong.format(PASSWORD)]) != 0
        found = capsys.readouterr()
        assert found.err + found.out
        assert PASSWORD not in found.err + found.out
