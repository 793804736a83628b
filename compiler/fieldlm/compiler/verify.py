"""Proof that an artefact is the model it was made from: the same tokens for a text, the same answers to prompts.

The artefact answers greedily; then the source reads those answers and says, at each token, how much it would have
preferred another. Where that is next to nothing the two differ by rounding; where it is not, the artefact is another
model. Everything here that loads a model runs in a child process.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.compiler.child import PATIENT, Ran, call
from fieldlm.compiler.fidelity import CORPUS, first_difference, json_tokens, special_texts
from fieldlm.formats.bundle import Bundle, Gate, Manifest
from fieldlm.formats.errors import EngineError, GateError
from fieldlm.runtime.engines import Engine, Sampling, open_engine

TOKENS = 24
# Two choices of the source closer than this are one choice: 16-bit activations move a logit by about as much.
ROUNDING = 0.05
# A choice this clear is not tipped by rounding. Eight-bit activations move the gap between two logits by up to 0.43
# when a prompt is computed in other batches (SmolLM2-135M Q8_0, six prompts, 24 tokens each, alone and four at a time).
FIRM = 1.0
STOP = -1
CONTEXT = 2048
PROMPTS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "List three ways to save water at home.",
    "Write a Python function that returns the sum of a list of numbers.",
    "Translate into Spanish: Good morning, how are you?",
    "I would like two large coffees with oat milk and one blueberry muffin, please. That is for Anna at table 12.",
)


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What an artefact answers, token by token and as text, and how fast here.

    An answer that ended by itself ends with STOP. `firm` counts the tokens from the beginning of each answer that were
    chosen by FIRM logits or more (but is at least 1), and `firm_texts` spells them. `agreement` is the share of tokens
    it has in common with the reference, if it was given one. Only speed, load time and memory differ from run to run.
    """

    tokens: list[list[int]]
    texts: list[str]
    firm: list[int]
    firm_texts: list[str]
    stops: list[int]
    agreement: float | None
    tokens_per_s: float
    load_s: float
    memory_mb: dict[str, float]


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """A token that the source would not have said: `gap` is how many logits it likes its own better."""

    prompt: int
    at: int
    source: str
    artefact: str
    gap: float


def ask(
    draft: Bundle,
    texts: Sequence[str],
    *,
    what: str,
    adapter: Path | None = None,
    reference: Sequence[Sequence[int]] | None = None,
) -> Ran:
    """Return the Answers of the artefact in `draft` to `texts`, compared with the tokens of `reference`."""
    return call(
        "fieldlm.compiler.verify:answer",
        what=f"ask {what}",
        folder=draft.folder,
        manifest=msgspec.to_builtins(draft.manifest),
        adapter=adapter,
        texts=list(texts),
        reference=reference,
    )


def compare_tokens(draft: Bundle, tokenizer: Path, texts: Sequence[str]) -> Ran:
    """Return the gate that the artefact cuts text as tokenizer.json in the folder `tokenizer` does.

    Raises GateError with the first text that is cut otherwise.
    """
    ran = call(
        "fieldlm.compiler.verify:cut",
        what="compare the tokenizers",
        folder=draft.folder,
        manifest=msgspec.to_builtins(draft.manifest),
        tokenizer=tokenizer,
        texts=list(texts),
    )
    if ran.value["difference"]:
        raise GateError(f"the artefact cuts text otherwise than its source: {ran.value['difference']}")
    count = float(ran.value["texts"])
    gate = Gate(name="tokens-equal", value=count, limit=count, passed=True, unit="texts")
    return Ran(value=msgspec.to_builtins(gate), seconds=ran.seconds, peak_mb=ran.peak_mb)


def compare_answers(checkpoint: Path, texts: Sequence[str], answers: Answers, *, adapter: Path | None = None) -> Ran:
    """Return the gate that `answers` are what the source in `checkpoint`, with `adapter`, says in 32 bits.

    Raises GateError with the prompt, the position and both tokens of the worst difference.
    """
    ran = call(
        "fieldlm.compiler.source:doubts",
        what="ask the source model",
        env=PATIENT,
        checkpoint=checkpoint,
        adapter=adapter,
        texts=list(texts),
        answers=answers.tokens,
        stops=answers.stops,
    )
    doubts = msgspec.convert(ran.value, list[Doubt])
    worst = max(doubts, key=lambda doubt: doubt.gap, default=None)
    if worst is not None and worst.gap >= ROUNDING:
        raise GateError(
            f"the artefact is not its source: in prompt {worst.prompt} token {worst.at} is {worst.artefact} instead of "
            f"{worst.source}, which the source likes {worst.gap:.2f} logits better (limit {ROUNDING})"
        )
    gap = round(worst.gap, 4) if worst else 0.0
    gate = Gate(name="greedy-gap", value=gap, limit=ROUNDING, passed=True, unit="logits")
    return Ran(value=msgspec.to_builtins(gate), seconds=ran.seconds, peak_mb=ran.peak_mb)


