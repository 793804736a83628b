"""The GGUF is the model it was made from, whoever saved the checkpoint."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core.errors import EngineError, GateError, InputError
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.compile.assemble import draft_manifest
from fieldlm_compiler.export import quantize
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.verify import gates as proof
from tests.support import tiny_models


def test_a_checkpoint_of_transformers_5_keeps_its_rotation(tiny: Checkpoint, stages: Stages, profile: Profile) -> None:
    full = lower(tiny, "gguf", stages)
    assert read_header(full.base).metadata["llama.rope.freq_base"] == tiny_models.ROPE_THETA
    gates, _, _ = proof.prove(draft_manifest(tiny, profile), full, tiny, profile, stages)
    assert {gate.name for gate in gates} == {
        "tokens-equal", "template-equal", "ends-equal", "greedy-gap", "mean-kl", "same-top",
    }  # fmt: skip


def test_a_checkpoint_of_transformers_4_gives_the_same_weights_rotation_and_answers(
    tiny: Checkpoint, tmp_path: Path, stages: Stages, profile: Profile
) -> None:
    old = tiny_models.as_transformers_4(Path(shutil.copytree(tiny.folder, tmp_path / "tiny-llama")))
    checkpoint = open_checkpoint(str(old))
    full = lower(checkpoint, "gguf", stages)
    header, other = read_header(full.base), read_header(lower(tiny, "gguf", stages).base)
    assert header.metadata["llama.rope.freq_base"] == tiny_models.ROPE_THETA
    assert header.metadata["tokenizer.ggml.pre"] == other.metadata["tokenizer.ggml.pre"] == "smollm"
    assert header.tensors == other.tensors
    answers = proof.prove(draft_manifest(checkpoint, profile), full, checkpoint, profile, stages).answers
    others = proof.prove(draft_manifest(tiny, profile), lower(tiny, "gguf", stages), tiny, profile, stages).answers
    assert answers.tokens == others.tokens


def test_a_wrong_rotation_is_caught_before_anything_is_quantised(
    tiny: Checkpoint, tmp_path: Path, stages: Stages, profile: Profile
) -> None:
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "tiny-llama"))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("100000.0", "10000.0"))
    wrong = lower(open_checkpoint(str(folder)), "gguf", stages)
    with pytest.raises(GateError, match=r"the artefact is not its source: in prompt \d token \d+ is .* logits better"):
        proof.prove(draft_manifest(tiny, profile), wrong, tiny, profile, stages)


def test_another_tokenizer_is_caught(tiny: Checkpoint, tmp_path: Path, stages: Stages, profile: Profile) -> None:
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "tiny-llama"))
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"use_regex": true', '"use_regex": false'))
    other = open_checkpoint(str(folder))
    with pytest.raises(GateError, match="cuts text otherwise than its source: '"):
        proof.prove(draft_manifest(tiny, profile), lower(tiny, "gguf", stages), other, profile, stages)


def test_every_token_that_ends_an_answer_ends_one_of_the_gguf(
    tiny: Checkpoint, tmp_path: Path, stages: Stages, profile: Profile
) -> None:
    """generation_config.json may list tokens of the model's own, which llama.cpp does not know by their texts."""
    folder = Path(shutil.copytree(tiny.folder, tmp_path / "tiny-llama"))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5, 9]}')
    checkpoint = open_checkpoint(str(folder))
    gates, _, _ = proof.prove(
        draft_manifest(checkpoint, profile), lower(checkpoint, "gguf", stages), checkpoint, profile, stages
    )
    assert {gate.name: gate.value for gate in gates}["ends-equal"] == 3


def test_quantising_weighs_what_it_wrote(tiny: Checkpoint, tmp_path: Path, stages: Stages) -> None:
    full = lower(tiny, "gguf", stages)
    value = quantize.quantize(full.base, tmp_path / "q.gguf", "q4_0").value
    assert value["bytes"] == (tmp_path / "q.gguf").stat().st_size
    assert value["tensors"]["Q4_0"] == 14
    assert 4.5 < value["bits_per_weight"] < 9
    assert quantize.file_type(tmp_path / "q.gguf") == "Q4_0"


def test_types_that_do_not_exist_or_cannot_be_made_are_named(tiny: Checkpoint) -> None:
    with pytest.raises(InputError, match="there is no quantisation 'Q4_K_X'; take one of: F32, F16"):
        quantize.check_quant("Q4_K_X")
    with pytest.raises(InputError, match="IQ2_XXS needs an importance matrix"):
        quantize.check_quant("iq2_xxs")


def test_rows_that_no_block_fits_are_refused_before_the_native_code_sees_them(tmp_path: Path, stages: Stages) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "odd", hidden=48)
    full = lower(open_checkpoint(str(folder)), "gguf", stages)
    with pytest.raises(InputError, match=r"Q4_0 cannot hold token_embd\.weight: its rows have 48 weights"):
        quantize.quantize(full.base, tmp_path / "q.gguf", "Q4_0")


def test_a_quantiser_that_fails_leaves_one_line(tiny: Checkpoint, tmp_path: Path, stages: Stages) -> None:
    full = lower(tiny, "gguf", stages)
    with pytest.raises(EngineError, match="could not quantise"):
        quantize.quantize(full.base, tmp_path / "no-such-folder" / "q.gguf", "Q4_0")


def test_layers_for_drafting_that_transformers_left_out_are_not_looked_for(tmp_path: Path, stages: Stages) -> None:
    """The converter asserts that Qwen 3.5 and Qwen3-Next have them, unless it is told otherwise."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": tiny_models.VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True,
        "layer_types": ["linear_attention", "full_attention"], "full_attention_interval": 2,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    }  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3_5_text", **shape))
    model.save_pretrained(tmp_path / "qwen")
    tiny_models.copy_tokenizer(tmp_path / "qwen")
    full = lower(open_checkpoint(str(tmp_path / "qwen")), "gguf", stages)
    assert read_header(full.base).architecture == "qwen35"
