"""ONNX, for ONNX Runtime: a graph, its weights beside it and a tokenizer; see docs/onnx-graph.md.

The onnx library is imported where it is used: who compiles a GGUF need not have it.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, sha256_bytes
from fieldlm.formats.bundle import Bundle, CacheTypes
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, chat_template, special_tokens
from fieldlm_compiler.export.artefact import MB, Artefact, copy_template, mixture_name, template_part, write_template
from fieldlm_compiler.export.format import Format
from fieldlm_compiler.export.onnx import SMALL_HEAD, OnnxExport, export_fp32, quantize
from fieldlm_compiler.export.quantize import WeightsSize
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.optimum_toolchain import optimum_sha256
from fieldlm_compiler.pipeline.pack import BundlePart
from fieldlm_compiler.pipeline.stages import Made, Stages
from fieldlm_compiler.search.searchable import Foresees
from fieldlm_compiler.search.weights import Weights
from fieldlm_compiler.verify.divergence import LogitReader

PACKAGES = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


class OnnxFormat(Format):
    """A Format that can be searched."""

    name, engine, suffix = "onnx", "onnx", ".onnx"

    def versions(self) -> dict[str, str]:
        return {**llama_toolchain.installed(PACKAGES), "optimum": f"sha256:{optimum_sha256()}"}

    def candidates(self, asked: Sequence[str], profile: Profile) -> tuple[str, ...]:
        usual = f"int4-b{profile.onnx.block_size}"
        small = usual + SMALL_HEAD
        there = {"int4": usual, usual: usual, small: small}
        wrong = [quant for quant in asked if quant.lower() not in there]
        if wrong:
            raise InputError(
                f"there is no ONNX quantisation {wrong[0]!r} for {profile.id}; there are {usual} and {small}"
            )
        return tuple(dict.fromkeys(there[quant.lower()] for quant in asked or (usual,)))

    def lower(self, checkpoint: Checkpoint, stages: Stages) -> Artefact:
        inputs = {"checkpoint": checkpoint.sha256, "name": checkpoint.name, "toolchain": self.versions()}
        make, needs_mb = partial(_make_fp32, checkpoint), checkpoint.parameters * 8 / MB
        return _artefact(*stages.run("fp32", inputs, make, needs_mb=needs_mb))

    def shrink(self, full: Artefact, quant: str, profile: Profile, stages: Stages) -> Artefact:
        if quant == full.quant:
            return full
        shape = [profile.onnx.block_size, profile.onnx.accuracy_level]
        inputs = {"full": full.sha256, "quant": quant, "toolchain": self.versions(), "shape": shape}
        return _artefact(*stages.run(f"quantized-{quant}", inputs, partial(_make_int4, full, quant, profile)))

    def notes(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return special_tokens(checkpoint.folder)

    def places(self, bundle: Bundle, name: str) -> Sequence[int]:
        """Return what the graph says of the weights beside it."""
        import onnx
        from google.protobuf.message import DecodeError
        from onnx.external_data_helper import ExternalDataInfo, uses_external_data

        graph = bundle.path("base")
        if graph is None or graph.name == name:
            return ()
        try:
            model = onnx.load(graph, load_external_data=False)
        except DecodeError:
            return ()  # published as it is: what is wrong with it is for the device's own checks to say
        told = [ExternalDataInfo(tensor) for tensor in model.graph.initializer if uses_external_data(tensor)]
        return [one.offset or 0 for one in told if one.location == name]

    # verify.divergence.Readable

    def reader(self, path: Path, cache: CacheTypes | None, room: int, threads: int) -> LogitReader:
        from fieldlm_compiler.verify.onnx_read import OnnxReader

        return OnnxReader(path, room, threads)

    # search.searchable.Searchable

    def weights(self, path: Path) -> Weights:
        from fieldlm_compiler.search.onnx_weights import OnnxWeights

        return OnnxWeights(path)

    def names(self, model: Any, full: Path) -> dict[str, str]:
        from fieldlm_compiler.search.onnx_weights import name_of

        matrices = [path for path, parameter in model.named_parameters() if parameter.dim() == 2]
        return {path: name_of(path.removesuffix(".weight")) for path in matrices}

    def forecast(self, full: Artefact, profile: Profile, tokens_per_s: float, stages: Stages) -> Foresees:
        from fieldlm_compiler.search.onnx_forecast import OnnxForesight

        return OnnxForesight(full, profile, tokens_per_s, stages)

    def size_bytes(self, full: Artefact, types: Mapping[str, str], profile: Profile) -> int:
        from fieldlm_compiler.search.onnx_weights import opened

        return full.tokenizer_bytes + opened(full.base).size_bytes(types, profile.onnx.accuracy_level)

    def caches(self, full: Path, profile: Profile) -> Sequence[CacheTypes]:
        return ()  # the graph has one type of its own

    def price_caches(self, full: Path, caches: Sequence[CacheTypes], windows: Sequence[Sequence[int]]) -> Ran:
        raise InputError("an ONNX graph has one type of keys and values")

    def mixture_inputs(self, profile: Profile) -> dict[str, Any]:
        return {"toolchain": self.versions(), "shape": profile.onnx.accuracy_level}

    def write_mixture(
        self,
        full: Artefact,
        types: Mapping[str, str],
        statistics: Path,
        *,
        profile: Profile,
        folder: Path,
        writing: Callable[[Path], Ran] | None,
    ) -> Ran:
        from fieldlm_compiler.search import onnx_write

        ran = onnx_write.write(full.base, statistics, types, folder, accuracy_level=profile.onnx.accuracy_level)
        beside = [part for part in full.parts if part.role == "tokenizer"]
        for part in beside:
            shutil.copyfile(part.source, folder / part.name)
        files = [(part.name, part.role) for part in full.parts if part.role in {"base", "tokenizer"}]
        size = ran.value["bytes"] + sum((folder / part.name).stat().st_size for part in beside)
        return replace(ran, value={**ran.value, "bytes": size, "quant": mixture_name(ran.value), "files": files})

    def mixture(self, folder: Path, made: Made) -> Artefact:
        return _artefact(folder, made)


FORMAT = OnnxFormat()


def _make_fp32(checkpoint: Checkpoint, folder: Path) -> Ran:
    ran = _exported(export_fp32(checkpoint.folder, folder))
    write_template(chat_template(checkpoint.folder), folder)
    return ran


def _make_int4(full: Artefact, quant: str, profile: Profile, folder: Path) -> Ran:
    shape, head_bits = profile.onnx, 4 if quant.endswith(SMALL_HEAD) else 8
    made = quantize(
        full.base.parent,
        folder,
        block_size=shape.block_size,
        accuracy_level=shape.accuracy_level,
        head_bits=head_bits,
    )
    copy_template(full, folder)
    return _exported(made)


def _exported(export: OnnxExport) -> Ran:
    size = sum((export.folder / name).stat().st_size for name, _ in export.files)
    value = {"bytes": size, "quant": export.quant, "bits_per_weight": export.bits_per_weight, "files": export.files}
    return Ran(value=value, seconds=export.seconds, peak_mb=export.peak_mb)


def _artefact(folder: Path, made: Made) -> Artefact:
    value = made.value
    parts = [BundlePart(role=role, name=name, source=folder / name) for name, role in value["files"]]
    return Artefact(
        engine="onnx",
        quant=value["quant"],
        parts=(*parts, template_part(folder)),
        size=WeightsSize(
            bytes=value["bytes"], bits_per_weight=value["bits_per_weight"], tensors=value.get("tensors", {})
        ),
        sha256=sha256_bytes(canonical_json({name: digest for name, (_, _, digest) in made.files.items()})),
    )
