"""A licence is read as it is written, travels with the weights, and is never guessed to be more permissive."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core.errors import GateError, InputError
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.licences import licence_of, together
from fieldlm_compiler.checkpoints.merge import merge
from fieldlm_compiler.checkpoints.peft_adapter import check_mergeable, open_adapter
from fieldlm_compiler.compile.assemble import Wish, check_adapter_licence, check_licence
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.pipeline.stages import Stages
from tests.support import tiny_models

MENTIONS = "Acme Licence\n\nYou may use this at Acme alone. Its tokenizer is under the MIT License.\n"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("license: apache-2.0", "apache-2.0"),
        ('license: "mit"', "mit"),
        ("license: [apache-2.0]", "apache-2.0"),
        ("license:\n- apache-2.0\n- mit", "apache-2.0 AND mit"),
        ("license: other\nlicense_name: llama3.2\nlicense_link: LICENSE", "llama3.2"),
        ("license_name: gemma", "gemma"),
        ("license: other", "other"),
        ("language: en", "unknown"),
        ("license: [unclosed", "unknown"),
    ],
)
def test_a_model_card_is_yaml(card: str, licence: str, tmp_path: Path) -> None:
    for start in ("", "\ufeff"):
        (tmp_path / "README.md").write_text(f"{start}---\n{card}\n---\n# A model\n")
        assert licence_of(tmp_path) == licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("MIT License\n\nCopyright (c) 2026 Acme\n", "mit"),
        ("Microsoft.\nCopyright (c) Microsoft Corporation.\n\nMIT License\n\nPermission is hereby granted", "mit"),
        ("\n                 Apache License\n           Version 2.0, January 2004\n", "apache-2.0"),
        ("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\nLlama 3.2 Version Release Date", "llama3.2"),
        ("Qwen RESEARCH LICENSE AGREEMENT\n\nRelease Date", "qwen-research"),
        (MENTIONS, "unknown"),
        ("This software is not under the\nMIT License, whatever its authors say elsewhere.\n", "unknown"),
    ],
)
def test_a_licence_file_is_what_its_title_says_and_not_what_it_mentions(
    text: str, licence: str, tmp_path: Path
) -> None:
    (tmp_path / "LICENSE.txt").write_text(text)
    assert licence_of(tmp_path) == licence


def test_every_licence_of_several_must_be_allowed(profile: Profile, key: Any, tmp_path: Path) -> None:
    both = together("apache-2.0", "cc-by-nc-4.0", "apache-2.0")
    wish = Wish(profile=profile, out=tmp_path, key=key, licences=("Apache-2.0",))
    with pytest.raises(GateError, match=r"add --licence-allow cc-by-nc-4\.0 if you may use it"):
        check_licence(both, wish, "a model")
    check_licence("apache-2.0", wish, "a model")


def test_an_adapter_brings_its_own_licence(tiny: Checkpoint, profile: Profile, key: Any, tmp_path: Path) -> None:
    folder = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder)
    wish = Wish(profile=profile, out=tmp_path, key=key, licences=("unknown",))
    assert check_adapter_licence(open_adapter(folder, tiny), tiny, wish) == "unknown"
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    with pytest.raises(GateError, match=r"lora has the licence cc-by-nc-4\.0, allowed are unknown"):
        check_adapter_licence(open_adapter(folder, tiny), tiny, wish)


def test_the_file_of_weights_says_its_licence(tmp_path: Path, stages: Stages) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "licensed", hidden=32)
    (folder / "README.md").write_text("---\nlicense: gemma\n---\n")
    full = lower(open_checkpoint(str(folder)), "gguf", stages)
    assert read_header(full.base).metadata["general.license"] == "gemma"


def test_an_adapter_with_new_tokens_says_what_to_do(tiny: Checkpoint, tmp_path: Path) -> None:
    """A chat tune with added tokens saves its tables whole and larger than the base's."""
    from safetensors.numpy import load_file, save_file

    folder = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder, modules_to_save=["embed_tokens", "lm_head"])
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    for saved in (".modules_to_save.weight", ".weight"):
        grown = dict(weights)
        for name in [name for name in weights if "embed_tokens" in name or "lm_head" in name]:
            table = grown.pop(name)
            stem = name.removesuffix(".weight").removesuffix(".modules_to_save")
            grown[stem + saved] = table.repeat(2, axis=0)[: len(table) + 8]
        save_file(grown, path)
        with pytest.raises(InputError, match=r"vocabulary resized from 2048 to 2056 tokens: resize the model, merge"):
            open_adapter(folder, tiny)


def test_a_key_that_nobody_here_knows_is_not_merged_either(tiny: Checkpoint, tmp_path: Path, stages: Stages) -> None:
    """peft drops what it does not know, and both readings of the merge's own check would be wrong alike."""
    folder = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder)
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_quantum_lora": True}))
    adapter = open_adapter(folder, tiny)
    with pytest.raises(InputError, match="uses use_quantum_lora, which is not known here"):
        check_mergeable(adapter)
    with pytest.raises(InputError, match="use_quantum_lora"):
        merge(tiny, adapter, stages)


def test_a_base_of_another_architecture_is_named(
    tiny: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fieldlm")
    folder = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder)
    open_adapter(folder, tiny)
    assert "was trained on" not in caplog.text
    config = json.loads((folder / "adapter_config.json").read_bytes())
    named = config | {"base_model_name_or_path": "Qwen/Qwen2.5-0.5B"}
    (folder / "adapter_config.json").write_text(json.dumps(named))
    open_adapter(folder, tiny)
    assert "lora was trained on Qwen/Qwen2.5-0.5B, a qwen, and tiny-llama is a llama" in caplog.text
