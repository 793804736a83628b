"""Requests with a canary each: in the prompt, the schema, the session and what was said before, many at a time.

What comes back may have no other canary in it, nor say that more of a prompt was remembered than what all have in
common; an adapter, which can hold no word, is known by how likely it finds the first words of an answer.
"""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx

from fieldlm.api.chat_request import Exchange

AT_A_TIME = 16
PATIENCE_S = 600
CHAT = "/v1/chat/completions"
KINDS = (
    "free", "form", "form", "regex", "call", "stream", "left", "late", "dropped", "turns", "adapter", "adapter",
    "ours", "salted", "responses", "messages", "generate", "plain",
)  # fmt: skip
"""Ways to ask: whole, in a form, in another, with a tool, as a stream, left in the middle of it or of the wait, with a
deadline, in two turns, of an adapter, with the model's own system prompt, the same as all but with a salt of one's own;
by OpenAI's responses, Anthropic's messages, Ollama's generate, and a plain completion."""
SYSTEM = 999_999
"""The number of the canary that a model's own system prompt may have; who asks with that prompt may hear it."""
SECRET = [{"role": "user", "content": "The safe behind the picture opens with left, left, right, up and left. " * 3}]
"""A conversation that many have, each with a salt of their own."""
PROBE = [{"role": "user", "content": "Where does the lift stop, and who may use it at night?"}]
"""What adapters are told apart by."""

Print = dict[str, float]
"""The best first tokens of an answer to PROBE, and the natural logarithm of how likely each is."""


