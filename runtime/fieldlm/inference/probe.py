"""Ask a loaded generation the questions its bundle carries, and compare with what a healthy copy answers.

A process that started proves nothing about a model: a wrong template or damaged weights answer, in garbage. Greedy
answers are the same on every healthy copy up to rounding, which differs with what is computed beside them and can tip a
near tie. So a bundle's probes end before the first token that was not chosen clearly, and what is left has to agree.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from fieldlm.core.errors import EngineError
from fieldlm.core.timing import within
from fieldlm.engines import DEFAULT_TERMS, Engine, Sampling, Schedule
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.probe import Probe, load_probes

ANSWER_S = 120.0  # a Pi Zero needs a minute for 32 tokens; what takes longer hangs
# People come first, unless there are so many that it would never be its turn.
BEHIND = Schedule(priority="batch", deadline_s=30.0)
# For a model that is hardly sure of anything: even its first token may then be a near tie.
TRIES = 4


class LoadedModel(Protocol):
    """A loaded generation."""

    @property
    def bundle(self) -> Bundle: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def adapter(self) -> str | None: ...
    @property
    def task_adapters(self) -> Mapping[str, str]: ...


def score(serving: LoadedModel, *, on_answer: Callable[[int], object] = lambda answered: None) -> float:
    """Return the share of the bundle's probes that are answered as expected; 1 when it has none and still answers.

    Where the bundle has several adapters it is the share of the worst: one that is broken is not made up for by others.
    `on_answer` hears how many answers there are, of each probe up to TRIES.
    Raises EngineError when the generation does not answer at all, or not in time.
    """
    path = serving.bundle.path("probe")
    if path is None:
        answer(serving, Probe(messages=[{"role": "user", "content": "Hello"}], expect="", max_tokens=1))
        return 1.0
    probes, answered = load_probes(path), 0
    asked, passed = Counter(probe.adapter for probe in probes), Counter[str]()
    for probe in probes:
        for _ in range(TRIES):
            found = answer(serving, probe)
            answered += 1
            on_answer(answered)
            if agrees(found, probe.expect):
                passed[probe.adapter] += 1
                break
    return min(passed[adapter] / count for adapter, count in asked.items())


def agrees(found: str, expected: str) -> bool:
    """Say whether the answer begins as expected; a character that the last token leaves unfinished does not count."""
    found, expected = found.strip(), expected.rstrip("\ufffd").strip()
    return found.startswith(expected) if expected else not found.strip("\ufffd")


def answer(serving: LoadedModel, probe: Probe) -> str:
    """Return the greedy answer to one probe."""
    from fieldlm.inference.chat_template import render

    tokens = serving.engine.tokenize(render(serving.bundle, probe.messages))
    adapter = serving.task_adapters.get(probe.adapter, serving.adapter)
    for terms in (BEHIND, DEFAULT_TERMS):
        generation = serving.engine.start(tokens, Sampling(max_tokens=probe.max_tokens), adapter=adapter, terms=terms)
        with within(ANSWER_S, generation.cancel):
            chunks = list(generation)
        if chunks[-1].outcome in ("stop", "length"):
            return "".join(chunk.text for chunk in chunks)
        if chunks[-1].outcome not in ("deadline_exceeded", "preempted"):
            break
    reason = chunks[-1].error or f"no answer within {ANSWER_S:.0f} s"
    raise EngineError(f"{serving.bundle.generation} does not answer a probe: {reason}")
