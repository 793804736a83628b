"""Talk to a model on the terminal: one prompt, a conversation, or a look at what a running server serves."""

import argparse
import http.client
import os
import stat
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from fieldlm.core import terminal
from fieldlm.core.errors import FieldlmError, InputError, UnavailableError
from fieldlm.engines import Outcome, Sampling
from fieldlm.inference.model import Model
from fieldlm.network import http_client
from fieldlm.network.http_client import DEFAULT_URL

EXIT = ("/exit", "/quit", "/bye")
HELP = """\
/exit leaves, and so does Ctrl-D; Ctrl-C stops an answer
/clear forgets the conversation, /again asks for another answer to the last question
/set temperature 0.7, max-tokens 200 or seed 7 changes how it answers; /stats says how fast it was
\"\"\" begins and ends a message of several lines"""
SHORT_HELP = "(Ctrl-D or /exit leaves, /help says more)"
LONG = '"""'
INTERRUPTED = 130  # the exit code of what Ctrl-C ended


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an answer; the last one says how it ended, after how many tokens, and how long they took."""

    text: str = ""
    outcome: Outcome | None = None
    tokens: int = 0
    decode_s: float = 0.0


Say = Callable[[list[dict[str, Any]], Sampling], Generator[Piece]]
"""Answers a conversation; raises a FieldlmError when there is no answer. Closing it early stops the answer."""


def run_main(argv: Sequence[str]) -> int:
    """Answer one prompt: `fieldlm run BUNDLE "prompt"`, the prompt from a pipe, or what is piped below the prompt."""
    parser = terminal.parser("run", "answer one prompt with a bundle, in this process; on a terminal, converse")
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("prompt", nargs="?", help="what to ask; what is piped in stands below it, or alone")
    _add_sampling(parser)
    args = parser.parse_args(argv)
    if args.prompt is None and sys.stdin.isatty() and not args.json:
        return _talk(args)
    prompt = _prompt(args.prompt)
    with _open(args) as model:
        if args.json:
            answer = model.chat(prompt, _sampling(args))
            terminal.show(_document(answer), "", as_json=True)
            return 0
        said = _print(_in_process(model)([{"role": "user", "content": prompt}], _sampling(args)))
    return INTERRUPTED if said.outcome == "cancelled" else 0


def main(argv: Sequence[str]) -> int:
    """Hold a conversation with a bundle in this process, or with a running server."""
    parser = terminal.parser("chat", "talk to a model; /help, said there, lists what else it does")
    parser.add_argument("bundle", type=Path, nargs="?", help="folder of a bundle to load in this process")
    parser.add_argument(
        "--url",
        help=f"a running server (http, https or unix:/PATH; {http_client.KEY} has its key); else {DEFAULT_URL}",
    )
    _add_sampling(parser)
    args = parser.parse_args(argv)
    if args.bundle and args.url:
        raise InputError("give a bundle or --url, not both")
    return _talk(args)


def ps_main(argv: Sequence[str]) -> int:
    """Show what a running server serves; exit code 1 when it is not ready."""
    parser = terminal.parser("ps", "show what a running server serves")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server: http, https or unix:/PATH")
    args = parser.parse_args(argv)
    _, listed = http_client.get(args.url, "/v1/models")
    status, readiness = http_client.get(args.url, "/ready")
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


def _open(args: argparse.Namespace) -> Model:
    """Load the bundle; on a terminal, who waits for it sees that."""
    waiting = terminal.progress(f"load {args.bundle}") if sys.stderr.isatty() else nullcontext()
    with waiting:
        return Model.open(args.bundle, threads=args.threads, context=args.context, parallel=1)


def _prompt(given: str | None) -> str:
    """Return what was given, with what is piped in below it; raises InputError when there is nothing."""
    piped = sys.stdin.read() if given is None or _is_piped() else ""
    parts = [part for part in (given, piped) if part and part.strip()]
    if not parts:
        raise InputError('the prompt is empty; run: fieldlm run BUNDLE "prompt"')
    return "\n\n".join(parts)


def _is_piped() -> bool:
    """Whether somebody sends a text: what is no pipe or file may stay open for ever and say nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


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


def _print(pieces: Generator[Piece]) -> Piece:
    """Print pieces as they come and return them as one; Ctrl-C stops the answer and nothing else."""
    text, last = "", Piece(outcome="cancelled")
    with suppress(KeyboardInterrupt), closing(pieces):
        for piece in pieces:
            text += piece.text
            print(piece.text, end="", flush=True)
            last = piece if piece.outcome else last
    print(flush=True)
    return replace(last, text=text)


def _talk(args: argparse.Namespace) -> int:
    with ExitStack() as stack:
        if args.bundle:
            say = _in_process(stack.enter_context(_open(args)))
        else:
            say = _over_http(getattr(args, "url", None) or DEFAULT_URL)
        _Conversation(say, _sampling(args)).hold()
    return 0


