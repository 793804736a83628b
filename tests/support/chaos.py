"""Requests that are cancelled, late, dropped, urgent, patient, bound to schemas and adapters, at random.

Afterwards memory, sequences and descriptors have to be where they were, and every outcome has to be accounted for: what
a client saw is what telemetry was told.
"""

import asyncio
import gc
import json
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import httpx

from fieldlm.api.app import make_app
from fieldlm.api.chat_request import Exchange
from fieldlm.core import terminal
from fieldlm.engines import Outcome
from fieldlm.engines.llama import LlamaEngine
from fieldlm.hardware.sensors import rss_mb
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Generations
from fieldlm.network.http_server import listening

AT_ONCE = 12
WARM_UP = 40, 400  # requests before the first measurement, at least and at most: caches fill, allocators settle
MOST_GROWTH_MB = 24.0
SETTLE_S = 60.0
PATIENCE_S = 3600.0  # of a client, on a machine that may have other things to do: what hangs is found all the same
TEXTS = ("Hello", "Two coffees, please", "Count to a thousand.", "Say tea. " * 40, "Where is table 3? " * 20)
SCHEMAS: tuple[dict[str, Any], ...] = (
    {"type": "object", "properties": {"drink": {"enum": ["tea", "coffee"]}}, "required": ["drink"]},
    {"enum": ["left", "right", "stop"]},
    {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
)
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"


@dataclass
class Seen:
    """What clients saw: outcomes by name, ids of streams that began, and answers that must not be."""

    outcomes: Counter[str] = field(default_factory=Counter[str])
    begun: set[str] = field(default_factory=set[str])
    wrong: list[str] = field(default_factory=list[str])


@dataclass(frozen=True)
class State:
    """What must not grow."""

    rss_mb: float
    descriptors: int
    running: int
    waiting: int


@dataclass(frozen=True)
class Wish:
    """One request: where to, what, and after how long or how many events its client leaves."""

    path: str
    body: dict[str, Any]
    leaves_s: float | None = None
    leaves_begun: bool = False


def wish(rng: random.Random, models: Sequence[str]) -> Wish:
    path = rng.choices((CHAT, RESPONSES, EMBEDDINGS), (8, 3, 1))[0]
    body: dict[str, Any] = {"model": rng.choice(models)}
    if path == EMBEDDINGS:
        body |= {"input": rng.choice(TEXTS)}
    else:
        tokens, text = rng.randint(1, 12), rng.choice(TEXTS)
        body |= {"stream": rng.random() < 0.5, "priority": rng.choice(("safety", "interactive", "batch"))}
        body |= (
            {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}
            if path == CHAT
            else {"input": text, "max_output_tokens": tokens}
        )
        if rng.random() < 0.2:
            body |= {"max_queue_ms": rng.choice((0, 20, 200))}
        if path == CHAT and rng.random() < 0.25:
            schema = rng.choice(SCHEMAS)
            body |= {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        elif rng.random() < 0.1:
            body |= {"fallback": "Sorry"}
    if rng.random() < 0.35:
        body |= {"deadline_ms": rng.choice((0, 1, 30, 300, 3000))}
    leaves = rng.random()
    return Wish(path, body, rng.uniform(0, 0.3) if leaves < 0.2 else None, 0.2 <= leaves < 0.35)


async def one(client: httpx.AsyncClient, asked: Wish, seen: Seen) -> None:
    """Ask, and note what came of it."""
    try:
        async with asyncio.timeout(asked.leaves_s):
            seen.outcomes[await _outcome(client, asked, seen)] += 1
    except TimeoutError:
        seen.outcomes["left"] += 1


async def _outcome(client: httpx.AsyncClient, asked: Wish, seen: Seen) -> str:
    async with client.stream("POST", asked.path, json=asked.body) as response:
        if not asked.body.get("stream") or response.status_code != 200:
            document = json.loads(await response.aread())
            return _whole(response.status_code, document, seen)
        last: dict[str, Any] = {}
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            last = json.loads(line.removeprefix("data: "))
            if found := last.get("id") or last.get("response", {}).get("id"):
                seen.begun.add(found)
            if asked.leaves_begun:
                return "left"
        last = last.get("response", last)
        if "fieldlm" not in last:
            seen.wrong.append(f"a stream ended without an outcome: {asked} {last}")
        return last.get("fieldlm", {}).get("outcome", "none")


def _whole(status: int, document: dict[str, Any], seen: Seen) -> str:
    if status == 200:
        return document["fieldlm"].get("outcome", "vectors")
    code = document["error"]["code"]
    expected = {400: None, 404: None, 429: None, 504: None, 503: None}
    if status not in expected:
        seen.wrong.append(f"{status}: {document}")
    return document.get("fieldlm", {}).get("outcome") or f"refused: {code}"


async def storm(url: str, count: int, models: Sequence[str], seed: int, seen: Seen) -> int:
    """Send `count` requests, AT_ONCE at a time, and return how many it were: SIGINT ends it early.

    The last of `models` is dropped and loaded again meanwhile.
    """
    rng = random.Random(seed)
    wishes = (wish(rng, models) for _ in range(count))
    progress = terminal.Progress("requests", total=count)
    is_over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, is_over.set)

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            for asked in wishes:
                if is_over.is_set():
                    return
                await one(http, asked, seen)
                progress.advance()

    async def churn() -> None:
        name = models[-1].rpartition(":")[2]
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
            while True:
                await asyncio.sleep(1)
                await http.delete(f"/v1/adapters/{name}")
                await http.post("/v1/adapters", json={"name": name})

    churning = asyncio.create_task(churn())
    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    churning.cancel()
    with suppress(asyncio.CancelledError):
        await churning
    return progress.done


def settled(url: str, live: Generations, most: float = math.inf) -> State:
    """Return the state once nothing runs any more and `most` descriptors are open, or after SETTLE_S."""
    engine = live.current.engine
    assert isinstance(engine, LlamaEngine)
    until_s = time.monotonic() + SETTLE_S
    while True:
        status = httpx.get(f"{url}/status").json()
        idle = not (status["running"] or status["waiting"] or engine.running or engine.waiting)
        gc.collect()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        # A connection is closed a moment after its answer.
        if (idle and descriptors <= most) or time.monotonic() > until_s:
            running, waiting = status["running"] + engine.running, status["waiting"] + engine.waiting
            return State(rss_mb(), descriptors, running, waiting)
        time.sleep(0.05)


def complaints(seen: Seen, ended: Sequence[tuple[str, str]], count: int) -> list[str]:
    """Return what is not accounted for: clients against telemetry, which was told of `ended`, ids and outcomes."""
    found = list(seen.wrong)
    told = Counter(outcome for _, outcome in ended)
    ids = [id for id, _ in ended]
    if len(set(ids)) != len(ids):
        found.append("an answer was told to telemetry twice")
    if missing := seen.begun - set(ids):
        found.append(f"{len(missing)} streams began and were never told to telemetry")
    if seen.outcomes.total() != count:
        found.append(f"{seen.outcomes.total()} outcomes of {count} requests")
    for outcome in get_args(Outcome):
        if seen.outcomes[outcome] > told[outcome]:
            found.append(f"clients saw {seen.outcomes[outcome]} {outcome}, telemetry {told[outcome]}")
    unseen = told.total() - sum(seen.outcomes[outcome] for outcome in told)
    if unseen > seen.outcomes["left"]:
        found.append(f"telemetry was told of {unseen} answers that nobody asked for")
    return found


def run(live: Generations, shelf: Shelf, adapters: Sequence[str], count: int, seed: int) -> dict[str, Any]:
    """Let the storm pass over `live`; return outcomes, states before and after, and complaints."""
    # No more than is needed of each: this process's memory is what is measured.
    ended: list[tuple[str, str]] = []

    def on_exchange(exchange: Exchange) -> None:
        ended.append((exchange.id, exchange.outcome))

    base = live.current.bundle.manifest.model.name
    models = [base, *(f"{base}:{name}" for name in adapters)]
    for name in adapters:
        shelf.load(name)
    with listening(make_app(live, on_exchange, ready=lambda: None, shelf=shelf)) as server:
        asyncio.run(storm(server.url, min(max(count // 10, WARM_UP[0]), WARM_UP[1]), models, seed + 1, Seen()))
        before = settled(server.url, live)
        ended.clear()
        seen = Seen()
        sent = asyncio.run(storm(server.url, count, models, seed, seen))
        after = settled(server.url, live, most=before.descriptors)
    found = complaints(seen, ended, sent)
    found += [f"{name} left" for name in ("running", "waiting") if getattr(after, name)]
    if after.descriptors > before.descriptors:
        found.append(f"descriptors: {before.descriptors} before, {after.descriptors} after")
    if after.rss_mb > before.rss_mb + MOST_GROWTH_MB:
        found.append(f"memory: {before.rss_mb:.1f} MB before, {after.rss_mb:.1f} MB after")
    return {"requests": sent, "outcomes": dict(seen.outcomes), "before": before, "after": after, "complaints": found}
