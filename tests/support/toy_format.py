"""A third format, for tests: the checkpoint in one zip file, in 32 or 16 bits, for the toy engine."""

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, chat_template, special_tokens
from fieldlm_compiler.export.artefact import Artefact, copy_template, template_part, write_template
from fieldlm_compiler.export.format import Format
from fieldlm_compiler.export.quantize import WeightsSize
from fieldlm_compiler.export.transformers4 import stop_tokens
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.pack import BundlePart
from fieldlm_compiler.pipeline.stages import Stages

MODEL = "model.toy"
FILES = ("config.json", "tokenizer.json", "model.safetensors")


class ToyFormat(Format):
    name, engine, suffix = "toy", "toy", ".toy"

    def versions(self) -> dict[str, str]:
        return {"torch": str(torch.__version__)}

    def candidates(self, asked: Sequence[str], profile: Profile) -> tuple[str, ...]:
        return tuple(asked) or ("HALF",)

    def lower(self, checkpoint: Checkpoint, stages: Stages) -> Artefact:
        def make(folder: Path) -> Ran:
            write_template(chat_template(checkpoint.folder), folder)
            stops = " ".join(map(str, stop_tokens(checkpoint.folder)))
            with zipfile.ZipFile(folder / MODEL, "w") as archive:
                archive.writestr("stops", stops)
                for name in FILES:
                    archive.write(checkpoint.folder / name, name)
            return Ran(value=None, seconds=0, peak_mb=0)

        return self._made("FULL", 32, {"checkpoint": checkpoint.sha256}, make, stages)

    def shrink(self, full: Artefact, quant: str, profile: Profile, stages: Stages) -> Artefact:
        def make(folder: Path) -> Ran:
            copy_template(full, folder)
            with tempfile.TemporaryDirectory() as aside, zipfile.ZipFile(full.base) as archive:
                archive.extractall(aside)
                weights = load_file(f"{aside}/model.safetensors")
                save_file({name: each.half() for name, each in weights.items()}, f"{aside}/model.safetensors")
                with zipfile.ZipFile(folder / MODEL, "w") as smaller:
                    for name in (*FILES, "stops"):
                        smaller.write(Path(aside) / name, name)
            return Ran(value=None, seconds=0, peak_mb=0)

        return self._made(quant, 16, {"full": full.sha256}, make, stages)

    def notes(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return special_tokens(checkpoint.folder)

    def _made(
        self, quant: str, bits: int, inputs: dict[str, str], make: Callable[[Path], Ran], stages: Stages
    ) -> Artefact:
        folder, made = stages.run(f"toy-{quant}", inputs, make)
        size, _, digest = made.files[MODEL]
        return Artefact(
            engine=self.engine,
            quant=quant,
            parts=(BundlePart(role="base", name=MODEL, source=folder / MODEL), template_part(folder)),
            size=WeightsSize(bytes=size, bits_per_weight=bits, tensors={}),
            sha256=digest,
        )


FORMAT = ToyFormat()
