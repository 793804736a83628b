"""Rows of the table that are asked over HTTP. Rounds alternate both sides; each gives one ratio, ours by theirs."""

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from benchmarks.serving_calls import Calls
from benchmarks.serving_sides import (
    Body,
    Reply,
    Server,
    Setting,
    busy,
    fieldlm_server,
    in_process,
    llama_bench,
    llama_server,
)
from fieldlm.bench.result import Interval, interval
from fieldlm.core.errors import UnavailableError
from fieldlm.core.terminal import Progress

QUESTIONS = (
    "Write a long story about a lighthouse keeper and her dog.", "Explain in detail how bread is made.",
    "Describe a walk through an old harbour town.", "Tell me everything about the planet Mars.",
    "Write a long letter to a friend about a journey by train.", "Explain how a bicycle works, part by part.",
    "Describe how to plan a vegetable garden.", "Tell the history of the lighthouse in many words.",
)  # fmt: skip
WORDS = (
    "harbour", "copper", "lantern", "meadow", "river", "ticket", "window", "garden", "station", "kettle", "marble",
    "pocket", "silver", "thunder", "village", "whistle", "anchor", "blanket", "candle", "desert", "engine", "forest",
    "guitar", "hammer", "island", "jacket", "kitchen", "ladder", "mirror", "needle",
)  # fmt: skip
COLD_WORDS = 220
TURNS = 10  # of a conversation
ANSWER_TOKENS = 24  # in it
REQUESTS = 10  # of one side in one round of the rows that look at percentiles


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number the project promises: ours by theirs (or ours alone), and the bound it is held to."""

    what: str
    value: Interval
    bound: float
    at_least: bool = True
    unit: str = "×"
    ours: tuple[float, ...] = ()
    theirs: tuple[float, ...] = ()
    note: str = ""

    @property
    def holds(self) -> bool:
        return self.value.median >= self.bound if self.at_least else self.value.median <= self.bound


@dataclass(frozen=True)
class Job:
    """What a row is measured with."""

    setting: Setting
    rounds: int
    tokens: int
    calls: Calls
    progress: Progress

    def each_round(self) -> Sequence[int]:
        return range(self.rounds)


def ratio(what: str, ours: Sequence[float], theirs: Sequence[float], bound: float, *, at_least: bool = True) -> Figure:
    """Compare pairs that were measured beside each other."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Figure(
        what=what, value=interval(pairs), bound=bound, at_least=at_least, ours=tuple(ours), theirs=tuple(theirs)
    )


def alternate(job: Job, sides: Sequence[Callable[[int], float]]) -> list[list[float]]:
    """Call every side once a round, in an order that turns, after a round that does not count."""
    found: list[list[float]] = [[] for _ in sides]
    for turn in range(-1, job.rounds):
        order = [(turn + i) % len(sides) for i in range(len(sides))]
        values = {side: sides[side](turn) for side in order}
        for side, value in values.items() if turn >= 0 else ():
            found[side].append(value)
        job.progress.update(turn + 1, f"round {max(turn, 0) + 1} of {job.rounds}")
    return found


def story(turn: int, tokens: int) -> Body:
    """Return a question whose answer is long, another one each time, so that nothing of it is in a cache."""
    return {
        "messages": [{"role": "user", "content": f"{QUESTIONS[turn % len(QUESTIONS)]} (Letter {turn}.)"}],
        "max_tokens": tokens,
    }


def decode(job: Job) -> list[Figure]:
    """Decode in the process, against llama-bench."""
    setting = job.setting
    ours, theirs = alternate(
        job,
        [
            lambda _: in_process(setting.bundle, setting.threads, job.tokens),
            lambda _: llama_bench(setting, job.tokens),
        ],
    )
    return [ratio("decode in-process / llama-bench", ours, theirs, 1.0)]


def http_decode(job: Job) -> list[Figure]:
    """Decode for one client, against llama-server and llama-bench."""
    with fieldlm_server(job.setting) as ours, llama_server(job.setting) as theirs:
        mine, other, bench = alternate(
            job,
            [
                lambda turn: ours.chat(story(turn, job.tokens)).decode_tokens_s,
                lambda turn: theirs.chat(story(turn, job.tokens)).decode_tokens_s,
                lambda _: llama_bench(job.setting, job.tokens),
            ],
        )
    return [
        ratio("decode over HTTP, 1 client / llama-bench", mine, bench, 0.93),
        ratio("decode over HTTP, 1 client / llama-server", mine, other, 1.1),
    ]


def throughput(job: Job) -> list[Figure]:
    """All tokens a second of 4 and of 8 clients, against llama-server."""
    figures: list[Figure] = []
    for clients, bound in ((4, 1.25), (8, 1.4)):
        setting = replace(job.setting, parallel=clients, context=min(job.setting.context, 1024))
        with fieldlm_server(setting) as ours, llama_server(setting) as theirs:
            mine, other = alternate(job, [_total(server, clients, job.tokens) for server in (ours, theirs)])
        figures.append(ratio(f"tokens/s over HTTP, {clients} clients / llama-server", mine, other, bound))
    return figures


