"""What a format has to offer so that mixtures of types can be searched for, and shared out to other machines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fieldlm.bench.calibration import BESIDE_MB
from fieldlm.core.errors import InputError
from fieldlm.engines.memory_plan import MemoryPlan
from fieldlm.formats.bundle import CacheTypes
from fieldlm.formats.profile import Profile
from fieldlm_compiler.export.artefact import MB, Artefact
from fieldlm_compiler.export.format import Format, format_for, format_of
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Made, Stages
from fieldlm_compiler.search.weights import Weights
from fieldlm_compiler.verify.limits import Limits


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


@runtime_checkable
class Searchable(Protocol):
    """A Format whose matrices can each have a type of their own."""

    def weights(self, path: Path) -> Weights:
        """Open the full weights at `path`."""
        ...

    def names(self, model: Any, full: Path) -> dict[str, str]:
        """Return what the matrices of the torch `model` are called in the file `full`, by their parameters' names."""
        ...

    def forecast(self, full: Artefact, profile: Profile, tokens_per_s: float, stages: Stages) -> Foresees:
        """Return what says of mixtures of `full` what they will be, where full weights give `tokens_per_s`."""
        ...

    def size_bytes(self, full: Artefact, types: Mapping[str, str], profile: Profile) -> int:
        """Return the exact size of `full` once its matrices have `types`."""
        ...

    def caches(self, full: Path, profile: Profile) -> Sequence[CacheTypes]:
        """Return the types of keys and values to choose among, F16 first; fewer than two where there is no choice."""
        ...

    def price_caches(self, full: Path, caches: Sequence[CacheTypes], windows: Sequence[Sequence[int]]) -> Ran:
        """Return the divergence that each of `caches` costs over `windows` of tokens."""
        ...

    def mixture_inputs(self, profile: Profile) -> dict[str, Any]:
        """Return what else a mixture's bytes depend on, beside weights, types and statistics."""
        ...

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
        """Write `full` with `types` to `folder`, rounded by `statistics`; `writing(target)` writes a file elsewhere."""
        ...

    def mixture(self, folder: Path, made: Made) -> Artefact:
        """Return what `write_mixture` left in `folder`."""
        ...


@runtime_checkable
class Shareable(Protocol):
    """A Format whose mixture is one file, which another machine can write and send back."""

    def write(self, source: Path, statistics: Path, types: Mapping[str, str], target: Path) -> Ran:
        """Write `source` with `types` to the file `target`."""
        ...


def searchable(fmt: Format) -> Searchable:
    """Return `fmt`; raises InputError when its types cannot be searched for."""
    if not isinstance(fmt, Searchable):
        raise InputError(f"{fmt.name} has no types to choose: leave out --calibration, --task and limits")
    return fmt


def mixtures_of(full: Artefact) -> Searchable:
    """Return the format of `full`; raises InputError when its types cannot be searched for."""
    return searchable(format_for(full.engine))


def shareable(full: Path) -> Shareable:
    """Return the format of the file `full`; raises InputError when its mixtures are more than one file."""
    fmt = format_of(full)
    if not isinstance(fmt, Shareable):
        raise InputError(f"{fmt.name} is searched on this machine alone: leave --ray out")
    return fmt


def open_weights(path: Path) -> Weights:
    """Open the full weights at `path`, whatever their format."""
    return searchable(format_of(path)).weights(path)
