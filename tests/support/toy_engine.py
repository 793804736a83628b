"""A third engine, for tests: it lets torch compute what lies in one zip file, one answer after the other.

Nothing of fieldlm names it; it is found as another package's would be, by the entry point that `toys` writes.
"""

import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from fieldlm.core.errors import EngineError
from fieldlm.engines import DEFAULT_TERMS, Chunk, EngineFacts, EngineOptions, Reading, Sampling, Schedule, SpecialTokens
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile

ROOT = Path(__file__).parents[2]


def offer(folder: Path) -> dict[str, str]:
    """Write what a package with both toys would have installed to `folder`, and return the environment that has it."""
    package = folder / "toys-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(
        "[fieldlm.engines]\ntoy = tests.support.toy_engine\n[fieldlm.formats]\ntoy = tests.support.toy_format\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


class ToyEngine:
    """An Engine whose every answer is whole before `start` returns."""

    context = 512

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
            self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            self._tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
            self.stop_tokens = frozenset(int(text) for text in Path(folder, "stops").read_text().split())
        self._mb = path.stat().st_size / 1e6

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def vocabulary(self) -> Sequence[bytes]:
        return [self.detokenize([token]).encode() for token in range(self._tokenizer.get_vocab_size())]

    def start(
        self, prompt: Sequence[int], sampling: Sampling, *, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
    ) -> AnswerStream:
        running = AnswerStream(prompt_tokens=len(prompt), wake=lambda: None)
        guide = sampling.constraint.guide() if sampling.constraint else None
        past: Any = None
        unread, said = list(prompt), list[int]()
        outcome = "length"
        while len(said) < sampling.max_tokens:
            with torch.inference_mode():
                told = self._model(input_ids=torch.tensor([unread]), past_key_values=past, use_cache=True)
            logits, past = told.logits[0, -1].numpy(), told.past_key_values
            allowed = guide.allow(logits) if guide else logits
            token = int(np.argmax(allowed))
            second, first = np.partition(allowed, -2)[-2:]
            if guide:
                guide.accept(token)
            unread = [token]
            said.append(token)
            if token in self.stop_tokens:
                outcome = "stop"
                break
            running.put(Chunk(text=self.detokenize([token]), tokens=(token,), margins=(float(first - second),)))
        running.timings.completion_tokens, running.timings.decode_s = len(said), 0.001
        running.put(Chunk(text="", tokens=(), outcome=outcome))
        return running

    def load_adapter(self, name: str, path: Path) -> None:
        raise EngineError("a toy takes no adapters")

    def drop_adapter(self, name: str) -> None: ...

    def memory_mb(self) -> dict[str, float]:
        return {"weights": self._mb}

    def close(self) -> None: ...


class ToyKind:
    """An EngineKind."""

    cache_type = "f32"

    def open(self, bundle: Bundle, options: EngineOptions) -> ToyEngine:
        return ToyEngine(bundle.need("base"))

    def preload(self, bundle: Bundle) -> None: ...

    def facts(self) -> EngineFacts:
        return EngineFacts(version=f"torch-{torch.__version__}", system=sys.platform)

    def foreseen_mb(self, bundle: Bundle, **_: Any) -> float | None:
        return None

    def reading(self, bundle: Bundle, profile: Profile | None = None) -> Reading:
        return Reading(weights=bundle.manifest.size, kv_of_token=0, is_exact=False)

    def weight_bytes(self, bundle: Bundle) -> int:
        return bundle.need("base").stat().st_size

    def special_tokens(self, bundle: Bundle) -> SpecialTokens:
        return SpecialTokens()


KIND = ToyKind()
