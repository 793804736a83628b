"""GGUF, for llama.cpp: one file with tokenizer and template inside, and the only format that takes adapters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.catalogue.names import is_fetched
from fieldlm.catalogue.opening import model_info
from fieldlm.core.files import sha256_file
from fieldlm.formats.bundle import Bundle, CacheTypes, ModelInfo
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, chat_template, find_gguf
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter, check_shippable
from fieldlm_compiler.export import gguf, quantize
from fieldlm_compiler.export.artefact import MB, Artefact, copy_template, mixture_name, template_part, write_template
from fieldlm_compiler.export.format import Format
from fieldlm_compiler.export.quantize import QUANTS, WeightsSize
from fieldlm_compiler.pipeline import llama_toolchain
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.pack import BundlePart
from fieldlm_compiler.pipeline.stages import Made, Stages
from fieldlm_compiler.search import gguf_write, kv_cache
from fieldlm_compiler.search.forecast import Foresight
from fieldlm_compiler.search.searchable import Foresees
from fieldlm_compiler.search.weights import GgufWeights, Weights
from fieldlm_compiler.verify.divergence import GgufReader, LogitReader

MODEL = "model.gguf"
FULL_WEIGHTS = ("F32", "F16", "BF16")


class GgufFormat(Format):
    """A Format that can be searched, shared out and given adapters."""

    name, engine, suffix = "gguf", "llama", ".gguf"
    adapter_name = "adapter.gguf"

    def versions(self) -> dict[str, str]:
        return llama_toolchain.versions()

    def candidates(self, asked: Sequence[str], profile: Profile) -> tuple[str, ...]:
        return tuple(dict.fromkeys(quantize.check_quant(quant) for quant in asked or profile.gguf.quants[:3]))

    def lower(self, checkpoint: Checkpoint, stages: Stages) -> Artefact:
        inputs = {"checkpoint": checkpoint.sha256, "name": checkpoint.name, "toolchain": self.versions()}
        inputs |= {"licence": checkpoint.licence}
        make, needs_mb = partial(_make_f16, checkpoint), checkpoint.parameters * 2 / MB
        return _artefact("F16", *stages.run("f16", inputs, make, needs_mb=needs_mb))

    def shrink(self, full: Artefact, quant: str, profile: Profile, stages: Stages) -> Artefact:
        if quant == full.quant:
            return full
        inputs = {"full": full.sha256, "quant": quant, "toolchain": self.versions()["llama-cpp-python"]}
        make, needs_mb = partial(_make_quantized, full, quant), full.base.stat().st_size * 0.6 / MB
        return _artefact(quant, *stages.run(f"quantized-{quant}", inputs, make, needs_mb=needs_mb))

    def ready_file(self, model: str, stages: Stages) -> Path | None:
        """Return the file when `model` names one whose weights are quantised already."""
        if is_fetched(model):
            return None
        path = find_gguf(model)
        return path if path and quantize.file_type(path) not in FULL_WEIGHTS else None

    def as_is(self, path: Path, stages: Stages) -> tuple[Artefact, ModelInfo]:
        """Take the file for what it is; only its chat template is written out beside it."""
        header, digest = read_header(path), sha256_file(path)
        template = header.metadata.get("tokenizer.chat_template")
        folder, _ = stages.run("template", {"gguf": digest}, lambda folder: write_template(template, folder))
        size = quantize.weigh(path)
        model = BundlePart(role="base", name=MODEL, source=path)
        quant = quantize.file_type(path) or max(size.tensors, key=lambda name: size.tensors[name])
        parts = (model, template_part(folder))
        artefact = Artefact(engine=self.engine, quant=quant, parts=parts, size=size, sha256=digest)
        return artefact, model_info(header, path, digest)

    def unpackable(self, bundle: Bundle) -> Path:
        return bundle.need("base")

    # CarriesAdapters

    def check_adapter(self, adapter: PeftAdapter) -> None:
        check_shippable(adapter)

    def export_adapter(self, adapter: PeftAdapter, checkpoint: Checkpoint, out: Path) -> Ran:
        return gguf.export_adapter(adapter, checkpoint, out)

    def merged_quant(self, quant: str, profile: Profile) -> str:
        """Return the base's own type, or the profile's where the base is a mixture that was searched for it."""
        return quant if quant in QUANTS else profile.gguf.default_quant

    # verify.divergence.Readable

    def reader(self, path: Path, cache: CacheTypes | None, room: int, threads: int) -> LogitReader:
        from fieldlm.engines.llama_api import LlamaWeights

        return GgufReader(LlamaWeights(path), cache, room, threads)

    # search.searchable.Searchable and Shareable

    def weights(self, path: Path) -> Weights:
        return GgufWeights(path)

    def names(self, model: Any, full: Path) -> dict[str, str]:
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        header = read_header(full)
        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
        table = get_tensor_name_map(arch, int(header.metadata[f"{header.architecture}.block_count"]))
        names: dict[str, str] = {}
        for path, parameter in model.named_parameters():
            name = table.get_name(path, try_suffixes=(".weight",))
            tensor = header.tensors.get(name or "")
            if name and tensor and parameter.dim() == 2 and tuple(parameter.shape)[::-1] == tensor.shape:
                names[path] = name
        return names

    def forecast(self, full: Artefact, profile: Profile, tokens_per_s: float, stages: Stages) -> Foresees:
        return Foresight(full.base, profile, tokens_per_s)

    def size_bytes(self, full: Artefact, types: Mapping[str, str], profile: Profile) -> int:
        return gguf_write.size_bytes(full.base, types)

    def caches(self, full: Path, profile: Profile) -> Sequence[CacheTypes]:
        return kv_cache.legal_caches(full, profile)

    def price_caches(self, full: Path, caches: Sequence[CacheTypes], windows: Sequence[Sequence[int]]) -> Ran:
        return kv_cache.price_caches(full, caches, windows)

    def mixture_inputs(self, profile: Profile) -> dict[str, Any]:
        return {}

    def write(self, source: Path, statistics: Path, types: Mapping[str, str], target: Path) -> Ran:
        return gguf_write.write(source, statistics, types, target)

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
        target = folder / MODEL
        return writing(target) if writing else self.write(full.base, statistics, types, target)

    def mixture(self, folder: Path, made: Made) -> Artefact:
        return _artefact(mixture_name(made.value), folder, made)


FORMAT = GgufFormat()


def _make_f16(checkpoint: Checkpoint, folder: Path) -> Ran:
    ran = gguf.export_f16(checkpoint, folder / MODEL)
    write_template(chat_template(checkpoint.folder), folder)
    return replace(ran, value=msgspec.to_builtins(quantize.weigh(folder / MODEL)))


def _make_quantized(full: Artefact, quant: str, folder: Path) -> Ran:
    ran = quantize.quantize(full.base, folder / MODEL, quant)
    copy_template(full, folder)
    return ran


def _artefact(quant: str, folder: Path, made: Made) -> Artefact:
    model = BundlePart(role="base", name=MODEL, source=folder / MODEL)
    size = msgspec.convert(made.value, WeightsSize)
    digest = made.files[MODEL][2]
    return Artefact(engine="llama", quant=quant, parts=(model, template_part(folder)), size=size, sha256=digest)
