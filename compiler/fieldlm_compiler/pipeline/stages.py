"""The stage cache: what each stage made, kept by the digest of what it was made from.

A stage's folder appears whole, under a lock, so a kill at any moment leaves nothing half-written that a later run
could take for whole, and two compilers at once wait for each other. `stage.json` inside is written last. Nobody else on
the machine sees into it: a task's examples may be what people said.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import FieldlmError, NoSpaceError
from fieldlm.core.files import cache_root, canonical_json, free_mb, sha256_bytes, sha256_file, whole_folder
from fieldlm.core.logs import logger
from fieldlm_compiler.pipeline.child import Ran

log = logger(__name__)

DONE = "stage.json"
# Counts up when a stage comes to answer in another form: what an older compiler left in the cache is then made anew.
FORMAT = 3
# Below this a failed write is the disk's fault, whatever the native code called it.
FULL_DISK_MB = 2


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One finished stage: what it answered, what it took, and its files with size, time of writing and digest."""

    stage: str
    inputs: dict[str, Any]
    value: Any
    seconds: float
    peak_mb: float
    files: dict[str, tuple[int, int, str]]
    cached: bool = False
    digest: str = ""
    """Of the inputs, which names the stage's folder."""


@contextmanager
def lock(path: Path) -> Generator[None]:
    """Hold `path` for this process alone; the system lets go of it when the process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Stages:
    """The folder of finished stages, and what the stages of this run took."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_root() / "compile"
        self.made: list[Made] = []

    def run(
        self, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Ran | None], *, needs_mb: float = 0
    ) -> tuple[Path, Made]:
        """Return the folder of stage `name` for exactly these `inputs`, made now by `make(folder)` or before.

        Raises NoSpaceError, before anything is written, when the disk has less than `needs_mb` left.
        """
        key = sha256_bytes(canonical_json({"format": FORMAT, "stage": name, "inputs": inputs}))[:20]
        path = self.folder / f"{name}-{key}"
        with lock(self.folder / f".{path.name}.lock"):
            made = _finished(path)
            if made is None:
                made = self._make(path, name, inputs, make, needs_mb)
            else:
                log.info(f"  ✓ {name}: taken from the cache ({made.seconds:.1f} s the first time)")
        made = msgspec.structs.replace(made, digest=key)
        self.made.append(made)
        return path, made

    def _make(
        self, path: Path, name: str, inputs: Mapping[str, Any], make: Callable[[Path], Ran | None], needs_mb: float
    ) -> Made:
        for stale in self.folder.glob(f".{path.name}.*.*"):
            shutil.rmtree(stale, ignore_errors=True)
        if free_mb(self.folder) < needs_mb:
            raise NoSpaceError(
                f"{name} needs {needs_mb:.1f} MB in {self.folder}, {free_mb(self.folder)} MB are free; "
                f"free some or set XDG_CACHE_HOME to a larger disk"
            )
        with whole_folder(path, private=True) as aside:
            ran = self._guarded(make, aside) or Ran(value=None, seconds=0.0, peak_mb=0.0)
            made = Made(
                stage=name,
                inputs=dict(inputs),
                value=ran.value,
                seconds=round(ran.seconds, 2),
                peak_mb=round(ran.peak_mb, 1),
                files=_sealed(aside),
            )
            (aside / DONE).write_bytes(canonical_json(made))
        return made

    def _guarded(self, make: Callable[[Path], Ran | None], aside: Path) -> Ran | None:
        try:
            return make(aside)
        except NoSpaceError:
            raise
        except FieldlmError as error:
            if free_mb(self.folder) <= FULL_DISK_MB:
                raise NoSpaceError(
                    f"no space left in {self.folder}; free some and run the same command again ({error})"
                ) from error
            raise


def _finished(path: Path) -> Made | None:
    """Return what stands in `path` if it is finished and untouched since."""
    try:
        made = msgspec.json.decode((path / DONE).read_bytes(), type=Made)
        for name, (size, mtime_ns, _) in made.files.items():
            stat = (path / name).stat()
            if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
                return None
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None
    return msgspec.structs.replace(made, cached=True)


def _sealed(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Bring every file of `folder` to the disk itself and return size, time and digest of each."""
    sealed: dict[str, tuple[int, int, str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        stat = path.stat()
        sealed[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns, sha256_file(path))
    return sealed
