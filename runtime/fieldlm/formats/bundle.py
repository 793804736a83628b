"""The bundle: one folder that a device can serve, with a manifest that is written last and signed.

    bundle/
      model.gguf | model.onnx …   role base
      adapter.gguf                role adapter      a LoRA for exactly this base, or several (`task_adapters.py`)
      tokenizer.json              role tokenizer    (ONNX; a GGUF carries its own)
      template.jinja              role template     the chat template, as the model's authors wrote it
      probe.json                  role probe        prompts with the answers a healthy copy gives
      confidence.json             role confidence   how sure an answer has to be to be right (`formats/confidence.py`)
      router.npz                  role router       which task a request is (`formats/router.py`)
      classifier.npz              role classifier   answers of closed sets, without the model (`formats/classifier.py`)
      report.json                 role report       candidates, gates, timings
      manifest.sig  manifest.json

A folder without `manifest.json` is unfinished. The bundle's id is the SHA-256 of the manifest's bytes, so it names
every byte of every file; two bundles that share a base share that file's digest, and a device that has the base
fetches only the rest. The same inputs and toolchain give the same bytes: times of day stay out of the manifest.
"""

import math
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import BundleError, InputError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file, write_whole
from fieldlm.core.signing import Signature, check_signature, sign
from fieldlm.formats.growth import Growing, check_understood, is_readable
from fieldlm.formats.task_adapters import TaskAdapter, check_task_adapters

if TYPE_CHECKING:
    from fieldlm.formats.classifier import Classifier
    from fieldlm.formats.router import Router

FORMAT = "fieldlm.bundle/1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"

UNPROVED = "unproved"
"""In place of a profile: the bundle was made around a file as it is, for no kind of device, and nobody judged it."""

NO_MODEL = "none"
"""In place of an engine: the device has no small model yet, and the large one answers alone."""

SOURCE_GATE = "mean-kl"
"""The gate of weights that were held against a source model's: how far their next word's distribution is from its."""

Role = Literal["base", "adapter", "tokenizer", "template", "probe", "report", "confidence", "router", "classifier"]
"""What this version writes. A file with another role is kept and passed by."""


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the bundle: its path inside the folder, what it is for, its size in bytes and its digest."""

    path: str
    role: str
    size: int
    sha256: str


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was compiled: `name` for people and clients, `source` as it was named, its licence and its shape."""

    name: str
    source: str
    licence: str
    architecture: str
    parameters: int
    context: int
    source_sha256: str


Z_95 = 1.959964
"""Standard deviations on either side of the mean that have 95 % of a normal distribution between them."""


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """One check the bundle had to pass: the value found, the limit, the verdict.

    A share that was counted has its 95 % interval, from `low` to `high`, and how many it was counted over.
    """

    name: str
    value: float
    limit: float
    passed: bool
    unit: str = ""
    low: float | None = None
    high: float | None = None
    count: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the interval reaches over the limit: so few that were counted cannot tell on which side it is."""
        return self.low is not None and self.high is not None and self.low <= self.limit <= self.high

    @property
    def needed(self) -> int | None:
        """How many have to be counted to tell a share such as `value` from `limit`; None where no number does.

        Wilson's interval is the score test turned round (E. B. Wilson, JASA 22, 1927): it leaves the limit p out once
        n > z² p (1 - p) / (share - p)².
        """
        apart = self.value - self.limit
        return math.ceil(Z_95**2 * self.limit * (1 - self.limit) / apart**2) if apart else None

    @property
    def doubt(self) -> str:
        """The interval and the count in words, and what it takes to tell; empty where nothing was counted."""
        if self.count is None:
            return ""
        said = f"95 %: {self.low:.3g} to {self.high:.3g}, n = {self.count}"
        if not self.is_open:
            return said
        enough = f"about {self.needed:,} would" if self.needed else "and so is any number"
        return f"{said}: too few to tell from {self.limit:g}, {enough}"


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How the weights were written: `quant` is a llama.cpp file type (Q4_K_M …) or an ONNX recipe (int4-b32)."""

    quant: str
    bits_per_weight: float
    merged_adapter_sha256: str | None = None
    options: dict[str, str] = {}


class CacheTypes(msgspec.Struct, frozen=True, kw_only=True):
    """The types of keys and values in an engine's cache, by their names in ggml, such as f16 and q8_0."""

    keys: str
    values: str


class Manifest(Growing, frozen=True, kw_only=True):
    """The table of contents of a bundle. What a later minor version adds is ignored unless it must be understood.

    `engine` is the name of a module in `fieldlm.engines`, or of one that another package offers.
    """

    format: str
    engine: str
    model: ModelInfo
    profile: str
    profile_sha256: str
    recipe: Recipe
    files: tuple[File, ...]
    cache: CacheTypes | None = None  # what the weights were judged with, where the profile left it open
    gates: tuple[Gate, ...] = ()
    toolchain: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    system_prompt: str | None = None
    dataset: str | None = None
    parent: str | None = None
    notes: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    adapters: tuple[TaskAdapter, ...] | msgspec.UnsetType = msgspec.UNSET  # not written where there is one, or none

    @property
    def task_adapters(self) -> tuple[TaskAdapter, ...]:
        """The adapters among which a request's task chooses, the one for the rest first; none unless several."""
        return self.adapters if isinstance(self.adapters, tuple) else ()

    def file(self, role: Role) -> File | None:
        """Return the first file with `role`, or None."""
        return next((file for file in self.files if file.role == role), None)

    @property
    def is_proved(self) -> bool:
        """Whether a compiler made and judged it for a kind of device."""
        return self.profile != UNPROVED

    @property
    def is_held_against_source(self) -> bool:
        """Whether its weights had to answer as a source model; a file that came quantised has none here."""
        return any(gate.name == SOURCE_GATE for gate in self.gates)

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)

    @property
    def base(self) -> tuple[str, list[str]]:
        """What bundles share whose adapters run on one engine: its name, the digests of base and tokenizer."""
        return self.engine, sorted(file.sha256 for file in self.files if file.role in ("base", "tokenizer"))


