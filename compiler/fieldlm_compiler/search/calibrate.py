"""Calibration: activations (imatrix, covariance) and Fisher information, one pass forward and one back.

Forward, hooks on every linear layer add up the squared inputs (llama.cpp's importance matrix) and their covariance.
Back, the gradient of the log probability of tokens drawn from the model itself: its square, over windows of text, is
the diagonal of the Fisher information, and half of it times a squared change of the weights is the divergence that the
change will cause (J. Martens, JMLR 21, 2020). Only its sums over rows and columns are kept. Runs in a child process.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens
from fieldlm_compiler.export.format import format_of
from fieldlm_compiler.export.imatrix import Imatrix, add, read_imatrix, write_imatrix
from fieldlm_compiler.pipeline.child import Ran, call
from fieldlm_compiler.pipeline.fork_server import TORCH
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.searchable import searchable
from fieldlm_compiler.verify.corpus import HELD_BACK, HOLD_WINDOWS, LEARN_WINDOWS, WINDOW, Corpus, Windows

IMATRIX, FISHER, COVARIANCE = "imatrix.gguf", "fisher.safetensors", "covariance.safetensors"
SHARES = "shares.json"  # tensor → the one whose inputs it shares
ROWS, COLUMNS = ".rows", ".columns"
LAYER = re.compile(r"\blayers\.(\d+)\.")
SEED = 0
TOGETHER = 16  # windows that the model writes side by side
# Going back costs twice as much again, and sums over rows and columns need less text than a covariance.
BACK_WINDOWS = 16
# A covariance has columns² numbers; beyond this, errors are weighed by column alone.
MOST_COLUMNS = 6144
_Part = tuple[str, int, int]  # tensor's name, first row, the one behind the last


def calibrate(checkpoint: Path, full: Path, learn: Sequence[Sequence[int]], sums: Sequence[Path], into: Path) -> Ran:
    """Write the statistics of the model in `checkpoint`, named as in the file `full`, over the windows `learn`."""
    return call(collect, what=f"calibrate on {sum(map(len, learn)):,} tokens", preload=TORCH)(
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
        return call(sample, what=f"let {checkpoint.name} write text to calibrate on", preload=TORCH)(
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


def sample(checkpoint: Path, starts: list[list[int]], count: int, length: int) -> list[list[int]]:
    """Let the model write `count` windows of `length` tokens, each of `starts` in turn. Runs in a child process.

    The end of a prompt is what matters: at most half a window of it, so that the model says the other half itself.
    """
    import torch

    torch.manual_seed(SEED)
    model = _load(checkpoint)
    chosen = [starts[number % len(starts)][-(length // 2) :] for number in range(count)]
    windows: list[list[int]] = [[]] * count
    for numbers in _alike([len(start) for start in chosen]):
        # Starts of one length need no padding.
        room = len(chosen[numbers[0]])
        ids = torch.tensor([chosen[number][-room:] for number in numbers])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=length - room, max_new_tokens=length - room, pad_token_id=0,
        )  # fmt: skip
        for number, window in zip(numbers, made.tolist(), strict=True):
            windows[number] = window
    return windows


def _alike(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the places of `lengths`, the shortest first, in groups in which none is more than twice the first."""
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if group and (len(group) == TOGETHER or lengths[place] > 2 * lengths[group[0]]):
            yield group
            group = []
        group.append(place)
    yield group


def collect(checkpoint: Path, full: Path, learn: Windows, sums: list[Path], into: Path) -> dict[str, Any]:
    """Read the windows `learn` forward and back and write what was found to the folder `into`."""
    import torch
    from safetensors.numpy import save_file

    torch.manual_seed(SEED)
    model = _load(checkpoint)
    names = _names(model, full)
    inputs, fisher = _Inputs(model, names), _Fisher(model, names, _experts(model, full))
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
    """Sums over rows and columns of each matrix' squared gradient; a gradient is let go as soon as it is seen.

    All experts of a layer are one matrix, with the rows of one behind those of another.
    """

    def __init__(self, model: Any, names: dict[str, str], experts: dict[str, list[_Part]]) -> None:
        self.totals: dict[str, Any] = {}
        for path, parameter in model.named_parameters():
            parts = experts.get(path) or ([(names[path], 0, len(parameter))] if path in names else [])
            if parts:
                parameter.register_post_accumulate_grad_hook(self._hook(parts))
            else:
                parameter.requires_grad_(False)

    def _hook(self, parts: list[_Part]) -> Any:
        def note(parameter: Any) -> None:
            squares = parameter.grad.float().square_()
            squares = squares.reshape(-1, *squares.shape[-2:])
            for name, first, last in parts:
                part = squares[:, first:last]
                for key, total in ((name + ROWS, part.sum(2).flatten()), (name + COLUMNS, part.sum((0, 1)))):
                    self.totals[key] = self.totals[key] + total if key in self.totals else total
            parameter.grad = None

        return note


def _load(checkpoint: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # Where the processor multiplies bfloat16 itself that is several times faster; statistics bear the rounding.
    cpu = cast(Any, torch.cpu)
    fast = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16 if fast else torch.float32).eval()


def _names(model: Any, full: Path) -> dict[str, str]:
    """Return what the matrices of `model` are called in the file `full`.

    Raises InputError when none of them can be found there.
    """
    names = searchable(format_of(full)).names(model, full)
    if not names:
        raise InputError(f"no matrix of the checkpoint is in {full}; it was made from another model")
    return names


def _experts(model: Any, full: Path) -> dict[str, list[_Part]]:
    """Return where the rows of each expert's matrix lie in the parameter [experts, rows, columns] that holds them all.

    transformers joins matrices that a GGUF keeps apart, in an order that each family chooses: the weights themselves
    say which is which. What is not found stays without statistics, and `price` keeps it at a safe type.
    """
    if full.suffix != ".gguf":
        return {}
    from gguf import GGUFReader

    stacked = [tensor for tensor in GGUFReader(full).tensors if len(tensor.shape) == 3]
    found: dict[str, list[_Part]] = {}
    for path, parameter in model.named_parameters():
        layer = LAYER.search(path)
        if parameter.dim() != 3 or layer is None:
            continue
        count, rows, columns = parameter.shape
        own = parameter.detach()[0].float().numpy()
        for tensor in stacked:
            wide, high, many = map(int, tensor.shape)
            if (wide, many) != (columns, count) or high > rows or not tensor.name.startswith(f"blk.{layer[1]}."):
                continue
            theirs = tensor.data[0].astype(np.float32)
            at = next((at for at in (0, rows - high) if np.allclose(own[at : at + high], theirs, 0.01, 1e-6)), None)
            if at is not None:
                found.setdefault(path, []).append((tensor.name, at, at + high))
    return found


def _tied(model: Any) -> str:
    """Return the name of the parameter that the head shares with the embedding."""
    return next((path for path, _ in model.named_parameters() if path.endswith("embed_tokens.weight")), "")


def _checked(sums: Imatrix, own: Imatrix, path: Path) -> Imatrix:
    foreign = [name for name in sums.sums if name in own.sums and sums.sums[name].shape != own.sums[name].shape]
    if foreign or not set(sums.sums) & set(own.sums):
        raise InputError(f"{path} was collected on another model: it does not fit {next(iter(foreign or sums.sums))}")
    return sums
