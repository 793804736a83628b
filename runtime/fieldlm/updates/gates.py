"""Health gates: a generation's answers and costs against its bundle, the profile and the generation before.

Every verdict is a word for programs: `garbage` (probes answered otherwise), `slow`, `memory`, `context` (the shortest
question leaves no room), `hang`, `crash`, `errors` and `corrections` (of real users), `hot`; `shadow-invalid` and
`shadow-wrong` (of what people ask, in nobody's sight).
"""

import time
from typing import Literal

import msgspec

from fieldlm.core.errors import EngineError, GateError
from fieldlm.core.timing import within
from fieldlm.engines import Sampling, Schedule
from fieldlm.formats.bundle import Bundle, Manifest
from fieldlm.formats.probe import Probe, load_probes
from fieldlm.formats.shadow import ShadowFigures
from fieldlm.inference import probe
from fieldlm.inference.chat_template import render

Reason = Literal[
    "garbage", "slow", "memory", "context", "hang", "crash", "errors", "corrections", "hot", "shadow-invalid",
    "shadow-wrong",
]  # fmt: skip
LEAST_SCORE = 0.5  # a near tie may still tip one of a few probes; garbage, a wrong template or base scores near 0
SLOWEST = 0.45  # of the generation before, side by side; an adapter beside its base costs 0.6 at most
LATEST = 3.0  # times the first token of the generation before
LATE_MS = 250.0  # a first token that comes this much later is noticed by nobody
MOST_OF_CONTEXT = 0.5  # that the shortest question may take: the rest is for what people say
ROUNDS = 3
MOST_ROUNDS, DOUBT_S = 12, 40.0  # of one that looks slow: a busy neighbour may have had three rounds of the same side
AGREE = 0.85  # of the best round, the second best of a machine that is left alone
SPEED_TOKENS = 16
WORDS = ("probe", "report", "confidence", "router")
"""Roles of files that say something of a model and are no part of what it computes."""
SPEED_S = 20.0  # for all measurements of one answer: on a device that is this busy, real users say how fast it is
HELLO = Probe(messages=[{"role": "user", "content": "Hello"}], expect="", max_tokens=1)


class UnhealthyError(GateError):
    """A generation was tried and found wanting; `reason` is the word for programs."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one generation answers: milliseconds to the first token, tokens a second after it."""

    ttft_ms: float
    tokens_per_s: float


