"""`fieldlm run`: one prompt, one answer, in this process."""

import os
import stat
import sys
from collections.abc import Sequence
from typing import Any

from fieldlm.cli.conversation import add_model, add_sampling, in_process, load_model, sampling_of, talk, write_out
from fieldlm.core import terminal
from fieldlm.core.errors import InputError

INTERRUPTED = 130  # the exit code of what Ctrl-C ended


def main(argv: Sequence[str]) -> int:
    """Answer one prompt: `fieldlm run MODEL "prompt"`, the prompt from a pipe, or what is piped below the prompt."""
    parser = terminal.parser(
        "run",
        "answer one prompt with a model, in this process; on a terminal, converse",
        'fieldlm run smollm2 "What is the capital of France?"',
        'git diff | fieldlm run model.gguf "Say what changes:" --max-tokens 200',
    )
    add_model(parser)
    parser.add_argument("prompt", nargs="?", help="what to ask; what is piped in stands below it, or alone")
    add_sampling(parser)
    args = parser.parse_args(argv)
    if args.prompt is None and sys.stdin and sys.stdin.isatty() and not args.json:
        return talk(args, as_json=False)
    prompt = _prompt(args.prompt)
    with load_model(args) as model:
        if args.json:
            answer = model.chat(prompt, sampling_of(args))
            terminal.show(_document(answer), "", as_json=True)
            return 0
        said = write_out(in_process(model)([{"role": "user", "content": prompt}], sampling_of(args)))
    return INTERRUPTED if said.outcome == "cancelled" else 0


def _prompt(given: str | None) -> str:
    """Return what was given, with what is piped in below it; raises InputError when there is nothing."""
    piped = _piped() if given is None or _is_piped() else ""
    parts = [part for part in (given, piped) if part and part.strip()]
    if not parts:
        raise InputError('the prompt is empty; run: fieldlm run MODEL "prompt"')
    return "\n\n".join(parts)


def _piped() -> str:
    """Return what is piped in, nothing where stdin is closed (cron); raises InputError for what is no UTF-8."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        return ""
    try:
        return sys.stdin.read().encode("utf-8", "surrogateescape").decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"what is piped in is not UTF-8 (byte {error.start}); convert it: iconv -f LATIN1 -t UTF-8"
        ) from error


def _is_piped() -> bool:
    """Whether somebody sends a text: what is no pipe or file may stay open for ever and say nothing."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _document(answer: Any) -> dict[str, Any]:
    timings = answer.timings
    return {
        "text": answer.text,
        **({"thought": answer.thought} if answer.thought else {}),
        "outcome": answer.outcome,
        "generation": answer.generation,
        "prompt_tokens": timings.prompt_tokens,
        "completion_tokens": timings.completion_tokens,
        "prefill_s": round(timings.prefill_s, 4),
        "decode_s": round(timings.decode_s, 4),
    }
