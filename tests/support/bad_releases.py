"""Releases that are bad for real: each made out of the real small model, signed and published like a good one."""

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.files import canonical_json, link_or_copy
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle, Role, describe, write_bundle
from fieldlm.formats.probe import Probe, Probes
from fieldlm.inference.chat_template import render
from fieldlm.updates.rehearsal import AWKWARD
from fieldlm_compiler.repository.metadata import Keyring, RepositoryMetadata
from fieldlm_compiler.repository.publish import add_release, newest_release, publish
from tests.support import material
from tests.support.gguf_surgery import Gguf
from tests.support.onnx_models import make_tokenizer

PROFILE = "kiosk"
PROFILE_TOML = """\
format = "fieldlm.profile/1"
id = "kiosk"
title = "A kiosk that gives its model little"
inherits = "generic-x86-64-avx2"

[memory]
reserve_mb = { value = 1000, kind = "policy", source = "as its parent" }
model_budget_mb = { value = 600, kind = "policy", source = "the small model and its context, with room" }

[gguf]
context = { value = 512, kind = "policy", source = "short orders" }
"""
QUESTIONS = ("Name the capital of France.", "What is two plus two?", "How are you?", "Who are you?")
FIRM = 1.0  # logits; an answer of the probes ends before the first token that was nearer to a tie
SLOW_RANK = 320
CRASHER = "One with gold leaf, please: 🜚"
"""What the third customer says to `a crash on the third request`: its last letter has no token there."""


