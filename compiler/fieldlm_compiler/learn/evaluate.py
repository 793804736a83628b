"""Evaluation by exact match: ask a running server every example and count the answers that are right.

Right means equal as JSON: white space and the order of keys do not count, everything else does. The interval is
Wilson's (E. B. Wilson, JASA 22, 1927), which stays honest near 0 and 1 where the usual one collapses.
"""

import http.client
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fieldlm.core import terminal
from fieldlm.core.errors import InputError, UnavailableError

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer as a client saw it. `status` is HTTP's, 0 when no answer came."""

    status: int
    text: str = ""
    id: str = ""
    generation: str = ""
    completion_tokens: int = 0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many of `total` answers were right, with the 95 % interval of the share."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({self.right}/{self.total}, 95 % interval {low:.1%}–{high:.1%})"


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval for `right` of `total`; `z` is the normal quantile (95 % by default)."""
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def same_json(answer: str, right: str) -> bool:
    """Say whether `answer` is JSON equal to `right`; an answer that is no JSON is wrong."""
    try:
        return json.loads(answer) == json.loads(right)
    except ValueError:
        return answer.strip() == right.strip()


def post(url: str, path: str, body: Any, timeout_s: float = 120.0) -> tuple[int, Any]:
    """Send JSON to `url` + `path` and return the status and the decoded answer.

    Raises LinkError when nothing answers there.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=timeout_s)
    try:
        connection.request("POST", path, msgspec.json.encode(body), {"content-type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        return response.status, msgspec.json.decode(data) if data else None
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise UnavailableError(f"no answer from {url}: {error}; is `fieldlm serve` running there?") from error
    finally:
        connection.close()


def ask(
    url: str,
    messages: Messages,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
) -> Reply:
    """Ask for one greedy answer; a refusal or a broken connection is a Reply with its error, not an exception."""
    body: dict[str, Any] = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
    body |= {"stop": list(stop)} if stop else {}
    body |= {"metadata": metadata} if metadata else {}
    try:
        status, document = post(url, "/v1/chat/completions", body)
    except UnavailableError as error:
        return Reply(status=0, error=str(error))
    if status != 200:
        return Reply(status=status, error=str(document))
    return Reply(
        status=status,
        text=document["choices"][0]["message"]["content"],
        id=document["id"],
        generation=document["fieldlm"]["generation"],
        completion_tokens=document["usage"]["completion_tokens"],
    )


def score(
    url: str,
    examples: Sequence[tuple[Messages, str]],
    *,
    clients: int = 4,
    max_tokens: int = 96,
    stop: Sequence[str] = (),
    on_reply: Callable[[int, Reply], None] = lambda index, reply: None,
) -> Score:
    """Ask every example with `clients` in parallel and count the exact matches.

    Raises LinkError at the first example that gets no answer: a score over the rest would look better than it is.
    """
    right = 0

    def one(example: tuple[Messages, str]) -> Reply:
        return ask(url, example[0], max_tokens=max_tokens, stop=stop)

    with ThreadPoolExecutor(clients) as pool, terminal.progress("ask", total=len(examples)) as line:
        replies: Iterable[Reply] = pool.map(one, examples)
        for index, (reply, (_, answer)) in enumerate(zip(replies, examples, strict=True)):
            if reply.status != 200:
                pool.shutdown(cancel_futures=True)
                raise UnavailableError(f"example {index} got no answer (HTTP {reply.status}): {reply.error}")
            right += same_json(reply.text, answer)
            on_reply(index, reply)
            line.update(index + 1, f"{right} right")
    return Score(right=right, total=len(examples))


def read_examples(path: Path) -> list[tuple[Messages, str]]:
    """Read a dataset file: every line's messages but the last, and the last one's text."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; make a dataset with: fieldlm dataset EXAMPLES --out DIR")
    rows = [msgspec.json.decode(line)["messages"] for line in path.read_text().splitlines()]
    return [(row[:-1], row[-1]["content"]) for row in rows]


def main(argv: Sequence[str]) -> int:
    """`fieldlm evaluate FILE --url URL`."""
    args = _parser().parse_args(argv)
    found = score(args.url, read_examples(args.file), clients=args.clients, max_tokens=args.max_tokens)
    low, high = found.interval
    document = {"right": found.right, "total": found.total, "share": found.share, "low": low, "high": high}
    terminal.show(document, f"exact match {found}", as_json=args.json)
    return 0 if found.share >= args.at_least else 1


def _parser() -> Any:
    parser = terminal.parser("evaluate", "Ask a running server every example and count the exact matches.")
    parser.add_argument("file", type=Path, help="eval.jsonl of a dataset")
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="the server")
    parser.add_argument("--clients", type=int, default=4, help="how many ask at the same time")
    parser.add_argument("--max-tokens", type=int, default=96, help="longest answer")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit 1 when the share is lower")
    return parser
