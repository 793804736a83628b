"""Conversation on the terminal: what `fieldlm run` and `fieldlm chat` have in common."""

import argparse
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fieldlm.catalogue.names import MODEL
from fieldlm.core import options, terminal
from fieldlm.core.errors import FieldlmError, InputError, UnavailableError
from fieldlm.core.urls import shown_in
from fieldlm.core.wording import counted, visible
from fieldlm.engines import RANGES, Outcome, Sampling

if TYPE_CHECKING:
    from fieldlm.inference.model import Model
    from fieldlm.network.http_client import HttpClient

EXIT = ("/exit", "/quit", "/bye")
HELP = """\
/exit leaves, and so does Ctrl-D; Ctrl-C stops an answer
/clear forgets the conversation, /again asks for another answer to the last question
/set temperature 0.7, max-tokens 200 or seed 7 changes how it answers; /stats says how fast it was
\"\"\" begins and ends a message of several lines; // begins one that begins with a /"""
SHORT_HELP = "(Ctrl-D or /exit leaves, /help says more)"
LONG = '"""'
COMMAND, ESCAPED = "/", "//"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A piece of an answer; the last one says how it ended, after how many tokens, and how long they took.

    `thought` is what a model thinks before it answers.
    """

    text: str = ""
    thought: str = ""
    outcome: Outcome | None = None
    tokens: int = 0
    decode_s: float = 0.0


Say = Callable[[list[dict[str, Any]], Sampling], Generator[Piece]]
"""Answers a conversation; raises a FieldlmError when there is no answer. Closing it early stops the answer."""


MAX_TOKENS, TEMPERATURE = options.whole(1), options.real(*RANGES["temperature"])
SEED = options.whole(*options.SEED)
SEEDED = "random seed; rounding may still change an answer, except where a server is set to be repeatable"


def add_model(parser: argparse.ArgumentParser, *, nargs: str | None = None) -> None:
    parser.add_argument("model", nargs=nargs, metavar="MODEL", help=MODEL)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-tokens", type=MAX_TOKENS, default=512, help="the longest answer")
    parser.add_argument("--temperature", type=TEMPERATURE, default=0.0, help="0 takes the likeliest token each time")
    parser.add_argument("--seed", type=SEED, help=SEEDED)
    parser.add_argument(
        "--threads", type=options.whole(*options.THREADS), help="threads that compute; the physical cores when left out"
    )
    parser.add_argument("--context", type=options.whole(*options.CONTEXT), help="tokens of prompt and answer together")


def sampling_of(args: argparse.Namespace) -> Sampling:
    return Sampling(max_tokens=args.max_tokens, temperature=args.temperature, seed=args.seed)


def load_model(args: argparse.Namespace) -> "Model":
    """Load the model, fetched where it has to be; on a terminal, who waits for it sees that.

    What nobody has proved is said to be so. Raises InputError for one that cannot converse.
    """
    from fieldlm.catalogue.opening import advice, open_model
    from fieldlm.inference.chat_template import without_template

    bundle = open_model(args.model)
    if bundle.manifest.file("template") is None:
        raise InputError(without_template(bundle))
    if not bundle.manifest.is_proved:
        print(visible(advice(bundle, args.model)), file=sys.stderr, flush=True)
    from fieldlm.inference.model import Model

    waiting = terminal.progress(f"load {args.model}") if sys.stderr.isatty() else nullcontext()
    with waiting:
        return Model.open(bundle, threads=args.threads, context=args.context, parallel=1)


def write_out(pieces: Generator[Piece], *, quiet: bool = False) -> Piece:
    """Print pieces as they come, but when `quiet`, and return them as one; Ctrl-C stops the answer and nothing else.

    Thoughts go to stderr: what is piped on is the answer.
    """
    text, thought, last = "", "", Piece(outcome="cancelled")
    with suppress(KeyboardInterrupt), closing(pieces):
        for piece in pieces:
            if not quiet:
                print(visible(piece.thought), end="", flush=True, file=sys.stderr)
                if thought + piece.thought and piece.text and not text:
                    print("\n", flush=True, file=sys.stderr)
                print(visible(piece.text), end="", flush=True)
            text += piece.text
            thought += piece.thought
            last = piece if piece.outcome else last
    if not quiet:
        print(flush=True)
    return replace(last, text=text, thought=thought)


def in_process(model: "Model") -> Say:
    from fieldlm.inference.chat_template import thought_marks
    from fieldlm.inference.thoughts.thought_reader import ThoughtReader

    marks = thought_marks(model.bundle)

    def say(messages: list[dict[str, Any]], sampling: Sampling) -> Generator[Piece]:
        generation = model.start(messages, sampling)
        reader = marks and ThoughtReader(marks)
        try:
            for chunk in generation:
                if chunk.error:
                    raise UnavailableError(chunk.error)
                thought, text = reader.push(chunk.text) if reader else ("", chunk.text)
                if chunk.outcome is None:
                    yield Piece(thought=thought, text=text)
                    continue
                late, rest = reader.finish(is_cut=chunk.outcome != "stop") if reader else ("", "")
                timings = generation.timings
                yield Piece(
                    thought=thought + late,
                    text=text + rest,
                    outcome=chunk.outcome,
                    tokens=timings.completion_tokens,
                    decode_s=timings.decode_s,
                )
        finally:
            generation.cancel()

    return say


def over_http(server: "HttpClient") -> Say:
    def say(messages: list[dict[str, Any]], sampling: Sampling) -> Generator[Piece]:
        body = {"messages": messages, "stream": True, "max_tokens": sampling.max_tokens}
        body |= {"temperature": sampling.temperature}
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        for event in server.events("/v1/chat/completions", body):
            deltas = [choice.get("delta") or {} for choice in event.get("choices") or []]
            thought = "".join(delta.get("reasoning_content") or "" for delta in deltas)
            text = "".join(delta.get("content") or "" for delta in deltas)
            if own := event.get("fieldlm"):
                tokens, decode_s = own["usage"]["completion_tokens"], own["timings"]["decode_ms"] / 1000
                yield Piece(thought=thought, text=text, outcome=own["outcome"], tokens=tokens, decode_s=decode_s)
            else:
                yield Piece(thought=thought, text=text)

    return say


def talk(args: argparse.Namespace, *, as_json: bool) -> int:
    """Hold a conversation with the model of the arguments, else with the server."""
    with ExitStack() as stack:
        server = None
        if args.model:
            say = in_process(stack.enter_context(load_model(args)))
        else:
            from fieldlm.network.http_client import server_at

            say = over_http(server := server_at(getattr(args, "url", None)))
        conversation = Conversation(say, sampling_of(args), as_json=as_json)
        conversation.hold()
        if server is not None and not conversation.answers:
            server.request("GET", "/health")  # nothing was asked, and yet somebody has to be there
    return 1 if conversation.answers and all("error" in each for each in conversation.answers) else 0


@dataclass
class Conversation:
    """Reads, answers and remembers, until /exit or the end of the input; with `as_json` it prints one document then."""

    say: Say
    sampling: Sampling
    as_json: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    last: Piece | None = None
    answers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def hold(self) -> None:
        """Converse to the end."""
        with suppress(AttributeError):
            # Odd bytes are refused with their line; read strictly, they would end the conversation.
            sys.stdin.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
        with suppress(ImportError):
            import_module("readline")  # gives `input` a history and line editing
        self._read_all(is_person=bool(sys.stdin) and sys.stdin.isatty() and not self.as_json)
        if self.as_json:
            terminal.show({"answers": self.answers}, "", as_json=True)

    def _read_all(self, *, is_person: bool) -> None:
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
                self._tell(f"\n{SHORT_HELP}")
                continue
            if line in EXIT:
                return
            if line.startswith(COMMAND) and not line.startswith(ESCAPED):
                self._obey(*line.split())
            elif line:
                self._ask(line.removeprefix(COMMAND))

    def _ask(self, line: str) -> None:
        """Ask `line` and remember question and answer; a question without an answer is forgotten."""
        self.messages.append({"role": "user", "content": line})
        try:
            self.last = write_out(self.say(self.messages, self.sampling), quiet=self.as_json)
        except FieldlmError as error:
            print(visible(shown_in(f"! {error}")), file=sys.stderr, flush=True)  # it may be a stranger's words
            self.answers.append({"question": line, "error": str(error)})
            self.messages.pop()
            return
        self.answers.append({"question": line, **asdict(self.last)})
        self.messages.append({"role": "assistant", "content": self.last.text})
        if sys.stderr.isatty() and (note := self._note(self.last)):
            print(note, file=sys.stderr)

    def _note(self, said: Piece) -> str:
        """Return what a reader cannot see from the text: that it is not whole."""
        if said.outcome == "length":
            return (
                f"(cut off after {counted(said.tokens, 'token')}; /set max-tokens "
                f"{2 * self.sampling.max_tokens} allows more)"
            )
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
            self._tell(_speed(self.last))
        elif command in ("/help", "/?"):
            self._tell(HELP)
        else:
            self._tell("there is nothing to ask again" if command == "/again" else f"there is no {command}\n{HELP}")

    def _tell(self, text: str) -> None:
        print(text, file=sys.stderr if self.as_json else sys.stdout)

    def _set(self, *words: str) -> None:
        """Change one setting of the sampling, or say what they are."""
        kinds: dict[str, Callable[[str], float]] = {"temperature": TEMPERATURE, "max-tokens": MAX_TOKENS, "seed": SEED}
        try:
            if words:
                name, value = words
                self.sampling = replace(self.sampling, **{name.replace("-", "_"): kinds[name](value)})
        except argparse.ArgumentTypeError as error:
            self._tell(f"/set {words[0]}: {error}")
            return
        except (ValueError, KeyError):
            self._tell(f"/set {' '.join(words)}: want temperature, max-tokens or seed, and a number")
            return
        sampling = self.sampling
        seed = "drawn" if sampling.seed is None else sampling.seed
        self._tell(f"temperature {sampling.temperature:g}, max-tokens {sampling.max_tokens}, seed {seed}")


def _read(prompt: str) -> str:
    """Return one message: a line, or all lines between two marks. Raises EOFError at the end of the input.

    A long message that the input ends in is whole with that. It is no command, however it begins.
    """
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        raise EOFError  # closed, as cron or a supervisor may have it
    line = input(prompt).strip()
    if not line.startswith(LONG):
        return line
    lines = [line.removeprefix(LONG)]
    while not lines[-1].rstrip().endswith(LONG):
        try:
            lines.append(input(". " if prompt else ""))
        except EOFError:
            break
    lines[-1] = lines[-1].rstrip().removesuffix(LONG)
    text = "\n".join(lines).strip()
    return f"{COMMAND}{text}" if text.startswith(COMMAND) else text


def _speed(said: Piece | None) -> str:
    if said is None or said.tokens < 2 or not said.decode_s:
        return "nothing was timed yet"
    return f"{counted(said.tokens, 'token')}, {(said.tokens - 1) / said.decode_s:.1f} tokens/s"
