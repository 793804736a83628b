"""The artefact, a checkpoint as an engine loads it: first with full weights, to be proved, then with fewer bits.

Here is the one place that knows the formats: GGUF and ONNX differ in how they are made and in nothing after that.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.formats.bundle import Engine
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, chat_template
from fieldlm_compiler.export import gguf, quantize
from fieldlm_compiler.export.quantize import WeightsSize
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.pack import BundlePart
from fieldlm_compiler.pipeline.stages import Made, Stages

Format = Literal["gguf", "onnx"]
ENGINES: dict[Format, Engine] = {"gguf": "llama", "onnx": "onnx"}
MODEL = "model.gguf"
TEMPLATE = "template.jinja"
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Files an engine can load: how their weights are written, what they weigh, and the digest that names them."""

    engine: Engine
    quant: str
    parts: tuple[BundlePart, ...]
    size: WeightsSize
    sha256: str

    @property
    def tokenizer_bytes(self) -> int:
        """The size of a tokenizer in a file of its own."""
        own = [part.source for part in self.parts if part.role == "tokenizer"]
        return sum(len(source) if isinstance(source, bytes) else source.stat().st_size for source in own)

    @property
    def base(self) -> Path:
        """The file that the engine is pointed at."""
        source = next(part.source for part in self.parts if part.role == "base")
        assert isinstance(source, Path), "weights are never held in memory"
        return source


def lower(checkpoint: Checkpoint, fmt: Format, stages: Stages) -> Artefact:
    """Write `checkpoint` in `fmt` with all the bits its engine can use: 16 for GGUF, 32 for ONNX."""
    inputs = {"checkpoint": checkpoint.sha256, "name": checkpoint.name, "toolchain": versions(fmt)}
    if fmt == "gguf":
        make, needs_mb = partial(_make_f16, checkpoint), checkpoint.parameters * 2 / MB
        return gguf_artefact("F16", *stages.run("f16", inputs, make, needs_mb=needs_mb))
    make, needs_mb = partial(_make_fp32, checkpoint), checkpoint.parameters * 8 / MB
    return onnx_artefact(*stages.run("fp32", inputs, make, needs_mb=needs_mb))


def shrink(full: Artefact, quant: str, profile: Profile, stages: Stages) -> Artefact:
    """Write `full` with the bits that `quant` gives each weight; F16 is `full` itself."""
    if quant == full.quant:
        return full
    inputs: dict[str, Any] = {"full": full.sha256, "quant": quant}
    if full.engine == "llama":
        inputs |= {"toolchain": versions("gguf")["llama-cpp-python"]}
        make, needs_mb = partial(_make_quantized, full, quant), full.base.stat().st_size * 0.6 / MB
        return gguf_artefact(quant, *stages.run(f"quantized-{quant}", inputs, make, needs_mb=needs_mb))
    inputs |= {"toolchain": versions("onnx"), "shape": [profile.onnx.block_size, profile.onnx.accuracy_level]}
    return onnx_artefact(*stages.run(f"quantized-{quant}", inputs, partial(_make_int4, full, quant, profile)))


def as_is(path: Path, stages: Stages) -> Artefact:
    """Take the GGUF file at `path` for what it is; only its chat template is written out beside it."""
    template = read_header(path).metadata.get("tokenizer.chat_template")
    digest = sha256_file(path)
    folder, _ = stages.run("template", {"gguf": digest}, lambda folder: _write_template(template, folder))
    size = quantize.weigh(path)
    model = BundlePart(role="base", name=MODEL, source=path)
    quant = quantize.file_type(path) or max(size.tensors, key=lambda name: size.tensors[name])
    return Artefact(engine="llama", quant=quant, parts=(model, _template(folder)), size=size, sha256=digest)


