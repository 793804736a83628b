"""Take the air out of what a package holds: symbols of debuggers, sources of what others wrote, and loose modules."""

import shutil
import subprocess
import time
import zipfile
from collections.abc import Collection, Iterable
from importlib.util import source_from_cache
from pathlib import Path

import build_engine
import own_python


def strip(folder: Path, machine: str) -> None:
    """Take from the libraries below `folder`, which are for `machine`, what a debugger reads alone."""
    libraries = [path for path in own_python.shared(folder) if not path.is_symlink()]
    subprocess.run([build_engine.tool(machine, "strip"), "--strip-unneeded", *libraries], check=True)


def keep_compiled(folder: Path, with_sources: Collection[str] = ()) -> None:
    """Keep of the modules below `folder` what they were compiled to, in their place; of `with_sources` both."""
    for path in sorted(folder.rglob("__pycache__/*.pyc")):
        source = Path(source_from_cache(str(path)))
        if source.relative_to(folder).parts[0] not in with_sources:
            source.unlink()
            path.rename(source.with_suffix(".pyc"))
    for cache in sorted(folder.rglob("__pycache__")):
        if not any(cache.iterdir()):
            cache.rmdir()


def gather(folder: Path, entries: Iterable[str], target: Path, time_s: int) -> None:
    """Move `entries` of `folder` into the zip file `target`, from which Python imports; every file is of `time_s`."""
    date = time.gmtime(max(time_s, 315532800))[:6]  # a zip file begins in 1980
    with zipfile.ZipFile(target, "w") as archive:
        for entry in sorted(entries):
            whole = folder / entry
            for path in sorted(whole.rglob("*")) if whole.is_dir() else [whole]:
                if path.is_file():
                    # In a zip file Python looks for what is compiled beside the source.
                    is_cached = path.parent.name == "__pycache__"
                    place = Path(source_from_cache(str(path))).with_suffix(".pyc") if is_cached else path
                    info = zipfile.ZipInfo(str(place.relative_to(folder)), date)
                    archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)
            shutil.rmtree(whole) if whole.is_dir() else whole.unlink()


def plain(folder: Path) -> list[str]:
    """Return the entries of `folder` that hold nothing but modules: Python imports those from a zip file as well."""
    kinds = {".py", ".pyc", ".typed", ".rst", ".md", ""}
    entries = [path for path in folder.iterdir() if path.suffix == ".pyc" or any(path.glob("__init__.py*"))]
    held = {path.name: [file.suffix for file in path.rglob("*") if file.is_file()] for path in entries}
    return sorted(name for name, suffixes in held.items() if set(suffixes) <= kinds)
