"""Format registry: everything in which formats of bundles differ is a Format, one module for each.

A Format is found by its name (`--format`), by the engine that reads it, or by the suffix of its weights. It is the
`FORMAT` of a module in `targets`, or of what another package offers in the entry point group `fieldlm.formats`. What
not every format can do is a Protocol of its own (`CarriesAdapters` here, more beside those who ask for them).
"""

import pkgutil
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle, ModelInfo
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages

DEFAULT = "gguf"
GROUP = "fieldlm.formats"
# By name, because the arrow is turned round: a format knows export, verify and search, and these know the Protocol.
TARGETS = f"{__name__.partition('.')[0]}.targets"


class Format(Protocol):
    """What an engine on the device reads, and how it is made. Who inherits gets what most formats do."""

    name: str
    engine: str
    suffix: str
    """Of the file that the engine is pointed at, with its dot."""

    def versions(self) -> dict[str, str]:
        """Return what has a say in the bytes of a bundle of this format."""
        ...

    def candidates(self, asked: Sequence[str], profile: Profile) -> tuple[str, ...]:
        """Return the quantisations to make, best first: those asked for, else the profile's.

        Raises InputError for one that does not exist or cannot be made.
        """
        ...

    def lower(self, checkpoint: Checkpoint, stages: Stages) -> Artefact:
        """Write `checkpoint` with all the bits the engine can use."""
        ...

    def shrink(self, full: Artefact, quant: str, profile: Profile, stages: Stages) -> Artefact:
        """Write `full` with the bits that `quant` gives each weight; its own quant is `full` itself."""
        ...

    def notes(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return what the manifest has to say because the weights do not: special tokens."""
        return {}

    def ready_file(self, model: str, stages: Stages) -> Path | None:
        """Return the file that `model` names when it can go into a bundle as it is."""
        return None

    def as_is(self, path: Path, stages: Stages) -> tuple[Artefact, ModelInfo]:
        """Take what `ready_file` found for what it is."""
        raise InputError(f"{path} cannot go into a bundle as it is; name the model it was made from")

    def unpackable(self, bundle: Bundle) -> Path:
        """Return the weights that a checkpoint can be made of again; raises InputError when none can."""
        raise InputError(
            f"{bundle.folder} is an {self.name.upper()} bundle, whose weights cannot be unpacked; "
            "name the model it was made from"
        )

    def places(self, bundle: Bundle, name: str) -> Sequence[int]:
        """Return where the tensors of the file `name` begin; empty when the file says it itself, or nothing does."""
        return ()


@runtime_checkable
class CarriesAdapters(Protocol):
    """A format whose engine can put a LoRA beside the weights."""

    adapter_name: str

    def check_adapter(self, adapter: PeftAdapter) -> None:
        """Raise InputError when the adapter holds something the format cannot carry."""
        ...

    def export_adapter(self, adapter: PeftAdapter, checkpoint: Checkpoint, out: Path) -> Ran:
        """Write `adapter`, for the base that `checkpoint` is, to the file `out`."""
        ...

    def merged_quant(self, quant: str, profile: Profile) -> str:
        """Return what to quantise the merged model to, when the base has `quant`."""
        ...


@lru_cache(maxsize=1)
def formats() -> dict[str, Format]:
    """Return every format by its name, ours first."""
    package = import_module(TARGETS)
    found = [import_module(f"{TARGETS}.{each.name}").FORMAT for each in pkgutil.iter_modules(package.__path__)]
    found += [each.load().FORMAT for each in entry_points(group=GROUP)]
    return {each.name: each for each in reversed(found)}


def format_names() -> list[str]:
    """Return the names of all formats, and import none: a module, or an entry point, is called as its format is."""
    ours = [each.name for each in pkgutil.iter_modules(import_module(TARGETS).__path__)]
    return sorted({*ours, *(each.name for each in entry_points(group=GROUP))})


def format_named(name: str) -> Format:
    """Return the format `name`; raises InputError when there is none."""
    if name not in formats():
        raise InputError(f"there is no format {name!r}; there are {', '.join(sorted(formats()))}")
    return formats()[name]


def format_for(engine: str) -> Format:
    """Return the format that `engine` reads; raises InputError when no format here is made for it."""
    found = next((each for each in formats().values() if each.engine == engine), None)
    if found is None:
        raise InputError(f"no format here is made for the engine {engine!r}; install the package that has it")
    return found


def format_of(path: Path) -> Format:
    """Return the format of the weights at `path`; raises InputError when their suffix is none's."""
    found = next((each for each in formats().values() if each.suffix == path.suffix), None)
    if found is None:
        raise InputError(f"{path} is in no format known here: {', '.join(sorted(formats()))}")
    return found


def lower(checkpoint: Checkpoint, fmt: str, stages: Stages) -> Artefact:
    """Write `checkpoint` in the format `fmt` with all the bits its engine can use: 16 for GGUF, 32 for ONNX."""
    return format_named(fmt).lower(checkpoint, stages)


def shrink(full: Artefact, quant: str, profile: Profile, stages: Stages) -> Artefact:
    """Write `full` with the bits that `quant` gives each weight; its own quant is `full` itself."""
    return format_for(full.engine).shrink(full, quant, profile, stages)
