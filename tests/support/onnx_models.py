"""Tiny checkpoints of real architectures with random weights, and their ONNX exports, made once per test run."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.formats.bundle import FORMAT, Bundle, Manifest, ModelInfo, Recipe, describe, write_bundle
from fieldlm_compiler.export import onnx

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ROPE_THETA = 100_000.0
CONTEXT = 512
PROMPTS = ("<|im_start|>user\nWhere is the lift?<|im_end|>\n", "Grüße, 漢字 and 😀! " * 3, "def f(x):\n\treturn x\n")


@cache
def workspace() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fieldlm-onnx-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def checkpoint(family: str, seed: int) -> Path:
    """Return a checkpoint as Transformers 5 saves it: 64 wide, 2 layers, 2 key-value heads, a byte-level vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
        # Wide enough that the best token is rarely a near tie, as it would be with a model fresh from its initialiser.
        "initializer_range": 0.2,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    folder = workspace() / f"{family}-{seed}"
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=torch.float32)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(folder)
    return folder


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


@cache
def fp32(family: str) -> onnx.OnnxExport:
    folder = workspace() / f"{family}-fp32"
    folder.mkdir()
    return onnx.export_fp32(checkpoint(family, 0), folder)


@cache
def int4(family: str) -> onnx.OnnxExport:
    folder = workspace() / f"{family}-int4"
    folder.mkdir()
    return onnx.quantize(fp32(family).folder, folder, block_size=32, accuracy_level=4)


def bundle(folder: Path, export: onnx.OnnxExport, *, template: str | None = None) -> Bundle:
    """Make a bundle of `export` in `folder`, with copies that a test may damage; with a chat template it converses."""
    folder.mkdir(parents=True)
    for path, _ in export.files:
        shutil.copyfile(export.folder / path, folder / path)
    files = list(export.files)
    if template is not None:
        (folder / "template.jinja").write_text(template)
        files.append(("template.jinja", "template"))
    manifest = Manifest(
        format=FORMAT,
        engine="onnx",
        model=ModelInfo(
            name="tiny",
            source="test",
            licence="apache-2.0",
            architecture="llama",
            parameters=1,
            context=CONTEXT,
            source_sha256="0" * 64,
        ),
        profile="test",
        profile_sha256="0" * 64,
        recipe=Recipe(quant=export.quant, bits_per_weight=export.bits_per_weight),
        files=tuple(describe(folder, path, role) for path, role in files),
    )
    return write_bundle(folder, manifest, Ed25519PrivateKey.generate())
