"""Content-addressed store: files named by their SHA-256, each stored once for all generations that share it."""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fieldlm.core.files import disk_errors, link_or_copy, make_folder, need_room, sha256_file, sync_folder
from fieldlm.formats.release import blob_path


class Blobs:
    """A content-addressed folder. What lies under its final name is whole; anything else is aside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, sha256: str) -> Path:
        """Return where the blob with that digest lies, or would."""
        return self.folder / blob_path(sha256)

    def holds(self, sha256: str, size: int, *, digest: Callable[[Path], str] = sha256_file) -> bool:
        """Say whether the blob is here and undamaged; reads all of it."""
        path = self.path(sha256)
        return path.is_file() and path.stat().st_size == size and digest(path) == sha256

    def make_room(self, files: Collection[tuple[Path, str, int]]) -> None:
        """Remove what a crash left aside; raise NoSpaceError when not all of `files` (source, digest, bytes) fit."""
        for aside in (self.folder / "blobs").glob("sha256/*/.*.part"):
            aside.unlink(missing_ok=True)
        missing = [(source, size) for source, sha256, size in files if not self.path(sha256).is_file()]
        # On one file system a link may do; who has to copy there looks for himself.
        device = self.folder.stat().st_dev
        need_room(self.folder, sum(size for source, size in missing if source.stat().st_dev != device))

    def keep(self, source: Path, sha256: str, size: int) -> None:
        """Store `source`, whose digest the caller has checked, by hard link where the file system allows."""
        if self.holds(sha256, size):
            return
        path = self.path(sha256)
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        with disk_errors(path):
            make_folder(path.parent)
            aside.unlink(missing_ok=True)
            link_or_copy(source, aside)
            _sync_file(aside)
        self.take(aside, sha256)

    def take(self, aside: Path, sha256: str) -> None:
        """Move a synced file, whose digest the caller has checked, to its final name."""
        path = self.path(sha256)
        with disk_errors(path):
            make_folder(path.parent)
            if path.exists() and path.samefile(aside):
                # rename(2) does nothing and succeeds when both names are links to one file
                aside.unlink()
                return
            os.replace(aside, path)
            sync_folder(path.parent)

    def sweep(self, keep: Collection[str]) -> int:
        """Remove every blob whose digest is not in `keep`; return the bytes freed."""
        freed = 0
        for path in self._all():
            if path.name not in keep:
                freed += path.stat().st_size
                path.unlink(missing_ok=True)
        return freed

    def large(self, least_bytes: int) -> list[Path]:
        """Return the blobs of at least that size."""
        return [path for path in self._all() if path.stat().st_size >= least_bytes]

    def _all(self) -> Iterator[Path]:
        yield from sorted((self.folder / "blobs" / "sha256").glob("[0-9a-f][0-9a-f]/*"))


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
