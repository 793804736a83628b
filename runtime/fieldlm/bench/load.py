"""Load on a running server: what people wait for, when several ask at once or one after the other arrives.

A closed loop keeps `concurrency` requests running. An open one lets them arrive as strangers do, by a Poisson process
of `rate` a second, and counts the wait from the moment at which each was due: a server that falls behind is not asked
less. Prompts are random words, drawn anew for each request of each load and of each run, so that none is cached. Any
server of OpenAI's chat completions will do.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from fieldlm.core.errors import FieldlmError, InputError, UnavailableError
from fieldlm.network.http_client import AT_ONCE, OK, HttpClient, refusal

PATH = "/v1/chat/completions"
_WORDS = """
    time year people way day man thing woman life child world school state family student group country problem hand
    part place case week company system program question work government number night point home water room mother
    area money story fact month lot right study book eye job word business issue side kind head house service friend
    father power hour game line end member law car city name team minute idea body information back parent face
"""
WORDS = _WORDS.split()
LEAST_OF = {50: 2, 90: 10, 95: 20, 99: 100}
"""Per cent, and how many requests it takes until anything is known of it."""


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Seconds of a deadline are from the moment a request was due; None is none.

    Prompts and arrivals are drawn by `seed`, the same for the same seed.
    """

    model: str
    prompt_tokens: int
    gen_tokens: int
    seed: int = 1
    deadline_s: float | None = None
    first_word_s: float | None = None


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """How much at once: so many requests that run, or so many a second that arrive."""

    concurrency: int = 0
    rate: float = 0.0

    @property
    def words(self) -> str:
        return f"{self.rate:g}/s" if self.rate else f"{self.concurrency} at once"


class LoadAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One request; seconds since it was due. `gaps_s` are between pieces of text, each of one token or of several."""

    due_s: float
    ended_s: float
    ttft_s: float | None = None
    gaps_s: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    error: str = ""


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of a time in seconds; None where there are too few requests to know."""

    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None

    def words(self, scale: float = 1000.0, digits: int = 0) -> str:
        return " / ".join(
            "–" if each is None else f"{scale * each:.{digits}f}" for each in (self.p50, self.p90, self.p95, self.p99)
        )


class LevelResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one level.

    `ttft_s` to the first text, `gap_s` between two pieces of it, `token_s` of each answer the mean time of a token
    after the first, `whole_s` to the end. Good are those within the deadlines; `good_per_s` is goodput.
    """

    level: Level
    took_s: float
    requests: int
    failed: dict[str, int]
    prompt_tokens: float
    cached_tokens: float
    gen_tokens: float
    tokens_per_s: float
    requests_per_s: float
    ttft_s: Percentiles
    gap_s: Percentiles
    token_s: Percentiles
    whole_s: Percentiles
    good: int
    good_per_s: float


def served_model(client: HttpClient, name: str) -> str:
    """Return `name` if the server has it, without one the first that it has; raises InputError where it has not."""
    status, document = client.get("/v1/models")
    if status != OK:
        raise InputError(f"{client.url} lists no models: {refusal(document)}")
    entries = document.get("data") if isinstance(document, dict) else None
    names = [str(each["id"]) for each in entries or () if isinstance(each, dict) and "id" in each]
    if not names:
        raise UnavailableError(f"{client.url} has no model")
    if name and name not in names:
        raise InputError(f"{client.url} has no model {name!r}; it has {', '.join(names[:8])}")
    return name or names[0]


def run_level(
    client: HttpClient, spec: LoadSpec, level: Level, requests: int, *, name: str, on_end: Callable[[int], None]
) -> list[LoadAnswer]:
    """Ask `requests` times; `on_end` is called with how many have ended. Another `name` asks other prompts."""
    ended: list[LoadAnswer] = []
    with asking(client, AT_ONCE if level.rate else level.concurrency) as (pool, is_over):
        began_s = time.monotonic()
        futures = [
            pool.submit(ask, client, spec, f"{name}/{number}", began_s=began_s, due_s=due_s, is_over=is_over)
            for number, due_s in enumerate(dues(spec, level, requests))
        ]
        for future in futures:
            ended.append(future.result())
            on_end(len(ended))
    return ended


@contextmanager
def asking(client: HttpClient, most: int) -> Generator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Yield threads that ask, and what tells them that it is over; at the end of the block, or Ctrl-C, all hang up."""
    is_over = threading.Event()
    pool = ThreadPoolExecutor(most, "load")
    try:
        yield pool, is_over
    finally:
        is_over.set()
        client.hang_up()
        pool.shutdown(cancel_futures=True)


