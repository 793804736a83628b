"""How llama.cpp holds weights and caches, and on what it computes: what a profile says, in llama.cpp's terms."""

from dataclasses import dataclass

from fieldlm.formats.errors import ProfileError
from fieldlm.formats.profile import Accelerator, Profile

F16 = 1  # ggml type
KV_TYPES = {"f32": 0, "f16": F16, "bf16": 30, "q8_0": 8, "q5_0": 6, "q4_0": 2}  # name → ggml type
ALL_LAYERS, NO_LAYERS = -1, 0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is kept to, or loading fails; without a profile it is what llama.cpp does by itself, less mapping.

    `flash_attention` None leaves it to llama.cpp. `is_mapped`: weights stay in the file, and the system may drop and
    read them again. `gpu` is the accelerator that computes every layer; `gpu_layers` as llama.cpp counts them.
    """

    key_type: int = F16
    value_type: int = F16
    flash_attention: bool | None = None
    is_mapped: bool = False
    gpu: Accelerator | None = None
    gpu_layers: int = ALL_LAYERS

    @property
    def name(self) -> str:
        """What the bytes of a cache depend on."""
        return f"{self.key_type}/{self.value_type}/{self.flash_attention}"


DEFAULT_LAYOUT = Layout()


def layout_of(profile: Profile | None) -> Layout:
    """Return what `profile` asks for; raises ProfileError for a type of keys or values that no cache has."""
    if profile is None:
        return Layout()
    gpu = next((accelerator for accelerator in profile.accelerators if accelerator.used), None)
    return Layout(
        key_type=_kv_type(profile, profile.gguf.kv_k),
        value_type=_kv_type(profile, profile.gguf.kv_v),
        flash_attention=profile.gguf.flash_attention,
        is_mapped=profile.runtime.mmap,
        gpu=gpu,
        gpu_layers=ALL_LAYERS if gpu else NO_LAYERS,
    )


def _kv_type(profile: Profile, name: str) -> int:
    if name not in KV_TYPES:
        raise ProfileError(f"{profile.id} wants keys and values as {name!r}; want one of {', '.join(KV_TYPES)}")
    return KV_TYPES[name]
