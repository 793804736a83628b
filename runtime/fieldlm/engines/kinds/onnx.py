"""ONNX Runtime, for bundles of a graph and its weights: its files say little, the manifest the rest."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fieldlm.engines import Engine, EngineFacts, EngineOptions, Reading, SpecialTokens
from fieldlm.engines.special_texts import control_tokens
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile


class OnnxKind:
    """An EngineKind."""

    cache_type = "f32"

    def open(self, bundle: Bundle, options: EngineOptions) -> Engine:
        from fieldlm.engines import onnx

        return onnx.open(bundle, options)

    def preload(self, bundle: Bundle) -> None:
        pass

    def facts(self) -> EngineFacts:
        import onnxruntime

        from fieldlm.engines.onnx import PROMPT_PIECE

        return EngineFacts(
            version=f"onnxruntime-{onnxruntime.__version__}",
            system=" ".join(onnxruntime.get_available_providers()),
            batch=PROMPT_PIECE,
        )

    def foreseen_mb(
        self, bundle: Bundle, *, context: int, parallel: int, isa: Sequence[str] = (), profile: Profile | None = None
    ) -> float | None:
        return None

    def reading(self, bundle: Bundle, profile: Profile | None = None) -> Reading:
        return Reading(weights=bundle.manifest.size, kv_of_token=0, is_exact=False)

    def weight_bytes(self, bundle: Bundle) -> int:
        return bundle.need("base").stat().st_size

    def special_tokens(self, bundle: Bundle) -> SpecialTokens:
        path = bundle.path("tokenizer")  # which ones begin and end, the manifest says
        return SpecialTokens(control=_control_of(path, bundle.id) if path else ())


KIND = OnnxKind()


@lru_cache(maxsize=8)
def _control_of(tokenizer: Path, _bundle_id: str) -> tuple[str, ...]:
    return control_tokens(tokenizer.read_bytes())
