"""Task score (exact match) as a user would get it: the runtime's own engine answers, greedily."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.engines import Sampling, open_engine
from fieldlm.formats.bundle import Bundle, Manifest
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.verify.corpus import TaskExample

SPARE_TOKENS = 16


def answer_task(draft: Bundle, examples: Sequence[TaskExample], *, what: str, adapter: Path | None = None) -> Ran:
    """Return for each of `examples` whether the artefact in `draft`, with `adapter`, answers it exactly right."""
    return call(
        "fieldlm_compiler.verify.task:answer_all",
        what=what,
        folder=draft.folder,
        manifest=msgspec.to_builtins(draft.manifest),
        adapter=adapter,
        examples=[[example.prompt_tokens, len(example.answer_tokens), example.answer] for example in examples],
    )


def answer_all(
    folder: str, manifest: dict[str, Any], adapter: str | None, examples: list[tuple[list[int], int, str]]
) -> list[bool]:
    """Answer every example. Runs in a child process."""
    bundle = Bundle(folder=Path(folder), id="0" * 64, manifest=msgspec.convert(manifest, Manifest))
    longest = max(len(prompt) + count for prompt, count, _ in examples) + SPARE_TOKENS
    # One at a time: which answers share a batch would depend on the moment, and near ties on the batch.
    engine = open_engine(bundle, context=min(longest, bundle.manifest.model.context), parallel=1)
    name = "adapter" if adapter is not None else None
    if adapter is not None:
        engine.load_adapter("adapter", Path(adapter))
    right: list[bool] = []
    for prompt, count, wanted in examples:
        answer = engine.start(prompt, Sampling(max_tokens=count + SPARE_TOKENS), adapter=name)
        right.append(_is_same("".join(chunk.text for chunk in answer), wanted))
    engine.close()
    return right


def _is_same(answer: str, wanted: str) -> bool:
    """Say whether two answers are equal as JSON, or as text where the right one is no JSON."""
    try:
        expected = json.loads(wanted)
    except ValueError:
        return answer.strip() == wanted.strip()
    try:
        return json.loads(answer) == expected
    except ValueError:
        return False
