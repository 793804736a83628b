"""What a prediction saves, and what it costs where nothing of it comes: the engine alone, with and without.

`python -m benchmarks.serving --rows prediction`
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import msgspec

from benchmarks.serving_rows import QUESTIONS, WORDS, Figure, Job, alternate, ratio
from fieldlm.engines import Engine, EngineOptions, Sampling, open_engine
from fieldlm.engines.constraint import Rule, grammars
from fieldlm.inference.chat_template import render

LINES = 7
CALLS = 6  # of one side in one round

Asked = tuple[list[int], Sampling]


def prediction(job: Job) -> list[Figure]:
    """Tokens a second of answers that copy, of free ones, and of calls: with an empty prediction, and with none."""
    setting = job.setting
    engine = open_engine(
        setting.bundle, EngineOptions(threads=setting.threads or None, context=min(setting.context, 1024), parallel=1)
    )

    def copies(temperature: float) -> Callable[[int], list[Asked]]:
        return lambda turn: [_copy(engine, turn, Sampling(max_tokens=job.tokens, temperature=temperature, seed=turn))]

    def free(turn: int) -> list[Asked]:
        said = [{"role": "user", "content": f"{QUESTIONS[turn % len(QUESTIONS)]} (Letter {turn}.)"}]
        return [(engine.tokenize(render(setting.bundle, said)), Sampling(max_tokens=job.tokens))]

    def calls(turn: int) -> list[Asked]:
        rule = grammars(engine).compile(Rule("json_schema", json.dumps(job.calls.schema)))
        bodies = job.calls.bodies(turn + 1, CALLS)
        prompts = [engine.tokenize(render(setting.bundle, body["messages"])) for body in bodies]
        return [(prompt, Sampling(max_tokens=bodies[0]["max_tokens"], constraint=rule)) for prompt in prompts]

    rows: list[tuple[str, Callable[[int], list[Asked]], float]] = [
        ("copying", copies(0.0), 2.0),
        ("copying, temperature 0.7", copies(0.7), 1.2),
        ("free text", free, 0.98),
        (f"{job.calls.name} calls", calls, 0.95),
    ]
    try:
        return [_with_and_without(engine, job, what, ask, bound) for what, ask, bound in rows]
    finally:
        engine.close()


def _with_and_without(engine: Engine, job: Job, what: str, ask: Callable[[int], list[Asked]], bound: float) -> Figure:
    drafted = accepted = 0

    def measure(given: tuple[int, ...] | None) -> Callable[[int], float]:
        def speed(turn: int) -> float:
            nonlocal drafted, accepted
            tokens, seconds = 0, 0.0
            for prompt, sampling in ask(turn):
                # Once for the prompt, so that both sides begin from it.
                list(engine.start(prompt, replace(sampling, max_tokens=1, constraint=None)))
                list(generation := engine.start(prompt, replace(sampling, prediction=given)))
                timings = generation.timings
                tokens, seconds = tokens + timings.completion_tokens, seconds + timings.prefill_s + timings.decode_s
                drafted, accepted = drafted + timings.drafted_tokens, accepted + timings.accepted_tokens
            return tokens / seconds

        return speed

    mine, other = alternate(job, [measure(()), measure(None)])
    figure = ratio(f"{what}, with prediction / without", mine, other, bound)
    return msgspec.structs.replace(figure, note=f"{what}: {accepted} of {drafted} drafted tokens accepted")


def _copy(engine: Engine, turn: int, sampling: Sampling) -> Asked:
    """Return a text to be copied, after an example of just that: a small model can do no other."""
    words = random.Random(turn)
    text = " ".join(_line(words) for _ in range(LINES))
    return engine.tokenize(f"Text: {text}\nCopy: {text}\n\nText: {text}\nCopy:"), sampling


def _line(words: random.Random) -> str:
    thing, place = words.sample(WORDS, 2)
    return f"Item: {thing}, price {words.randrange(100, 9999) / 100:.2f}, stock {words.randrange(50)}, in the {place}."
