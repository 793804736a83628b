"""The served configuration: an artefact opened with the context, places and cache types that a profile serves it with.

What is proved or measured in another configuration says nothing of the device: llama.cpp chooses rotations by the size
of the whole cache, windows matter past their length, and types of keys and values round.
"""

from typing import Any

import msgspec

from fieldlm.engines import Engine, EngineOptions, open_engine
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile, without_gpu


def open_served(bundle: Bundle, profile: Profile) -> Engine:
    """Open the engine as a device with `profile` does, on the processor of this machine."""
    context = min(profile.gguf.context, bundle.manifest.model.context)
    parallel = profile.runtime.parallel
    return open_engine(bundle, EngineOptions(context=context, parallel=parallel, profile=without_gpu(profile)))


def with_plain_cache(profile: Profile) -> Profile:
    """Return `profile` with keys and values in F16, which full weights are judged with."""
    return msgspec.structs.replace(profile, gguf=msgspec.structs.replace(profile.gguf, kv_k=None, kv_v=None))


def facts(profile: Profile) -> dict[str, Any]:
    """Return what of `profile` decides how an artefact is served here, for the keys of stages."""
    gguf = profile.gguf
    return {
        "context": gguf.context,
        "parallel": profile.runtime.parallel,
        "cache": [gguf.kv_k, gguf.kv_v, gguf.flash_attention],
        "mmap": profile.runtime.mmap,
    }