def candidates(fmt: Format, asked: Sequence[str], profile: Profile) -> tuple[str, ...]:
    """Return the quantisations to make, best first: those asked for, else the profile's first three.

    Raises InputError for one that does not exist or cannot be made.
    """
    if fmt == "onnx":
        usual = f"int4-b{profile.onnx.block_size}"
        small = usual + import_module("fieldlm_compiler.export.onnx").SMALL_HEAD
        there = {"int4": usual, usual: usual, small: small}
        wrong = [quant for quant in asked if quant.lower() not in there]
        if wrong:
            raise InputError(
                f"there is no ONNX quantisation {wrong[0]!r} for {profile.id}; there are {usual} and {small}"
            )
        return tuple(dict.fromkeys(there[quant.lower()] for quant in asked or (usual,)))
    return tuple(dict.fromkeys(quantize.check_quant(quant) for quant in asked or profile.gguf.quants[:3]))


def versions(fmt: Format) -> dict[str, str]:
    """Return what has a say in the bytes of a bundle of this format."""
    if fmt == "gguf":
        return llama_toolchain.versions()
    optimum = import_module("fieldlm_compiler.pipeline.optimum_toolchain")
    found = llama_toolchain.installed(("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers"))
    return {**found, "optimum": f"sha256:{optimum.optimum_sha256()}"}


def _make_f16(checkpoint: Checkpoint, folder: Path) -> Ran:
    ran = gguf.export_f16(checkpoint, folder / MODEL)
    _write_template(chat_template(checkpoint.folder), folder)
    return replace(ran, value=msgspec.to_builtins(quantize.weigh(folder / MODEL)))


def _make_quantized(full: Artefact, quant: str, folder: Path) -> Ran:
    ran = quantize.quantize(full.base, folder / MODEL, quant)
    copy_template(full, folder)
    return ran


def gguf_artefact(quant: str, folder: Path, made: Made) -> Artefact:
    model = BundlePart(role="base", name=MODEL, source=folder / MODEL)
    size = msgspec.convert(made.value, WeightsSize)
    digest = made.files[MODEL][2]
    return Artefact(engine="llama", quant=quant, parts=(model, _template(folder)), size=size, sha256=digest)


def _make_fp32(checkpoint: Checkpoint, folder: Path) -> Ran:
    onnx = import_module("fieldlm_compiler.export.onnx")
    ran = _exported(onnx.export_fp32(checkpoint.folder, folder))
    _write_template(chat_template(checkpoint.folder), folder)
    return ran


def _make_int4(full: Artefact, quant: str, profile: Profile, folder: Path) -> Ran:
    onnx = import_module("fieldlm_compiler.export.onnx")
    shape, head_bits = profile.onnx, 4 if quant.endswith(onnx.SMALL_HEAD) else 8
    made = onnx.quantize(
        full.base.parent,
        folder,
        block_size=shape.block_size,
        accuracy_level=shape.accuracy_level,
        head_bits=head_bits,
    )
    copy_template(full, folder)
    return _exported(made)


def _exported(export: Any) -> Ran:
    size = sum((export.folder / name).stat().st_size for name, _ in export.files)
    value = {"bytes": size, "quant": export.quant, "bits_per_weight": export.bits_per_weight, "files": export.files}
    return Ran(value=value, seconds=export.seconds, peak_mb=export.peak_mb)


def onnx_artefact(folder: Path, made: Made) -> Artefact:
    value = made.value
    parts = [BundlePart(role=role, name=name, source=folder / name) for name, role in value["files"]]
    return Artefact(
        engine="onnx",
        quant=value["quant"],
        parts=(*parts, _template(folder)),
        size=WeightsSize(
            bytes=value["bytes"], bits_per_weight=value["bits_per_weight"], tensors=value.get("tensors", {})
        ),
        sha256=sha256_bytes(canonical_json({name: digest for name, (_, _, digest) in made.files.items()})),
    )


def _write_template(template: object, folder: Path) -> None:
    if not template:
        terminal.log("  note: the model has no chat template; messages are given to it one after the other")
    (folder / TEMPLATE).write_text(str(template or PLAIN_TEMPLATE))


def copy_template(full: Artefact, folder: Path) -> None:
    shutil.copyfile(full.base.parent / TEMPLATE, folder / TEMPLATE)


def _template(folder: Path) -> BundlePart:
    return BundlePart(role="template", name=TEMPLATE, source=folder / TEMPLATE)
