"""Tokenizer parity: do two tokenizers cut text alike? The corpus is made of what tokenizers get wrong."""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path

from fieldlm.core.errors import InputError
from fieldlm.engines.llama_kernels import load_kernels

CORPUS = (
    "The quick brown fox jumps over the lazy dog.",
    "def f(x: int) -> str:\n\treturn f\"{x!r:>8}\"  # why\n\n\n    if x: pass\r\n",
    "1234567890 3.14159 1,000,000 0x1F 2026-11-22 1٢٣ ½ ²",
    "don't DON'T we'll they'VE I'd it's 'tis",
    "😀👩‍👩‍👧‍👦🇩🇪 ✈️ ‼️",
    "漢字かな交じり文、한국어 텍스트。русский язык עברית العربية ไทย",
    "   leading, trailing   \t\t tabs \n\n \n newlines  ",
    "naïve café Straße ﬁ Å Å ﷽ \u200b\u00a0\ufeff",
    "https://example.org/a?b=c&d=%20#e <a href='x'>y</a> {\"k\": [1, null]} $1.50 €2 C++ C#",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa--------========!!!!????",
    " ", "\n", "",
)  # fmt: skip

# What both are to read: prose, code, other languages, what a device says. Holds no special tokens.
PROSE = (
    "The lighthouse keeper wrote down the weather every morning, although nobody had asked him to for years. On the "
    "ninth of March the wind turned to the north-east, and by noon the harbour was full of small boats that had come "
    "in early.",
    "def mean(values: list[float]) -> float:\n"
    '    """Return the mean of `values`; raises ValueError if there are none."""\n'
    "    if not values:\n        raise ValueError('no values')\n    return sum(values) / len(values)\n",
    "Das Kabel wird zuerst in den unteren Anschluss gesteckt, dann in den oberen. El camarero trae dos cafés con "
    "leche, una botella de agua sin gas y la cuenta. 請在早上九點以前到達。",
    '{"name": "turn_on_light", "arguments": {"room": "kitchen", "brightness": 40, "colour": "warm white"}}\n'
    "Order 1042: 2 x flat white (large), 1 x blueberry muffin; total 13.70 EUR, paid by card at 08:15.",
)


def json_tokens(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Cut `texts` with tokenizer.json in `folder`, through the library that defines what it means."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} has no tokenizer.json; save the model's fast tokenizer there")
    tokenizer = Tokenizer.from_file(str(path))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def special_texts(folder: Path) -> list[str]:
    """Return texts in which the added tokens of tokenizer.json stand between words, every one that the model can read.

    Gemma 3's tokenizer has one for pictures for which its text models have no row, and runs of spaces as sentencepiece
    writes them: nobody else writes that sign, and llama.cpp takes it for a space.
    """
    from tokenizers import Tokenizer

    added = Tokenizer.from_file(str(folder / "tokenizer.json")).get_added_tokens_decoder()
    size = json.loads((folder / "config.json").read_bytes()).get("vocab_size", max(added, default=0) + 1)
    return [f"a {added[number].content.replace('▁', ' ')}b" for number in sorted(added) if number < size]


def doubled_start(prompts: Sequence[Sequence[int]], start: int | None) -> int | None:
    """Return the index of the first of `prompts` that begins with the token `start` twice, or None."""
    twice = [start, start]
    return next((at for at, tokens in enumerate(prompts) if start is not None and list(tokens[:2]) == twice), None)


def gguf_tokens(path: Path, texts: Sequence[str]) -> list[list[int]]:
    """Cut `texts` with the vocabulary in the GGUF at `path`, through llama.cpp, without loading weights."""
    import llama_cpp

    load_kernels()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise InputError(f"llama.cpp cannot read the vocabulary of {path.name}")
    try:
        vocab = llama_cpp.llama_model_get_vocab(model)
        return [_cut(vocab, text.encode()) for text in texts]
    finally:
        llama_cpp.llama_model_free(model)


def _cut(vocab: object, text: bytes) -> list[int]:
    import llama_cpp

    room = len(text) + 8
    tokens = (ctypes.c_int32 * room)()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), tokens, room, False, True)  # pyright: ignore[reportArgumentType]  (ctypes pointers)
    assert count >= 0, "a text never has more tokens than bytes"
    return list(tokens[:count])


def first_difference(texts: Sequence[str], left: list[list[int]], right: list[list[int]]) -> str | None:
    """Return one line about the first text that is cut in two ways, or None."""
    for text, one, other in zip(texts, left, right, strict=True):
        if one != other:
            return f"{text[:40]!r} is {one[:12]} in tokenizer.json and {other[:12]} in the GGUF"
    return None
