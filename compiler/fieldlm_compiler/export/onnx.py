"""ONNX export: Optimum's export in a child process, our passes over the graph, then four-bit weights.

What comes out follows docs/onnx-graph.md: `model.onnx` with its weights in `model.onnx.data`, and `tokenizer.json`.
"""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fieldlm.core.errors import InputError
from fieldlm.core.files import disk_errors
from fieldlm.formats.bundle import Role
from fieldlm_compiler.export.transformers4 import TOKENIZER, in_old_form, stop_tokens
from fieldlm_compiler.pipeline import child
from fieldlm_compiler.pipeline.fork_server import Preload
from fieldlm_compiler.pipeline.optimum_toolchain import optimum

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"
TRACING = ("optimum.exporters.onnx", "transformers.models.llama.modeling_llama", "onnx")
SMALL_HEAD = "-h4"
"""Ends the name of what is made with a head of 4 bits; without it the head, which suffers most, has 8."""


@dataclass(frozen=True, kw_only=True)
class OnnxExport:
    """A folder with an exported model: its files by role for the manifest, and what was found out on the way."""

    folder: Path
    files: tuple[tuple[str, Role], ...]
    quant: str
    bits_per_weight: float
    is_fused: bool
    seconds: float
    peak_mb: float


def export(
    checkpoint: Path, out: Path, *, block_size: int, accuracy_level: int, fp32: Path | None = None
) -> OnnxExport:
    """Export `checkpoint` with int4 weights into the existing folder `out`, from `fp32` if that was made before.

    Raises InputError when Optimum does not know the architecture, EngineError when a child process died.
    """
    if fp32 is not None:
        return quantize(fp32, out, block_size=block_size, accuracy_level=accuracy_level)
    with tempfile.TemporaryDirectory(prefix=".fp32-", dir=out.parent) as temporary:
        export_fp32(checkpoint, Path(temporary))
        return quantize(Path(temporary), out, block_size=block_size, accuracy_level=accuracy_level)


def export_fp32(checkpoint: Path, out: Path) -> OnnxExport:
    """Export `checkpoint` with fp32 weights into the existing folder `out`: what the fidelity gate compares."""
    if not (checkpoint / TOKENIZER).is_file():
        raise InputError(f"{checkpoint} has no {TOKENIZER}; save the model's fast tokenizer there")
    from fieldlm_compiler.export.onnx_steps import trace

    with disk_errors(out), tempfile.TemporaryDirectory(prefix=".old-", dir=out.parent) as temporary:
        in_old_form(checkpoint, Path(temporary))
        ran = child.call(
            trace,
            what="export to ONNX",
            preload=Preload(modules=TRACING, path=optimum()),
        )(
            checkpoint=Path(temporary),
            out=out,
            stops=stop_tokens(checkpoint),
        )
        shutil.copyfile(checkpoint / TOKENIZER, out / TOKENIZER)
    return _described(out, "fp32", ran)


def quantize(fp32: Path, out: Path, *, block_size: int, accuracy_level: int, head_bits: int = 8) -> OnnxExport:
    """Write the model of `fp32` into the existing folder `out` with int4 weights in blocks of `block_size`.

    A head that is the embedding too gets `head_bits` (8 or 4).
    """
    from fieldlm_compiler.export.onnx_steps import round_weights

    ran = child.call(round_weights, what="quantise ONNX weights")(
        fp32=fp32,
        out=out,
        block_size=block_size,
        accuracy_level=accuracy_level,
        head_bits=head_bits,
    )
    with disk_errors(out):
        shutil.copyfile(fp32 / TOKENIZER, out / TOKENIZER)
    return _described(out, f"int4-b{block_size}{SMALL_HEAD * (head_bits == 4)}", ran)


def _described(out: Path, quant: str, ran: child.Ran) -> OnnxExport:
    weights_bits = 8 * sum((out / name).stat().st_size for name in (MODEL, WEIGHTS))
    return OnnxExport(
        folder=out,
        files=((MODEL, "base"), (WEIGHTS, "base"), (TOKENIZER, "tokenizer")),
        quant=quant,
        bits_per_weight=round(weights_bits / ran.value["parameters"], 3),
        is_fused=ran.value["fused"],
        seconds=round(ran.seconds, 2),
        peak_mb=round(ran.peak_mb, 1),
    )
