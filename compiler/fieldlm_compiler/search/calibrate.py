"""Calibration: activations (imatrix, covariance) and Fisher information, one pass forward and one back.

Forward, hooks on every linear layer add up the squared inputs (llama.cpp's importance matrix) and their covariance.
Back, the gradient of the log probability of tokens drawn from the model itself: its square, over windows of text, is
the diagonal of the Fisher information, and half of it times a squared change of the weights is the divergence that the
change will cause (J. Martens, JMLR 21, 2020). Only its sums over rows and columns are kept. Runs in a child process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens
from fieldlm_compiler.export.imatrix import Imatrix, add, read_imatrix, write_imatrix
from fieldlm_compiler.pipeline.child import PATIENT, Ran, call
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify.corpus import HELD_BACK, HOLD_WINDOWS, LEARN_WINDOWS, WINDOW, Corpus, Windows

IMATRIX, FISHER, COVARIANCE = "imatrix.gguf", "fisher.safetensors", "covariance.safetensors"
SHARES = "shares.json"  # tensor → the one whose inputs it shares
ROWS, COLUMNS = ".rows", ".columns"
SEED = 0
# Going back costs twice as much again, and sums over rows and columns need less text than a covariance.
BACK_WINDOWS = 16
# A covariance has columns² numbers; beyond this, errors are weighed by column alone.
MOST_COLUMNS = 6144


def calibrate(checkpoint: Path, full: Path, learn: Sequence[Sequence[int]], sums: Sequence[Path], into: Path) -> Ran:
    """Write the statistics of the model in `checkpoint`, named as in the file `full`, over the windows `learn`."""
    return call(
        "fieldlm_compiler.search.calibrate:collect",
        what=f"calibrate on {sum(map(len, learn)):,} tokens",
        env=PATIENT,
        checkpoint=checkpoint,
        full=full,
        learn=[list(window) for window in learn],
        sums=list(sums),
        into=into,
    )


def own_samples(checkpoint: Checkpoint, prompts: Sequence[str], stages: Stages) -> Corpus:
    """Let the model write the text it is calibrated on: it says most of what it is used for."""
    starts = json_tokens(checkpoint.folder, prompts)
    count = LEARN_WINDOWS + HOLD_WINDOWS

    def make(_: Path) -> Ran:
        return call(
            "fieldlm_compiler.search.calibrate:sample",
            what=f"let {checkpoint.name} write text to calibrate on",
            env=PATIENT,
            checkpoint=checkpoint.folder,
            starts=starts,
            count=count,
            length=WINDOW,
        )

    asked = {"checkpoint": checkpoint.sha256, "starts": starts, "count": count, "length": WINDOW}
    _, made = stages.run("samples", asked, make)
    windows: Windows = made.value
    hold = windows[HELD_BACK - 1 :: HELD_BACK]
    return Corpus(learn=[each for at, each in enumerate(windows) if at % HELD_BACK != HELD_BACK - 1], hold=hold)


def sample(checkpoint: str, starts: list[list[int]], count: int, length: int) -> list[list[int]]:
    """Let the model write `count` windows of `length` tokens, each of `starts` in turn. Runs in a child process."""
    import torch

    torch.manual_seed(SEED)
    model = _load(checkpoint)
    windows: list[list[int]] = []
    for at in range(0, count, 16):
        chosen = [starts[number % len(starts)] for number in range(at, min(at + 16, count))]
        room = min(map(len, chosen))
        # Starts of one length need no padding: the ends of the prompts are what matters.
        ids = torch.tensor([start[-room:] for start in chosen])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=length - room, max_new_tokens=length - room, pad_token_id=0,
        )  # fmt: skip
        windows += made.tolist()
    return windows


def collect(checkpoint: str, full: str, learn: list[list[int]], sums: list[str], into: str) -> dict[str, Any]:
    """Read the windows `learn` forward and back and write what was found to the folder `into`."""
    import torch
    from safetensors.numpy import save_file

    torch.manual_seed(SEED)
    model = _load(checkpoint)
    names = _names(model, Path(full))
    inputs, fisher = _Inputs(model, names), _Fisher(model, names)
    tokens, back = 0, sum(map(len, learn[:BACK_WINDOWS]))
    for window in learn[BACK_WINDOWS:]:
        with torch.no_grad():
            model(input_ids=torch.tensor([window]), logits_to_keep=1)
        tokens += len(window)
    for window in learn[:BACK_WINDOWS]:
        logits = model(input_ids=torch.tensor([window])).logits[0].float()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]
        torch.nn.functional.cross_entropy(logits, drawn, reduction="sum").backward()
        tokens += len(window)
    folder = Path(into)
    covariance = {name: (total / tokens).numpy() for name, total in inputs.totals.items()}
    matrix = inputs.imatrix(tokens)
    if sums:
        matrix = add([matrix, *(_checked(read_imatrix(Path(path)), matrix, path) for path in sums)])
    write_imatrix(matrix, folder / IMATRIX)
    save_file(covariance, folder / COVARIANCE)
    # Not as the file's metadata, which safetensors writes in another order each time.
    (folder / SHARES).write_bytes(canonical_json(inputs.shared))
    save_file({name: (total / back).numpy() for name, total in fisher.totals.items()}, folder / FISHER)
    return {"tokens": tokens, "tensors": len(fisher.totals) // 2}


class _Inputs:
    """The covariance of what goes into each linear layer; layers that read the same tensor share one."""

    def __init__(self, model: Any, names: dict[str, str]) -> None:
        import torch

        self.totals: dict[str, Any] = {}
        self.shared: dict[str, str] = {}
        self._last: tuple[Any, str] = (None, "")
        for path, module in model.named_modules():
            name = names.get(f"{path}.weight") or (names.get(_tied(model)) if path.endswith("lm_head") else None)
            if isinstance(module, torch.nn.Linear) and name and module.in_features <= MOST_COLUMNS:
                module.register_forward_pre_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def note(_: Any, given: tuple[Any, ...]) -> None:
            if given[0] is self._last[0]:
                self.shared[name] = self._last[1]
                return
            self._last = (given[0], name)
            rows = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            if name in self.totals:
                self.totals[name].addmm_(rows.T, rows)
            else:
                self.totals[name] = rows.T @ rows

        return note

    def imatrix(self, tokens: int) -> Imatrix:
        """Return the diagonals as llama.cpp keeps them: blocks only, the head is not asked for."""
        named = {name: self.totals[self.shared.get(name, name)] for name in [*self.totals, *self.shared]}
        sums = {name: total.diagonal().numpy().astype(np.float32) for name, total in named.items()}
        return Imatrix(sums=sums, counts=dict.fromkeys(sums, float(tokens)), datasets=("fieldlm",))


class _Fisher:
    """Sums over rows and columns of each matrix' squared gradient; a gradient is let go as soon as it is seen."""

    def __init__(self, model: Any, names: dict[str, str]) -> None:
        self.totals: dict[str, Any] = {}
        for path, parameter in model.named_parameters():
            name = names.get(path)
            if name is None:
                parameter.requires_grad_(False)
            else:
                parameter.register_post_accumulate_grad_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def note(parameter: Any) -> None:
            squares = parameter.grad.float().square_()
            for key, total in ((name + ROWS, squares.sum(1)), (name + COLUMNS, squares.sum(0))):
                self.totals[key] = self.totals[key] + total if key in self.totals else total
            parameter.grad = None

        return note


