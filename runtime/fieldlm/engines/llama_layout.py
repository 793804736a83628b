"""KV-cache types, flash attention, mmap and offload: what a profile says, in llama.cpp's terms."""

from dataclasses import dataclass, replace

from fieldlm.core.errors import BundleError, FieldlmError, ProfileError
from fieldlm.formats.bundle import CacheTypes
from fieldlm.formats.profile import Accelerator, Profile

F32, F16, BF16 = 0, 1, 30  # ggml types
KV_TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": 8, "q5_0": 6, "q4_0": 2}  # name → ggml type
F16_CACHE = CacheTypes(keys="f16", values="f16")
ALL_LAYERS, NO_LAYERS = -1, 0


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is kept to, or loading fails; without a profile it is what llama.cpp does by itself, less mapping.

    `flash_attention` None leaves it to llama.cpp. `is_mapped`: weights stay in the file, and the system may drop and
    read them again. `gpu` is the accelerator that computes every layer; `gpu_layers` as llama.cpp counts them. With
    `has_own_cells` no sequence has memory in common with another.
    """

    key_type: int = F16
    value_type: int = F16
    flash_attention: bool | None = None
    is_mapped: bool = False
    gpu: Accelerator | None = None
    gpu_layers: int = ALL_LAYERS
    has_own_cells: bool = False

    @property
    def is_row_by_row(self) -> bool:
        """Whether attention computes each token by itself, in the order of its cells.

        For keys and values of one float type llama.cpp has other ways (ggml-cpu/ops.cpp, flash_attn_ext_f16): tiles of
        64 tokens by 64 cells, and a cut into as many parts as there are threads for a token alone beyond 256 cells.
        """
        has_tiles = {self.key_type, self.value_type} <= {F32, F16}
        return self.gpu is None and self.flash_attention is not False and not has_tiles

    def repeatable(self) -> "Layout":
        """Return the layout whose bits hang least on what else is computed: values are bfloat16, not float16."""
        own = replace(self, has_own_cells=True)
        return own if self.gpu or own.is_row_by_row or self.flash_attention is False else replace(own, value_type=BF16)

    @property
    def name(self) -> str:
        """What the bytes of a cache depend on."""
        return f"{self.key_type}/{self.value_type}/{self.flash_attention}{'/own' if self.has_own_cells else ''}"


DEFAULT_LAYOUT = Layout()


def layout_of(profile: Profile | None, cache: CacheTypes | None = None) -> Layout:
    """Return what `profile` asks for, with the cache of its bundle where the profile leaves that open.

    Raises ProfileError or BundleError for a type of keys or values that no cache has.
    """
    wanted = cache or F16_CACHE
    keys, values = (_kv_type("the bundle", name, BundleError) for name in (wanted.keys, wanted.values))
    if profile is None:
        return Layout(key_type=keys, value_type=values)
    if profile.gguf.flash_attention is False:
        # Without it llama.cpp reads values as they are, or not at all.
        values = F16 if wanted.values.startswith("q") else values
    gpu = next((accelerator for accelerator in profile.accelerators if accelerator.used), None)
    return Layout(
        key_type=_kv_type(profile.id, profile.gguf.kv_k, ProfileError) if profile.gguf.kv_k else keys,
        value_type=_kv_type(profile.id, profile.gguf.kv_v, ProfileError) if profile.gguf.kv_v else values,
        flash_attention=profile.gguf.flash_attention,
        is_mapped=profile.runtime.mmap,
        gpu=gpu,
        gpu_layers=ALL_LAYERS if gpu else NO_LAYERS,
    )


def _kv_type(who: str, name: str, error: type[FieldlmError]) -> int:
    if name not in KV_TYPES:
        raise error(f"{who} wants keys and values as {name!r}; want one of {', '.join(KV_TYPES)}")
    return KV_TYPES[name]
