"""Transformers 5 compatibility of llama.cpp's converter: what that saves otherwise than the converter reads.

The converter is run as it is, in a child process, with a few of its functions wrapped.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from fieldlm.core.errors import InputError
from fieldlm_compiler.export.pre_tokenizer import name_of
from fieldlm_compiler.export.transformers4 import ENDS_OF_TURN, named_stops

Config = Mapping[str, Any]
SPECIAL = re.compile(r"<\|?[\w/-]+\|?>")
LAYERS = {"full_attention": "attention", "linear_attention": "mamba"}
# model_type → what the converter reads under a name, or in words, that transformers 5 gave up.
OLD_FORM: dict[str, Callable[[Config], dict[str, Any]]] = {
    "cohere2": lambda config: {"rotary_pct": 1.0},
    "gpt2": lambda config: {"n_ctx": config["n_positions"]},
    "gpt_neox": lambda config: {"rotary_pct": config["rope_parameters"]["partial_rotary_factor"]},
    "granitemoehybrid": lambda config: {"layer_types": [LAYERS.get(each, each) for each in config["layer_types"]]},
}
# Families whose head llama.cpp wants in the file even where it is the embedding → what the two are called.
HEAD = ("lm_head.weight", "model.embed_tokens.weight")
WITH_HEAD = dict.fromkeys(("nemotron", "olmo2", "olmoe", "qwen2_moe", "stablelm"), HEAD) | {
    "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight")
}


def run(script: Path, *arguments: object) -> None:
    """Run the converter `script`; raises InputError when the tokenizer lacks what the family's converter needs."""
    sys.argv = [str(script), *map(str, arguments)]
    sys.path.insert(0, str(script.parent))
    _read_tokenizers_as_they_are()
    base: Any = import_module("conversion.base")
    _read_old_form(base.ModelBase)
    _write_tied_heads(base.ModelBase)
    _read_merges_as_scores(base.TextModel)
    _recognise_pre_tokenizers(base.TextModel)
    _write_every_stop(import_module("gguf").SpecialVocab)
    _choose_vocabulary_by_files()
    try:
        runpy.run_path(str(script), run_name="__main__")
    except FileNotFoundError as error:
        if "tokenizer.model" not in str(error):
            raise
        raise InputError(
            "the model has no tokenizer.model, from which llama.cpp's converter takes the vocabulary of this family: "
            "copy the one of the model it was trained from into its folder"
        ) from error
    except KeyError as error:
        if not SPECIAL.fullmatch(str(error.args[0])):
            raise
        raise InputError(
            f"the model's tokenizer has no token {error.args[0]}, which llama.cpp's converter wants of this family: "
            "copy the tokenizer's files of the model it was trained from into its folder"
        ) from error


def _read_tokenizers_as_they_are() -> None:
    """Keep transformers 5 from building a tokenizer anew by the kind of model, whatever class the folder names."""
    transformers: Any = import_module("transformers")
    by_kind = transformers.AutoTokenizer.from_pretrained

    def read(folder: Any, *arguments: Any, **options: Any) -> Any:
        if (Path(folder) / "tokenizer.json").is_file():
            return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        return by_kind(folder, *arguments, **options)

    transformers.AutoTokenizer.from_pretrained = read


def _read_old_form(base: Any) -> None:
    """Put what transformers 5 renamed back under its old names; the converter reads configurations through it."""
    by_transformers = base.load_hparams

    def load(folder: Path, is_mistral_format: bool) -> dict[str, Any]:
        config = by_transformers(folder, is_mistral_format)
        old = OLD_FORM.get(config.get("model_type", ""))
        return {**config, **old(config)} if old else config

    base.load_hparams = staticmethod(load)
    # It alone reads config.json by itself.
    hybrid: Any = import_module("conversion.granite").GraniteHybridModel
    by_itself = hybrid.__init__

    def make(model: Any, folder: Path, *arguments: Any, **options: Any) -> None:
        by_itself(model, folder, *arguments, **{"hparams": load(folder, False), **options})

    hybrid.__init__ = make