def canary(number: int) -> str:
    """Return a word that no model says by itself, another for each number."""
    return f"zq{number:06d}" + "".join(random.Random(number).choices("bcdfghjkmpstvwxz", k=6))


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks one server; `bounds` says for each kind how much of a prompt anybody else may have left remembered."""

    client: httpx.Client
    seed: int
    kinds: Sequence[str]
    model: str
    prints: Mapping[str, Print]
    bounds: Mapping[str, int]

    @classmethod
    def of(cls, client: httpx.Client, seed: int, kinds: Sequence[str], adapters: Sequence[str] = ()) -> "Asker":
        model = client.get("/v1/models").json()["data"][0]["id"]
        # A salt of its own: from what nobody has computed before.
        prints = {each: _print(client, each, salt=f"print of {each}") for each in (model, *adapters)}
        return cls(client=client, seed=seed, kinds=kinds, model=model, prints=prints, bounds=_bounds(client, kinds))

    def ask(self, number: int) -> list[str]:
        """Send one request in one of the ways; return what is wrong with what came back."""
        chance = random.Random(f"{self.seed} {number}")
        kind = chance.choice(self.kinds)
        if kind == "adapter" and chance.random() < 0.5:
            return self._probe(number, chance)
        if kind in ELSEWHERE:
            return self._elsewhere(kind, number)
        own, body = canary(number), _body(kind, number, chance)
        if kind == "adapter" and len(self.prints) > 1:
            body["model"] = chance.choice([*self.prints][1:])
        text = _sent(self.client, body, kind, chance.random())
        wrong = self._cached_wrong(kind, number, text)
        if kind == "salted":
            # While it is remembered, and not of it.
            again = _sent(self.client, {**body, "cache_salt": f"{own} too"}, kind, 1)
            wrong += self._cached_wrong(kind, number, again)
        if kind == "turns" and (said := _said(text)) is not None:
            body["messages"] += [{"role": "assistant", "content": said}, {"role": "user", "content": "Once more."}]
            text += _sent(self.client, body, "free", 1)
        known = {own, canary(SYSTEM)} if kind in ("ours", "salted") else {own}
        wrong += [f"{kind} {number} got {other}" for other in canaries_in(text) if other not in known]
        if kind in FORMED and '"finish_reason":"length"' not in text:
            wrong += [] if own in text else [f"{kind} {number} has not its own: {text[:300]}"]
        if "model" in body and f'"model":"{body["model"]}"' not in text:
            wrong.append(f"{kind} {number} was not answered by {body['model']}: {text[:300]}")
        return wrong

    def _probe(self, number: int, chance: random.Random) -> list[str]:
        """Ask what others ask, too, of each adapter and of none; each has to answer as it does by itself."""
        return [line for model in chance.sample([*self.prints], len(self.prints)) for line in self._one(number, model)]

    def _one(self, number: int, asked: str) -> list[str]:
        found = _print(self.client, asked)
        far = {model: apart(own, found) for model, own in self.prints.items()}
        # Rounding is less than a fifth of that; what another has computed of the prompt is not.
        is_its_own = all(far[asked] < 0.8 * far[other] for other in far if other != asked)
        return [] if is_its_own else [f"probe {number} of {asked} is so far from each: {far}"]

    def _elsewhere(self, kind: str, number: int) -> list[str]:
        own = canary(number)
        path, body = ELSEWHERE[kind], _body_elsewhere(kind, own, self.model)
        reply = self.client.post(path, json=body)
        wrong = [f"{kind} {number} got {other}" for other in canaries_in(reply.text) if other != own]
        return wrong if reply.status_code == 200 else [*wrong, f"{kind} {number}: {reply.text[:300]}"]

    def _cached_wrong(self, kind: str, number: int, text: str) -> list[str]:
        used, most = cached_of(text), self.bounds.get(kind, self.bounds["free"])
        if used is None or used <= most:
            return []
        return [f"{kind} {number} had {used} tokens cached, and {most} are what all have in common"]


FORMED = ("form", "regex", "call")
ELSEWHERE = {
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "generate": "/api/generate",
    "plain": "/v1/completions",
}


def storm(
    url: str, requests: int, seed: int, kinds: Sequence[str] = KINDS, *, adapters: Sequence[str] = (), first: int = 0
) -> list[str]:
    """Send so many, 16 at a time, the canaries numbered from `first`; return what was wrong.

    `adapters` are names of models; how they answer, and how the base does, is asked before, one after another.
    """
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client, ThreadPoolExecutor(AT_A_TIME) as threads:
        asker = Asker.of(client, seed, kinds, adapters)
        each = [threads.submit(asker.ask, number) for number in range(first, first + requests)]
        wrong = [line for done in each for line in done.result()]
        for path in ("/v1/models", "/v1/fieldlm/status", "/metrics", "/api/ps"):
            wrong += [f"{path} tells {other}" for other in canaries_in(client.get(path).text)]
        return wrong


def apart(one: Print, other: Print) -> float:
    """Return how far two ways to begin an answer are from each other, in log probabilities."""
    # What is not among the best is less likely than all of these.
    least, least_other = min(one.values()), min(other.values())
    return max(abs(one.get(token, least) - other.get(token, least_other)) for token in {*one, *other})


def told_wrong(exchanges: Sequence[Exchange]) -> list[str]:
    """Return what is wrong in what telemetry was told: an exchange that has somebody else's canary in it.

    Whose it is its session says; where an API has none, the first canary in its question.
    """
    wrong: list[str] = []
    for told in exchanges:
        asked = json.dumps([told.messages, told.context])
        names = [found for found in canaries_in(asked) if found != canary(SYSTEM)]
        own = told.session or (names[0] if names else None)
        others = {found for found in canaries_in(asked + told.answer) if found not in (own, canary(SYSTEM))}
        wrong += [f"the exchange of {own} has {other}" for other in others]
    return wrong


def canaries_in(text: str) -> Iterator[str]:
    """Yield the canaries that anybody's answer may have in it."""
    at = text.find("zq")
    while at >= 0:
        digits = text[at + 2 : at + 8]
        if digits.isdecimal() and digits.isascii() and text.startswith(whole := canary(int(digits)), at):
            yield whole
        at = text.find("zq", at + 2)


