"""No model: a device on which the large model answers alone, until there is a small one for it.

It has the words that any model has (bytes), so that forms and tools are checked as ever, and no answer.
"""

from collections.abc import Sequence
from pathlib import Path

from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import (
    DEFAULT_TERMS,
    SEAM,
    Chunk,
    EngineFacts,
    EngineOptions,
    Reading,
    RunningAnswer,
    Sampling,
    Schedule,
    SpecialTokens,
)
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.formats.bundle import NO_MODEL, Bundle
from fieldlm.formats.profile import Profile

END = 256
WHY = "there is no small model on this device, and the large one cannot answer"


class NoModel:
    """An Engine without weights: tokens are bytes, and every answer says that there is none."""

    context = 1 << 20
    stop_tokens = frozenset({END})

    def tokenize(self, text: str) -> list[int]:
        return list(text.replace(SEAM, "").encode("utf-8", "replace"))

    def least_tokens(self, text: str) -> int:
        return len(text) - text.count(SEAM)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if token < END).decode(errors="replace")

    def vocabulary(self) -> Sequence[bytes]:
        return [*(bytes([byte]) for byte in range(END)), b""]

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> RunningAnswer:
        del sampling, adapter, terms
        if not prompt:
            raise InputError("the prompt has no tokens")
        answer = AnswerStream(prompt_tokens=len(prompt), wake=lambda: None)
        answer.put(Chunk(text="", tokens=(), outcome="error", error=WHY))
        return answer

    def load_adapter(self, name: str, path: Path) -> None:
        raise EngineError(f"{path.name} is an adapter, and there is no model that it would fit")

    def drop_adapter(self, name: str) -> None: ...

    def memory_mb(self) -> dict[str, float]:
        return {}

    def close(self) -> None: ...


class NoModelKind:
    """An EngineKind."""

    cache_type = "f16"

    def open(self, bundle: Bundle, options: EngineOptions) -> NoModel:
        return NoModel()

    def preload(self, bundle: Bundle) -> None: ...

    def facts(self) -> EngineFacts:
        return EngineFacts(version=NO_MODEL)

    def foreseen_mb(
        self, bundle: Bundle, *, context: int, parallel: int, isa: Sequence[str] = (), profile: Profile | None = None
    ) -> float | None:
        return 0.0

    def reading(self, bundle: Bundle, profile: Profile | None = None) -> Reading:
        return Reading(weights=0, kv_of_token=0, is_exact=True)

    def weight_bytes(self, bundle: Bundle) -> int:
        return 0

    def special_tokens(self, bundle: Bundle) -> SpecialTokens:
        return SpecialTokens()


KIND = NoModelKind()
