"""What llama.cpp computes with adapters: `python -m tests.support.adapter_steps GGUF`, with that of its environment.

Four sequences read a prompt each, three with an adapter of their own and one with none. Then each reads the same next
tokens in a step of its own, and all of them in one step. Printed as JSON: whether this llama.cpp can do the second, and
the logits of some tokens behind either, row by row; `base` is the first sequence's without an adapter.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fieldlm.engines.llama_api import Batch, Context, LlamaWeights, LoraAdapter
from fieldlm.formats.gguf import read_header

RANKS = (16, 8, 5)
"""What kernels take as vectors of 16, of 8, and number by number."""
NOTICEABLE = 0.08
PROMPTS = ([340, 506, 28], [1019, 30], [57, 253, 905, 288], [441, 2])
NEXT = ([260, 905], [340], [28, 28], [506])
LOOKED_AT = slice(0, 49152, 997)


def write_adapter(base: Path, path: Path, *, rank: int, spread: float) -> Path:
    """Write a random LoRA over all linear layers of `base` in 16-bit floats, normal with that standard deviation."""
    from gguf import GGUFWriter

    header, rng = read_header(base), np.random.default_rng(rank)
    part = path.with_suffix(".part")
    writer = GGUFWriter(part, header.architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(rank))
    for name, tensor in header.tensors.items():
        if name.startswith("blk.") and len(tensor.shape) == 2:
            for half, shape in (("a", (rank, tensor.shape[0])), ("b", (tensor.shape[1], rank))):
                writer.add_tensor(f"{name}.lora_{half}", rng.normal(0, spread, shape).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.replace(path)


def read(
    context: Context, batch: Batch, tokens: Sequence[Sequence[int]], starts: Sequence[int], first: int = 0
) -> list[list[float]]:
    """Compute `tokens` of the sequences from `first` on, each from its own position; return the logits of the last."""
    batch.clear()
    rows = [
        batch.add(list(each), sequence=sequence, position=start, want_last=True, want_all=True)
        for sequence, (each, start) in enumerate(zip(tokens, starts, strict=True), start=first)
    ]
    assert context.decode(batch) == 0
    return [context.logits(row)[LOOKED_AT].tolist() for row in rows]


def take_back(context: Context, starts: Sequence[int]) -> None:
    for sequence, start in enumerate(starts):
        assert context.cut(sequence, start)


def main(path: Path, folder: Path) -> None:
    weights = LlamaWeights(path)
    files = [write_adapter(path, folder / f"{rank}.gguf", rank=rank, spread=NOTICEABLE) for rank in RANKS]
    adapters = [*(LoraAdapter(weights, file) for file in files), None]
    context = Context(weights, cells=256, sequences=4, batch=64, ubatch=64, threads=2, prefill_threads=2)
    batch, starts = Batch(64), [len(prompt) for prompt in PROMPTS]
    alone = list[list[float]]()
    for sequence, adapter in enumerate(adapters):
        context.use(adapter)
        read(context, batch, [PROMPTS[sequence]], [0], sequence)
        alone += read(context, batch, [NEXT[sequence]], [starts[sequence]], sequence)
        assert context.cut(sequence, starts[sequence])
    together = list[list[float]]()
    if context.mixes_adapters:
        context.use_by_sequence(dict(enumerate(adapters)))
        together = read(context, batch, NEXT, starts)
        take_back(context, starts)
        # The same adapters of others: whose tokens they are changes in a graph that stays.
        context.use_by_sequence({0: adapters[1], 1: adapters[0], 2: adapters[2], 3: adapters[0]})
        read(context, batch, NEXT, starts)
        take_back(context, starts)
        context.use_by_sequence(dict(enumerate(adapters)))
        assert read(context, batch, NEXT, starts) == together, "a step does not depend on the one before"
        take_back(context, starts)
    context.use(None)
    assert context.cut(0)
    read(context, batch, [PROMPTS[0]], [0])
    base = read(context, batch, [NEXT[0]], [starts[0]])
    print(json.dumps({"alone": alone, "together": together, "base": base}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(sys.argv[1]), Path(name))