def _open(folder: str, manifest: dict[str, Any]) -> Engine:
    bundle = Bundle(folder=Path(folder), id="0" * 64, manifest=msgspec.convert(manifest, Manifest))
    return open_engine(bundle, context=min(CONTEXT, bundle.manifest.model.context), parallel=1)


def cut(folder: str, manifest: dict[str, Any], tokenizer: str, texts: list[str]) -> dict[str, Any]:
    """Find the first text that the artefact cuts otherwise than tokenizer.json. Runs in a child process."""
    corpus = [*CORPUS, *special_texts(Path(tokenizer)), *texts]
    engine = _open(folder, manifest)
    difference = first_difference(corpus, json_tokens(Path(tokenizer), corpus), [*map(engine.tokenize, corpus)])
    engine.close()
    return {"difference": difference, "texts": len(corpus)}


def answer(
    folder: str, manifest: dict[str, Any], adapter: str | None, texts: list[str], reference: list[list[int]] | None
) -> dict[str, Any]:
    """Answer `texts` with the artefact and time it. Runs in a child process."""
    started_s = time.monotonic()
    engine = _open(folder, manifest)
    name = "adapter" if adapter is not None else None
    if adapter is not None:
        engine.load_adapter("adapter", Path(adapter))
    load_s = time.monotonic() - started_s
    prompts = [engine.tokenize(text) for text in texts]
    said = [_say(engine, prompt, TOKENS, name) for prompt in prompts]
    spent_s = sum(each.decode_s for each in said)
    tokens = [each.tokens for each in said]
    firm = [max(1, each.firm) for each in said]
    answers = Answers(
        tokens=tokens,
        texts=[engine.detokenize([token for token in each if token != STOP]) for each in tokens],
        firm=firm,
        firm_texts=[
            engine.detokenize([token for token in each[:count] if token != STOP])
            for each, count in zip(tokens, firm, strict=True)
        ],
        stops=sorted(engine.stop_tokens),
        agreement=None if reference is None else _agreement(engine, prompts, reference, name),
        tokens_per_s=round(sum(map(len, tokens)) / spent_s, 1) if spent_s else 0.0,
        load_s=round(load_s, 2),
        memory_mb={part: round(size, 1) for part, size in engine.memory_mb().items()},
    )
    engine.close()
    return msgspec.to_builtins(answers)


@dataclass(frozen=True)
class _Said:
    """One answer: its tokens, with STOP if it ended by itself, and how many of the first were chosen firmly."""

    tokens: list[int]
    firm: int
    decode_s: float


def _say(engine: Engine, prompt: Sequence[int], count: int, adapter: str | None) -> _Said:
    """Return the greedy answer of at most `count` tokens."""
    tokens: list[int] = []
    margins: list[float] = []
    generation = engine.start(prompt, Sampling(max_tokens=count), adapter=adapter)
    for chunk in generation:
        tokens += [token for token in chunk.tokens if token not in engine.stop_tokens]
        margins += chunk.margins
        if chunk.outcome not in (None, "stop", "length"):
            raise EngineError(f"the engine could not answer: {chunk.error or chunk.outcome}")
        if chunk.outcome == "stop":
            tokens.append(STOP)
    firm = next((at for at, margin in enumerate(margins) if margin < FIRM), len(margins))
    return _Said(tokens, firm, generation.timings.decode_s)


def _agreement(
    engine: Engine, prompts: Sequence[Sequence[int]], reference: Sequence[Sequence[int]], adapter: str | None
) -> float:
    """Return the share of the reference's tokens that the engine would have said in their place."""
    pairs = zip(prompts, reference, strict=True)
    partings = sum(_partings(engine, prompt, wanted, adapter) for prompt, wanted in pairs)
    return round(1 - partings / sum(map(len, reference)), 4)


def _partings(engine: Engine, prompt: Sequence[int], wanted: Sequence[int], adapter: str | None) -> int:
    """Count the tokens of `wanted` that the engine would not have said, back on its path after each."""
    count, at = 0, 0
    while at < len(wanted):
        given = _say(engine, [*prompt, *wanted[:at]], len(wanted) - at, adapter).tokens
        pairs = zip(given, wanted[at:], strict=False)
        same = next((index for index, (one, other) in enumerate(pairs) if one != other), len(given))
        count, at = count + (at + same < len(wanted)), at + same + 1
    return count
