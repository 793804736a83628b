"""Requests with a canary each: in the prompt, the schema, the session and what was said before, many at a time."""

import contextlib
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from fieldlm.api.chat_request import Exchange

AT_A_TIME = 16
PATIENCE_S = 600
KINDS = ("free", "form", "form", "call", "stream", "left", "late", "dropped", "turns", "adapter", "ours")
"""Ways to ask: whole, in a form, with a tool, as a stream, left in the middle of it or of the wait, with a deadline, in
two turns, of an adapter, with the model's own system prompt."""
SYSTEM = 999_999
"""The number of the canary that a model's own system prompt may have; who asks with that prompt may hear it."""


def canary(number: int) -> str:
    """Return a word that no model says by itself, another for each number."""
    return f"zq{number:06d}" + "".join(random.Random(number).choices("bcdfghjkmpstvwxz", k=6))


def ask(
    client: httpx.Client, number: int, seed: int, kinds: Sequence[str] = KINDS, adapters: Sequence[str] = ()
) -> list[str]:
    """Send one request in one of the ways; return what is wrong with what came back."""
    own, chance = canary(number), random.Random(f"{seed} {number}")
    form = {"type": "object", "properties": {own: {"const": own}, "n": {"enum": [1, 2]}}, "required": [own]}
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": f"You are {own}."}, {"role": "user", "content": f"Repeat: {own}"}],
        "max_tokens": chance.choice([4, 12, 40]),
        "metadata": {"session": own},
        "user": own,
        "temperature": chance.choice([0, 1]),
        "seed": number,
    }
    kind = chance.choice(kinds)
    if kind in ("form", "late"):
        body |= {"max_tokens": 80, "response_format": {"type": "json_schema", "json_schema": {"schema": form}}}
    if kind == "call":
        tool = {"type": "function", "function": {"name": own, "parameters": form}}
        body |= {"max_tokens": 160, "tools": [tool], "tool_choice": "required"}
    if kind == "late":
        body["deadline_ms"] = chance.choice([1, 50, 400])
    if kind == "adapter" and adapters:
        body["model"] = chance.choice(adapters)
    if kind == "ours":
        del body["messages"][0]
    text = _sent(client, body, kind, chance.random())
    if kind == "turns" and (said := _said(text)) is not None:
        body["messages"] += [{"role": "assistant", "content": said}, {"role": "user", "content": "Once more."}]
        text += _sent(client, body, "free", 1)
    known = {own, canary(SYSTEM)} if kind == "ours" else {own}
    wrong = [f"{kind} {number} got {other}" for other in canaries_in(text) if other not in known]
    if kind in ("form", "call") and '"finish_reason":"length"' not in text:
        wrong += [] if own in text else [f"{kind} {number} has not its own: {text[:300]}"]
    if "model" in body and f'"model":"{body["model"]}"' not in text:
        wrong.append(f"{kind} {number} was not answered by {body['model']}: {text[:300]}")
    if (used := cached_of(text)) is not None and used[0] >= used[1]:
        wrong.append(f"{kind} {number} had all of a prompt cached that nobody else has: {used}")
    return wrong


def storm(
    url: str, requests: int, seed: int, kinds: Sequence[str] = KINDS, *, adapters: Sequence[str] = (), first: int = 0
) -> list[str]:
    """Send so many, 16 at a time, the canaries numbered from `first`; return what was wrong."""
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(AT_A_TIME) as threads:
        numbers = range(first, first + requests)
        each = [threads.submit(ask, client, number, seed, kinds, adapters) for number in numbers]
        return [wrong for done in each for wrong in done.result()]


def told_wrong(exchanges: Sequence[Exchange]) -> list[str]:
    """Return what is wrong in what telemetry was told: a session whose exchange has somebody else's canary in it."""
    wrong: list[str] = []
    for told in exchanges:
        text = json.dumps([told.messages, told.context]) + told.answer
        others = {found for found in canaries_in(text) if found not in (told.session, canary(SYSTEM))}
        wrong += [f"the exchange of {told.session} has {other}" for other in others]
    return wrong


def canaries_in(text: str) -> Iterator[str]:
    """Yield the canaries that anybody's answer may have in it."""
    at = text.find("zq")
    while at >= 0:
        digits = text[at + 2 : at + 8]
        if digits.isdecimal() and digits.isascii() and text.startswith(whole := canary(int(digits)), at):
            yield whole
        at = text.find("zq", at + 2)


def cached_of(text: str) -> tuple[int, int] | None:
    """Return how many tokens of the prompt were cached, and how many there are; None where it is not told."""
    try:
        used = json.loads(text)["usage"]
        return used["prompt_tokens_details"]["cached_tokens"], used["prompt_tokens"]
    except (ValueError, KeyError, TypeError):
        return None


def _said(text: str) -> str | None:
    try:
        return json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, KeyError):
        return None


def _sent(client: httpx.Client, body: dict[str, Any], kind: str, chance: float) -> str:
    path = "/v1/chat/completions"
    if kind == "dropped":
        with contextlib.suppress(httpx.TimeoutException):
            return client.post(path, json=body, timeout=0.01 + chance).text
        return ""
    if kind not in ("stream", "left"):
        return client.post(path, json=body).text
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        heard = ""
        for piece in answer.iter_text():
            heard += piece
            if kind == "left" and len(heard) > 600:
                break
    return heard
