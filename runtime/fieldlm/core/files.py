"""Atomic files, whole or not there: write aside, sync, replace. Digests and canonical JSON."""

import contextlib
import errno
import fcntl
import hashlib
import os
import pwd
import shutil
import stat
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO, Any

import msgspec

from fieldlm.core.errors import FieldlmError, InputError, NoSpaceError

CHUNK_BYTES = 1 << 20
FICLONE = 0x40049409  # linux/fs.h: share the blocks of another file
# What is hashed at once. Between two pieces a thread waits for Python's lock, beside one that computes up to 5 ms: in
# pieces of 256 KB, which file_digest takes, a model took a start that imports meanwhile four times as long.
PIECE_BYTES = 4 << 20


def canonical_json(value: Any) -> bytes:
    """Encode `value` so that equal values give equal bytes: sorted keys, two-space indent, one newline at the end."""
    return msgspec.json.format(msgspec.json.encode(value, order="deterministic"), indent=2) + b"\n"


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of the file at `path`."""
    found, piece = hashlib.sha256(), memoryview(bytearray(min(PIECE_BYTES, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            found.update(piece[:count])
    return found.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it; each name survives a power cut before the next is made."""
    _make_folder(folder, 0o777)


def make_private_folder(folder: Path) -> None:
    """Make `folder` as `make_folder` does, and so that nobody else on this machine sees into it, whatever the umask.

    For what people said. One that is there already keeps the rights that it has, and those above it have the umask's.
    """
    _make_folder(folder, 0o700)


def _make_folder(folder: Path, mode: int) -> None:
    for path in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        path.mkdir(exist_ok=True, mode=mode if path == folder else 0o777)
        sync_folder(path.parent)


def make_private(file: Path) -> None:
    """Make an empty `file`, and the folder it lies in, that nobody else on this machine can read, whatever the umask.

    What is there already keeps the rights that it has. SQLite gives its log the rights of the database.
    """
    make_private_folder(file.parent)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        sync_folder(file.parent)


def act_as_owner(folder: Path) -> None:
    """Let this process, where it is root's, be that of the owner of `folder`, so that what it makes there is theirs.

    A service that runs without root's rights could not write what root has made in its folder. An owner without an
    account here is that of another system, a container's host say, and root stays root.
    """
    if os.geteuid() != 0 or not folder.exists() or not (owner := folder.stat()).st_uid:
        return
    with contextlib.suppress(KeyError):
        name = pwd.getpwuid(owner.st_uid).pw_name
        os.initgroups(name, owner.st_gid)
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


def held_lock(file: Path, problem: str) -> IO[bytes]:
    """Return `file`, opened and locked until it is closed; raises InputError(`problem`) when another opening has it."""
    with disk_errors(file):
        lock = file.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise InputError(problem) from error
        except BaseException:
            lock.close()
            raise
    return lock


@contextlib.contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn the operating system's refusals about `path` into errors a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpaceError(
                f"no space left on the disk of {path} ({free_mb(path)} MB free); free some and run the command again"
            ) from error
        if isinstance(error, FileNotFoundError):
            raise InputError(f"{error.filename or path} does not exist") from error
        raise InputError(f"{path}: {error.strerror or error}") from error


def read_text(path: Path) -> str:
    """Return the text of a file that somebody named; raises InputError for one that is not there or is no UTF-8."""
    with disk_errors(path):
        data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 (byte {error.start})") from error


def cache_root() -> Path:
    """Return `$XDG_CACHE_HOME/fieldlm`, or `~/.cache/fieldlm`."""
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "fieldlm"


def free_mb(path: Path) -> int:
    """Return the free megabytes (1e6 bytes) of the file system that holds `path` or its nearest existing parent."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free // 1_000_000


def write_whole(path: Path, data: bytes | Iterable[bytes], *, private: bool = False) -> None:
    """Write `data`, whole or in pieces, to `path` so that a reader, or a reboot, finds the old file or the new one.

    A `private` file, and its folder where that is made now, nobody else on this machine can read; one that is there
    already keeps its rights. Raises NoSpaceError when the disk is full; the old file is then untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with disk_errors(path):
        try:
            _make_folder(path.parent, 0o700 if private else 0o777)
            opened = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
            with os.fdopen(opened, "wb") as file:
                if private and path.exists():
                    os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
                file.writelines((data,) if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: Path, *, private: bool = False) -> Generator[Path]:
    """Yield an empty folder that replaces `path` when the block ends without error, and is removed otherwise.

    Into a `private` one nobody else on this machine sees. Where `path` is a link, what it points to is replaced.
    """
    path = path.resolve() if path.is_symlink() else path
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    with disk_errors(path):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            _make_folder(aside, 0o700 if private else 0o777)
            yield aside
            if path.exists():
                os.replace(path, old)
            os.replace(aside, path)
            sync_folder(path.parent)
        except FieldlmError:
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Give `source` a second name at `target`: a hard link where the file system allows, else a copy.

    A copy shares its blocks where the file system can (btrfs, XFS). Raises NoSpaceError where there is no room for one,
    before a byte of it is written.
    """
    with disk_errors(target):
        try:
            os.link(source.resolve(), target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
                raise
            _copy(source, target)


def need_room(path: Path, size: int) -> None:
    """Raise NoSpaceError when the disk of `path` has no room for `size` bytes more."""
    if size > 1_000_000 * (free := free_mb(path)):
        raise NoSpaceError(
            f"{path} needs {size / 1e6:.1f} MB and {free} MB are free on its disk; free some and run the command again"
        )


def _copy(source: Path, target: Path) -> None:
    try:
        with source.open("rb") as read, target.open("wb") as written:
            try:
                fcntl.ioctl(written, FICLONE, read.fileno())
            except OSError:
                need_room(target, os.fstat(read.fileno()).st_size)
                shutil.copyfileobj(read, written, CHUNK_BYTES)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
