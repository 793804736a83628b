"""`fieldlm unpack MODEL OUT`: any model that can be named, or a bundle's quantised base, as a folder that can be tuned.

An adapter that is tuned against the base as it is quantised repairs some of what quantising lost, and is at home where
it will run.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import whole_folder
from fieldlm.formats.bundle import MANIFEST, open_bundle
from fieldlm_compiler.checkpoints.checkpoint import ORIGIN, Checkpoint, model_files, open_checkpoint
from fieldlm_compiler.pipeline.stages import Stages


def main(argv: Sequence[str]) -> int:
    """Write the folder."""
    parser = terminal.parser(
        "unpack",
        "Write a model, or the base of a bundle, as a folder that can be tuned.",
        "fieldlm unpack smollm2 checkpoint",
    )
    parser.add_argument("model", help="a bundle's folder, or what `fieldlm compile` takes")
    parser.add_argument("out", type=options.new_folder, help="the folder to write")
    args = parser.parse_args(argv)
    checkpoint = unpack(args.model, args.out)
    facts = {"folder": str(args.out), "model": checkpoint.name, "parameters": checkpoint.parameters}
    terminal.show(facts, f"{args.out}  {checkpoint.name}, {checkpoint.parameters:,} weights", as_json=args.json)
    return 0


def unpack(model: str, out: Path, stages: Stages | None = None) -> Checkpoint:
    """Write what `model` names to the new folder `out`, in Hugging Face's layout and 32 bits where it was quantised.

    Raises InputError when `out` is there already or no checkpoint can be made of `model`, an ONNX bundle for one.
    """
    if out.exists():
        raise InputError(f"{out} is there already; name a new folder")
    checkpoint = open_checkpoint(_base(model), stages)
    with whole_folder(out) as folder:
        for path in (*model_files(checkpoint.folder), checkpoint.folder / ORIGIN):
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
    return checkpoint


def _base(model: str) -> str:
    """Return the weights of the bundle in the folder `model`, or `model` itself when it is none."""
    if not (Path(model) / MANIFEST).is_file():
        return model
    bundle = open_bundle(Path(model))
    from fieldlm_compiler.export.format import format_for

    return str(format_for(bundle.manifest.engine).unpackable(bundle))
