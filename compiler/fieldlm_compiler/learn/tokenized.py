"""Tokenised examples, lines of a dataset as tokens, as the model to be tuned will see them."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TokenizedExample:
    """One conversation as token ids; the loss counts from `answer_at` on."""

    tokens: tuple[int, ...]
    answer_at: int


def read_examples(path: Path, checkpoint: Path, max_tokens: int) -> list[TokenizedExample]:
    """Render every line of a dataset file with the checkpoint's own chat template and tokenise it.

    Raises InputError when the file or what the checkpoint needs is missing, and for a line that is too long.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"{path} does not exist; make a dataset with: fieldlm dataset EXAMPLES --out DIR")
    for name in ("tokenizer.json", "chat_template.jinja"):
        if not (checkpoint / name).is_file():
            raise InputError(f"{checkpoint} has no {name}; name a model's folder, such as `fieldlm unpack` makes")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((checkpoint / "chat_template.jinja").read_text())
    examples: list[TokenizedExample] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        messages = msgspec.json.decode(line)["messages"]
        asked = template.render(messages=messages[:-1], add_generation_prompt=True, bos_token="", eos_token="")
        whole = template.render(messages=messages, add_generation_prompt=False, bos_token="", eos_token="")
        prompt = tokenizer.encode(asked, add_special_tokens=False).ids
        tokens = tokenizer.encode(whole.rstrip("\n"), add_special_tokens=False).ids
        if tokens[: len(prompt)] != prompt or len(tokens) > max_tokens:
            raise InputError(f"{path}:{number} has {len(tokens)} tokens (at most {max_tokens}) or an ambiguous border")
        examples.append(TokenizedExample(tokens=tuple(tokens), answer_at=len(prompt)))
    return examples