def cached_of(text: str) -> int | None:
    """Return how many tokens of the prompt were cached, of an answer or a stream; None where it is not told."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line] or [""]
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return json.loads(line)["usage"]["prompt_tokens_details"]["cached_tokens"]
    return None


def _body(kind: str, number: int, chance: random.Random) -> dict[str, Any]:
    """Return a chat with its canary in every place that a caller fills."""
    own = canary(number)
    form = {"type": "object", "properties": {own: {"const": own}, "n": {"enum": [1, 2]}}, "required": [own]}
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": f"You are {own}."}, {"role": "user", "content": f"Repeat: {own}"}],
        "max_tokens": chance.choice([4, 12, 40]),
        "metadata": {"session": own},
        "user": own,
        "temperature": chance.choice([0, 1]),
        "seed": number,
        # Half of them give their place up, in the middle of what they say, to all others.
        "priority": chance.choice(["batch", "batch", "interactive", "safety"]),
    }
    if kind in ("form", "late"):
        body |= {"max_tokens": 80, "response_format": {"type": "json_schema", "json_schema": {"schema": form}}}
    if kind == "regex":
        body |= {"max_tokens": 80, "regex": f"(no|yes), {own}[.!]"}
    if kind == "call":
        tool = {"type": "function", "function": {"name": own, "parameters": form}}
        body |= {"max_tokens": 160, "tools": [tool], "tool_choice": "required"}
    if kind == "late":
        body["deadline_ms"] = chance.choice([1, 50, 400])
    if kind == "ours":
        del body["messages"][0]
    if kind == "salted":
        body |= {"messages": SECRET, "cache_salt": own, "max_tokens": 4}
    if kind == "stream":
        body["stream_options"] = {"include_usage": True}
    return body


def _body_elsewhere(kind: str, own: str, model: str) -> dict[str, Any]:
    you, asks = f"You are {own}.", f"Repeat: {own}"
    match kind:
        case "responses":
            session = {"metadata": {"session": own}, "user": own}
            return {"instructions": you, "input": asks, "max_output_tokens": 12, **session}
        case "messages":
            said = {"system": you, "messages": [{"role": "user", "content": asks}], "metadata": {"user_id": own}}
            return {"model": model, "max_tokens": 12, **said}
        case "generate":
            return {"model": model, "system": you, "prompt": asks, "stream": False, "options": {"num_predict": 12}}
        case _:
            return {"prompt": f"{you} {asks}", "max_tokens": 12, "metadata": {"session": own}, "n": 2}


def _print(client: httpx.Client, model: str, salt: str | None = None) -> Print:
    body = {"model": model, "messages": PROBE, "max_tokens": 1, "logprobs": True, "top_logprobs": 5, "cache_salt": salt}
    reply = client.post(CHAT, json=body).json()
    (first, *_) = reply["choices"][0]["logprobs"]["content"]
    return {each["token"]: each["logprob"] for each in first["top_logprobs"]}


def _bounds(client: httpx.Client, kinds: Sequence[str]) -> dict[str, int]:
    """Return for kinds of chats how many tokens their prompts have in common with those of all others, at most."""

    def tokens(text: str) -> int:
        return client.post("/tokenize", json={"content": text}).json()["count"]

    def prompt(**body: Any) -> str:
        return client.post("/apply-template", json=body).json()["prompt"]

    found: dict[str, int] = {}
    for kind in {"free", *kinds} & {"free", "call", "ours"}:
        body = _body(kind, 0, random.Random(0))
        text = prompt(**{name: body[name] for name in ("messages", "tools") if name in body})
        # Numbers are the same up to the letters; the token there may have begun before.
        found[kind] = tokens(text[: text.index(canary(0)) + 8]) + 1
    one, other = (prompt(messages=[{"role": "user", "content": text}]) for text in ("A", "1"))
    alike = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return {**found, "salted": tokens(one[:alike])}


def _said(text: str) -> str | None:
    try:
        return json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, KeyError):
        return None


def _sent(client: httpx.Client, body: dict[str, Any], kind: str, chance: float) -> str:
    if kind == "dropped":
        with contextlib.suppress(httpx.TimeoutException):
            return client.post(CHAT, json=body, timeout=0.01 + chance).text
        return ""
    if kind not in ("stream", "left"):
        return client.post(CHAT, json=body).text
    with client.stream("POST", CHAT, json={**body, "stream": True}) as answer:
        heard = ""
        for piece in answer.iter_text():
            heard += piece
            if kind == "left" and len(heard) > 600:
                break
    return heard
