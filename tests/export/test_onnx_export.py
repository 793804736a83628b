"""A checkpoint exported to ONNX answers as it did before, and keeps what Transformers 4 would have lost."""

import json
from pathlib import Path

import pytest
from onnx import load

from fieldlm.core.errors import EngineError, FieldlmError, GateError, InputError
from fieldlm.core.files import sha256_file
from fieldlm.engines import Sampling
from fieldlm.engines.onnx import open_graph
from fieldlm_compiler.export import onnx
from fieldlm_compiler.export.transformers4 import in_old_form, old_config, stop_tokens
from fieldlm_compiler.pipeline.optimum_toolchain import optimum, optimum_sha256, tree_sha256
from fieldlm_compiler.verify import against_source
from tests.support import onnx_models


def answers(exported: Path) -> against_source.Answers:
    """Ask the exported graph through the device's engine."""
    engine = open_graph(exported / onnx.MODEL, exported / "tokenizer.json")
    try:
        tokens: list[list[int]] = []
        for prompt in onnx_models.PROMPTS:
            chunks = list(engine.start(engine.tokenize(prompt), Sampling(max_tokens=16)))
            ended = [against_source.STOP] if chunks[-1].outcome == "stop" else []
            tokens.append([token for chunk in chunks for token in chunk.tokens] + ended)
        stops = sorted(engine.stop_tokens)
    finally:
        engine.close()
    return against_source.Answers(
        tokens=tokens,
        texts=[],
        firm=[],
        firm_texts=[],
        stops=stops,
        agreement=None,
        tokens_per_s=0.0,
        load_s=0.0,
        memory_mb={},
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_an_export_gives_the_greedy_answers_of_its_source(family: str) -> None:
    found = answers(onnx_models.fp32(family).folder)
    assert all(found.tokens)
    ran = against_source.compare_answers(onnx_models.checkpoint(family, 0), onnx_models.PROMPTS, found)
    assert [gate["passed"] for gate in ran.value["gates"]] == [True]


def test_the_gate_notices_other_weights() -> None:
    found = answers(onnx_models.fp32("llama").folder)
    with pytest.raises(GateError, match="not its source"):
        against_source.compare_answers(onnx_models.checkpoint("llama", 1), onnx_models.PROMPTS, found)


def test_attention_is_fused_where_the_operator_computes_the_same_and_left_where_it_does_not() -> None:
    assert onnx_models.fp32("llama").is_fused
    assert onnx_models.fp32("qwen2").is_fused
    # Qwen3 normalises queries and keys between projection and rotation.
    assert not onnx_models.fp32("qwen3").is_fused


def test_a_constant_is_in_the_graph_once() -> None:
    graph = load(onnx_models.int4("llama").folder / onnx.MODEL, load_external_data=False).graph
    constants = [node.attribute[0].SerializeToString() for node in graph.node if node.op_type == "Constant"]
    assert len(constants) == len(set(constants)) > 0


def test_the_quantised_model_stores_the_tied_table_once(tmp_path: Path) -> None:
    made = onnx_models.int4("llama")
    weights = (made.folder / onnx.WEIGHTS).stat().st_size
    config = json.loads((onnx_models.checkpoint("llama", 0) / "config.json").read_text())
    table = config["vocab_size"] * config["hidden_size"]
    rotary = 4 * onnx_models.CONTEXT * config["head_dim"]
    body = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
    # 8 bits a weight in the table and 4 in the body, each with a scale of 32 bits per block of 32, and the norms.
    assert weights <= table * 9 / 8 + body * 5 / 8 + rotary + 4096 * 3
    assert made.files == ((onnx.MODEL, "base"), (onnx.WEIGHTS, "base"), ("tokenizer.json", "tokenizer"))
    full = onnx_models.fp32("llama").folder
    small = onnx.quantize(full, tmp_path, block_size=32, accuracy_level=4, head_bits=4)
    assert small.quant == f"{made.quant}-h4"
    assert weights - (small.folder / onnx.WEIGHTS).stat().st_size == table / 2


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    once = onnx_models.int4("llama").folder
    again = onnx.export(onnx_models.checkpoint("llama", 0), tmp_path, block_size=32, accuracy_level=4).folder
    for name in (onnx.MODEL, onnx.WEIGHTS):
        assert sha256_file(once / name) == sha256_file(again / name), name


def test_a_rope_theta_survives_the_way_through_transformers_4() -> None:
    new = {
        "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0},
        "hidden_size": 64,
    }
    assert old_config(new) == {
        "torch_dtype": "bfloat16",
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
        "hidden_size": 64,
    }


def test_a_checkpoint_in_the_old_form_stays_as_it_is() -> None:
    old = {"torch_dtype": "float16", "rope_theta": 1e5, "rope_scaling": None, "tie_word_embeddings": True}
    assert old_config(old) == old


def test_scaling_that_the_old_form_cannot_say_is_refused() -> None:
    rope = {"full_attention": {"rope_theta": 1e6, "factor": 8.0}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(InputError, match="per layer type"):
        old_config({"rope_parameters": rope})


def test_every_known_end_of_a_turn_stops_an_answer() -> None:
    assert stop_tokens(onnx_models.checkpoint("llama", 0)) == [0, 2]
    assert open_stop_tokens(onnx_models.fp32("llama").folder) == {0, 2}


def open_stop_tokens(folder: Path) -> frozenset[int]:
    engine = open_graph(folder / onnx.MODEL, folder / "tokenizer.json")
    engine.close()
    return engine.stop_tokens


def test_the_toolchain_is_what_was_recorded_when_it_was_installed() -> None:
    assert tree_sha256(optimum()) == optimum_sha256()


def test_a_folder_without_weights_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text('{"added_tokens": [{"id": 0, "content": "</s>"}]}')
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"no \.safetensors weights"):
        onnx.export_fp32(tmp_path, tmp_path / "out")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        onnx.export_fp32(tmp_path, tmp_path)


def test_damaged_weights_end_the_child_and_not_the_compiler(tmp_path: Path) -> None:
    broken = tmp_path / "checkpoint"
    broken.mkdir()
    for path in onnx_models.checkpoint("llama", 0).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "out").mkdir()
    with pytest.raises((EngineError, InputError)) as caught:
        onnx.export_fp32(broken, tmp_path / "out")
    assert isinstance(caught.value, FieldlmError)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_old_form_links_weights_instead_of_copying_them(tmp_path: Path) -> None:
    in_old_form(onnx_models.checkpoint("llama", 0), tmp_path)
    weights = onnx_models.checkpoint("llama", 0) / "model.safetensors"
    assert (tmp_path / "model.safetensors").samefile(weights)
