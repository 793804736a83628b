"""Checkpoints of any family for the trainer: random weights, and a tokenizer of bytes and a few special tokens."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
FIRST_SPECIAL = 257
VOCABULARY = FIRST_SPECIAL + len(SPECIAL)


def save_bytes_tokenizer(folder: Path, template: str, **config: Any) -> None:
    """Write the tokenizer's files and the chat template to `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # One pair that merges: a line feed, with which a prompt ends, and a blank, with which an answer may begin.
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, "ĊĠ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "chat_template.jinja").write_text(template)
