"""Equivalence proof: an artefact has the tokens, prompts, logits and answers of the model it was made from.

The artefact answers greedily; then the source reads those answers and says, at each token, how much it would have
preferred another. Where that is next to nothing the two differ by rounding; where it is not, the artefact is another
model. Both also read passages of other kinds, and what they think of each token is compared whole. Everything here that
loads a model runs in a child process.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fieldlm.core.errors import EngineError, GateError
from fieldlm.engines import Engine, Sampling
from fieldlm.formats.bundle import SOURCE_GATE, Bundle, Gate
from fieldlm.formats.profile import Profile
from fieldlm.inference.chat_template import opening, special_tokens
from fieldlm_compiler.checkpoints.tokenizer_parity import (
    CORPUS,
    PROSE,
    doubled_start,
    first_difference,
    json_tokens,
    special_texts,
)
from fieldlm_compiler.export.transformers4 import named_stops
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.pipeline.fork_server import TORCH
from fieldlm_compiler.verify.dialogues import difference
from fieldlm_compiler.verify.logits import Passage, read
from fieldlm_compiler.verify.reference_model import judge
from fieldlm_compiler.verify.served import open_served

TOKENS = 24
# Two choices of the source closer than this are one choice: 16-bit activations move a logit by about as much.
ROUNDING = 0.05
# A choice this clear is not tipped by rounding. Eight-bit activations move the gap between two logits by up to 0.43
# when a prompt is computed in other batches (SmolLM2-135M Q8_0, six prompts, 24 tokens each, alone and four at a time).
FIRM = 1.0
# Full weights against the source: perplexity's own table has 2.5e-5 and 99.74 % for BF16 against F16.
MOST_KL, LEAST_SAME_TOP = 1e-4, 0.995
STOP = -1
# Tokens that are read behind a bound of the model, such as its sliding window, of a passage as long as that.
BEYOND = 48
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
    profile: Profile,
    *,
    what: str,
    adapter: Path | None = None,
    reference: Sequence[Sequence[int]] | None = None,
) -> Ran:
    """Return the Answers of the artefact in `draft` to `texts`, compared with the tokens of `reference`."""
    return call(answer, what=f"ask {what}")(
        bundle=draft,
        profile=profile,
        adapter=adapter,
        texts=list(texts),
        reference=reference,
    )


def compare_texts(draft: Bundle, profile: Profile, tokenizer: Path, texts: Sequence[str]) -> Ran:
    """Return the gates that the artefact cuts text, renders conversations and ends answers as its source does.

    `tokenizer` is the source's folder. Raises GateError with the first text, conversation or token that differs.
    """
    ran = call(compare, what="compare tokens and templates", preload=TORCH)(
        bundle=draft,
        profile=profile,
        tokenizer=tokenizer,
        texts=list(texts),
    )
    counts: dict[str, tuple[int, str]] = {name: tuple(found) for name, found in ran.value.items()}
    gates = [Gate(name=name, value=n, limit=n, passed=True, unit=unit) for name, (n, unit) in counts.items()]
    return Ran(value=msgspec.to_builtins(gates), seconds=ran.seconds, peak_mb=ran.peak_mb)


def compare_answers(
    checkpoint: Path,
    texts: Sequence[str],
    answers: Answers,
    *,
    adapter: Path | None = None,
    reader: "ArtefactReader | None" = None,
    name: str = "",
) -> Ran:
    """Return the `gates` that `answers`, and what `reader` thinks, are what the source in `checkpoint` says in 32 bits.

    `context` is the first of the reader's bounds past which they differ; None where there is none. `adapter` is what
    peft has to put beside the source, `name` the model's. Raises GateError with the prompt, the position and both
    tokens of the worst difference, or with the figure that missed its limit; and for a source that answers every prompt
    alike, to which anything like it would be equal.
    """
    with tempfile.TemporaryDirectory(prefix="fieldlm-") as folder:
        reading = reader.read(Path(folder) / "logits.npy", texts, answers) if reader else None
        ran = call(judge, what="ask the source model", preload=TORCH)(
            checkpoint=checkpoint,
            adapter=adapter,
            texts=list(texts),
            answers=answers.tokens,
            stops=answers.stops,
            passages=reading.value["passages"] if reading else [],
            logits=Path(folder) / "logits.npy" if reading else None,
            rounding=ROUNDING,
        )
    if ran.value["is_deaf"]:
        raise GateError(
            f"what {name or checkpoint} says does not depend on the prompt: its weights are all zero, all alike, or "
            "not those that were trained; fetch or save it again"
        )
    gates = [_greedy_gap(msgspec.convert(ran.value["doubts"], list[Doubt]))]
    context = None
    if reading:
        # The passages past a bound come last, one for each.
        bounds, read = reading.value["bounds"], ran.value["read"]
        short = read[: len(read) - len(bounds)]
        gates += _held(*_together(short))
        past = [*zip(bounds, read[len(short) :], strict=True)]
        context = next((bound for bound, found in past if not _is_held(*_together([found]))), None)
        gates += [
            Gate(name=name_past(bound), value=round(_together([found])[0], 6), limit=MOST_KL, passed=True, unit="nats")
            for bound, found in past
            if context is None
        ]
    seconds, peak_mb = (reading.seconds, reading.peak_mb) if reading else (0.0, 0.0)
    value = {"gates": msgspec.to_builtins(gates), "context": context}
    return Ran(value=value, seconds=ran.seconds + seconds, peak_mb=max(ran.peak_mb, peak_mb))


def name_past(bound: int) -> str:
    """Return the name of the gate of what is read past `bound` tokens."""
    return f"past-{bound}"


def _greedy_gap(doubts: Sequence[Doubt]) -> Gate:
    worst = max(doubts, key=lambda doubt: doubt.gap, default=None)
    if worst is not None and worst.gap >= ROUNDING:
        raise GateError(
            f"the artefact is not its source: in prompt {worst.prompt} token {worst.at} is {worst.artefact} instead of "
            f"{worst.source}, which the source likes {worst.gap:.2f} logits better (limit {ROUNDING})"
        )
    gap = round(worst.gap, 4) if worst else 0.0
    return Gate(name="greedy-gap", value=gap, limit=ROUNDING, passed=True, unit="logits")


def _together(passages: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Return mean divergence and share of the same best token over all tokens of `passages`."""
    tokens = sum(each["tokens"] for each in passages)
    return sum(each["kl"] for each in passages) / tokens, 1 - sum(each["partings"] for each in passages) / tokens


