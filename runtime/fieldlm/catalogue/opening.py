"""Open a model by whatever names it: a bundle as it is; a GGUF file, or one that is fetched, as an unproved bundle.

An unproved bundle is a folder in the cache with a link to the file, the chat template that the file carries, and a
manifest for no profile. Nobody has measured it, chosen its types for a device or vouched for it: its key is thrown
away once it is signed.
"""

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.catalogue.model_cache import FetchedModel, pull
from fieldlm.catalogue.names import catalogue, is_fetched, unknown
from fieldlm.core.errors import BundleError, EngineError, FieldlmError, InputError
from fieldlm.core.files import cache_root, sha256_bytes, whole_folder
from fieldlm.formats.bundle import (
    FORMAT,
    MANIFEST,
    NO_MODEL,
    UNPROVED,
    Bundle,
    Manifest,
    ModelInfo,
    Recipe,
    describe,
    open_bundle,
    write_bundle,
)
from fieldlm.formats.gguf import FILE_TYPES, Header, read_header

_PLAIN_TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
BASE, TEMPLATE = "model.gguf", "template.jinja"
DEFAULT_CONTEXT = 2048
"""Tokens, for a model that does not say how many it was trained for."""


def open_model(source: Path | str, *, trusted: frozenset[str] = frozenset(), digests: bool = True) -> Bundle:
    """Return the bundle that `source` names: a bundle's folder, a `.gguf` file, or a model that is fetched by its name.

    `trusted` and `digests` are as for `open_bundle`. What is fetched is asked for once and kept in the cache. Raises
    InputError, EngineError or BundleError for what is no model that can be opened, UnavailableError for one that cannot
    be fetched, TrustError for one that is not what it should be, or not by a `trusted` key.
    """
    name, path = str(source), Path(source)
    if path.is_dir() or (path / MANIFEST).exists():
        return open_bundle(path, trusted=trusted, digests=digests)
    if is_fetched(name):
        found = pull(name)
        known_as = next((short for short, entry in catalogue().items() if entry.source == found.source), "")
        folder = _unproved(found.path, name=known_as, fetched=found)
    elif path.is_file() or name.lower().endswith(".gguf"):
        folder = _unproved(path)
    else:
        raise InputError(unknown(name))
    return open_bundle(folder, trusted=trusted, digests=False)


def no_model() -> Path:
    """Return the folder of a bundle without a model, for a device on which the large model answers alone."""
    folder = cache_root() / "unproved" / "none"
    if is_bundle(folder):
        return folder
    with whole_folder(folder) as aside:
        (aside / TEMPLATE).write_text(_PLAIN_TEMPLATE, encoding="utf-8")
        manifest = Manifest(
            format=FORMAT,
            engine=NO_MODEL,
            model=ModelInfo(
                name=NO_MODEL,
                source="",
                licence=NO_MODEL,
                architecture=NO_MODEL,
                parameters=0,
                context=1 << 20,
                source_sha256="0" * 64,
            ),
            profile=UNPROVED,
            profile_sha256="0" * 64,
            recipe=Recipe(quant=NO_MODEL, bits_per_weight=0.0),
            files=(describe(aside, TEMPLATE, "template"),),
        )
        write_bundle(aside, manifest, Ed25519PrivateKey.generate())
    return folder


def advice(bundle: Bundle, source: Path | str) -> str:
    """Return what to tell who opened the unproved `bundle` by the name `source`: what `fieldlm compile` would add."""
    model = bundle.manifest.model
    return (
        f"{model.name} (licence: {model.licence}) is unproved; fieldlm compile {shlex.quote(str(source))} "
        "would measure it, fit it to a kind of device and sign it, so that it can be updated"
    )


