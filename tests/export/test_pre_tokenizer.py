"""A vocabulary that llama.cpp's converter has never seen: its pre-tokenizer is known by its definition."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from fieldlm.core.errors import EngineError
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import CORPUS, PROSE, first_difference, gguf_tokens, json_tokens
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.export.pre_tokenizer import PATTERNS
from fieldlm_compiler.pipeline.stages import Stages
from tests.support import tiny_models

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTES])


KNOWN = {
    "gpt-2": GPT_2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2]),
    **{name: split(pattern) for pattern, name in PATTERNS.items()},
}


def trained(folder: Path, rule: pre_tokenizers.PreTokenizer) -> Path:
    """Write a model to `folder` whose tokenizer was trained on a little text, with `rule` in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = rule
    tokenizer.decoder = decoders.ByteLevel()
    trainer: Any = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*CORPUS, *PROSE] * 3, trainer)
    tiny_models.tiny_llama(folder, vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", KNOWN)
def test_a_vocabulary_trained_anew_is_cut_by_the_rule_that_it_names(
    name: str, tmp_path: Path, stages: Stages, profile: Profile
) -> None:
    folder = trained(tmp_path / name, KNOWN[name])
    gguf = lower(open_checkpoint(str(folder)), "gguf", stages).base
    assert read_header(gguf).metadata["tokenizer.ggml.pre"] == name
    texts = [*CORPUS, *PROSE]
    assert first_difference(texts, json_tokens(folder, texts), gguf_tokens(gguf, texts)) is None


@pytest.mark.parametrize("change", ["pattern", "space", "order"])
def test_a_rule_that_is_not_known_is_not_guessed(change: str, tmp_path: Path, stages: Stages, profile: Profile) -> None:
    rule: pre_tokenizers.PreTokenizer = {
        "pattern": split(next(iter(PATTERNS)).replace("{1,3}", "{1,4}")),
        "space": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "order": pre_tokenizers.Sequence([GPT_2, pre_tokenizers.Digits(individual_digits=True)]),
    }[change]
    folder = trained(tmp_path / change, rule)
    assert json.loads((folder / "tokenizer.json").read_bytes())["pre_tokenizer"]
    with pytest.raises(EngineError, match="BPE pre-tokenizer was not recognized"):
        lower(open_checkpoint(str(folder)), "gguf", stages)
