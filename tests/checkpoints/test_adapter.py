"""An adapter in GGUF or merged says what peft says, or is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core.errors import GateError, InputError
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.merge import merge
from fieldlm_compiler.checkpoints.peft_adapter import PeftAdapter, check_shippable, open_adapter, true_scale
from fieldlm_compiler.compile.assemble import draft_manifest
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.export.gguf import export_adapter
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates
from fieldlm_compiler.verify.against_source import compare_answers
from fieldlm_compiler.verify.gates import Fitted
from tests.support import tiny_models

ODD_SCALES: dict[str, Any] = {
    "use_rslora": True,
    "alpha_pattern": {"v_proj": 32, "layers.1.self_attn.q_proj": 2},
    "rank_pattern": {"down_proj": 2},
}


@pytest.fixture(scope="module")
def plain(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> PeftAdapter:
    return open_adapter(tiny_models.tiny_adapter(tmp_path_factory.mktemp("plain") / "lora", tiny.folder), tiny)


@pytest.fixture(scope="module")
def odd(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> PeftAdapter:
    folder = tmp_path_factory.mktemp("odd") / "lora"
    return open_adapter(tiny_models.tiny_adapter(folder, tiny.folder, **ODD_SCALES), tiny)


Prove = Callable[[PeftAdapter, PeftAdapter], None]


@pytest.fixture
def prove(tiny: Checkpoint, stages: Stages, profile: Profile, tmp_path: Path) -> Prove:
    """Hold the GGUF of the second adapter against what peft says with the first."""

    def hold(adapter: PeftAdapter, shown: PeftAdapter) -> None:
        export_adapter(shown, tiny, tmp_path / "a.gguf")
        fitted = Fitted(adapter=adapter, gguf=tmp_path / "a.gguf")
        full = lower(tiny, "gguf", stages)
        gates.prove(draft_manifest(tiny, profile), full, tiny, profile, stages, fitted=fitted)

    return hold


def test_a_plain_adapter_answers_as_with_peft(prove: Prove, plain: PeftAdapter) -> None:
    prove(plain, plain)


def test_scales_by_root_rank_and_by_pattern_are_folded_so_that_the_answers_are_those_of_peft(
    prove: Prove, odd: PeftAdapter
) -> None:
    assert not odd.is_plain
    prove(odd, odd)


def test_a_scale_taken_at_its_word_would_be_caught(
    prove: Prove, odd: PeftAdapter, tiny: Checkpoint, tmp_path: Path
) -> None:
    """Without the fold this is what llama.cpp's converter makes of it."""
    naive = Path(shutil.copytree(odd.folder, tmp_path / "naive"))
    config = json.loads((naive / "adapter_config.json").read_bytes())
    config |= {"use_rslora": False, "alpha_pattern": {}, "rank_pattern": {}}
    (naive / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(GateError, match="logits better"):
        prove(odd, open_adapter(naive, tiny))


def test_a_merged_adapter_answers_as_with_peft(
    odd: PeftAdapter, tiny: Checkpoint, stages: Stages, profile: Profile
) -> None:
    merged = merge(tiny, odd, stages)
    assert merged.sha256 != tiny.sha256
    manifest, full = draft_manifest(merged, profile), lower(merged, "gguf", stages)
    answers = gates.ask(manifest, full, profile, stages)
    texts = gates.rendered(manifest, full.parts)
    (gate,) = compare_answers(tiny.folder, texts, answers, adapter=odd.folder).value["gates"]
    assert gate["value"] < gate["limit"]


@pytest.mark.parametrize(
    ("module", "rank", "scale"),
    [
        ("model.layers.0.self_attn.q_proj", 4, 8 / 2),
        ("model.layers.1.self_attn.q_proj", 4, 2 / 2),
        ("model.layers.11.self_attn.v_proj", 4, 32 / 2),
        ("model.layers.0.mlp.down_proj", 1, 8 / 1),
    ],
)
def test_each_module_has_the_scale_that_peft_gives_it(odd: PeftAdapter, module: str, rank: int, scale: float) -> None:
    assert true_scale(odd.config, module, rank) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias=all"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_what_a_gguf_adapter_cannot_carry_is_refused(
    plain: PeftAdapter, tiny: Checkpoint, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    folder = Path(shutil.copytree(plain.folder, tmp_path / "lora"))
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=f"uses {name}, which no GGUF adapter can carry; use --merge instead"):
        check_shippable(open_adapter(folder, tiny))


def test_an_adapter_for_another_base_is_refused(plain: PeftAdapter, tiny: Checkpoint, tmp_path: Path) -> None:
    wider = open_checkpoint(str(tiny_models.tiny_llama(tmp_path / "wider", hidden=96)))
    with pytest.raises(InputError, match=r"of shape \(64, 128\), wider has \(96, 128\); it is for another model"):
        open_adapter(plain.folder, wider)
    shallow = open_checkpoint(str(tiny_models.tiny_llama(tmp_path / "shallow", num_hidden_layers=1)))
    with pytest.raises(InputError, match=r"changes model\.layers\.1\S+, which shallow does not have"):
        open_adapter(plain.folder, shallow)


def test_an_adapter_tuned_on_other_weights_of_the_same_shape_is_refused(
    plain: PeftAdapter, tiny: Checkpoint, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plain.folder, tmp_path / "lora"))
    (folder / "tune.json").write_text(json.dumps({"base_sha256": "f" * 64}))
    with pytest.raises(InputError, match="was tuned on weights ffffffffffff…, tiny-llama has others"):
        open_adapter(folder, tiny)


def test_a_folder_that_is_no_adapter_is_refused(plain: PeftAdapter, tiny: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        open_adapter(tmp_path, tiny)
    folder = Path(shutil.copytree(plain.folder, tmp_path / "lora"))
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="cut short"):
        open_adapter(folder, tiny)
    (folder / "adapter_config.json").write_text('{"peft_type": "LOHA"}')
    with pytest.raises(InputError, match="is a LOHA adapter; only LoRA"):
        open_adapter(folder, tiny)
