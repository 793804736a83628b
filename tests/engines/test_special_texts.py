"""Text to tokens: special tokens are cut out here, with the very ids that llama.cpp gives, each looked for once."""

import ctypes
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldlm.engines.hf_tokenizer import HfTokenizer
from fieldlm.engines.llama_api import LlamaWeights, api
from fieldlm.engines.special_texts import SpecialText, SpecialTexts
from tests.support.gguf_surgery import Gguf

ONNX = Path(__file__).parents[1] / "fixtures/version_0_1/bundles/onnx/tokenizer.json"


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def weights(
    request: pytest.FixtureRequest, smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> LlamaWeights:
    """The vocabulary as it is (byte-level BPE), and read as SentencePiece."""
    path = smollm2_gguf
    if request.param == "llama":
        gguf = Gguf.read(smollm2_gguf)
        gguf.map_texts("tokenizer.ggml.tokens", spelt_for_sentencepiece)
        gguf.set_text("tokenizer.ggml.model", "llama")
        path = gguf.write(tmp_path_factory.mktemp("gguf") / "spm.gguf")
    return LlamaWeights(path)


def spelt_for_sentencepiece(words: list[str]) -> list[str]:
    """Return a vocabulary as SentencePiece spells it; the last words make room for its bytes."""
    plain = [word.replace("Ġ", "▁") for word in words]
    return plain[:-256] + [f"<0x{byte:02X}>" for byte in range(256)]


def by_llama(weights: LlamaWeights, text: str) -> list[int]:
    data = text.encode()
    tokens = (ctypes.c_int32 * (len(data) + 8))()
    vocab = api.llama_model_get_vocab(weights.model)
    return tokens[: api.llama_tokenize(vocab, data, len(data), tokens, len(tokens), False, True)]


PIECES: Any = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|im_",
        "|>",
        " ",
        "\n",
        "Hi",
        " the",
        "é",
        "中",
        "<",
        "\x00",
        "  \t",
    ]
)


def test_the_ends_are_those_that_llama_cpp_finds_among_all_tokens(weights: LlamaWeights) -> None:
    vocab = api.llama_model_get_vocab(weights.model)
    ends = {token for token in range(weights.vocabulary) if api.llama_vocab_is_eog(vocab, token)}
    assert ends
    assert weights.ends() == ends


@pytest.mark.parametrize("name", ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_a_plain_word_that_the_file_names_an_end_is_one(name: str, smollm2_gguf: Path, tmp_path: Path) -> None:
    gguf = Gguf.read(smollm2_gguf)
    gguf.set_number(f"tokenizer.ggml.{name}_token_id", 1000)
    weights = LlamaWeights(gguf.write(tmp_path / "named.gguf"))
    assert api.llama_vocab_is_eog(api.llama_model_get_vocab(weights.model), 1000)
    assert 1000 in weights.ends()


@given(st.lists(PIECES, max_size=12))
@settings(max_examples=200, deadline=None)
def test_the_ids_are_those_of_llama_cpp(weights: LlamaWeights, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert weights.tokenize(text) == by_llama(weights, text)
    assert weights.length.least_tokens(text) <= len(weights.tokenize(text))


def test_a_long_text_has_many_tokens_before_it_is_tokenised(weights: LlamaWeights) -> None:
    assert weights.length.least_tokens("a" * (4 << 20)) > 8192


@given(st.lists(PIECES, max_size=12))
@settings(max_examples=50, deadline=None)
def test_a_tokenizer_of_hugging_face_never_gives_fewer(pieces: list[str]) -> None:
    tokenizer, text = HfTokenizer(ONNX), "".join(pieces) * 20
    assert tokenizer.length.least_tokens(text) <= len(tokenizer.encode(text))


def test_the_longest_comes_first_and_space_is_swallowed_where_the_token_says() -> None:
    known = SpecialTexts([SpecialText(b"ab", 1), SpecialText(b"bcd", 2), SpecialText(b"X", 3, True, True)])
    assert known.split(b"abcdab") == [b"a", 2, 1]
    assert known.split(b"a X \nX b") == [b"a", 3, 3, b"b"]
    assert known.shrinks


def test_thousands_of_turns_are_cut_once_each(weights: LlamaWeights) -> None:
    turn = "<|im_start|>user\na<|im_end|>\n"
    pieces = SpecialTexts([SpecialText(b"<|im_start|>", 1), SpecialText(b"<|im_end|>", 2)]).split(
        turn.encode() * 40_000
    )
    assert len(pieces) == 160_000
    assert len(weights.tokenize(turn * 8000)) == 8000 * len(weights.tokenize(turn))
