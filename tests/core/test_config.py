"""Every setting has a type, an origin, and an error that names both."""

import json
from pathlib import Path

import pytest

from fieldlm.cli.config import main
from fieldlm.core.config import SETTINGS, load_config
from fieldlm.core.errors import ConfigError, FieldlmError, ProfileError


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path), "FIELDLM_DEVICE": "pi-kitchen"}


def settings_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return path


def test_without_anything_the_defaults_hold(env: dict[str, str], tmp_path: Path) -> None:
    config = load_config({}, env)
    assert (config.host, config.port, config.telemetry, config.broker) == ("127.0.0.1", 8080, "metrics", "")
    assert config.state == tmp_path / ".local/state/fieldlm"
    assert config.origins["port"] == "default"


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(env: dict[str, str], tmp_path: Path) -> None:
    file = settings_file(tmp_path, 'port = 1\nthreads = 2\nfleet = "cafe"\n')
    config = load_config({"port": 3}, {**env, "FIELDLM_PORT": "2", "FIELDLM_THREADS": "4"}, file)
    assert (config.port, config.threads, config.fleet, config.context) == (3, 4, "cafe", 0)
    assert [config.origins[name] for name in ("port", "threads", "fleet", "context")] == [
        "--port", "FIELDLM_THREADS", str(file), "default",
    ]  # fmt: skip


def test_a_flag_that_was_not_given_changes_nothing(env: dict[str, str]) -> None:
    assert load_config({"port": None}, {**env, "FIELDLM_PORT": "99"}).port == 99


def test_the_file_is_found_by_variable_and_by_home(env: dict[str, str], tmp_path: Path) -> None:
    user = tmp_path / ".config/fieldlm/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text("spool_mb = 7\n")
    named = settings_file(tmp_path, "spool_mb = 8\n")
    assert load_config({}, env).spool_mb == 7
    assert load_config({}, {**env, "FIELDLM_CONFIG": str(named)}).spool_mb == 8


WRONG = {
    "port": ("x", "port is 'x' (from FIELDLM_PORT); want 1–65535"),
    "spool_mb": ("-1", "spool_mb is '-1' (from FIELDLM_SPOOL_MB); want 1–65536"),
    "threads": ("1e3", "threads is '1e3'"),
    "telemetry": ("everything", "want off, metrics, redacted, full"),
    "discovery": ("maybe", "want true or false"),
    "broker": ("http://x", "want mqtt://HOST[:PORT]"),
    "fleet": ("a/b", "want 1–64 letters"),
    "device": ("a+b", "want 1–64 letters"),
    "host": ("", "want a word"),
    "state": ("", "want a word"),
    "repository": ("ftp://x", "want a folder, file://"),
    "trust": ("/nowhere/root.json", "want the path of a trusted root.json"),
}


@pytest.mark.parametrize(("name", "value", "message"), [(k, *v) for k, v in WRONG.items()], ids=WRONG.keys())
def test_a_wrong_value_is_named_with_its_origin(env: dict[str, str], name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({}, {**env, f"FIELDLM_{name.upper()}": value})
    assert message in str(caught.value)
    assert f"(from FIELDLM_{name.upper()})" in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("yes", True), ("off", False), ("1", True), ("False", False)])
def test_a_switch_understands_the_usual_words(env: dict[str, str], text: str, value: bool) -> None:
    assert load_config({}, {**env, "FIELDLM_DISCOVERY": text}).discovery is value


def test_a_true_is_no_number(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="port is True"):
        load_config({}, env, settings_file(tmp_path, "port = true\n"))


def test_an_unknown_setting_in_the_file_is_an_error(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'prot' in .*config.toml is no setting"):
        load_config({}, env, settings_file(tmp_path, "prot = 8080\n"))


def test_a_file_that_cannot_be_read_is_an_error(env: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config({}, env, tmp_path / "missing.toml")


def test_an_unknown_profile_is_answered_by_the_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDLM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FIELDLM_PROFILE", "rpi5")
    with pytest.raises(ProfileError, match="did you mean rpi5"):
        main([])


def test_the_device_name_is_made_once_and_kept(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    first, second = load_config({}, env), load_config({}, env)
    assert first.device == second.device != ""
    assert json.loads((first.state / "device.json").read_text()) == {"device": first.device}
    assert first.origins["device"].startswith("made, kept in")


def test_a_damaged_device_name_is_an_error_and_not_a_new_name(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "device.json").write_text('{"device": ')
    with pytest.raises(ConfigError, match="should hold this device's name"):
        load_config({"state": str(state)}, {"HOME": str(tmp_path)})


def test_a_state_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FieldlmError, match="Not a directory"):
        load_config({"state": str(tmp_path / "file/state")}, {"HOME": str(tmp_path)})


def test_config_prints_every_setting_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIELDLM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FIELDLM_PORT", "9001")
    assert main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == SETTINGS.keys()
    assert document["port"] == {"value": 9001, "origin": "FIELDLM_PORT"}
