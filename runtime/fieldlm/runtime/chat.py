"""Talk to a model on the terminal: one prompt, a conversation, or a look at what a running server serves."""

import argparse
import http.client
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fieldlm.formats.errors import FieldlmError, InputError, LinkError
from fieldlm.runtime import terminal
from fieldlm.runtime.engines import Sampling
from fieldlm.runtime.model import Model

DEFAULT_URL = "http://127.0.0.1:8080"
TIMEOUT_S = 300.0
EXIT = ("/exit", "/quit", "/bye")
HELP = "/exit leaves, /clear forgets the conversation, Ctrl-C stops an answer"

Say = Callable[[list[dict[str, Any]]], Iterator[str]]
"""Answers a conversation, piece by piece."""


def run_main(argv: Sequence[str]) -> int:
    """Answer one prompt: `fieldlm run BUNDLE "prompt"`, or the prompt from stdin."""
    parser = terminal.parser("run", "answer one prompt with a bundle, in this process")
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("prompt", nargs="?", help="what to ask; read from stdin when left out")
    _add_sampling(parser)
    args = parser.parse_args(argv)
    prompt = args.prompt if args.prompt is not None else sys.stdin.read()
    if not prompt.strip():
        raise InputError('the prompt is empty; run: fieldlm run BUNDLE "prompt"')
    with Model.open(args.bundle, threads=args.threads, context=args.context, parallel=1) as model:
        if args.json:
            answer = model.chat(prompt, _sampling(args))
            terminal.show(_document(answer), "", as_json=True)
        else:
            _print_all(chunk.text for chunk in model.stream(prompt, _sampling(args)))
    return 0


def main(argv: Sequence[str]) -> int:
    """Hold a conversation with a bundle in this process, or with a running server."""
    parser = terminal.parser("chat", f"talk to a model; {HELP}")
    parser.add_argument("bundle", type=Path, nargs="?", help="folder of a bundle to load in this process")
    parser.add_argument("--url", help=f"a running server; {DEFAULT_URL} when no bundle is given")
    _add_sampling(parser)
    args = parser.parse_args(argv)
    if args.bundle and args.url:
        raise InputError("give a bundle or --url, not both")
    with ExitStack() as stack:
        if args.bundle:
            opened = Model.open(args.bundle, threads=args.threads, context=args.context, parallel=1)
            say = _in_process(stack.enter_context(opened), _sampling(args))
        else:
            say = _over_http(args.url or DEFAULT_URL, _sampling(args))
        _converse(say)
    return 0


def ps_main(argv: Sequence[str]) -> int:
    """Show what a running server serves; exit code 1 when it is not ready."""
    parser = terminal.parser("ps", "show what a running server serves")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server")
    args = parser.parse_args(argv)
    _, listed = _get(args.url, "/v1/models")
    status, readiness = _get(args.url, "/ready")
    rows = [_row(model, readiness["status"]) for model in listed["data"]]
    header = ("model", "generation", "engine", "quant", "context", "requests", "memory MB", "state")
    terminal.show({"models": listed["data"], "ready": readiness}, terminal.table(rows, header), as_json=args.json)
    return 0 if status == http.client.OK else 1


def _row(model: dict[str, Any], state: str) -> list[object]:
    own = model["fieldlm"]
    memory = round(sum(own["memory_mb"].values()))
    quant = own["quant"] + (" + adapter" if own["adapter"] else "")
    return [model["id"], own["generation"], own["engine"], quant, own["context"], own["requests"], memory, state]


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=int, default=512, help="the longest answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is always the same answer")
    parser.add_argument("--seed", type=int, help="repeat a random answer")
    parser.add_argument("--threads", type=int, help="threads that compute; the physical cores when left out")
    parser.add_argument("--context", type=int, help="tokens of prompt and answer together")


def _sampling(args: argparse.Namespace) -> Sampling:
    return Sampling(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed)


def _document(answer: Any) -> dict[str, Any]:
    timings = answer.timings
    return {
        "text": answer.text,
        "outcome": answer.outcome,
        "generation": answer.generation,
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "prefill_s": round(timings.prefill_s, 4),
        "decode_s": round(timings.decode_s, 4),
    }


def _print_all(pieces: Iterator[str]) -> str:
    """Print pieces as they come and return them joined; Ctrl-C stops the answer and nothing else."""
    said: list[str] = []
    with suppress(KeyboardInterrupt):
        for piece in pieces:
            said.append(piece)
            print(piece, end="", flush=True)
    close = getattr(pieces, "close", None)
    if close is not None:
        close()
    print(flush=True)
    return "".join(said)


def _converse(say: Say) -> None:
    """Read, answer, remember, until /exit or the end of the input."""
    with suppress(ImportError):
        import_module("readline")  # gives `input` a history and line editing
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            print(f"\n{HELP}")
            continue
        if line in EXIT:
            return
        if line == "/clear":
            messages.clear()
        elif line.startswith("/"):
            print(HELP)
        elif line:
            _exchange(say, messages, line)


def _exchange(say: Say, messages: list[dict[str, Any]], line: str) -> None:
    """Ask `line` and remember question and answer; a question without an answer is forgotten."""
    messages.append({"role": "user", "content": line})
    try:
        messages.append({"role": "assistant", "content": _print_all(say(messages))})
    except FieldlmError as error:
        terminal.log(f"! {error}")
        messages.pop()


def _in_process(model: Model, sampling: Sampling) -> Say:
    def say(messages: list[dict[str, Any]]) -> Iterator[str]:
        for chunk in model.stream(messages, sampling):
            if chunk.error:
                raise LinkError(chunk.error)
            yield chunk.text

    return say


def _over_http(url: str, sampling: Sampling) -> Say:
    options = {"stream": True, "max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if sampling.seed is not None:
        options["seed"] = sampling.seed

    def say(messages: list[dict[str, Any]]) -> Iterator[str]:
        with closing(_connect(url)) as connection:
            response = _send(connection, "POST", "/v1/chat/completions", {"messages": messages, **options})
            if response.status != http.client.OK:
                raise InputError(_message(json.loads(response.read())))
            yield from _pieces(response)

    return say


def _pieces(response: http.client.HTTPResponse) -> Iterator[str]:
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if data == "[DONE]":
            return
        if data:
            event = json.loads(data)
            if "error" in event:
                raise LinkError(_message(event))
            yield "".join(choice["delta"].get("content", "") for choice in event["choices"])


def _message(document: Any) -> str:
    return str(document.get("error", {}).get("message", "the server gives no reason"))


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"{url!r} is not the address of a server; want something like {DEFAULT_URL}")
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_S)


def _send(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
    headers = {"content-type": "application/json"} if body is not None else {}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse()
    except OSError as error:
        where = f"http://{connection.host}:{connection.port}"
        raise LinkError(f"no server answers at {where}: {error}; start one with: fieldlm serve BUNDLE") from error


def _get(url: str, path: str) -> tuple[int, Any]:
    with closing(_connect(url)) as connection:
        response = _send(connection, "GET", path)
        try:
            return response.status, json.loads(response.read())
        except ValueError as error:
            raise LinkError(f"what answers at {url} is not fieldlm: {error}") from error
