"""Pack: files and facts become a signed bundle, whole or not at all."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import InputError
from fieldlm.core.files import link_or_copy, whole_folder
from fieldlm.formats.bundle import MANIFEST, Bundle, File, Manifest, describe, write_bundle


@dataclass(frozen=True, kw_only=True)
class BundlePart:
    """One file of a bundle to be: its role, its name there, and where its bytes are.

    A `shared` part stays one file with its source. The others are copied, so that nobody harms the cache through a
    bundle.
    """

    role: str
    name: str
    source: Path | bytes
    shared: bool = False


def draft(manifest: Manifest, parts: Sequence[BundlePart]) -> Bundle:
    """Name files that are not packed yet as a bundle, so that the runtime's own code can open them."""
    files = tuple(
        File(path=str(part.source.resolve()), role=part.role, size=0, sha256="0" * 64)
        for part in parts
        if isinstance(part.source, Path)
    )
    return Bundle(folder=Path(), id="0" * 64, manifest=msgspec.structs.replace(manifest, files=files))


def check_out(out: Path) -> None:
    """Raise InputError when `out` holds something that is not a bundle: packing replaces the whole folder."""
    if out.exists() and not (out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir()))):
        raise InputError(f"{out} exists and is not a bundle; name another place with --out")


def pack(out: Path, manifest: Manifest, parts: Sequence[BundlePart], key: Ed25519PrivateKey) -> Bundle:
    """Write the bundle `out` from `parts` and sign it; a bundle that stood there is replaced at once."""
    check_out(out)
    with whole_folder(out) as aside:
        for part in parts:
            _place(part, aside / part.name)
        files = tuple(describe(aside, part.name, part.role) for part in parts)
        bundle = write_bundle(aside, msgspec.structs.replace(manifest, files=files), key)
    return Bundle(folder=out, id=bundle.id, manifest=bundle.manifest)


def _place(part: BundlePart, target: Path) -> None:
    if isinstance(part.source, bytes):
        target.write_bytes(part.source)
    elif part.shared:
        link_or_copy(part.source, target)
    else:
        shutil.copyfile(part.source, target)
