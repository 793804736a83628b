"""Forecast: what a GGUF mixture will weigh, hold in memory and answer a second, before anything of it is written."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from fieldlm.engines.llama_layout import layout_of
from fieldlm.engines.memory_plan import PREFILL_ALONE, plan
from fieldlm.formats.bundle import CacheTypes
from fieldlm.formats.gguf import Tensor, read_header
from fieldlm.formats.profile import Profile, without_gpu
from fieldlm_compiler.export.ggml import kind
from fieldlm_compiler.search.gguf_write import resized
from fieldlm_compiler.search.searchable import Foreseen


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
