"""Settings: one frozen struct. Flag > environment FIELDLM_X > file > default, and every value knows where it is from.

The file is TOML with the same names: $FIELDLM_CONFIG, else ~/.config/fieldlm/config.toml, else
/etc/fieldlm/config.toml. A wrong value is named with its origin; an unknown name is an error, not a wish.
"""

import os
import re
import secrets
import socket
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import msgspec

from fieldlm.core.errors import ConfigError
from fieldlm.core.files import canonical_json, write_whole

HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")
Telemetry = Literal["off", "metrics", "redacted", "full"]
Check = Callable[[object], object]
"""Turns what was given into the typed value; raises ValueError with what is wanted instead."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting of the device. 0 and "" mean: take it from the profile, or do without.

    state: folder of the spool, the slots and this device's name.   keys: folder of private keys.
    telemetry: what may travel home; text only in `redacted` and `full`, and only with consent.
    host: "none" listens on no network, only on `socket`.   socket_group: who may use it beside its owner and root.
    daily_mb: what may be sent in a day.   policy_signer: id of the key whose fleet policy counts, which only lowers.
    broker_ca, broker_cert, broker_key: PEM files for mqtts, where the system's authorities do not do.
    api_keys: file of keys; without one the network is served only when `open` says so.
    repository: URL or folder of updates; `trust` is the TUF root.json that vouches for it.
    share: fetch updates together with the devices around.   fetch_kb_s, fetch_hours: how fast, and when.
    """

    state: Path
    host: str
    port: int
    device: str
    fleet: str
    broker: str
    telemetry: Telemetry
    profile: str
    threads: int
    context: int
    parallel: int
    discovery: bool
    repository: str
    keys: Path
    trust: str
    share: bool
    fetch_kb_s: int
    fetch_hours: str
    spool_mb: int
    daily_mb: int
    policy_signer: str
    broker_ca: str
    broker_cert: str
    broker_key: str
    api_keys: str
    open: bool
    tls_cert: str
    tls_key: str
    socket: str
    socket_group: str
    origins: dict[str, str] = {}


def load_config(
    flags: Mapping[str, object] | None = None, env: Mapping[str, str] = os.environ, file: Path | None = None
) -> Config:
    """Gather all settings; a flag that is None was not given.

    Makes up the device's name once and keeps it in `state`/device.json. Raises ConfigError with name, value, origin
    and what is wanted.
    """
    path = file or config_file(env)
    table = _read(path) if path else {}
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for name, (check, default) in SETTINGS.items():
        given, origin = _given(name, flags or {}, env, table, str(path))
        if origin == "default":
            given = default(env)
        values[name], origins[name] = _checked(name, given, origin, check), origin
    if not values["device"]:
        values["device"], origins["device"] = device_name(Path(str(values["state"])))
    return Config(**cast(dict[str, Any], values), origins=origins)


def config_file(env: Mapping[str, str] = os.environ) -> Path | None:
    """Return the settings file that counts, None when there is none."""
    if named := env.get("FIELDLM_CONFIG"):
        return Path(named)
    user = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config") / "fieldlm/config.toml"
    return next((path for path in (user, Path("/etc/fieldlm/config.toml")) if path.is_file()), None)


def device_name(state: Path) -> tuple[str, str]:
    """Return the device's kept name and its origin; makes one from the host's name on the first call."""
    path = state / "device.json"
    if path.is_file():
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])["device"]
        except (OSError, msgspec.MsgspecError, KeyError) as error:
            raise ConfigError(f"{path} should hold this device's name: {error}; correct or remove it") from error
        return str(_checked("device", kept, str(path), _device)), str(path)
    letters = (c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname().split(".")[0].lower())
    made = f"{''.join(letters).strip('-')[:40] or 'device'}-{secrets.token_hex(3)}"
    write_whole(path, canonical_json({"device": made}))
    return made, f"made, kept in {path}"


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"settings file {path} cannot be read: {error}") from error
    for name in table:
        if name not in SETTINGS:
            raise ConfigError(f"{name!r} in {path} is no setting; settings: {', '.join(SETTINGS)}")
    return table


def _given(
    name: str, flags: Mapping[str, object], env: Mapping[str, str], table: Mapping[str, object], file: str
) -> tuple[object, str]:
    variable = f"FIELDLM_{name.upper()}"
    if flags.get(name) is not None:
        return flags[name], f"--{name.replace('_', '-')}"
    if variable in env:
        return env[variable], variable
    if name in table:
        return table[name], file
    return None, "default"


def _checked(name: str, value: object, origin: str, check: Check) -> object:
    try:
        return check(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} is {value!r} (from {origin}); want {error}") from error