class Bundle(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A manifest and the folder it was read from. `id` is the SHA-256 of the manifest's bytes.

    What is read of it when it is loaded it holds itself, so that no request waits for a file or fails by it.
    """

    folder: Path
    id: str
    manifest: Manifest

    @property
    def generation(self) -> str:
        """The short name that every answer and record carries: the first 12 digits of the id."""
        return self.id[:12]

    def path(self, role: Role) -> Path | None:
        """Return the path of the first file with `role`, or None."""
        file = self.manifest.file(role)
        return self.folder / file.path if file else None

    @cached_property
    def router(self) -> "Router | None":
        """Its router, None where it has none; raises BundleError where that is damaged."""
        from fieldlm.formats.router import read_router

        path = self.path("router")
        return None if path is None else read_router(path)

    @cached_property
    def classifier(self) -> "Classifier | None":
        """Its classifier, None where it has none; raises BundleError where that is damaged."""
        from fieldlm.formats.classifier import read_classifier

        path = self.path("classifier")
        return None if path is None else read_classifier(path)

    @property
    def adapter_paths(self) -> dict[str, Path]:
        """The files of its adapters by their names, the default one first; the only one of a bundle is called ""."""
        if several := self.manifest.task_adapters:
            return {each.name: self.folder / each.path for each in several}
        path = self.path("adapter")
        return {} if path is None else {"": path}

    def need(self, role: Role) -> Path:
        """Return the path of the first file with `role`; raises BundleError when there is none."""
        path = self.path(role)
        if path is None:
            raise BundleError(f"{self.folder} has no {role} file; compile it again")
        return path


def describe(folder: Path, path: str, role: str) -> File:
    """Measure one file for the manifest."""
    return File(path=path, role=role, size=(folder / path).stat().st_size, sha256=sha256_file(folder / path))


def parse_manifest(data: bytes, *, what: str) -> Manifest:
    """Read manifest bytes that may come from anywhere; raises BundleError with the field that is wrong."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{what} is not a bundle manifest: {error}") from error
    if not is_readable(manifest.format, FORMAT):
        raise BundleError(f"{what} has format {manifest.format!r}, this version reads {FORMAT!r}; update fieldlm")
    check_understood(manifest, what=what, error=BundleError, known=get_args(Role))
    for file in manifest.files:
        pure = PurePosixPath(file.path)
        if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in file.path:
            raise BundleError(f"{what} names a file outside its folder: {file.path!r}")
        if file.size < 0 or len(file.sha256) != 64 or not set(file.sha256) <= set("0123456789abcdef"):
            raise BundleError(f"{what} has a bad size or digest for {file.path!r}")
    if len({file.path for file in manifest.files}) != len(manifest.files):
        raise BundleError(f"{what} names a file twice")
    if manifest.adapters is not msgspec.UNSET:
        understood = manifest.must_understand
        check_task_adapters(
            manifest.task_adapters,
            {file.path: file.role for file in manifest.files},
            understood if isinstance(understood, tuple) else (),
            what=what,
        )
    return manifest


def write_bundle(folder: Path, manifest: Manifest, key: Ed25519PrivateKey) -> Bundle:
    """Sign `manifest` and write it into `folder`, which already holds every file it names."""
    data = canonical_json(manifest)
    write_whole(folder / SIGNATURE, canonical_json(sign(data, key)))
    write_whole(folder / MANIFEST, data)
    return Bundle(folder=folder, id=sha256_bytes(data), manifest=manifest)


def open_bundle(folder: Path, *, trusted: frozenset[str] = frozenset(), digests: bool = True) -> Bundle:
    """Read the bundle in `folder` and check its signature and, with `digests`, every byte of every file.

    Raises InputError when there is no bundle, BundleError when it is damaged, TrustError when the signer is not among
    the `trusted` key ids (an empty set trusts any signer).
    """
    path = folder / MANIFEST
    if not path.is_file():
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, a bundle is a folder; make one with: fieldlm compile {folder}")
        if models := sorted(folder.glob("*.gguf")):
            raise InputError(f"{folder} has no {MANIFEST} and is no bundle; name the file in it: {models[0]}")
        hint = "it is unfinished or not a bundle" if folder.is_dir() else "there is no such folder"
        raise InputError(f"{folder} has no {MANIFEST}: {hint}; make one with: fieldlm compile MODEL --out {folder}")
    data = path.read_bytes()
    manifest = parse_manifest(data, what=str(path))
    check_signature(data, _signature(folder), trusted=trusted, what=str(path))
    for file in manifest.files:
        check_file(folder / file.path, file, digests=digests)
    return Bundle(folder=folder, id=sha256_bytes(data), manifest=manifest)


def check_file(path: Path, file: File, *, digests: bool = True) -> None:
    """Raise BundleError unless `path` is the file the manifest describes."""
    if not path.is_file():
        raise BundleError(f"{path} is missing; fetch or compile the bundle again")
    size = path.stat().st_size
    if size != file.size:
        raise BundleError(f"{path} has {size} bytes, its manifest says {file.size}; fetch or compile the bundle again")
    if digests and sha256_file(path) != file.sha256:
        raise BundleError(f"{path} is damaged: its SHA-256 is not the manifest's; fetch or compile the bundle again")


def _signature(folder: Path) -> Signature:
    try:
        return msgspec.json.decode((folder / SIGNATURE).read_bytes(), type=Signature)
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{folder / SIGNATURE} cannot be read: {error}; compile the bundle again") from error