def _write_tied_heads(base: Any) -> None:
    as_they_are = base.index_tensors

    def index(model: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        tensors = as_they_are(model, *arguments, **options)
        head, embedding = WITH_HEAD.get(model.hparams.get("model_type", ""), HEAD)
        if model.hparams.get("model_type") in WITH_HEAD and head not in tensors and embedding in tensors:
            tensors[head] = tensors[embedding]
        return tensors

    base.index_tensors = index


def _read_merges_as_scores(text_model: Any) -> None:
    """Give models that were born with a sentencepiece vocabulary one when transformers 5 saved tokenizer.json alone.

    Sentencepiece joins the pair with the highest score, tokenizer.json that of the first merge: the scores are the
    merges' ranks. Without this the converter writes no scores, or takes the vocabulary for one of bytes.
    """
    by_file, by_bytes = text_model._create_vocab_sentencepiece, text_model._set_vocab_gpt2

    def pieces(model: Any) -> tuple[list[bytes], list[float], list[int]]:
        tokenizer = _byte_fallback(model.dir_model)
        if tokenizer is None:
            return by_file(model)
        model.gguf_writer.add_add_space_prefix(_begins_with_space(tokenizer))
        return scored_pieces(tokenizer, model.hparams["vocab_size"])

    def set_vocab(model: Any) -> None:
        if _byte_fallback(model.dir_model) is None:
            by_bytes(model)
        else:
            model._set_vocab_sentencepiece()

    text_model._create_vocab_sentencepiece, text_model._set_vocab_gpt2 = pieces, set_vocab


def _recognise_pre_tokenizers(text_model: Any) -> None:
    """Name a pre-tokenizer by its definition where the vocabulary is not one that the converter has seen."""
    by_hash = text_model.get_vocab_base_pre

    def recognise(model: Any, tokenizer: Any) -> str:
        try:
            return by_hash(model, tokenizer)
        except NotImplementedError:
            if name := name_of(model.dir_model):
                return name
            raise

    text_model.get_vocab_base_pre = recognise


def _write_every_stop(vocabulary: Any) -> None:
    """Write the tokens that end an answer beside the first, too, as ends of a turn and of a message.

    The converter takes one from a list; llama.cpp knows the usual ones by their texts, and stops at these two.
    """
    load_one = vocabulary._load

    def load(special: Any, folder: Path) -> None:
        load_one(special, folder)
        first = special.special_token_ids.get("eos")
        others = [at for at, text in named_stops(folder).items() if at != first and text not in ENDS_OF_TURN]
        for kind, at in zip(("eot", "eom"), others, strict=False):
            special.special_token_ids.setdefault(kind, at)

    vocabulary._load = load


def _byte_fallback(folder: Path) -> dict[str, Any] | None:
    """Return tokenizer.json where it was made of a tokenizer.model that is not beside it."""
    path = folder / "tokenizer.json"
    if (folder / "tokenizer.model").is_file() or not path.is_file():
        return None
    tokenizer = json.loads(path.read_bytes())
    model = tokenizer.get("model", {})
    return tokenizer if model.get("type") == "BPE" and model.get("byte_fallback") else None


def _begins_with_space(tokenizer: Config) -> bool:
    """Say whether a space is put in front of every text."""
    parts: list[Any] = [tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")]
    steps = [step for part in parts if part for step in part.get("normalizers") or part.get("pretokenizers") or [part]]
    return any(
        step["type"] == "Prepend" or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def scored_pieces(tokenizer: Config, size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Return the texts, scores and types of the `size` pieces of a byte-fallback BPE tokenizer.json.

    What lies past `size` has no row in the model's embedding and is left out.
    """
    from gguf import TokenType

    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(model["merges"]):
        ranks.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), rank)
    last = -float(len(ranks) + 1)
    rows = [(f"[PAD{at}]", last, TokenType.UNUSED) for at in range(size)]
    for text, at in model["vocab"].items():
        if at < size:
            kind = TokenType.BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else TokenType.NORMAL
            kind = TokenType.UNKNOWN if text == model.get("unk_token") else kind
            rows[at] = (text, -float(ranks[text]) if text in ranks else last, kind)
    for token in tokenizer.get("added_tokens") or []:
        is_run = "▁" in token["content"] and token["content"] in ranks
        if token["id"] < size and rows[token["id"]][2] is not TokenType.UNKNOWN and not is_run:
            kind = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
            rows[token["id"]] = (token["content"].replace("▁", " "), last, kind)
    texts, scores, kinds = zip(*rows, strict=True)
    return [text.encode() for text in texts], list(scores), list(kinds)


def _choose_vocabulary_by_files() -> None:
    """Mend the converter for Phi: it goes by the name of the tokenizer's class, which is a neutral one here."""
    phi: Any = import_module("conversion.phi").Phi3MiniModel
    by_sentencepiece = phi.set_vocab

    def set_vocab(model: Any) -> None:
        if (model.dir_model / "tokenizer.model").is_file():
            by_sentencepiece(model)
        else:
            model._set_vocab_gpt2()

    phi.set_vocab = set_vocab
