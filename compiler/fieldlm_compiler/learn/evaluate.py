"""Evaluation by exact match: ask a running server every example and count the answers that are right.

Right means equal as JSON: white space and the order of keys do not count, everything else does. The interval is
Wilson's (E. B. Wilson, JASA 22, 1927), which stays honest near 0 and 1 where the usual one collapses. A prompt that the
server's context does not hold is a wrong answer, as it is for whoever uses that server; any other refusal is no answer.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError, UnavailableError
from fieldlm.network.http_client import HttpClient, refusal, server_at
from fieldlm_compiler.learn.tokenized import no_conversation, numbered_lines, read_conversation

Messages = Sequence[dict[str, Any]]
TOO_LONG = "context_length_exceeded"
"""The code of OpenAI's API for a prompt that the context does not hold."""
NO_SWITCH = "unsupported_parameter"
"""The code of a server for what its model cannot be told, such as not to think."""
THOUGHT_TOKENS, MARK_TOKENS = 1024, 16
"""Of a thought that cannot be switched off, and of the marks around it, beside those of the answer."""


class EvaluationItem(NamedTuple):
    """What is asked, the answer that is right, and the tools at hand."""

    messages: Messages
    answer: str
    tools: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer as a client saw it. `status` is HTTP's, 0 when no answer came; `code` names why it was refused."""

    status: int
    text: str = ""
    id: str = ""
    generation: str = ""
    completion_tokens: int = 0
    error: str = ""
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many of `total` answers were right, with the 95 % interval of the share.

    Of the wrong ones `too_long` were refused: their prompts are longer than the server's context.
    """

    right: int
    total: int
    too_long: int = 0

    @property
    def share(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        from scipy.stats import binomtest

        if not self.total:
            return 0.0, 1.0
        low, high = binomtest(self.right, self.total).proportion_ci(method="wilson")
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        long = f"; {self.too_long} of the wrong ones longer than the server's context" if self.too_long else ""
        return f"{self.share:.1%} ({self.right}/{self.total}, 95 % interval {low:.1%}–{high:.1%}{long})"


def same_json(answer: str, right: str) -> bool:
    """Say whether `answer` is JSON equal to `right`; an answer that is no JSON is wrong."""
    try:
        return json.loads(answer) == json.loads(right)
    except (ValueError, RecursionError):
        return answer.strip() == right.strip()


def ask(
    server: HttpClient,
    messages: Messages,
    *,
    max_tokens: int,
    stop: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
    tools: Sequence[dict[str, Any]] = (),
    thinking: Mapping[str, Any] | None = None,
) -> Reply:
    """Ask for one greedy answer; a refusal or a broken connection is a Reply with its error, not an exception.

    `thinking` is what is said of it, in the words of a chat completion. Raises InputError when the server wants another
    key: no question would be answered.
    """
    body: dict[str, Any] = {"messages": list(messages), "max_tokens": max_tokens, "temperature": 0}
    body |= thinking or {}
    body |= {"stop": list(stop)} if stop else {}
    body |= {"metadata": metadata} if metadata else {}
    body |= {"tools": list(tools), "tool_choice": "auto"} if tools else {}
    try:
        status, document = server.post("/v1/chat/completions", body)
    except UnavailableError as error:
        return Reply(status=0, error=str(error))
    if status != 200:
        return Reply(status=status, error=refusal(document), code=_code(document))
    return Reply(
        status=status,
        text=said(document["choices"][0]["message"]),
        id=document["id"],
        generation=document["fieldlm"]["generation"],
        completion_tokens=document["usage"]["completion_tokens"],
    )


def _code(document: Any) -> str:
    error = cast(dict[str, Any], document).get("error") if isinstance(document, dict) else None
    return str(cast(dict[str, Any], error).get("code") or "") if isinstance(error, dict) else ""


def score(
    server: HttpClient,
    examples: Sequence[tuple[Messages, str] | EvaluationItem],
    *,
    clients: int = 4,
    max_tokens: int = 96,
    stop: Sequence[str] = (),
    on_reply: Callable[[int, Reply], None] = lambda index, reply: None,
) -> Score:
    """Ask every example with `clients` in parallel and count the exact matches; `on_reply` is told every answer.

    A model that can be told not to think is told so, and another one gets THOUGHT_TOKENS for it: what counts is what it
    answers. A prompt that the context does not hold is wrong. Raises UnavailableError at the first other example
    without an answer: a score over the rest would look better than it is.
    """
    right = too_long = 0
    questions = [each if isinstance(each, EvaluationItem) else EvaluationItem(*each) for each in examples]

    def one(question: EvaluationItem) -> Reply:
        given: dict[str, Any] = {"stop": stop, "tools": question.tools}
        reply = ask(server, question.messages, max_tokens=max_tokens, thinking={"enable_thinking": False}, **given)
        if reply.code != NO_SWITCH:
            return reply
        room, thinking = THOUGHT_TOKENS + MARK_TOKENS, {"thinking_token_budget": THOUGHT_TOKENS}
        return ask(server, question.messages, max_tokens=max_tokens + room, thinking=thinking, **given)

    with ThreadPoolExecutor(clients) as pool, terminal.progress("ask", total=len(examples)) as line:
        replies: Iterable[Reply] = pool.map(one, questions)
        for index, (reply, question) in enumerate(zip(replies, questions, strict=True)):
            if reply.code == TOO_LONG:
                too_long += 1
            elif reply.status != 200:
                pool.shutdown(cancel_futures=True)
                raise UnavailableError(f"example {index} got no answer (HTTP {reply.status}): {reply.error}")
            else:
                right += same_json(reply.text, question.answer)
                on_reply(index, reply)
            line.update(index + 1, f"{right} right")
    return Score(right=right, total=len(examples), too_long=too_long)


def read_examples(path: Path) -> list[EvaluationItem]:
    """Read a dataset file: every line's messages but the last, what that one says or calls, and the tools at hand.

    Raises InputError for a line that is no example, and when there is none.
    """
    questions: list[EvaluationItem] = []
    for number, line in numbered_lines(path):
        try:
            row = read_conversation(line)
            questions.append(
                EvaluationItem(_as_sent(row.messages[:-1]), said(row.messages[-1]), tuple(row.tools or ()))
            )
        except (LookupError, TypeError, ValueError, RecursionError) as error:
            raise InputError(no_conversation(number, path, error)) from error
    if not questions:
        raise InputError(
            f"{path} has no examples, so nothing can be counted; with few customers nobody is held out; "
            "hold more of them out: fieldlm curate STORE --out FOLDER --eval-share 0.5"
        )
    return questions


def said(message: dict[str, Any]) -> str:
    """Return the text of an assistant's message; of calls their names and arguments as JSON, several as a list."""
    calls: list[dict[str, Any]] = [call["function"] for call in message.get("tool_calls") or []]
    plain = [{"name": call["name"], "arguments": _object(call["arguments"])} for call in calls]
    if not plain:
        return str(message.get("content") or "")
    return json.dumps(plain[0] if len(plain) == 1 else plain, ensure_ascii=False)


