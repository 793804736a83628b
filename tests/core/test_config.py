"""Every setting has a type, an origin, and an error that names both."""

import json
from pathlib import Path

import pytest

from fieldlm.cli.config import as_markdown, as_toml, main
from fieldlm.cli.main import main as run
from fieldlm.core import terminal
from fieldlm.core.config import SETTINGS, add_flags, keys_folder, load_config, named
from fieldlm.core.errors import ConfigError, FieldlmError, ProfileError
from fieldlm.core.setting import words


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


def test_an_unknown_setting_in_the_file_is_said_and_a_service_starts_all_the_same(
    env: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = settings_file(tmp_path, "prot = 8080\nport = 8081\n")
    assert load_config({}, env, file).port == 8081
    assert f"'prot' in {file} is no setting of this version" in caplog.text
    with pytest.raises(ConfigError, match=r"'prot' in .*config.toml is no setting"):
        load_config({}, env, file, strict=True)


def test_who_only_looks_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "there"))
    monkeypatch.setenv("FIELDLM_PORT", "9")  # nobody listens there
    for command in (["config"], ["doctor"], ["slots"], ["update"], ["rollback"], ["ps"], ["logs"]):
        run(command)
    capsys.readouterr()
    assert list(tmp_path.iterdir()) == []


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
    assert load_config({}, env).device == ""
    first, second = named(load_config({}, env)), named(load_config({}, env))
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
        named(load_config({"state": str(tmp_path / "file/state")}, {"HOME": str(tmp_path)}))


def test_config_prints_every_setting_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FIELDLM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FIELDLM_PORT", "9001")
    assert main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == SETTINGS.keys()
    assert document["port"] == {"value": 9001, "origin": "FIELDLM_PORT"}


ROOT = Path(__file__).parents[2]


def test_every_setting_says_what_it_is_and_has_a_default_that_its_check_takes(tmp_path: Path) -> None:
    for name, setting in SETTINGS.items():
        assert setting.help, name
        assert setting.group, name
        setting.check(setting.default_in({"HOME": str(tmp_path)}))


def test_every_setting_is_a_flag_of_serve() -> None:
    parser = terminal.parser("serve", "")
    add_flags(parser)
    given = [word for name in SETTINGS for word in _flag(name)]
    flags = vars(parser.parse_args(given))
    assert {name: flags[name] for name in SETTINGS} == {
        name: (False if isinstance(setting.default, bool) else "x") for name, setting in SETTINGS.items()
    }


def _flag(name: str) -> list[str]:
    words = name.replace("_", "-")
    return [f"--no-{words}"] if isinstance(SETTINGS[name].default, bool) else [f"--{words}", "x"]


def test_a_switch_that_was_turned_off_by_its_flag_says_so(env: dict[str, str]) -> None:
    config = load_config({"discovery": False}, {**env, "FIELDLM_DISCOVERY": "on"})
    assert (config.discovery, config.origins["discovery"]) == (False, "--no-discovery")


def test_the_settings_file_of_the_template_is_read_as_the_defaults(env: dict[str, str], tmp_path: Path) -> None:
    lines = as_toml().splitlines()
    settings = [line.removeprefix("# ") for line in lines if " = " in line]
    assert len(settings) == len(SETTINGS)
    given = load_config({}, env, settings_file(tmp_path, "\n".join(settings)))
    plain = load_config({}, env)
    # Where it begins with ~, the file means the home folder of who runs it.
    at_home = ("state", "keys", "device")
    assert all(getattr(given, name) == getattr(plain, name) for name in SETTINGS if name not in at_home)
    assert given.state == Path("~/.local/state/fieldlm").expanduser()


def test_the_packages_settings_file_and_the_page_are_what_the_settings_say() -> None:
    again = "write it again: see fieldlm config --template, and tests/core/test_config.py"
    assert (ROOT / "docs/settings.md").read_text() == as_markdown(), again
    # Keys are the owner's, not the device's. The state's folder is the service's, so that commands look at its device.
    state = '# The folder of the service, so that commands look at the same device.\nstate = "/var/lib/fieldlm"\n'
    head, _, settings = as_toml(without=("state", "keys")).partition("\n\n")
    assert (ROOT / "packaging/deb/config.toml").read_text() == f"{head}\n\n{state}\n{settings}", again


def test_the_template_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--template", "toml"]) == 0
    assert capsys.readouterr().out == as_toml()
    assert main(["--template", "markdown", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"template": as_markdown()}


def test_the_folder_of_keys_is_found_as_every_setting_and_without_becoming_a_device(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path)}
    assert keys_folder(None, env) == tmp_path / ".config/fieldlm/keys"
    file = settings_file(tmp_path, f'keys = "{tmp_path}/safe"\n')
    assert keys_folder(None, {**env, "FIELDLM_CONFIG": str(file)}) == tmp_path / "safe"
    assert keys_folder(None, {**env, "FIELDLM_CONFIG": str(file), "FIELDLM_KEYS": "/vault"}) == Path("/vault")
    assert keys_folder("/stick", {**env, "FIELDLM_KEYS": "/vault"}) == Path("/stick")
    with pytest.raises(ConfigError, match="keys is '' \\(from FIELDLM_KEYS\\)"):
        keys_folder(None, {**env, "FIELDLM_KEYS": ""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


@pytest.mark.parametrize(("given", "terms"), [("a-1, b", ("a-1", "b")), (["a-1"], ("a-1",)), ("", ()), ([], ())])
def test_the_terms_of_consent_are_a_list_of_words(given: object, terms: tuple[str, ...]) -> None:
    assert words(given) == terms


@pytest.mark.parametrize("given", [True, 7, [1], {"a": "b"}])
def test_what_is_no_list_of_words_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="a list of words"):
        words(given)
