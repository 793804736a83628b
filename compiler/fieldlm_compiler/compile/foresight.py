"""Foresight: what a checkpoint will be on a kind of device, by its tensors' shapes alone, before anything is made.

To convert, quantise and prove a model takes minutes and gigabytes; that it is too large for a device, its shapes say.
They are put into a GGUF header as llama.cpp would write it, and the device half's own plan of memory reads that. Types
are those that the name of a quantisation stands for: a mixture such as Q4_K_M gives some tensors more, so weights are
foreseen to a tenth. What is made is judged by its own bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fieldlm.bench.calibration import foreseen_tokens_per_s
from fieldlm.engines import Reading
from fieldlm.engines.llama_layout import layout_of
from fieldlm.engines.memory_plan import PREFILL_ALONE, MemoryPlan, kv_bytes, plan
from fieldlm.formats.gguf import Header, Tensor
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, shapes, weight_files
from fieldlm_compiler.export.artefact import MB
from fieldlm_compiler.export.format import DEFAULT, format_named
from fieldlm_compiler.export.ggml import Kind, kind
from fieldlm_compiler.export.legal_types import is_quantizable

# Where rows are no whole blocks of 256, llama.cpp takes these (llama-quant.cpp, tensor_type_fallback_impl).
INSTEAD = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL",
           "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # fmt: skip
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
UNQUANTISED = ("F32", "F16", "BF16")
# What a GGUF header calls a number of config.json, by the names that families have for it there.
NUMBERS = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.key_length": ("head_dim",),
}


@dataclass(frozen=True, kw_only=True)
class ForeseenBundle:
    """A checkpoint as `quant` on a kind of device, in megabytes (1e6 bytes): its weights, and all that serving takes.

    `tokens_per_s` is for one answer there; None where the profile says no bandwidth that somebody reached.
    """

    quant: str
    weights_mb: float
    memory: MemoryPlan
    budget_mb: float
    tokens_per_s: float | None

    @property
    def missed(self) -> str:
        """Why it does not fit, and what to do; "" where it does."""
        what, ram = "ask for a smaller --quant, or take a smaller model", self.memory
        if self.weights_mb > self.budget_mb:
            return (
                f"does not fit: about {self.weights_mb:,.1f} MB of weights as {self.quant}, the budget is "
                f"{self.budget_mb:,.0f} MB; {what}"
            )
        if ram.total > self.budget_mb:
            return (
                f"does not fit: as {self.quant} it is served in about {ram.total:,.1f} MB (weights {ram.weights:,.0f}, "
                f"cache {ram.kv:,.0f}, buffers {ram.compute:,.0f}), the budget is {self.budget_mb:,.0f} MB; {what}"
            )
        return ""


def foresee(checkpoint: Checkpoint, quants: Sequence[str], profile: Profile) -> ForeseenBundle:
    """Return what `compile` will make: the first of `quants`, or of the profile's, whose weights fit `profile`.

    Of those that do not, the smallest. Raises InputError for a quantisation that does not exist.
    """
    asked = format_named(DEFAULT).candidates(quants, profile)
    found = [_foreseen(checkpoint, quant, profile) for quant in asked]
    smallest = min(found, key=lambda each: each.weights_mb)
    return next((each for each in found if each.weights_mb <= each.budget_mb), smallest)


def _foreseen(checkpoint: Checkpoint, quant: str, profile: Profile) -> ForeseenBundle:
    header = _header(checkpoint, quant)
    parallel = profile.runtime.parallel
    memory = plan(
        header,
        context=min(profile.gguf.context, checkpoint.context),
        parallel=parallel,
        batch=PREFILL_ALONE + parallel,
        isa=profile.cpu.isa,
        layout=layout_of(profile),
    )
    # Of an embedding that is not the head too, a step reads one row, which is nothing.
    unread = header.tensors[EMBEDDING].size if HEAD in header.tensors and EMBEDDING in header.tensors else 0
    reading = Reading(weights=header.weight_bytes - unread, kv_of_token=kv_bytes(header), is_exact=False)
    return ForeseenBundle(
        quant=quant,
        weights_mb=header.weight_bytes / MB,
        memory=memory,
        budget_mb=float(profile.memory.model_budget_mb),
        tokens_per_s=foreseen_tokens_per_s(profile, None, reading),
    )


def _header(checkpoint: Checkpoint, quant: str) -> Header:
    """Return the header that the GGUF of `checkpoint` as `quant` will have, as far as a plan of memory reads it.

    A tensor whose place is not known keeps its name: its bytes count, and that it may hold keys does not.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    config: dict[str, Any] = json.loads((checkpoint.folder / "config.json").read_bytes())
    config = config.get("text_config") or config
    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    family = checkpoint.architecture.removesuffix("_text")
    numbers = {name: next((config[key] for key in keys if config.get(key)), None) for name, keys in NUMBERS.items()}
    layers = numbers["block_count"]
    table = get_tensor_name_map(known.get(family, MODEL_ARCH.LLAMA), layers if isinstance(layers, int) else 0)
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(checkpoint.folder):
        for name, shape in shapes(path).items():
            # GGUF has the fastest dimension first.
            found[table.get_name(name, try_suffixes=(".weight", ".bias")) or name] = shape[::-1]
    metadata: dict[str, Any] = {f"{family}.{name}": value for name, value in numbers.items() if value}
    return Header(
        metadata={"general.architecture": family} | metadata,
        tensors={
            name: _tensor(shape, _type_of(name, shape, quant, family, has_head=HEAD in found))
            for name, shape in found.items()
        },
    )


def _tensor(shape: tuple[int, ...], to: Kind) -> Tensor:
    columns = shape[0] if shape else 1
    return Tensor(shape=shape or (1,), type=to.number, size=prod(shape[1:]) * to.row_bytes(columns))


def _type_of(name: str, shape: tuple[int, ...], quant: str, family: str, *, has_head: bool) -> Kind:
    """Return the type that llama.cpp gives a tensor when it is asked for `quant`."""
    if not is_quantizable(name, shape, family):
        return kind("F32")
    if quant in UNQUANTISED:
        return kind(quant)
    is_head = name == HEAD or (name == EMBEDDING and not has_head)
    to = _kind_named("Q6_K" if is_head and quant != "Q8_0" else quant)
    if not to.holds(shape[0]):
        to = kind("Q8_0" if is_head else INSTEAD.get(to.name, "F16"))
    return to if to.holds(shape[0]) else kind("F16")


def _kind_named(quant: str) -> Kind:
    """Return the type that most tensors of the quantisation `quant` have: Q4_K of Q4_K_M, IQ3_S of IQ3_M."""
    plain = {"IQ3_M": "IQ3_S"}.get(quant, quant)
    try:
        return kind(plain)
    except KeyError:
        return kind(plain[:-2])
