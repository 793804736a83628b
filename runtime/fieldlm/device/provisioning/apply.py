"""Write what a `fieldlm.toml` says where a device looks for it, then take it and its secrets off the card.

Everything may lose its power at any time. Each file is replaced as a whole; when all are written, a note names the file
that was applied and what has to go, and goes last itself. So what was cut short before the note is done again, and
after it only the erasing is. What is erased is overwritten first; flash may keep old blocks all the same.
"""

import configparser
import io
import os
import socket
from pathlib import Path

import msgspec

from fieldlm.core.files import canonical_json, disk_errors, read_text, sha256_file, sync_folder, write_whole
from fieldlm.device.provisioning.provision_file import Provision, Wifi, read_provision, said, settings_text

CONFIG, KEYS = Path("etc/fieldlm/config.toml"), Path("etc/fieldlm/keys")
NOTE = Path("var/lib/fieldlm-provision/applied.json")
GROUP = "fieldlm"


class Applied(msgspec.Struct, frozen=True):
    """The note: SHA-256 of the file that was applied, and the names of what is to go beside it."""

    sha256: str
    files: tuple[str, ...]


def provision(path: Path, root: Path) -> str:
    """Apply the file at `path` to the system in `root` and remove it; returns what it said.

    That is "" where an earlier run had only the erasing left. Raises InputError or ConfigError for a file that is wrong
    or not there; nothing is written then.
    """
    note = _read_note(root)
    told = ""
    if note is None or (path.exists() and note.sha256 != sha256_file(path)):
        found = read_provision(path, root / CONFIG)
        write(found, root)
        note = Applied(sha256_file(path), found.files)
        write_whole(root / NOTE, canonical_json(note))
        told = said(found)
    for name in (*note.files, path.name):
        _erase(path.with_name(name))
    with disk_errors(root / NOTE):
        (root / NOTE).unlink()
        sync_folder((root / NOTE).parent)
    return told


def write(found: Provision, root: Path) -> None:
    """Write what was found into the system in `root`; the settings, which name the rest, last."""
    group = _group_id(root)
    for name, data in found.keys.items():
        _put(root / KEYS / name, data, mode=0o640, group=group)
    if found.keys:
        _own(root / KEYS, mode=0o750, group=group)
    if found.wifi:
        _put(root / "var/lib/iwd" / _network_file(found.wifi), _network(found.wifi).encode(), mode=0o600)
        if found.wifi.country:
            _put(root / "etc/iwd/main.conf", _ini({"General": {"Country": found.wifi.country}}).encode())
    if found.ssh_keys:
        keys = root / "root/.ssh/authorized_keys"
        _put(keys, "".join(f"{key}\n" for key in found.ssh_keys).encode(), mode=0o600)
        _own(keys.parent, mode=0o700)
    if found.name:
        _put(root / "etc/hostname", f"{found.name}\n".encode())
        if root == Path("/"):
            with disk_errors(root / "etc/hostname"):
                socket.sethostname(found.name)
    existing = read_text(root / CONFIG) if (root / CONFIG).exists() else ""
    # It keeps what the keys' paths will be on the device, wherever its root lies now.
    _put(root / CONFIG, settings_text(found, "/" / KEYS, existing).encode())


def _network_file(wifi: Wifi) -> str:
    """Return the name that iwd gives a network's file: iwd.network(5)."""
    is_plain = all(c.isascii() and (c.isalnum() or c in "-_ ") for c in wifi.ssid)
    name = wifi.ssid if is_plain else f"={wifi.ssid.encode().hex()}"
    return f"{name}.{'psk' if wifi.password else 'open'}"


def _network(wifi: Wifi) -> str:
    groups = {"Settings": {"AutoConnect": "true"}}
    if len(wifi.password) == 64:
        groups["Security"] = {"PreSharedKey": wifi.password}
    elif wifi.password:
        # iwd undoes these; a blank at either end would be cut off.
        groups["Security"] = {"Passphrase": wifi.password.replace("\\", "\\\\").replace(" ", "\\s")}
    return _ini(groups)


def _ini(groups: dict[str, dict[str, str]]) -> str:
    writer = configparser.RawConfigParser()
    writer.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]  # names keep their capitals
    writer.read_dict(groups)
    text = io.StringIO()
    writer.write(text, space_around_delimiters=False)
    return text.getvalue()


def _put(path: Path, data: bytes, *, mode: int = 0o644, group: int | None = None) -> None:
    """Replace `path` as a whole. Nobody but root can read it before it has the mode that it is to have."""
    before = os.umask(0o077)
    try:
        is_new = not path.parent.exists()
        write_whole(path, data)
    finally:
        os.umask(before)
    if is_new:
        _own(path.parent, mode=0o755 if mode & 0o004 else 0o700)
    _own(path, mode=mode, group=group)


def _own(path: Path, *, mode: int, group: int | None = None) -> None:
    with disk_errors(path):
        if group is not None and os.geteuid() == 0:
            os.chown(path, 0, group)
        path.chmod(mode)


def _group_id(root: Path) -> int | None:
    """Return the number that the service's group has in the system in `root`, None where it has none."""
    lines = read_text(root / "etc/group").splitlines() if (root / "etc/group").exists() else []
    return next((int(line.split(":")[2]) for line in lines if line.startswith(f"{GROUP}:")), None)


def _read_note(root: Path) -> Applied | None:
    """Return the note of a run that was cut short; one that cannot be read is none: what it was of is done again."""
    try:
        return msgspec.json.decode((root / NOTE).read_bytes(), type=Applied)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None


def _erase(path: Path) -> None:
    """Overwrite and remove `path`, under another name: half overwritten it must not be taken for a new one."""
    aside = path.with_name(f"{path.name}.gone")
    with disk_errors(path):
        if path.exists():
            os.replace(path, aside)
            sync_folder(path.parent)
        if not aside.exists():
            return
        with aside.open("r+b") as file:
            file.write(bytes(aside.stat().st_size))
            file.flush()
            os.fsync(file.fileno())
        aside.unlink()
        sync_folder(path.parent)