@dataclass
class Workshop:
    """Makes bundles of the small model for PROFILE, and publishes them."""

    folder: Path
    key: Ed25519PrivateKey
    base: Bundle
    probes: bytes = b""

    @classmethod
    def open(cls, folder: Path) -> "Workshop":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{PROFILE}.toml").write_text(PROFILE_TOML)
        plain = material.tiny_bundle(folder / "plain")
        shop = cls(folder, Ed25519PrivateKey.generate(), plain)
        shop.probes = _ask(plain)
        shop.base = shop.bundle("base")
        return shop

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def root(self) -> Path:
        return self.folder / "keys" / "root.json"

    @property
    def profile(self) -> Path:
        return self.folder / f"{PROFILE}.toml"

    def bundle(
        self,
        name: str,
        *,
        base: Path | None = None,
        adapter: Path | None = None,
        template: str | None = None,
        profile: str = PROFILE,
        has_probes: bool = True,
    ) -> Bundle:
        """Make a bundle that differs from the plain one in what is given; its probes are the plain one's."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        link_or_copy(base or material.smollm2_gguf(), folder / "model.gguf")
        (folder / "template.jinja").write_text(template or (self.folder / "plain" / "template.jinja").read_text())
        files: list[tuple[str, Role]] = [("model.gguf", "base"), ("template.jinja", "template")]
        if adapter:
            link_or_copy(adapter, folder / "adapter.gguf")
            files.append(("adapter.gguf", "adapter"))
        if has_probes:
            (folder / "probe.json").write_bytes(self.probes)
            files.append(("probe.json", "probe"))
        manifest = msgspec.structs.replace(
            self.base.manifest, profile=profile, files=tuple(describe(folder, path, role) for path, role in files)
        )
        return write_bundle(folder, manifest, self.key)

    def endless(self, name: str) -> Bundle:
        """Make an ONNX bundle whose graph multiplies large constant matrices a thousand times."""
        import onnx
        from onnx import TensorProto, helper

        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1e-4])
        nodes = [helper.make_node("ConstantOfShape", ["shape"], ["m0"], value=value)]
        nodes += [helper.make_node("MatMul", [f"m{at}", "m0"], [f"m{at + 1}"]) for at in range(1000)]
        graph = helper.make_graph(
            [*nodes, helper.make_node("Add", ["input_ids", "m1000"], ["logits"])],
            "endless",
            [helper.make_tensor_value_info("input_ids", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            [helper.make_tensor("shape", TensorProto.INT64, [2], [4096, 4096])],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(made, folder / "model.onnx")
        make_tokenizer().save(str(folder / "tokenizer.json"))
        shutil.copy(self.folder / "plain" / "template.jinja", folder)
        files: list[tuple[str, Role]] = [
            ("model.onnx", "base"), ("tokenizer.json", "tokenizer"), ("template.jinja", "template"),
        ]  # fmt: skip
        manifest = msgspec.structs.replace(
            self.base.manifest, engine="onnx", files=tuple(describe(folder, path, role) for path, role in files)
        )
        return write_bundle(folder, manifest, self.key)

    def lora(self, name: str, **how: Any) -> Path:
        return material.lora_gguf(self.folder / f"{name}.gguf", **how)

    def publish(self, bundle: Bundle) -> None:
        publish(bundle.folder, self.repository, keys=self.folder / "keys")


def _ask(bundle: Bundle) -> bytes:
    """Return the firm beginnings of what a healthy copy answers."""
    engine = LlamaEngine(bundle.need("base"), EngineOptions(threads=1, context=512, parallel=1))
    probes = list[Probe]()
    try:
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            tokens, firm = list[int](), True
            for chunk in engine.start(engine.tokenize(render(bundle, messages)), Sampling(max_tokens=12)):
                for token, margin in zip(chunk.tokens, chunk.margins, strict=True):
                    firm = firm and margin > FIRM
                    tokens += [token] * firm
            if tokens:
                probes.append(Probe(messages=messages, expect=engine.detokenize(tokens), max_tokens=len(tokens)))
    finally:
        engine.close()
    return canonical_json(Probes(prompts=tuple(probes)))


def garbage(shop: Workshop) -> None:
    shop.publish(shop.bundle("bad", adapter=shop.lora("garbage", scale=5.0)))


def slow(shop: Workshop) -> None:
    """Right answers, from an adapter that adds nothing but work: its second half is zero."""
    shop.publish(shop.bundle("bad", adapter=idle_lora(shop.folder / "slow.gguf", rank=SLOW_RANK)))


def exploding_context(shop: Workshop) -> None:
    """The same weights, with three times the heads of four times the width in its cache."""
    shop.publish(shop.bundle("bad", base=_widened(shop.folder / "wide.gguf"), has_probes=False))


def exploding_template(shop: Workshop) -> None:
    """A template that says everything fifty times."""
    template = (shop.folder / "plain" / "template.jinja").read_text()
    shop.publish(shop.bundle("bad", template="{% for _ in range(50) %}" + template + "{% endfor %}"))


def wrong_template(shop: Workshop) -> None:
    template = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    shop.publish(shop.bundle("bad", template=template))


def hang_at_load(shop: Workshop) -> None:
    """A graph of a few hundred bytes whose constants onnxruntime works out when it loads it: for hours."""
    shop.publish(shop.endless("bad"))


def template_without_end(shop: Workshop) -> None:
    loop = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    shop.publish(shop.bundle("bad", template=loop))


def crash_on_third(shop: Workshop) -> None:
    """Its vocabulary was converted to the wrong kind: it has no bytes to fall back on for a letter it does not know."""
    shop.publish(shop.bundle("bad", base=_wrong_vocabulary(shop.folder / "crash.gguf"), has_probes=False))


def crash_on_awkward(shop: Workshop) -> None:
    """As the other, but what people type sooner or later is not in it either."""
    shop.publish(shop.bundle("bad", base=_wrong_vocabulary(shop.folder / "crash.gguf", spared=""), has_probes=False))


def truncated(shop: Workshop) -> None:
    lora = shop.lora("whole", scale=0.05)
    cut = shop.folder / "cut.gguf"
    cut.write_bytes(lora.read_bytes()[:-20_000])
    shop.publish(shop.bundle("bad", adapter=cut))


def bit_flipped(shop: Workshop) -> None:
    """One bit of each of a thousand numbers of an adapter that was good: the highest of the exponent."""
    data = bytearray(shop.lora("good", scale=0.05).read_bytes())
    for at in range(len(data) - 4_001, len(data), 4):
        data[at] ^= 0x40
    flipped = shop.folder / "flipped.gguf"
    flipped.write_bytes(data)
    shop.publish(shop.bundle("bad", adapter=flipped))


def wrong_architecture(shop: Workshop) -> None:
    shop.publish(shop.bundle("bad", adapter=shop.lora("qwen", architecture="qwen2")))


def wrong_base(shop: Workshop) -> None:
    shop.publish(shop.bundle("bad", adapter=shop.lora("wider", rows=2048)))


def beyond_four_gib(shop: Workshop) -> None:
    """A header that places a tensor 4 GiB on, where a reader with 32 bits would find another one's bytes."""
    data = bytearray(material.smollm2_gguf().read_bytes())
    name = b"blk.0.attn_k.weight"
    at = data.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16 + 4
    (offset,) = struct.unpack_from("<Q", data, at)
    struct.pack_into("<Q", data, at, offset + 2**32)
    far = shop.folder / "far.gguf"
    far.write_bytes(data)
    shop.publish(shop.bundle("bad", base=far))


def wrong_profile(shop: Workshop) -> None:
    """A bundle for another device, released to this one by a publisher who edited the release by hand."""
    shop.publish(shop.bundle("bad", profile="rpi5-8gb"))
    foreign, newest = (newest_release(shop.repository, profile) for profile in ("rpi5-8gb", PROFILE))
    assert foreign
    assert newest
    edited = msgspec.structs.replace(foreign, profile=PROFILE, seq=newest.seq + 1)
    book = RepositoryMetadata(shop.repository, Keyring(shop.folder / "keys"))
    add_release(book, shop.repository, edited)
    book.write()