def _object(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def _as_sent(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `messages` as OpenAI's API wants them: the arguments of a call are its JSON there."""
    sent: list[dict[str, Any]] = []
    for message in messages:
        functions = [call["function"] for call in message.get("tool_calls") or []]
        spelt = [{**each, "arguments": json.dumps(_object(each["arguments"]))} for each in functions]
        calls = [{"type": "function", "function": function} for function in spelt]
        sent.append({**message, "tool_calls": calls} if calls else message)
    return sent


def main(argv: Sequence[str]) -> int:
    """`fieldlm evaluate FILE --url URL`."""
    args = _parser().parse_args(argv)
    found = score(server_at(args.url), read_examples(args.file), clients=args.clients, max_tokens=args.max_tokens)
    low, high = found.interval
    document = {"right": found.right, "total": found.total, "too_long": found.too_long}
    document |= {"share": found.share, "low": low, "high": high}
    terminal.show(document, f"exact match {found}", as_json=args.json)
    return 0 if found.share >= args.at_least else 1


def _parser() -> Any:
    parser = terminal.parser(
        "evaluate",
        "Ask a running server every example and count the exact matches.",
        "fieldlm evaluate datasets/DATASET/eval.jsonl --url http://127.0.0.1:8080",
    )
    parser.add_argument("file", type=Path, help="eval.jsonl of a dataset")
    parser.add_argument("--url", help="the server: http, https or unix:/PATH; default: as configured")
    parser.add_argument("--clients", type=options.whole(1, 256), default=4, help="how many ask at the same time")
    parser.add_argument("--max-tokens", type=options.whole(1), default=96, help="longest answer")
    parser.add_argument("--at-least", type=options.real(0, 1), default=0.0, help="exit 1 when the share is lower")
    return parser
