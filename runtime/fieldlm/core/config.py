"""Settings: one frozen struct. Flag > environment FIELDLM_X > file > default, and every value knows where it is from.

The file is TOML with the same names: $FIELDLM_CONFIG, else ~/.config/fieldlm/config.toml, else
/etc/fieldlm/config.toml. A wrong value is named with its origin; an unknown name in the file is said and does nothing.
"""

import argparse
import json
import os
import secrets
import socket
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast, get_type_hints

import msgspec

from fieldlm.core import setting as check
from fieldlm.core.errors import ConfigError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.core.logs import logger
from fieldlm.core.options import CONTEXT, PARALLEL, THREADS
from fieldlm.core.setting import Check, Setting, Telemetry
from fieldlm.core.urls import shown_all

NO_NETWORK = "none"
"""The host of who listens on no network, only on a unix socket."""
log = logger(__name__)
_server, _device, _engine = partial(Setting, "server"), partial(Setting, "device"), partial(Setting, "engine")
_usage, _updates, _owner = partial(Setting, "usage"), partial(Setting, "updates"), partial(Setting, "owner")
_models, _large = partial(Setting, "several models"), partial(Setting, "large model")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting, declared here and nowhere else: group, help, check, default, and what its flag wants.

    From this come the flags of `fieldlm serve`, the variables, the names in the file, `fieldlm config`, the Debian
    package's settings and docs/settings.md. 0 and "" mean: take it from the profile, or do without.
    """

    host: Annotated[str, _server('address to listen on; "none": only the socket', check.word, "127.0.0.1", "ADDRESS")]
    port: Annotated[int, _server("port to listen on; 0 is any that is free", check.number(1, 65535, zero=True), 8080)]
    api_keys: Annotated[str, _server("file of keys, one a line, that open the API", check.file, "", "FILE")]
    allowed_origins: Annotated[
        tuple[str, ...],
        _server(
            "pages that may use the API from elsewhere: scheme://host[:port], or * with keys",
            check.origins,
            (),
            "ORIGIN[,ORIGIN]",
        ),
    ]
    open: Annotated[bool, _server("answer the network without keys", check.switch, False)]
    tls_cert: Annotated[str, _server("certificate to serve https with", check.file, "", "PEM")]
    tls_key: Annotated[str, _server("the certificate's private key", check.file, "", "PEM")]
    host_names: Annotated[
        tuple[str, ...],
        _server(
            "names that a browser may call it by, beside its own, where no key is asked",
            check.host_names,
            (),
            "NAME[,NAME]",
        ),
    ]
    socket: Annotated[str, _server("unix socket to serve, too; alone with host none", check.file, "", "PATH")]
    socket_group: Annotated[str, _server("who may use it beside its owner and root", str, "", "GROUP")]
    kiosk: Annotated[
        str, _server("file that makes its page a kiosk's: title, colours, languages, PIN", check.file, "", "FILE")
    ]
    state: Annotated[Path, _device("folder of spool, slots and name", check.folder, check.state_folder, "DIR")]
    device: Annotated[str, _device("this device's name; without one it makes and keeps one", check.device, "", "NAME")]
    fleet: Annotated[str, _device("the fleet it belongs to", check.topic_word, "default", "NAME")]
    profile: Annotated[
        str,
        _device(
            "device profile; without one the bundle's, where it fits, or what `fieldlm detect` finds", str, "", "NAME"
        ),
    ]
    discovery: Annotated[bool, _device("announce it by mDNS, and find those around", check.switch, True)]
    threads: Annotated[int, _engine("threads that decode; 0 is one a free core", check.number(*THREADS, zero=True), 0)]
    context: Annotated[
        int, _engine("tokens of prompt and answer; 0 is the profile's", check.number(*CONTEXT, zero=True), 0)
    ]
    parallel: Annotated[int, _engine("answers at a time; 0 is the profile's", check.number(*PARALLEL, zero=True), 0)]
    max_watts: Annotated[
        float, _engine("watts that it may take while it computes, as its sensor says; 0 is no limit", check.watts, 0.0)
    ]
    repeatable: Annotated[
        bool, _engine("the same answer every time, whatever else it computes; slower", check.switch, False)
    ]
    models: Annotated[
        tuple[str, ...],
        _models(
            "models beside the device's own, or folders of them; NAME=MODEL gives a name",
            check.words,
            (),
            "MODEL[,MODEL]",
        ),
    ]
    models_mb: Annotated[
        int,
        _models("megabytes for all that are loaded; 0 is the profile's", check.number(1, 100_000_000, zero=True), 0),
    ]
    sleep_after: Annotated[
        int,
        _models(
            "seconds after which an unused model is unloaded; 0 is never", check.number(1, 31_536_000, zero=True), 0
        ),
    ]
    pinned: Annotated[
        tuple[str, ...], _models("models that stay loaded whatever is asked for", check.words, (), "NAME[,NAME]")
    ]
    large: Annotated[
        str, _large("a large model beside: http[s]://HOST/v1, OpenAI's chat completions", check.endpoint, "", "URL")
    ]
    large_model: Annotated[str, _large("its name there; not needed where there is only one", str, "", "NAME")]
    large_key: Annotated[str, _large("file with the key to it", check.file, "", "FILE")]
    large_when: Annotated[
        str,
        _large(
            "when it answers: unsure (where the small model is), always (while it can be reached), asked (by name)",
            check.choice("unsure", "always", "asked"),
            "unsure",
            "WHEN",
        ),
    ]
    large_below: Annotated[
        int,
        _large("percent; it is asked where the small model's answer is less likely right", check.number(1, 100), 80),
    ]
    large_hedge: Annotated[
        bool,
        _large("ask it at once, too, where the small model may miss a request's deadline", check.switch, False),
    ]
    large_text: Annotated[
        str,
        _large(
            "what may leave for it: all, redacted (without what identifies a person) or nothing",
            check.choice("all", "redacted", "nothing"),
            "all",
            "WHAT",
        ),
    ]
    large_daily_tokens: Annotated[
        int, _large("tokens that it may read and write in a day; 0 is no limit", check.number(1, 10**12, zero=True), 0)
    ]
    large_session_tokens: Annotated[
        int, _large("the same for one customer (metadata.session)", check.number(1, 10**12, zero=True), 0)
    ]
    large_prompt_price: Annotated[
        float, _large("price of a million tokens that it reads, in any currency", check.price, 0.0, "PRICE")
    ]
    large_completion_price: Annotated[
        float, _large("price of a million tokens that it writes", check.price, 0.0, "PRICE")
    ]
    telemetry: Annotated[
        Telemetry,
        _usage(
            "what may be sent: off, metrics, redacted or full; text with consent only",
            check.telemetry,
            "metrics",
            "MODE",
        ),
    ]
    consent: Annotated[
        tuple[str, ...], _usage("terms that count as consent; any other word is none", check.words, (), "TERM[,TERM]")
    ]
    broker: Annotated[str, _usage("where usage goes and commands come from: mqtt[s]://HOST", check.broker, "", "URL")]
    broker_ca: Annotated[str, _usage("authorities for mqtts, where the system's do not do", check.file, "", "PEM")]
    broker_cert: Annotated[str, _usage("this device's certificate for the broker", check.file, "", "PEM")]
    broker_key: Annotated[str, _usage("the private key of that certificate", check.file, "", "PEM")]
    policy_signer: Annotated[str, _usage("key id of who signs policies; they only lower", check.key_id, "", "KEYID")]
    spool_mb: Annotated[int, _usage("megabytes of records to keep until they are sent", check.number(1, 65536), 64)]
    daily_mb: Annotated[
        int, _usage("megabytes that may be sent in a day; 0 is no limit", check.number(1, 1_000_000, zero=True), 0)
    ]
    repository: Annotated[str, _updates("folder or URL of updates", check.repository, "", "URL")]
    trust: Annotated[str, _updates("root.json that vouches for the repository", check.trust, "", "FILE")]
    share: Annotated[bool, _updates("fetch updates together with the devices around", check.switch, True)]
    fetch_kb_s: Annotated[
        int, _updates("1000 bytes a second to fetch at; 0 is no limit", check.number(1, 100_000_000, zero=True), 0)
    ]
    fetch_hours: Annotated[str, _updates("fetch only then: HH:MM-HH:MM by its clock", check.hours, "", "HOURS")]
    keys: Annotated[Path, _owner("folder of private keys", check.folder, check.keys_folder, "DIR")]
    origins: dict[str, str] = {}


SETTINGS: dict[str, Setting] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Config, include_extras=True).items()
    if name != "origins"
}
"""All settings by name, in the order in which people read them."""


def load_config(
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] = os.environ,
    file: Path | None = None,
    *,
    strict: bool = False,
) -> Config:
    """Gather all settings; a flag that is None was not given. Writes nothing: a device without a name is called "".

    Raises ConfigError with name, value, origin and what is wanted. An unknown name in the file is said and passed over,
    so that an older version starts with a newer one's settings; with `strict` it is an error, too.
    """
    path = file or config_file(env)
    table = _read(path, strict=strict) if path else {}
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for name in SETTINGS:
        values[name], origins[name] = _value(name, flags or {}, env, table, str(path))
    if not values["device"]:
        values["device"], origins["device"] = _kept_name(Path(str(values["state"])))
    return Config(**cast(dict[str, Any], values), origins=origins)


def settings_alone(
    names: Sequence[str], flags: Mapping[str, object], env: Mapping[str, str] = os.environ
) -> dict[str, object]:
    """Return these settings alone, for a workshop, which is no device; raises ConfigError as `load_config` does."""
    path = config_file(env)
    table = _read(path, strict=False) if path else {}
    return {name: _value(name, flags, env, table, str(path))[0] for name in names}


def keys_folder(flag: str | None = None, env: Mapping[str, str] = os.environ) -> Path:
    """Return the setting `keys` alone."""
    return cast(Path, settings_alone(["keys"], {"keys": flag}, env)["keys"])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting, in groups; one that is not given stays None."""
    groups = {each.group: parser.add_argument_group(each.group) for each in SETTINGS.values()}
    for name, each in SETTINGS.items():
        kind: dict[str, Any] = {"metavar": each.metavar or "N"}
        if each.check is check.switch:
            kind = {"action": argparse.BooleanOptionalAction}
        default = "" if (words := default_words(name)) in ('""', "0", "0.0", "false", "[]") else f" (default: {words})"
        groups[each.group].add_argument(f"--{name.replace('_', '-')}", help=each.help + default, **kind)