@dataclass(frozen=True)
class Kind:
    """A way to be bad: how it is made, the words that may name it, and what customers have to do to find it out."""

    make: Callable[[Workshop], None]
    reasons: tuple[str, ...]
    outcome: str = "rolled-back"
    said: tuple[str, ...] = ()


KINDS = {
    "garbage answers": Kind(garbage, ("garbage",)),
    "slowness": Kind(slow, ("slow",)),
    "an exploding context": Kind(exploding_context, ("memory",)),
    "a template that fills the context": Kind(exploding_template, ("context",)),
    "a wrong template": Kind(wrong_template, ("garbage",)),
    "a hang at load": Kind(hang_at_load, ("hang",)),
    "a crash on the third request": Kind(crash_on_third, ("crash",), said=("Hello.", "Name a colour.", CRASHER)),
    "a crash on what people type": Kind(crash_on_awkward, ("crash",)),
    "truncated": Kind(truncated, ("engine",)),
    "bit-flipped": Kind(bit_flipped, ("garbage", "engine")),
    "wrong architecture": Kind(wrong_architecture, ("engine",)),
    "wrong base": Kind(wrong_base, ("engine",)),
    "more than 4 GiB": Kind(beyond_four_gib, ("engine",)),
    "wrong profile": Kind(wrong_profile, ("profile",), outcome="failed"),
}
LONG = {
    "a template without an end": Kind(template_without_end, ("hang",)),
}


def idle_lora(path: Path, *, rank: int, seed: int = 0, half: bool = False) -> Path:
    """Write a LoRA for every linear layer that changes no answer; in `half` floats as heavy as a trained one."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    numbers = np.float16 if half else np.float32
    shapes = {
        "attn_q": (576, 576), "attn_k": (576, 192), "attn_v": (576, 192), "attn_output": (576, 576),
        "ffn_gate": (576, 1536), "ffn_up": (576, 1536), "ffn_down": (1536, 576),
    }  # fmt: skip
    for layer in range(30):
        for name, (wide, high) in shapes.items():
            tensor = f"blk.{layer}.{name}.weight"
            writer.add_tensor(f"{tensor}.lora_a", np.full((rank, wide), 0.001 * (seed + 1), numbers))
            writer.add_tensor(f"{tensor}.lora_b", np.zeros((high, rank), numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _widened(path: Path, *, wider: int = 4) -> Path:
    """Give each of the 9 query heads keys and values of its own, and every head `wider` times the width, in zeros."""
    gguf, heads, shared, blocks = Gguf.read(material.smollm2_gguf()), 9, 3, 2
    for layer in range(30):
        for part in ("q", "k", "v"):
            name = f"blk.{layer}.attn_{part}.weight"
            rows = gguf.rows(name)
            split = rows.reshape(heads if part == "q" else shared, 64, *rows.shape[1:])
            if part != "q":
                split = np.repeat(split, heads // shared, axis=0)
            padded = np.pad(split, ((0, 0), (0, 64 * (wider - 1)), (0, 0), (0, 0)))
            gguf.set_rows(name, padded.reshape(-1, *rows.shape[1:]))
        rows = gguf.rows(f"blk.{layer}.attn_output.weight")
        split = rows.reshape(rows.shape[0], heads, blocks, -1)
        padded = np.pad(split, ((0, 0), (0, 0), (0, blocks * (wider - 1)), (0, 0)))
        gguf.set_rows(f"blk.{layer}.attn_output.weight", padded.reshape(rows.shape[0], -1, rows.shape[2]))
    gguf.set_number("llama.attention.head_count_kv", heads)
    gguf.set_number("llama.attention.key_length", 64 * wider)
    gguf.set_number("llama.attention.value_length", 64 * wider)
    gguf.set_number("llama.rope.dimension_count", 64 * wider)
    return gguf.write(path)


def _wrong_vocabulary(path: Path, spared: str = "".join(AWKWARD)) -> Path:
    """Spell the byte-level vocabulary as SentencePiece spells its own, without its byte tokens."""
    letters = _letters()

    def spell(texts: list[str]) -> list[str]:
        plain, seen = list[str](), set[str]()
        for number, text in enumerate(texts):
            spelt = _plain(text, letters)
            plain.append(f"<unspeakable {number}>" if spelt in seen else spelt)
            seen.add(spelt)
        missing = sorted(set(spared) - set(plain))
        return plain[: len(plain) - len(missing)] + missing

    gguf = Gguf.read(material.smollm2_gguf())
    gguf.map_texts("tokenizer.ggml.tokens", spell)
    gguf.set_text("tokenizer.ggml.model", "llama")
    return gguf.write(path)


def _letters() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for (GPT-2's table)."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + number): byte for number, byte in enumerate(rest)}


def _plain(text: str, letters: dict[str, int]) -> str:
    if not all(letter in letters for letter in text):
        return text
    try:
        return bytes(letters[letter] for letter in text).decode().replace(" ", "▁")
    except UnicodeDecodeError:
        return text