@dataclass
class _Conversation:
    """Reads, answers and remembers, until /exit or the end of the input."""

    say: Say
    sampling: Sampling
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    last: Piece | None = None

    def hold(self) -> None:
        with suppress(ImportError):
            import_module("readline")  # gives `input` a history and line editing
        is_person = sys.stdin.isatty()
        if is_person:
            print(SHORT_HELP)
        while True:
            try:
                line = _read("> " if is_person else "")
            except EOFError:
                if is_person:
                    print()
                return
            except KeyboardInterrupt:
                print(f"\n{SHORT_HELP}")
                continue
            if line in EXIT:
                return
            if line.startswith("/"):
                self._obey(*line.split())
            elif line:
                self._ask(line)

    def _ask(self, line: str) -> None:
        """Ask `line` and remember question and answer; a question without an answer is forgotten."""
        self.messages.append({"role": "user", "content": line})
        try:
            self.last = _print(self.say(self.messages, self.sampling))
        except FieldlmError as error:
            terminal.log(f"! {error}")
            self.messages.pop()
            return
        self.messages.append({"role": "assistant", "content": self.last.text})
        if sys.stderr.isatty() and (note := self._note(self.last)):
            print(note, file=sys.stderr)

    def _note(self, said: Piece) -> str:
        """Return what a reader cannot see from the text: that it is not whole."""
        if said.outcome == "length":
            return f"(cut off after {said.tokens} tokens; /set max-tokens {2 * self.sampling.max_tokens} allows more)"
        return "(stopped)" if said.outcome == "cancelled" else ""

    def _obey(self, command: str, *words: str) -> None:
        if command == "/clear":
            self.messages.clear()
        elif command == "/again" and len(self.messages) > 1:
            question = self.messages[-2]["content"]
            del self.messages[-2:]
            self._ask(question)
        elif command == "/set":
            self._set(*words)
        elif command == "/stats":
            print(_speed(self.last))
        elif command in ("/help", "/?"):
            print(HELP)
        else:
            print("there is nothing to ask again" if command == "/again" else f"there is no {command}\n{HELP}")

    def _set(self, *words: str) -> None:
        """Change one setting of the sampling, or say what they are."""
        kinds: dict[str, Callable[[str], float]] = {"temperature": float, "max-tokens": int, "seed": int}
        try:
            if words:
                name, value = words
                self.sampling = replace(self.sampling, **{name.replace("-", "_"): kinds[name](value)})
        except (ValueError, KeyError):
            print(f"/set {' '.join(words)}: want temperature, max-tokens or seed, and a number")
            return
        sampling = self.sampling
        seed = "drawn" if sampling.seed is None else sampling.seed
        print(f"temperature {sampling.temperature:g}, max-tokens {sampling.max_tokens}, seed {seed}")


def _read(prompt: str) -> str:
    """Return one message: a line, or all lines between two marks. Raises EOFError at the end of the input."""
    line = input(prompt).strip()
    if not line.startswith(LONG):
        return line
    lines = [line.removeprefix(LONG)]
    while not lines[-1].rstrip().endswith(LONG):
        lines.append(input(". " if prompt else ""))
    lines[-1] = lines[-1].rstrip().removesuffix(LONG)
    return "\n".join(lines).strip()


def _speed(said: Piece | None) -> str:
    if said is None or said.tokens < 2 or not said.decode_s:
        return "nothing was timed yet"
    return f"{said.tokens} tokens, {(said.tokens - 1) / said.decode_s:.1f} tokens/s"


def _in_process(model: Model) -> Say:
    def say(messages: list[dict[str, Any]], sampling: Sampling) -> Generator[Piece]:
        generation = model.start(messages, sampling)
        try:
            for chunk in generation:
                if chunk.error:
                    raise UnavailableError(chunk.error)
                if chunk.outcome is None:
                    yield Piece(text=chunk.text)
                    continue
                timings = generation.timings
                yield Piece(
                    text=chunk.text,
                    outcome=chunk.outcome,
                    tokens=timings.completion_tokens,
                    decode_s=timings.decode_s,
                )
        finally:
            generation.cancel()

    return say


def _over_http(url: str) -> Say:
    def say(messages: list[dict[str, Any]], sampling: Sampling) -> Generator[Piece]:
        body = {"messages": messages, "stream": True, "max_tokens": sampling.max_tokens}
        body |= {"temperature": sampling.temperature}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        for event in http_client.events(url, "/v1/chat/completions", body):
            text = "".join(choice["delta"].get("content", "") for choice in event["choices"])
            if own := event.get("fieldlm"):
                tokens, decode_s = own["usage"]["completion_tokens"], own["timings"]["decode_ms"] / 1000
                yield Piece(text=text, outcome=own["outcome"], tokens=tokens, decode_s=decode_s)
            else:
                yield Piece(text=text)

    return say
