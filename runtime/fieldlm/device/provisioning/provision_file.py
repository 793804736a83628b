"""The file that provisions a device, `fieldlm.toml`: what it may say, and what is wrong with it.

It is checked as a whole before anything is written: with the checks of the settings, on top of those that the device
has, and with those that `serve` begins with. What is wrong is one line.
"""

import json
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import setting as check
from fieldlm.core.config import SETTINGS, load_config
from fieldlm.core.errors import ConfigError, FieldlmError, InputError
from fieldlm.core.files import disk_errors, read_text
from fieldlm.core.terminal import did_you_mean
from fieldlm.device.listeners import ListenSettings

KEYS = tuple(
    name for name, each in SETTINGS.items() if each.check in (check.file, check.trust) and name not in ("socket",)
)
"""Settings that name a file; their files come along, under `[keys]`."""
ELSEWHERE = {"device": "name", **{name: f"[keys] {name}" for name in KEYS}}
"""Settings that stand elsewhere in the file than under `[settings]`."""
HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123, and a level of an MQTT topic
SSH_KEY = re.compile(r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp\d+|sk-[a-z0-9-]+@openssh\.com) [A-Za-z0-9+/=]+( .*)?")
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Wifi(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A wireless network; without a password it is an open one. `country` is where the device is, as in DE."""

    ssid: str
    password: str = ""
    country: str = ""


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str = ""
    ssh_keys: tuple[str, ...] = ()
    wifi: Wifi | None = None
    settings: dict[str, Any] = {}
    keys: dict[str, str | tuple[str, ...]] = {}


class Provision(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says, checked. `keys`: setting → bytes of its file; `files` are those that lay beside it."""

    name: str
    ssh_keys: tuple[str, ...]
    wifi: Wifi | None
    settings: dict[str, Any]
    keys: dict[str, bytes]
    files: tuple[str, ...]


def read_provision(path: Path, existing: Path | None = None) -> Provision:
    """Return what the file at `path` says; `existing` are the settings that the device has already.

    Raises InputError or ConfigError with what is wrong in it.
    """
    try:
        document = msgspec.toml.decode(read_text(path), type=_Document)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise InputError(f"{path} cannot be used: {error}") from error
    try:
        _check_names(document)
        _check_wifi(document.wifi)
        keys, files = _read_keys(document, path.parent)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error
    found = Provision(
        name=document.name,
        ssh_keys=document.ssh_keys,
        wifi=document.wifi,
        settings=document.settings,
        keys=keys,
        files=files,
    )
    _check_settings(found, path, existing)
    return found


def settings_text(found: Provision, keys_folder: Path, existing: str = "") -> str:
    """Return the device's settings file: what `existing` says, with what was found in its place and behind it.

    Files of keys lie in `keys_folder`, each under the name of its setting.
    """
    given = dict(found.settings)
    if found.name:
        given["device"] = found.name
    given |= {name: str(keys_folder / name) for name in found.keys}
    old = msgspec.toml.decode(existing)
    kept = {name: value for name, value in old.items() if name not in given}
    comments = [line for line in existing.splitlines() if line.startswith("#")]
    # TOML writes strings, numbers and lists of them as JSON does.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in (kept | given).items()]
    return "\n".join([*comments, *lines]) + "\n"


def _check_names(document: _Document) -> None:
    if document.name and not HOST_NAME.fullmatch(document.name):
        raise ValueError(f"name is {document.name!r}; want 1–63 small letters, digits and '-', as in kiosk-17")
    for key in document.ssh_keys:
        if not SSH_KEY.fullmatch(key):
            raise ValueError(f"ssh_keys holds {key[:40]!r}; want the line of a .pub file, as in ssh-ed25519 AAAA… me")
    for name, value in document.settings.items():
        if not isinstance(value, str | int | float | list):
            raise ValueError(f"{name} under [settings] is {value}; want text, a number, true, false or a list of texts")
        if name in ELSEWHERE:
            raise ValueError(f"{name} does not stand under [settings]; write it as {ELSEWHERE[name]}")
        if name not in SETTINGS:
            near = did_you_mean(name, SETTINGS)
            raise ValueError(f"{name!r} under [settings] is no setting{near or ';'} see: fieldlm config")
    for name in document.keys:
        if name not in KEYS:
            raise ValueError(f"{name!r} under [keys] takes no file; want some of {', '.join(KEYS)}")


def _check_wifi(wifi: Wifi | None) -> None:
    """Raise ValueError for what no access point takes: IEEE 802.11 bounds names, WPA passphrases."""
    if wifi is None:
        return
    if not 1 <= len(wifi.ssid.encode()) <= 32 or any(ord(c) < 32 or ord(c) == 127 for c in wifi.ssid):
        raise ValueError(f"wifi.ssid is {wifi.ssid!r}; want the network's name, 1–32 bytes of text")
    is_passphrase = 8 <= len(wifi.password) <= 63 and all(" " <= c <= "~" for c in wifi.password)
    if wifi.password and not is_passphrase and not re.fullmatch(r"[0-9a-fA-F]{64}", wifi.password):
        # The password itself is not said: this line is shown on a screen.
        raise ValueError(f"wifi.password has {len(wifi.password)} characters; want 8–63 of ASCII, or 64 hex digits")
    if wifi.country and not re.fullmatch(r"[A-Z]{2}", wifi.country):
        raise ValueError(f"wifi.country is {wifi.country!r}; want two capital letters, as in DE")


def _read_keys(document: _Document, folder: Path) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Return each file's bytes by its setting, and the names of those that lie in `folder`."""
    keys: dict[str, bytes] = {}
    files: list[str] = []
    for name, given in document.keys.items():
        if not isinstance(given, str):
            keys[name] = "".join(f"{line}\n" for line in given).encode()
        elif "\n" in given:
            keys[name] = given.encode()
        elif FILE_NAME.fullmatch(given):
            with disk_errors(folder / given):
                keys[name] = (folder / given).read_bytes()
            files.append(given)
        else:
            raise ValueError(
                f"{name} under [keys] is no name of a file beside this one; want such a name, or the text itself "
                "between ''' and ''' on lines of its own"
            )
    return keys, tuple(files)


def _check_settings(found: Provision, path: Path, existing: Path | None) -> None:
    """Load the settings as the device will, with the files of keys aside; raise ConfigError as `serve` would."""
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / path.name
        for name, data in found.keys.items():
            _write_private(Path(folder) / name, data)
        # What the device has already is right or its own affair: only names that are given here must be known.
        before = read_text(existing) if existing and existing.exists() else ""
        try:
            _write_private(aside, settings_text(found, Path(folder), before).encode())
            ListenSettings.of(load_config(env={"HOME": folder}, file=aside))
        except (msgspec.MsgspecError, RecursionError, TypeError, FieldlmError) as error:
            message = str(error).replace(str(aside), str(path)).replace(f"{folder}/", "[keys] ")
            raise ConfigError(message if str(path) in message else f"{path}: {message}") from error


def _write_private(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


def said(found: Provision) -> str:
    """Return in a line, without any secret, what the file says."""
    parts: Iterable[str] = (
        f"name {found.name}" if found.name else "",
        f"Wi-Fi {found.wifi.ssid}" if found.wifi else "",
        f"settings {', '.join(found.settings)}" if found.settings else "",
        f"keys {', '.join(found.keys)}" if found.keys else "",
        f"{len(found.ssh_keys)} SSH key{'s' * (len(found.ssh_keys) != 1)}" if found.ssh_keys else "",
    )
    return "; ".join(part for part in parts if part) or "nothing"