def _number(least: int, most: int, zero: str = "") -> Check:
    def check(value: object) -> int:
        wanted = f"{least}–{most}" + (f", or 0 for {zero}" if zero else "")
        if isinstance(value, bool) or not str(value).strip().isdecimal():
            raise ValueError(wanted)
        number = int(str(value))
        if not (least <= number <= most or (zero and number == 0)):
            raise ValueError(wanted)
        return number

    return check


def _word(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a word that is not empty")
    return value.strip()


def _topic_word(value: object) -> str:
    """Check a name that becomes one level of an MQTT topic and a part of file names."""
    word = str(value)
    if not word or len(word) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in word):
        raise ValueError("1–64 letters, digits, '-', '_' or '.'")
    return word


def _device(value: object) -> str:
    return _topic_word(value) if value != "" else ""


def _telemetry(value: object) -> str:
    if value not in get_args(Telemetry):
        raise ValueError(", ".join(get_args(Telemetry)))
    return str(value)


def _switch(value: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    switch = value if isinstance(value, bool) else words.get(str(value).lower())
    if switch is None:
        raise ValueError("true or false")
    return switch


def _folder(value: object) -> Path:
    path = Path(str(value)).expanduser()
    if not str(value) or not path.is_absolute():
        path = Path(_word(value)).absolute()
    return path


def _broker(value: object) -> str:
    if value == "":
        return ""
    url = urlsplit(str(value))
    if url.scheme not in ("mqtt", "mqtts") or not url.hostname or not _has_port_or_none(url):
        raise ValueError('mqtt://HOST[:PORT], mqtts://HOST[:PORT], or "" for none')
    return str(value)


def _has_port_or_none(url: Any) -> bool:
    try:
        return url.port is None or url.port > 0
    except ValueError:
        return False


def _repository(value: object) -> str:
    text = str(value)
    if "://" in text and urlsplit(text).scheme not in ("http", "https", "file"):
        raise ValueError('a folder, file://…, http(s)://…, or "" for none')
    return text


def _trust(value: object) -> str:
    if value != "" and not Path(str(value)).expanduser().is_file():
        raise ValueError('the path of a trusted root.json, or "" for none')
    return str(Path(str(value)).expanduser()) if value != "" else ""


def _file(value: object) -> str:
    """Take a path or "" for none; whoever opens the file says what is wrong with it."""
    return str(_folder(value)) if value != "" else ""


def _hours(value: object) -> str:
    if value != "" and not HOURS.fullmatch(str(value)):
        raise ValueError('HH:MM-HH:MM, as in 01:00-05:30, or "" for any time')
    return str(value)


def _key_id(value: object) -> str:
    text = str(value)
    if text and not re.fullmatch("[0-9a-f]{16}", text):
        raise ValueError('the key id of who signs policies, 16 hex digits, or "" for nobody')
    return text


def _home(env: Mapping[str, str], variable: str, fallback: str) -> Path:
    return Path(env.get(variable) or Path(env.get("HOME") or Path.home()) / fallback) / "fieldlm"


# name: (check, default given the environment)
SETTINGS: dict[str, tuple[Check, Callable[[Mapping[str, str]], object]]] = {
    "state": (_folder, lambda env: _home(env, "XDG_STATE_HOME", ".local/state")),
    "host": (_word, lambda _: "127.0.0.1"),
    "port": (_number(1, 65535, "any that is free"), lambda _: 8080),
    "device": (_device, lambda _: ""),
    "fleet": (_topic_word, lambda _: "default"),
    "broker": (_broker, lambda _: ""),
    "telemetry": (_telemetry, lambda _: "metrics"),
    "profile": (str, lambda _: ""),
    "threads": (_number(1, 1024, "as many as there are free cores for"), lambda _: 0),
    "context": (_number(128, 1_048_576, "the profile's"), lambda _: 0),
    "parallel": (_number(1, 64, "the profile's"), lambda _: 0),
    "discovery": (_switch, lambda _: True),
    "repository": (_repository, lambda _: ""),
    "keys": (_folder, lambda env: _home(env, "XDG_CONFIG_HOME", ".config") / "keys"),
    "trust": (_trust, lambda _: ""),
    "share": (_switch, lambda _: True),
    "fetch_kb_s": (_number(1, 100_000_000, "no limit"), lambda _: 0),
    "fetch_hours": (_hours, lambda _: ""),
    "spool_mb": (_number(1, 65536), lambda _: 64),
    "daily_mb": (_number(1, 1_000_000, "no limit"), lambda _: 0),
    "policy_signer": (_key_id, lambda _: ""),
    "broker_ca": (_file, lambda _: ""),
    "broker_cert": (_file, lambda _: ""),
    "broker_key": (_file, lambda _: ""),
    "api_keys": (_file, lambda _: ""),
    "open": (_switch, lambda _: False),
    "tls_cert": (_file, lambda _: ""),
    "tls_key": (_file, lambda _: ""),
    "socket": (_file, lambda _: ""),
    "socket_group": (str, lambda _: ""),
}
