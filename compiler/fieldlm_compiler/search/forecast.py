"""Forecast: what a mixture will weigh, hold in memory and answer a second, before anything of it is written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

from fieldlm.bench.calibration import BESIDE_MB
from fieldlm.engines.llama_layout import layout_of
from fieldlm.engines.memory_plan import PREFILL_ALONE, MemoryPlan, plan
from fieldlm.formats.bundle import CacheTypes
from fieldlm.formats.gguf import Tensor, read_header
from fieldlm.formats.profile import Profile, without_gpu
from fieldlm_compiler.export.ggml import kind
from fieldlm_compiler.search.gguf_write import resized
from fieldlm_compiler.verify.limits import Limits

MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """One mixture: bytes of its file exactly, memory as the profile serves it, tokens a second for one answer here."""

    bytes: int
    ram: MemoryPlan
    tokens_per_s: float

    def missed(self, limits: Limits) -> str | None:
        """Say which of `limits` it misses and by how much, or None."""
        bundle_mb = self.bytes / MB + BESIDE_MB
        if limits.max_bundle_mb is not None and bundle_mb > limits.max_bundle_mb:
            return f"{bundle_mb:.1f} MB of files, --max-bundle-mb leaves {limits.max_bundle_mb:g}"
        if limits.max_ram_mb is not None and self.ram.total > limits.max_ram_mb:
            ram = self.ram
            return (
                f"{ram.total:.0f} MB of memory (weights {ram.weights:.0f}, cache {ram.kv:.0f}, buffers "
                f"{ram.compute:.0f}), --max-ram-mb leaves {limits.max_ram_mb:g}"
            )
        if limits.min_tokens_per_s is not None and self.tokens_per_s < limits.min_tokens_per_s:
            return f"about {self.tokens_per_s:.0f} tokens/s here, --min-tokens-per-s wants {limits.min_tokens_per_s:g}"
        return None


class Foresees(Protocol):
    """What says of a mixture what it will be."""

    def foresee(self, types: Mapping[str, str], cache: CacheTypes | None = None) -> Foreseen:
        """Return what the mixture `types` will be with `cache`, or with the profile's own."""
        ...


class Foresight:
    """The GGUF `full` with other types: what it would be on a device with `profile`.

    `tokens_per_s` is what full weights give here. Decoding reads every weight for each token, so its time goes with
    their bytes.
    """

    def __init__(self, full: Path, profile: Profile, tokens_per_s: float) -> None:
        self._bytes, self._profile = full.stat().st_size, without_gpu(profile)
        self._header = read_header(full)
        self._tokens_per_s = tokens_per_s

    def foresee(self, types: Mapping[str, str], cache: CacheTypes | None = None) -> Foreseen:
        """Return what the mixture `types` will be with `cache`, or with the profile's own."""
        size = resized(self._header, self._bytes, types)
        tensors = {name: _retyped(each, types.get(name)) for name, each in self._header.tensors.items()}
        serving = plan(
            replace(self._header, tensors=tensors),
            context=min(self._profile.gguf.context, self._trained()),
            parallel=self._profile.runtime.parallel,
            batch=PREFILL_ALONE + self._profile.runtime.parallel,
            isa=self._profile.cpu.isa,
            layout=layout_of(self._profile, cache),
        )
        return Foreseen(bytes=size, ram=serving, tokens_per_s=self._tokens_per_s * self._bytes / size)

    def _trained(self) -> int:
        found = self._header.metadata.get(f"{self._header.architecture}.context_length")
        return found if isinstance(found, int) and found > 0 else self._profile.gguf.context


def _retyped(tensor: Tensor, name: str | None) -> Tensor:
    if name is None:
        return tensor
    to = kind(name)
    return replace(tensor, type=to.number, size=prod(tensor.shape[1:]) * to.row_bytes(tensor.shape[0]))