def dues(spec: LoadSpec, level: Level, requests: int) -> Iterator[float | None]:
    """Yield when each request is due, in seconds; None is as soon as one has ended."""
    drawn, due_s = random.Random(spec.seed), 0.0
    for _ in range(requests):
        due_s += drawn.expovariate(level.rate) if level.rate else 0.0
        yield due_s if level.rate else None


def ask(
    client: HttpClient,
    spec: LoadSpec,
    name: str,
    *,
    began_s: float,
    due_s: float | None,
    is_over: threading.Event,
) -> LoadAnswer:
    """Ask once, when it is due, and read the whole answer; what fails is said in what is returned."""
    if due_s is not None:
        is_over.wait(max(0.0, began_s + due_s - time.monotonic()))
    start_s = time.monotonic() if due_s is None else began_s + due_s
    if is_over.is_set():
        return LoadAnswer(due_s=start_s - began_s, ended_s=0.0, error="stopped")
    body = body_of(spec, name)
    moments: list[float] = []
    usage: dict[str, Any] = {}
    error = ""
    try:
        for event in client.events(PATH, body):
            if is_over.is_set():
                break
            usage = event.get("usage") or usage
            choices = event.get("choices") or [{}]
            if (choices[0].get("delta") or {}).get("content"):
                moments.append(time.monotonic())
    except FieldlmError as failed:
        error = str(failed)
    details = usage.get("prompt_tokens_details") or {}
    return LoadAnswer(
        due_s=start_s - began_s,
        ended_s=time.monotonic() - start_s,
        ttft_s=moments[0] - start_s if moments else None,
        gaps_s=tuple(later - earlier for earlier, later in pairwise(moments)),
        # A server that tells no usage is counted by the pieces of its text.
        tokens=int(usage.get("completion_tokens") or len(moments)),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        cached_tokens=int(details.get("cached_tokens") or 0),
        error=error or ("" if moments else "an answer without text"),
    )


def body_of(spec: LoadSpec, name: str) -> dict[str, Any]:
    """Return the request of that name: as many common words as tokens are asked for, which are one token each."""
    drawn = random.Random(f"{spec.seed}/{name}/{spec.prompt_tokens}")
    words = " ".join(drawn.choices(WORDS, k=max(1, spec.prompt_tokens)))
    return {
        "model": spec.model,
        "messages": [{"role": "user", "content": words}],
        "max_tokens": spec.gen_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def summary(level: Level, asked: Sequence[LoadAnswer], spec: LoadSpec) -> LevelResult:
    """Return what came of the requests of one level; those that failed are counted, and nothing else."""
    fine = [each for each in asked if not each.error]
    took_s = max((each.due_s + each.ended_s for each in asked), default=0.0) or 1e-9
    good = sum(_is_good(each, spec) for each in fine)
    tokens = sum(each.tokens for each in fine)
    return LevelResult(
        level=level,
        took_s=took_s,
        requests=len(asked),
        failed=dict(Counter(each.error for each in asked if each.error)),
        prompt_tokens=_mean([each.prompt_tokens for each in fine]),
        cached_tokens=_mean([each.cached_tokens for each in fine]),
        gen_tokens=_mean([each.tokens for each in fine]),
        tokens_per_s=tokens / took_s,
        requests_per_s=len(fine) / took_s,
        ttft_s=percentiles([each.ttft_s for each in fine if each.ttft_s is not None]),
        gap_s=percentiles([gap for each in fine for gap in each.gaps_s]),
        token_s=percentiles(
            [(each.ended_s - each.ttft_s) / (each.tokens - 1) for each in fine if each.tokens > 1 and each.ttft_s]
        ),
        whole_s=percentiles([each.ended_s for each in fine]),
        good=good,
        good_per_s=good / took_s,
    )


def percentiles(values: Sequence[float]) -> Percentiles:
    """Return what is known of the percentiles of `values`: of the 99th something from a hundred on."""
    found = {
        f"p{share}": float(np.percentile(values, share)) if len(values) >= least else None
        for share, least in LEAST_OF.items()
    }
    return Percentiles(**found)


def _is_good(asked: LoadAnswer, spec: LoadSpec) -> bool:
    in_time = spec.deadline_s is None or asked.ended_s <= spec.deadline_s
    return in_time and (spec.first_word_s is None or (asked.ttft_s or 0.0) <= spec.first_word_s)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