def model_info(header: Header, path: Path, sha256: str) -> ModelInfo:
    """Return what the GGUF file at `path`, of that digest, says of itself."""
    metadata = header.metadata
    context = metadata.get(f"{header.architecture}.context_length")
    return ModelInfo(
        name=_plain(str(metadata.get("general.name") or path.stem)),
        source=path.name,
        licence=str(metadata.get("general.license") or "unknown"),
        architecture=header.architecture,
        parameters=header.parameters,
        context=context if isinstance(context, int) and context > 0 else DEFAULT_CONTEXT,
        source_sha256=sha256,
    )


def _unproved(path: Path, *, name: str = "", fetched: FetchedModel | None = None) -> Path:
    """Return the folder of the unproved bundle around the GGUF at `path`, which is made where it is not there yet."""
    try:
        path = path.resolve(strict=True)
        facts = path.stat()
    except OSError as error:
        raise InputError(f"there is no file {path}") from error
    # What names a state of the file: it is read to its end once, not at each start.
    state = f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino} {name}"
    folder = cache_root() / "unproved" / sha256_bytes(state.encode())[:16]
    if is_bundle(folder):
        return folder
    header = read_header(path)
    _check_model(header, path)
    try:
        _forget_dangling(folder.parent)
        with whole_folder(folder) as aside:
            _write(aside, path, header, name=name, fetched=fetched)
    except InputError as error:
        if is_bundle(folder):  # another process was quicker
            return folder
        raise InputError(f"{error}; set XDG_CACHE_HOME to a folder that can be written") from error
    return folder


def _write(folder: Path, path: Path, header: Header, *, name: str, fetched: FetchedModel | None) -> None:
    (folder / BASE).symlink_to(path)
    files = [describe(folder, BASE, "base")]
    if fetched and files[0].sha256 != fetched.sha256:
        raise BundleError(f"{path} is not what was fetched; run: fieldlm rm {fetched.source}")
    template = chat_template(header.metadata)
    if template:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        files.append(describe(folder, TEMPLATE, "template"))
    own = model_info(header, path, files[0].sha256)
    manifest = Manifest(
        format=FORMAT,
        engine="llama",
        model=ModelInfo(
            name=name or own.name,
            source=fetched.source if fetched else own.source,
            licence=(fetched and fetched.licence) or own.licence,
            architecture=own.architecture,
            parameters=own.parameters,
            context=own.context,
            source_sha256=own.source_sha256,
        ),
        profile=UNPROVED,
        profile_sha256="0" * 64,
        recipe=Recipe(
            quant=FILE_TYPES.get(header.metadata.get("general.file_type", -1), "unknown"),
            bits_per_weight=round(8 * header.weight_bytes / max(1, header.parameters), 3),
        ),
        files=tuple(files),
    )
    write_bundle(folder, manifest, Ed25519PrivateKey.generate())


def is_bundle(folder: Path) -> bool:
    """Whether there is a bundle in `folder` all of whose files have their sizes."""
    try:
        open_bundle(folder, digests=False)
    except FieldlmError:
        return False
    return True


def chat_template(metadata: Mapping[str, Any]) -> str:
    """Return the chat template among a GGUF's metadata, "" where there is none."""
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template.strip() else ""


def _check_model(header: Header, path: Path) -> None:
    """Raise EngineError for a GGUF that holds no language model by itself."""
    kind, parts = header.metadata.get("general.type", "model"), header.metadata.get("split.count", 0)
    if kind != "model":
        raise EngineError(f"{path} is no model but of the type {kind!r}; name the model's own file")
    if isinstance(parts, int) and parts > 1:
        raise EngineError(f"{path} is one of {parts} parts; join them: llama-gguf-split --merge {path.name} whole.gguf")
    if not header.tensors or "tokenizer.ggml.model" not in header.metadata:
        what = "weights" if not header.tensors else "tokenizer"
        raise EngineError(f"{path} holds no {what}; name a whole model's file")


def _forget_dangling(folder: Path) -> None:
    """Remove the bundles whose file has gone."""
    for made in folder.iterdir() if folder.exists() else ():
        if (made / BASE).is_symlink() and not (made / BASE).exists():
            shutil.rmtree(made, ignore_errors=True)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"
