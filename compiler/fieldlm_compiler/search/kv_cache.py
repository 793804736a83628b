"""KV-cache quantisation, what it saves and costs: each type is read with once, keys and values apart.

A cache is judged on the model itself, with full weights, token by token beside one in F16. What keys lose and what
values lose is added up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldlm.engines.llama_layout import F16_CACHE, KV_TYPES
from fieldlm.formats.bundle import CacheTypes
from fieldlm.formats.gguf import BLOCKS, Header, read_header
from fieldlm.formats.profile import Profile
from fieldlm.formats.profile_lint import CUDA_KV
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.search.frontier import FrontierPoint
from fieldlm_compiler.search.searchable import Foresees
from fieldlm_compiler.verify.divergence import GgufReader, Truth

# Finest first. BF16 and F32 give a model in F16 nothing.
TYPES = ("f16", "q8_0", "q5_0", "q4_0")
WINDOWS = 8
# What measured divergence of weights was over predicted, where nothing is measured yet (SmolLM2-135M).
HOPE = 8.0


@dataclass(frozen=True, kw_only=True)
class PricedCache:
    """A cache as the profile serves it: megabytes (1e6 bytes), and nats a token of divergence. None is F16."""

    cache: CacheTypes | None = None
    mb: float = 0.0
    divergence: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A mixture of the frontier and the cache it is to have."""

    point: FrontierPoint
    priced: PricedCache = PricedCache()

    @property
    def divergence(self) -> float:
        """What both together are expected to cost, in nats a token."""
        return HOPE * self.point.divergence + self.priced.divergence


def own_cache(profile: Profile) -> CacheTypes | None:
    """Return the cache that `profile` asks for, with F16 for what it leaves open; None where it leaves all open."""
    keys, values = profile.gguf.kv_k, profile.gguf.kv_v
    return CacheTypes(keys=keys or "f16", values=values or "f16") if keys or values else None


def legal_caches(full: Path, profile: Profile) -> list[CacheTypes]:
    """Return what `profile` leaves open and llama.cpp can keep keys and values of `full` in; F16 comes first."""
    gguf, header = profile.gguf, read_header(full)
    keys = [gguf.kv_k] if gguf.kv_k else [name for name in TYPES if _holds(name, _head(header, "key_length"))]
    values = [gguf.kv_v] if gguf.kv_v else [name for name in TYPES if _holds(name, _head(header, "value_length"))]
    if gguf.flash_attention is False:
        values = [name for name in values if not name.startswith("q")] or ["f16"]
    pairs = [CacheTypes(keys=one, values=other) for one in keys for other in values]
    if any(each.kind == "cuda" and each.used for each in profile.accelerators):
        pairs = [pair for pair in pairs if pair.keys == pair.values and pair.keys in CUDA_KV]
    return pairs or [F16_CACHE]


def price_caches(full: Path, caches: Sequence[CacheTypes], windows: Sequence[Sequence[int]]) -> Ran:
    """Return the divergence of each of `caches` from one in F16, with the weights `full` over `windows` of tokens."""
    return call(price_all, what="price keys and values in fewer bits")(
        full=full,
        caches=list(caches),
        windows=[list(window) for window in windows[:WINDOWS]],
    )


def price_all(full: Path, caches: list[CacheTypes], windows: list[list[int]]) -> list[float]:
    """Read `windows` once with each type of keys and of values. Runs in a child process."""
    from fieldlm.engines.llama_api import LlamaWeights

    weights = LlamaWeights(full)
    lost = {half: 0.0 for each in caches for half in _halves(each)}
    coarse = [half for half in lost if half != F16_CACHE]
    for window in windows:
        reader = GgufReader(weights, None, len(window))
        truth = Truth(reader.read(window, 0)[:-1], window[1:])
        reader.close()
        # One at a time: each has a row of logits for every token.
        for half in coarse:
            reader = GgufReader(weights, half, len(window))
            kl, _ = truth.divergence(reader.read(window, 0)[:-1])
            reader.close()
            lost[half] += float(kl.mean()) / len(windows)
    return [round(sum(lost[half] for half in _halves(each)), 7) for each in caches]


def priced(caches: Sequence[CacheTypes], divergences: Sequence[float], foresight: Foresees) -> list[PricedCache]:
    """Return those of `caches` that no other beats in both bytes and divergence, the finest first."""
    each_mb = [foresight.foresee({}, cache).ram.kv for cache in caches]
    rows = zip(caches, each_mb, divergences, strict=True)
    found = [
        PricedCache(cache=None if cache == F16_CACHE else cache, mb=mb, divergence=divergence)
        for cache, mb, divergence in rows
    ]
    found.sort(key=lambda each: (each.mb, each.divergence))
    kept: list[PricedCache] = []
    for each in found:
        if not kept or each.divergence < kept[-1].divergence:
            kept.append(each)
    return kept[::-1]


def cache_facts(each: PricedCache) -> dict[str, Any]:
    """Return `each` as the report has it."""
    cache = each.cache or F16_CACHE
    return {"keys": cache.keys, "values": cache.values, "mb": round(each.mb, 1), "predicted_kl": each.divergence}


def _halves(cache: CacheTypes) -> tuple[CacheTypes, CacheTypes]:
    """Return a cache with only the keys of `cache`, and one with only its values; the other half is F16."""
    return CacheTypes(keys=cache.keys, values="f16"), CacheTypes(keys="f16", values=cache.values)


def _head(header: Header, key: str) -> int:
    """Return how many numbers of one head are a row of the cache; 0 where the header does not say."""

    def number(name: str) -> int:
        found = header.metadata.get(f"{header.architecture}.{name}")
        return found if isinstance(found, int) else 0

    heads = number("attention.head_count")
    return number(f"attention.{key}") or (number("embedding_length") // heads if heads else 0)


def _holds(name: str, width: int) -> bool:
    """Say whether a cache of the type `name` can hold heads `width` wide: whole blocks of it."""
    elements, _ = BLOCKS[KV_TYPES[name]]
    return elements == 1 or (width > 0 and width % elements == 0)
