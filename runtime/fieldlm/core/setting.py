"""Setting: what is known of one setting, and the checks that turn what was given into its value.

A check takes what a flag, a variable or a file holds and returns the typed value; it raises ValueError with what is
wanted instead.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import SplitResult, urlsplit

import msgspec

from fieldlm.core.hours import HOURS
from fieldlm.core.urls import host_name

Telemetry = Literal["off", "metrics", "redacted", "full"]
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
Check = Callable[[object], object]
Env = Mapping[str, str]


class Setting(msgspec.Struct, frozen=True):
    """One setting, but for its name and type; `default` may be a function of the environment."""

    group: str
    help: str
    check: Check
    default: object = ""
    metavar: str = ""

    def default_in(self, env: Env) -> object:
        return cast(Callable[[Env], object], self.default)(env) if callable(self.default) else self.default


def number(least: int, most: int, *, zero: bool = False) -> Check:
    """Make the check of a whole number; `zero` may be given, too."""

    def check(value: object) -> int:
        wanted = f"{least}–{most}" + (", or 0" if zero else "")
        if isinstance(value, bool) or not str(value).strip().isdecimal():
            raise ValueError(wanted)
        given = int(str(value))
        if not (least <= given <= most or (zero and given == 0)):
            raise ValueError(wanted)
        return given

    return check


def choice(*words: str) -> Check:
    """Make the check of one of `words`."""

    def check(value: object) -> str:
        if value not in words:
            raise ValueError(", ".join(words))
        return str(value)

    return check


def price(value: object) -> float:
    """Check an amount of money, 0 or more."""
    try:
        amount = float(str(value))
    except ValueError:
        amount = -1.0
    if isinstance(value, bool) or not 0 <= amount < 1e9:
        raise ValueError("an amount of money, 0 or more, as in 2.50")
    return amount


def watts(value: object) -> float:
    """Check a power, 0 for none."""
    try:
        power = float(str(value))
    except ValueError:
        power = -1.0
    if isinstance(value, bool) or not (power == 0 or 0.5 <= power <= 5000):
        raise ValueError("0.5 to 5000 watts, as in 7.5, or 0 for no limit")
    return power


def endpoint(value: object) -> str:
    """Check where an OpenAI-compatible API is; "" for none."""
    if value == "":
        return ""
    wanted = 'http[s]://HOST[:PORT]/PATH, as in https://api.example.com/v1, or "" for none'
    if _url(value, ("http", "https"), wanted).query:
        raise ValueError(wanted)
    return str(value).rstrip("/").removesuffix("/chat/completions")


def word(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a word that is not empty")
    return value.strip()


def topic_word(value: object) -> str:
    """Check a name that becomes one level of an MQTT topic and a part of file names."""
    name = str(value)
    if not name or len(name) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name):
        raise ValueError("1–64 letters, digits, '-', '_' or '.'")
    return name


def device(value: object) -> str:
    return topic_word(value) if value != "" else ""


def telemetry(value: object) -> str:
    if value not in get_args(Telemetry):
        raise ValueError(", ".join(get_args(Telemetry)))
    return str(value)


def words(value: object) -> tuple[str, ...]:
    """Check a list of words: of a file's array, or with commas between them."""
    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in cast(list[object], given)):
        raise ValueError('a list of words, or words with commas between: ["kiosk-2026-11"]')
    return tuple(word.strip() for word in cast(list[str], given) if word.strip())


def origins(value: object) -> tuple[str, ...]:
    """Check a list of web origins, as browsers spell them: small letters, no path, no port that goes without saying."""
    found: list[str] = []
    for given in words(value):
        origin = given.lower().removesuffix("/")
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError("SCHEME://HOST[:PORT], as in https://app.example or tauri://localhost, and no path")
        found.append(origin.removesuffix(DEFAULT_PORTS.get(origin.partition("://")[0], "")))
    return tuple(found)


def host_names(value: object) -> tuple[str, ...]:
    names = tuple(name.lower().rstrip(".") for name in words(value))
    if not all(host_name(name) == name and re.fullmatch(r"[a-z0-9._-]+", name) for name in names):
        raise ValueError("names alone, without http:// and port: kiosk.example.org")
    return names


def switch(value: object) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    switch = value if isinstance(value, bool) else words.get(str(value).lower())
    if switch is None:
        raise ValueError("true or false")
    return switch


def folder(value: object) -> Path:
    path = Path(str(value)).expanduser()
    if not str(value) or not path.is_absolute():
        path = Path(word(value)).absolute()
    return path


def broker(value: object) -> str:
    if value == "":
        return ""
    _url(value, ("mqtt", "mqtts"), 'mqtt://HOST[:PORT], mqtts://HOST[:PORT], or "" for none')
    return str(value)


def _url(value: object, schemes: Sequence[str], wanted: str) -> SplitResult:
    """Return the parts of a URL with one of `schemes`, a host and a port that can be; raises ValueError(`wanted`).

    What urlsplit itself says of a wrong one may hold a piece of the password.
    """
    with suppress(ValueError):
        url = urlsplit(str(value))
        if url.scheme in schemes and url.hostname and url.port != 0:
            return url
    raise ValueError(wanted)


def repository(value: object) -> str:
    text = str(value)
    if "://" in text and not text.lower().startswith("file://"):
        _url(text, ("http", "https"), 'a folder, file://…, http(s)://…, or "" for none')
    return text


def trust(value: object) -> str:
    if value != "" and not Path(str(value)).expanduser().is_file():
        raise ValueError('the path of a trusted root.json, or "" for none')
    return str(Path(str(value)).expanduser()) if value != "" else ""


def file(value: object) -> str:
    """Take a path or "" for none; whoever opens the file says what is wrong with it."""
    return str(folder(value)) if value != "" else ""


def hours(value: object) -> str:
    if value != "" and not HOURS.fullmatch(str(value)):
        raise ValueError('HH:MM-HH:MM, as in 01:00-05:30, or "" for any time')
    return str(value)


def key_id(value: object) -> str:
    text = str(value)
    if text and not re.fullmatch("[0-9a-f]{16}", text):
        raise ValueError('the key id of who signs policies, 16 hex digits, or "" for nobody')
    return text


def state_folder(env: Env) -> Path:
    return _home(env, "XDG_STATE_HOME", ".local/state")


def keys_folder(env: Env) -> Path:
    return _home(env, "XDG_CONFIG_HOME", ".config") / "keys"


def _home(env: Env, variable: str, fallback: str) -> Path:
    return Path(env.get(variable) or Path(env.get("HOME") or Path.home()) / fallback) / "fieldlm"