def _load(checkpoint: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # Where the processor multiplies bfloat16 itself that is several times faster; statistics bear the rounding.
    cpu = cast(Any, torch.cpu)
    fast = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16 if fast else torch.float32).eval()


def _names(model: Any, full: Path) -> dict[str, str]:
    """Return what the matrices of `model` are called in the GGUF file or ONNX graph `full`.

    Raises InputError when none of them can be found there.
    """
    names = _onnx_names(model) if full.suffix == ".onnx" else _gguf_names(model, full)
    if not names:
        raise InputError(f"no matrix of the checkpoint is in {full}; it was made from another model")
    return names


def _onnx_names(model: Any) -> dict[str, str]:
    from fieldlm_compiler.search.onnx_weights import name_of

    matrices = [path for path, parameter in model.named_parameters() if parameter.dim() == 2]
    return {path: name_of(path.removesuffix(".weight")) for path in matrices}


def _gguf_names(model: Any, gguf: Path) -> dict[str, str]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    from fieldlm.formats.gguf import read_header

    header = read_header(gguf)
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    table = get_tensor_name_map(arch, int(header.metadata[f"{header.architecture}.block_count"]))
    names: dict[str, str] = {}
    for path, parameter in model.named_parameters():
        name = table.get_name(path, try_suffixes=(".weight",))
        tensor = header.tensors.get(name or "")
        if name and tensor and parameter.dim() == 2 and tuple(parameter.shape)[::-1] == tensor.shape:
            names[path] = name
    return names


def _tied(model: Any) -> str:
    """Return the name of the parameter that the head shares with the embedding."""
    return next((path for path, _ in model.named_parameters() if path.endswith("embed_tokens.weight")), "")


def _checked(sums: Imatrix, own: Imatrix, path: str) -> Imatrix:
    foreign = [name for name in sums.sums if name in own.sums and sums.sums[name].shape != own.sums[name].shape]
    if foreign or not set(sums.sums) & set(own.sums):
        raise InputError(f"{path} was collected on another model: it does not fit {next(iter(foreign or sums.sums))}")
    return sums