def _is_held(mean_kl: float, same_top: float) -> bool:
    # Rounded, so that the same inputs give the same bundle whatever the last digits do.
    return round(mean_kl, 6) <= MOST_KL and round(same_top, 4) >= LEAST_SAME_TOP


def _held(mean_kl: float, same_top: float) -> list[Gate]:
    kl, top = round(mean_kl, 6), round(same_top, 4)
    if not _is_held(mean_kl, same_top):
        raise GateError(
            f"the artefact is not its source: its mean divergence is {kl:g} nats (limit {MOST_KL:g}), it likes the "
            f"same token best in {100 * top:.2f} % (limit {100 * LEAST_SAME_TOP} %); please report this architecture"
        )
    return [
        Gate(name=SOURCE_GATE, value=kl, limit=MOST_KL, passed=True, unit="nats"),
        Gate(name="same-top", value=top, limit=LEAST_SAME_TOP, passed=True),
    ]


@dataclass(frozen=True, kw_only=True)
class ArtefactReader:
    """An artefact, with its adapter, that reads the answers it gave and the passages of PROSE.

    Past each of `bounds`, in tokens, that the served context holds, it reads a passage as long as that, too.
    """

    draft: Bundle
    profile: Profile
    bounds: tuple[int, ...] = ()
    adapter: Path | None = None

    def read(self, into: Path, texts: Sequence[str], answers: Answers) -> Ran:
        """Write the logits of every token read to the .npy file `into`; return the passages for the source."""
        return call(read_passages, what="read what it thinks")(
            bundle=self.draft,
            profile=self.profile,
            bounds=list(self.bounds),
            adapter=self.adapter,
            texts=list(texts),
            answers=answers.tokens,
            into=into,
        )


def weigh_serving(draft: Bundle, profile: Profile) -> Ran:
    """Return the megabytes that the engine holds, part by part, when it serves as `profile` says.

    The most that the process held, in `peak_mb`, is with Python.
    """
    return call(serve, what="weigh the engine as it serves")(
        bundle=draft,
        profile=profile,
    )