def default_words(name: str) -> str:
    """Return the default as TOML has it; a folder below the home folder begins with ~."""
    default = SETTINGS[name].default_in({"HOME": "~"})
    return json.dumps(default if isinstance(default, bool | int | float | tuple) else str(default))


def config_file(env: Mapping[str, str] = os.environ) -> Path | None:
    """Return the settings file that counts, None when there is none."""
    if named := env.get("FIELDLM_CONFIG"):
        return Path(named)
    user = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME", "/")) / ".config") / "fieldlm/config.toml"
    return next((path for path in (user, Path("/etc/fieldlm/config.toml")) if path.is_file()), None)


def named(config: Config) -> Config:
    """Return `config` with a name for the device: its own, or one made from the host's, kept in `state`/device.json."""
    if config.device:
        return config
    path = _name_file(config.state)
    letters = (c if c.isascii() and c.isalnum() else "-" for c in socket.gethostname().split(".")[0].lower())
    made = f"{''.join(letters).strip('-')[:40] or 'device'}-{secrets.token_hex(3)}"
    write_whole(path, canonical_json({"device": made}))
    return msgspec.structs.replace(config, device=made, origins=config.origins | {"device": f"made, kept in {path}"})


def _name_file(state: Path) -> Path:
    return state / "device.json"


