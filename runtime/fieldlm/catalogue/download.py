"""Resumable download of one large file whose size and SHA-256 are known: what has arrived is kept beside the target."""

import os
import time
from pathlib import Path

from fieldlm.blobs.sources import BlobSource, MissingFileError
from fieldlm.core.errors import TrustError, UnavailableError
from fieldlm.core.files import disk_errors, make_folder, need_room, sha256_file, sync_folder
from fieldlm.core.terminal import Progress, progress

FRUITLESS = 3
"""Tries in a row that bring nothing, after which it is given up."""
WAIT_S = 1.0
PIECE_BYTES = 64 << 10
"""Read at a time: what is lost of a piece in which the connection breaks."""


def download(source: BlobSource, path: str, target: Path, *, size: int, sha256: str, what: str) -> Path:
    """Bring the file at `path` of `source` to `target` and return that; goes on where an earlier call stopped.

    Raises NoSpaceError before the first byte when the disk is too small, UnavailableError when the source goes away,
    TrustError when the bytes are not those of `sha256`.
    """
    part = target.with_name(f".{sha256}.part")
    make_folder(part.parent)
    need_room(part, size - _here(part))
    with progress(f"fetch {what}") as line:
        line.begun = _here(part) // 1_000_000
        fruitless = 0
        while (before := _here(part)) < size:
            try:
                _append(source, path, part, size, line)
            except MissingFileError:
                raise
            except UnavailableError:
                if fruitless + 1 >= FRUITLESS:
                    raise
            fruitless = 0 if _here(part) > before else fruitless + 1
            if fruitless >= FRUITLESS:
                raise UnavailableError(f"{source.name} ends {path} after {before} of {size} bytes; try again later")
            if fruitless:
                time.sleep(WAIT_S * fruitless)
    if (found := sha256_file(part)) != sha256:
        part.unlink()
        raise TrustError(f"{what} came with SHA-256 {found}, its source says {sha256}; fetch it again")
    with disk_errors(target):
        os.replace(part, target)
        sync_folder(target.parent)
    return target


def _append(source: BlobSource, path: str, part: Path, size: int, line: Progress) -> None:
    done = _here(part)
    with source.open(path, done, size) as reader, disk_errors(part), part.open("ab") as file:
        line.show_bytes(done, size)
        while data := reader.read(min(PIECE_BYTES, size - done)):
            file.write(data)
            done += len(data)
            line.show_bytes(done, size)
        file.flush()
        os.fsync(file.fileno())


def _here(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
