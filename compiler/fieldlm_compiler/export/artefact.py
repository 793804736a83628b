"""An artefact: a checkpoint in the form an engine loads; full weights first, to be proved, then fewer bits."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldlm.core.logs import logger
from fieldlm_compiler.export.quantize import WeightsSize
from fieldlm_compiler.pipeline.pack import BundlePart

log = logger(__name__)

TEMPLATE = "template.jinja"
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """Files an engine can load: how their weights are written, what they weigh, and the digest that names them."""

    engine: str
    quant: str
    parts: tuple[BundlePart, ...]
    size: WeightsSize
    sha256: str

    @property
    def tokenizer_bytes(self) -> int:
        """The size of a tokenizer in a file of its own."""
        own = [part.source for part in self.parts if part.role == "tokenizer"]
        return sum(len(source) if isinstance(source, bytes) else source.stat().st_size for source in own)

    @property
    def base(self) -> Path:
        """The file that the engine is pointed at."""
        source = next(part.source for part in self.parts if part.role == "base")
        assert isinstance(source, Path), "weights are never held in memory"
        return source


def mixture_name(value: Mapping[str, Any]) -> str:
    """Return what a mixture is called, by its bits for each weight: MIX-4.68."""
    return f"MIX-{value['bits_per_weight']:.2f}"


def write_template(template: object, folder: Path) -> None:
    """Write the chat template to `folder`; without one, one that puts messages one after the other."""
    if not template:
        log.info("  note: the model has no chat template; messages are given to it one after the other")
    (folder / TEMPLATE).write_text(str(template or PLAIN_TEMPLATE))


def copy_template(full: Artefact, folder: Path) -> None:
    """Copy the template of `full` to `folder`."""
    shutil.copyfile(full.base.parent / TEMPLATE, folder / TEMPLATE)


def template_part(folder: Path) -> BundlePart:
    return BundlePart(role="template", name=TEMPLATE, source=folder / TEMPLATE)