def _total(server: Server, clients: int, tokens: int) -> Callable[[int], float]:
    def measure(turn: int) -> float:
        replies, spent_s = server.chat_all([story(turn * clients + i, tokens) for i in range(clients)], clients)
        return sum(reply.tokens for reply in replies) / spent_s

    return measure


def ttft(job: Job) -> list[Figure]:
    """Time to the first text: of a prompt never seen before, of one that begins as all do, and of a conversation."""
    words, count = random.Random(5), itertools.count()

    def cold() -> Body:
        text = " ".join(words.choices(WORDS, k=COLD_WORDS))
        return {"messages": [{"role": "user", "content": f"{next(count)} {text}"}], "max_tokens": 2}

    prefix = " ".join(words.choices(WORDS, k=2 * COLD_WORDS))

    def shared() -> Body:
        user = f"{words.choice(WORDS)} {next(count)}?"
        said = [{"role": "system", "content": prefix}, {"role": "user", "content": user}]
        return {"messages": said, "max_tokens": 2}

    figures: list[Figure] = []
    with fieldlm_server(job.setting) as ours, llama_server(job.setting) as theirs:
        for kind, body in (("cold prompt", cold), ("shared prefix", shared)):
            figures += _percentiles(job, kind, body, (ours, theirs))
        mine, other = alternate(job, [_last_turn(server) for server in (ours, theirs)])
    return [*figures, ratio("TTFT, tenth turn / llama-server", mine, other, 0.85, at_least=False)]


def _last_turn(server: Server) -> Callable[[int], float]:
    """Return what has a conversation and measures the time to the first text of its last answer, in milliseconds."""

    def measure(turn: int) -> float:
        said: list[dict[str, str]] = []
        first_s = 0.0
        for number in range(TURNS):
            question = QUESTIONS[(turn + number) % len(QUESTIONS)]
            said.append({"role": "user", "content": f"{question} (Letter {turn}, {number}.)"})
            reply = server.chat({"messages": said, "max_tokens": ANSWER_TOKENS})
            said.append({"role": "assistant", "content": reply.text})
            first_s = reply.first_s
        return 1000 * first_s

    return measure


def _percentiles(job: Job, kind: str, body: Callable[[], Body], servers: tuple[Server, Server]) -> list[Figure]:
    """Ask both sides in turn; the ratio of a percentile is taken in each round, its interval over the rounds."""
    rounds: list[dict[str, list[Reply]]] = []
    for turn in range(-1, job.rounds):
        replies: dict[str, list[Reply]] = {server.name: [] for server in servers}
        for i in range(REQUESTS if turn >= 0 else 1):
            for server in servers if i % 2 else servers[::-1]:
                replies[server.name].append(server.chat(body()))
        rounds += [replies] * (turn >= 0)
        job.progress.update(turn + 1, kind)

    def at(percent: int, server: Server) -> list[float]:
        return [1000 * float(np.percentile([r.first_s for r in found[server.name]], percent)) for found in rounds]

    ours, theirs = servers
    return [
        ratio(f"TTFT p{p}, {kind} / llama-server", at(p, ours), at(p, theirs), bound, at_least=False)
        for p, bound in ((50, 0.85), (95, 1.0))
    ]


def calls(job: Job) -> list[Figure]:
    """Strict-schema calls a second with 1 and 4 clients; every answer is checked."""
    figures: list[Figure] = []
    setting = replace(job.setting, parallel=4, context=min(job.setting.context, 1024))
    with fieldlm_server(setting) as ours, llama_server(setting) as theirs:
        for clients, bound in ((1, 6.0), (4, 5.0)):
            mine, other = alternate(job, [_rate(server, clients, job.calls) for server in (ours, theirs)])
            figures.append(ratio(f"{job.calls.name} calls/s, {clients} clients / llama-server", mine, other, bound))
    return figures


def _rate(server: Server, clients: int, asked: Calls) -> Callable[[int], float]:
    def measure(turn: int) -> float:
        replies, spent_s = server.chat_all(asked.bodies(turn + 1, 2 * clients + 2), clients)
        for reply in replies:
            if why := asked.fault(reply.text):
                raise UnavailableError(f"{server.name} breaks the schema: {why} in {reply.text[:200]!r}")
        return len(replies) / spent_s

    return measure


def neighbours(job: Job) -> list[Figure]:
    """Decode beside 1 and 2 busy processes, both sides at their own choice of threads."""
    setting = replace(job.setting, threads=0)

    def beside(server: Server, count: int) -> Callable[[int], float]:
        def measure(turn: int) -> float:
            with busy(count):
                return server.chat(story(turn, job.tokens)).decode_tokens_s

        return measure

    with ExitStack() as kept:
        ours = kept.enter_context(fieldlm_server(setting))
        theirs = kept.enter_context(llama_server(setting))
        sides = [beside(ours, 0), beside(ours, 1), beside(theirs, 1), beside(ours, 2), beside(theirs, 2)]
        idle, one, one_other, two, two_other = alternate(job, sides)
    return [
        ratio("decode beside 1 busy process / llama-server", one, one_other, 3.0),
        ratio("decode beside 2 busy processes / llama-server", two, two_other, 2.0),
        ratio("decode beside 1 busy process / own idle speed", one, idle, 0.85),
    ]