class TrialMeasurements(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of a generation before anybody is served by it. Memory is megabytes (1e6 bytes)."""

    score: float = 1.0
    prompt_tokens: int = 0
    context: int = 0
    memory_mb: float = 0.0
    speed: Speed | None = None
    before: Speed | None = None
    shadow: ShadowFigures | None = None

    def told(self) -> dict[str, str]:
        """Return the figures as words, for a record."""
        figures = {
            "score": f"{self.score:.2f}",
            "prompt_tokens": str(self.prompt_tokens),
            "memory_mb": f"{self.memory_mb:.0f}",
        }
        for name, speed in (("", self.speed), ("before_", self.before)):
            if speed:
                figures[f"{name}ttft_ms"] = f"{speed.ttft_ms:.0f}"
                figures[f"{name}tokens_per_s"] = f"{speed.tokens_per_s:.1f}"
        return figures | (self.shadow.told() if self.shadow else {})


def check_score(score: float) -> None:
    """Raise UnhealthyError unless enough probes are answered as expected."""
    if score < LEAST_SCORE:
        raise UnhealthyError("garbage", f"{score:.0%} of the probes are answered as expected, want {LEAST_SCORE:.0%}")


def check_context(prompt_tokens: int, context: int) -> None:
    """Raise UnhealthyError when the shortest question, with all that the template puts around it, fills the context."""
    if prompt_tokens > MOST_OF_CONTEXT * context:
        raise UnhealthyError("context", f"the shortest question takes {prompt_tokens} of {context} tokens of context")


def check_memory(memory_mb: float, budget_mb: float) -> None:
    """Raise UnhealthyError when the profile does not give a model so much; a budget of 0 is none."""
    if budget_mb and memory_mb > budget_mb:
        raise UnhealthyError("memory", f"it needs {memory_mb:.0f} MB, the profile gives a model {budget_mb:.0f} MB")


def check_speed(now: Speed, before: Speed) -> None:
    """Raise UnhealthyError when a generation is much slower than the one before, measured side by side."""
    if why := slowness(now, before):
        raise UnhealthyError("slow", why)


def slowness(now: Speed, before: Speed) -> str:
    """Return in what a generation is much slower than the one before, empty when it is not."""
    if now.tokens_per_s < SLOWEST * before.tokens_per_s:
        return f"{now.tokens_per_s:.1f} tokens/s, before it were {before.tokens_per_s:.1f}"
    if now.ttft_ms > LATEST * before.ttft_ms and now.ttft_ms > before.ttft_ms + LATE_MS:
        return f"the first token takes {now.ttft_ms:.0f} ms, before {before.ttft_ms:.0f} ms"
    return ""


def is_same_model(one: Manifest, other: Manifest) -> bool:
    """Whether two bundles hold the same model by its digests and differ in words at most.

    The system prompt, probes, reports and what routes and judges answers may differ; how weights compute and what they
    cost does not then, and was found out when the other was tried.
    """
    return _model_of(one) == _model_of(other)


def _model_of(manifest: Manifest) -> tuple[object, ...]:
    # Where a request's task chooses an adapter, what tells the task has a part in what is computed.
    several = manifest.task_adapters
    words = set(WORDS) - ({"router"} if several else set())
    files = sorted((file.role, file.sha256) for file in manifest.files if file.role not in words)
    # Their names are no part of it: the files are named by their digests.
    chosen = sorted((file.sha256, each.tasks) for each in several for file in manifest.files if file.path == each.path)
    first = manifest.file("adapter") if several else None
    rest = first.sha256 if first else ""
    return manifest.engine, manifest.cache, manifest.model.context, manifest.profile_sha256, files, chosen, rest


def questions(bundle: Bundle) -> tuple[Probe, ...]:
    """Return the bundle's probes, or a greeting when it has none."""
    path = bundle.path("probe")
    return load_probes(path) if path else (HELLO,)


def shortest_prompt(serving: probe.LoadedModel) -> int:
    """Return the tokens of the shortest question as the model sees it."""
    prompts = [render(serving.bundle, question.messages) for question in (*questions(serving.bundle), HELLO)]
    return min(len(serving.engine.tokenize(prompt)) for prompt in prompts)


def check_prompt(serving: probe.LoadedModel) -> TrialMeasurements:
    """Return what the prompt of a loaded generation takes; raises UnhealthyError when it leaves no room."""
    tokens, context = shortest_prompt(serving), serving.engine.context
    check_context(tokens, context)
    return TrialMeasurements(prompt_tokens=tokens, context=context)


def compare(after: probe.LoadedModel, before: probe.LoadedModel) -> tuple[Speed, Speed] | None:
    """Measure two generations in turns, so that a busy neighbour slows both; None when people leave no time for it.

    The best of some rounds counts: what disturbs only ever slows. One that looks slow gets more rounds while the two
    best of either side disagree: nothing takes that verdict back, and what it lets through people find.
    """
    question, end_s = questions(before.bundle)[0], time.monotonic() + DOUBT_S
    now, then = list[Speed](), list[Speed]()
    while len(now) < MOST_ROUNDS and (len(now) < ROUNDS or time.monotonic() < end_s):
        pair = _time(after, question, len(now)), _time(before, question, len(now))
        if pair[0] is None or pair[1] is None:
            return None
        now.append(pair[0])
        then.append(pair[1])
        if len(now) >= ROUNDS and not (slowness(_best(now), _best(then)) and is_disturbed(now, then)):
            break
    return _best(now), _best(then)


def is_disturbed(*sides: list[Speed]) -> bool:
    """Say whether the two best rounds of any side disagree, on the first token or on those after it."""
    speeds = [sorted(speed.tokens_per_s for speed in side)[-2:] for side in sides]
    waits = [sorted(speed.ttft_ms for speed in side)[:2] for side in sides]
    return any(second < AGREE * best for second, best in speeds) or any(best < AGREE * second for best, second in waits)


def _best(speeds: list[Speed]) -> Speed:
    return Speed(ttft_ms=min(s.ttft_ms for s in speeds), tokens_per_s=max(s.tokens_per_s for s in speeds))


def _time(serving: probe.LoadedModel, question: Probe, number: int) -> Speed | None:
    """Let one answer go; None when there was no time for it. Gives way to people."""
    # Another number each time: what comes before it is remembered, as it is for people; the question is not.
    asked = {"role": "user", "content": f"{number}. {question.messages[-1].get('content')}"}
    prompt = serving.engine.tokenize(render(serving.bundle, [*question.messages[:-1], asked]))
    sampling = Sampling(max_tokens=SPEED_TOKENS)
    answer = serving.engine.start(
        prompt, sampling, adapter=serving.adapter, terms=Schedule(priority="batch", alone=True)
    )
    with within(SPEED_S, answer.cancel):
        last = list(answer)[-1]
    if last.outcome == "cancelled":
        return None
    if last.outcome not in ("stop", "length"):
        raise EngineError(f"{serving.bundle.generation} does not answer: {last.error or last.outcome}")
    timings = answer.timings
    steps = timings.completion_tokens - 1
    return Speed(ttft_ms=1000 * timings.prefill_s, tokens_per_s=steps / timings.decode_s) if steps > 0 else None
