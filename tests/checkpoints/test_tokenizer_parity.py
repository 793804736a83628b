"""An artefact that is not its source is refused, whatever was done to it: weights, template, end of an answer."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fieldlm.core.errors import GateError
from fieldlm.core.files import sha256_file
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import doubled_start
from fieldlm_compiler.compile.assemble import draft_manifest
from fieldlm_compiler.export.artefact import Artefact
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates


@pytest.fixture
def full(tiny: Checkpoint, stages: Stages) -> Artefact:
    return lower(tiny, "gguf", stages)


def with_file(full: Artefact, role: str, source: Path) -> Artefact:
    parts = tuple(replace(part, source=source) if part.role == role else part for part in full.parts)
    return replace(full, parts=parts, sha256=sha256_file(source))


def test_one_damaged_tensor_is_noticed_by_what_the_artefact_thinks(
    tiny: Checkpoint, full: Artefact, stages: Stages, profile: Profile, tmp_path: Path
) -> None:
    from gguf import GGUFReader

    path = Path(shutil.copyfile(full.base, tmp_path / "model.gguf"))
    tensor = next(each for each in GGUFReader(path, "r+").tensors if each.name == "blk.1.ffn_down.weight")
    tensor.data[:] = (tensor.data.astype(np.float32) * 1.05).astype(tensor.data.dtype)
    with pytest.raises(GateError, match=r"the artefact is not its source: (its mean divergence is|in prompt \d token)"):
        gates.prove(draft_manifest(tiny, profile), with_file(full, "base", path), tiny, profile, stages)


def test_another_chat_template_is_noticed_at_the_first_character(
    tiny: Checkpoint, full: Artefact, stages: Stages, profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "template.jinja"
    own = next(part.source for part in full.parts if part.role == "template")
    assert isinstance(own, Path)
    path.write_text(own.read_text().replace("<|im_end|>", "<|im_end|> "))
    wrong = replace(with_file(full, "template", path), sha256="0" * 64)
    with pytest.raises(GateError, match=r"template is rendered otherwise than by transformers: user: '.* at character"):
        gates.prove(draft_manifest(tiny, profile), wrong, tiny, profile, stages)


def test_an_end_of_turn_that_the_artefact_does_not_know_is_noticed(
    tiny: Checkpoint, full: Artefact, stages: Stages, profile: Profile, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "tiny-llama"))
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"eos_token_id": [2, 17]}))
    with pytest.raises(GateError, match="ends an answer of the source and none of the artefact's"):
        gates.prove(draft_manifest(tiny, profile), full, open_checkpoint(str(folder)), profile, stages)


def test_a_start_that_stands_twice_is_found() -> None:
    assert doubled_start([[1, 5], [1, 1, 5]], 1) == 1
    assert doubled_start([[1, 5], [5, 1, 1]], 1) is None
    assert doubled_start([[0, 0]], None) is None
