"""The folder of a generation: made of hard links into blobs, whole or not at all."""

from pathlib import Path

from fieldlm.blobs.store import Blobs
from fieldlm.core.files import link_or_copy, make_folder, sha256_file, sync_folder, whole_folder
from fieldlm.formats.bundle import MANIFEST, SIGNATURE, Bundle, parse_manifest


def ingest(blobs: Blobs, bundle: Bundle) -> None:
    """Take all files of a bundle from elsewhere into `blobs`; raises NoSpaceError when they do not fit."""
    blobs.make_room([(bundle.folder / file.path, file.sha256, file.size) for file in bundle.manifest.files])
    for file in bundle.manifest.files:
        blobs.keep(bundle.folder / file.path, file.sha256, file.size)
    for name in (SIGNATURE, MANIFEST):
        path = bundle.folder / name
        blobs.keep(path, sha256_file(path), path.stat().st_size)


def build(blobs: Blobs, folder: Path, bundle: Bundle, *, signature: str) -> None:
    """Make the bundle's `folder`; the manifest is linked last, the folder appears whole or not at all."""
    with whole_folder(folder) as aside:
        names = [(file.path, file.sha256) for file in bundle.manifest.files]
        for path, sha256 in [*names, (SIGNATURE, signature), (MANIFEST, bundle.id)]:
            make_folder((aside / path).parent)
            link_or_copy(blobs.path(sha256), aside / path)
        for inside in {(aside / path).parent for path, _ in names} | {aside}:
            sync_folder(inside)


def holds_files_of(folder: Path, bundle: Bundle) -> bool:
    """Whether the files in `folder` are the very files of `bundle`, which then need not be read again."""
    pairs = [(folder / file.path, bundle.folder / file.path) for file in bundle.manifest.files]
    return all(path.exists() and path.samefile(source) for path, source in pairs)


def digests_of(folder: Path, bundle_id: str) -> set[str]:
    """Return the blobs that the generation in `folder` is made of."""
    manifest = parse_manifest((folder / MANIFEST).read_bytes(), what=str(folder))
    return {bundle_id, sha256_file(folder / SIGNATURE), *(file.sha256 for file in manifest.files)}