def serve(bundle: Bundle, profile: Profile) -> dict[str, float]:
    """Load the artefact, let it read and answer once, and say what it holds. Runs in a child process."""
    engine = open_served(bundle, profile)
    prompt = (engine.tokenize(PROMPTS[0]) * engine.context)[: min(engine.context // 2, 1024)]
    for _ in engine.start(prompt, Sampling(max_tokens=4)):
        pass
    held = engine.memory_mb()
    engine.close()
    return held


def compare(bundle: Bundle, profile: Profile, tokenizer: Path, texts: list[str]) -> dict[str, tuple[int, str]]:
    """Return what was compared and found equal: count and unit by gate. Runs in a child process."""
    source, engine = tokenizer, open_served(bundle, profile)
    corpus = [*CORPUS, *special_texts(source), *texts]
    cut = [*map(engine.tokenize, corpus)]
    if found := first_difference(corpus, json_tokens(source, corpus), cut):
        raise GateError(f"the artefact cuts text otherwise than its source: {found}")
    start = opening(bundle) or special_tokens(bundle).bos
    starts = engine.tokenize(start) if start else []
    doubled = doubled_start(cut[-len(texts) :] if texts else [], starts[0] if len(starts) == 1 else None)
    if doubled is not None:
        raise GateError(f"prompt {doubled} begins with {start} twice: {texts[doubled][:60]!r}; mend the chat template")
    rendered, different = difference(source, bundle)
    if different:
        raise GateError(f"the chat template is rendered otherwise than by transformers: {different}")
    ends = named_stops(source)
    endless = [name for token, name in ends.items() if token not in engine.stop_tokens]
    engine.close()
    if endless:
        raise GateError(f"{', '.join(endless)} ends an answer of the source and none of the artefact's")
    return {
        "tokens-equal": (len(corpus), "texts"),
        **({"template-equal": (rendered, "dialogues")} if rendered else {}),
        "ends-equal": (len(ends), "tokens"),
    }


def read_passages(
    *,
    bundle: Bundle,
    profile: Profile,
    bounds: list[int],
    adapter: Path | None,
    texts: list[str],
    answers: list[list[int]],
    into: Path,
) -> dict[str, Any]:
    """Write what the artefact thinks of its answers and of PROSE to `into`. Runs in a child process.

    Returns the `passages` and the `bounds` that the last of them pass.
    """
    engine = open_served(bundle, profile)
    start = opening(bundle)
    if adapter is not None:
        engine.load_adapter("adapter", adapter)
    said = [tuple(token for token in answer if token != STOP) for answer in answers]
    passages = [
        Passage(given=tuple(engine.tokenize(text)), read=tokens)
        for text, tokens in zip(texts, said, strict=True)
        if tokens
    ]
    for prose in PROSE:
        head, tokens = len(engine.tokenize(start)) if start else 1, engine.tokenize(start + prose)
        passages.append(Passage(given=tuple(tokens[:head]), read=tuple(tokens[head:])))
    passed = [bound for bound in bounds if bound + 1 < engine.context]
    passages += [_past(engine, start, bound) for bound in passed]
    rows = read(engine, passages, adapter="adapter" if adapter is not None else None)
    np.save(into, np.concatenate(list(rows)))
    engine.close()
    return {"passages": [([*passage.given], [*passage.read]) for passage in passages], "bounds": passed}


def _past(engine: Engine, start: str, bound: int) -> Passage:
    """Return a passage of which the tokens behind the first `bound` are read, as many as the context holds."""
    end = min(bound + BEYOND, engine.context - 1)
    tokens, page = engine.tokenize(start), 0
    while len(tokens) < end:
        page += 1
        tokens += engine.tokenize(f"Page {page}. {PROSE[page % len(PROSE)]}\n")
    return Passage(given=tuple(tokens[:bound]), read=tuple(tokens[bound:end]))


def answer(
    bundle: Bundle,
    profile: Profile,
    adapter: Path | None,
    texts: list[str],
    reference: Sequence[Sequence[int]] | None,
) -> dict[str, Any]:
    """Answer `texts` with the artefact and time it. Runs in a child process."""
    started_s = time.monotonic()
    engine = open_served(bundle, profile)
    name = "adapter" if adapter is not None else None
    if adapter is not None:
        engine.load_adapter("adapter", adapter)
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
