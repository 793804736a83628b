"""What a bundle is made of, whose licence it has, and one command for several kinds of device."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from fieldlm.cli.main import main as fieldlm
from fieldlm.core.errors import GateError
from fieldlm.formats.bundle import Bundle
from fieldlm_compiler.checkpoints.checkpoint import open_checkpoint
from fieldlm_compiler.compile import bom
from tests.support import tiny_models

Build = Callable[..., Bundle]


def test_the_bill_of_materials_is_valid_and_names_every_file(tiny_compiled: Bundle) -> None:
    text = (tiny_compiled.folder / bom.NAME).read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    digests = {each["name"]: each["hashes"][0]["content"] for each in bill["components"] if each["type"] == "file"}
    assert digests == {file.path: file.sha256 for file in tiny_compiled.manifest.files if file.path != bom.NAME}
    (source,) = (each for each in bill["components"] if each["type"] == "machine-learning-model")
    assert source["hashes"][0]["content"] == tiny_compiled.manifest.model.source_sha256
    tools = {each["name"] for each in bill["components"] if each["type"] == "library"}
    assert {"llama-cpp-python", "transformers"} <= tools


def test_a_licence_that_is_not_allowed_makes_no_bundle(build: Build, tiny_folder: Path, tmp_path: Path) -> None:
    line = r"tiny-llama has the licence unknown, allowed are mit, apache-2\.0; add --licence-allow unknown if you may"
    with pytest.raises(GateError, match=line):
        build(tiny_folder, tmp_path / "out", quants=("Q8_0",), licences=("mit", "apache-2.0"))
    assert not (tmp_path / "out").exists()
    assert build(tiny_folder, tmp_path / "out", quants=("Q8_0",), licences=("Unknown",)).manifest.model.licence


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlicense: llama3.2\n---\n# A model\n", "llama3.2"),
        ("LICENSE", "                Apache License\n          Version 2.0, January 2004\n", "apache-2.0"),
        ("LICENSE.txt", "MIT License\n\nCopyright (c) somebody\n", "mit"),
        ("LICENSE.md", "Ask me.\n", "unknown"),
    ],
)
def test_the_licence_is_read_from_the_card_or_the_licence_file(
    tmp_path: Path, name: str, text: str, licence: str
) -> None:
    folder = tiny_models.tiny_llama(tmp_path / "model")
    (folder / name).write_text(text)
    assert open_checkpoint(str(folder)).licence == licence


def test_several_profiles_share_every_stage_and_one_table(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = ["--profile", "generic-x86-64-avx2", "--profile", "rpi5-8gb"]
    argv = ["compile", str(tiny_folder), *profiles, "--quant", "Q8_0", "--out", str(tmp_path / "out"), "--json"]
    assert fieldlm([*argv, "--keys", str(tmp_path)]) == 0
    reports = json.loads(capsys.readouterr().out)["reports"]
    first, second = (reports[name] for name in ("generic-x86-64-avx2", "rpi5-8gb"))
    assert first["candidates"][0]["sha256"] == second["candidates"][0]["sha256"]
    assert first["bundle"] != second["bundle"]
    assert all(stage["cached"] for stage in second["stages"])
    assert fieldlm([*argv[:-1], "--licence-allow", "mit", "--keys", str(tmp_path)]) == 1
    assert capsys.readouterr().out.count("✗") == 2