def _kept_name(state: Path) -> tuple[str, str]:
    """Return the name that the device has kept, and its origin."""
    path = _name_file(state)
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])["device"]
    except FileNotFoundError:
        return "", "the first start makes one"
    except (OSError, msgspec.MsgspecError, RecursionError, KeyError) as error:
        raise ConfigError(f"{path} should hold this device's name: {error}; correct or remove it") from error
    return str(_checked("device", kept, str(path), check.device)), str(path)


def _read(path: Path, *, strict: bool) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"settings file {path} cannot be read: {error}") from error
    for name in table.keys() - SETTINGS.keys():
        if strict:
            raise ConfigError(f"{name!r} in {path} is no setting; settings: {', '.join(SETTINGS)}")
        log.warning(f"{name!r} in {path} is no setting of this version and does nothing; see: fieldlm config")
    return table


def _value(
    name: str, flags: Mapping[str, object], env: Mapping[str, str], table: Mapping[str, object], file: str
) -> tuple[object, str]:
    given, origin = _given(name, flags, env, table, file)
    each = SETTINGS[name]
    return _checked(name, each.default_in(env) if origin == "default" else given, origin, each.check), origin


def _given(
    name: str, flags: Mapping[str, object], env: Mapping[str, str], table: Mapping[str, object], file: str
) -> tuple[object, str]:
    variable = f"FIELDLM_{name.upper()}"
    if flags.get(name) is not None:
        return flags[name], f"--{'no-' if flags[name] is False else ''}{name.replace('_', '-')}"
    if variable in env:
        return env[variable], variable
    if name in table:
        return table[name], file
    return None, "default"


def _checked(name: str, value: object, origin: str, wanted: Check) -> object:
    try:
        return wanted(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{name} is {shown_all(value)!r} (from {origin}); want {error}") from error
