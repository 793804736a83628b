"""A format and an engine from elsewhere: one file each, and the whole road from a checkpoint to an answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fieldlm.core.errors import InputError, MissingDependencyError
from fieldlm.engines import engine_kind
from fieldlm_compiler.export.format import format_for, format_named, formats
from tests.support.toy_engine import offer

COMPILE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import msgspec
from fieldlm import Model
from fieldlm.core.signing import load_or_create_key
from fieldlm.engines import Sampling
from fieldlm.formats.profile import load_profile
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.verify.limits import PRESETS

model, folder, *text = map(Path, sys.argv[1:])
profile = load_profile("generic-x86-64-avx2")
bundle = compile_model(
    str(model), profile=msgspec.structs.replace(profile, engines=(*profile.engines, "toy")), out=folder / "bundle",
    work=folder / "work", key=load_or_create_key(folder / "signing.pem"), fmt="toy",
    request=replace(PRESETS, calibration=tuple(text)),
)
with Model.open(folder / "bundle") as opened:
    answer = opened.chat("hi", Sampling(max_tokens=4))
    print(json.dumps([bundle.manifest.engine, bundle.manifest.recipe.quant, answer.text]))
"""


def run(tmp_path: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COMPILE, *map(str, arguments)]
    environment = os.environ | offer(tmp_path / "site")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_third_format_and_its_engine_are_compiled_proved_and_served(tiny_folder: Path, tmp_path: Path) -> None:
    done = run(tmp_path, tiny_folder, tmp_path)
    assert done.returncode == 0, done.stderr
    engine, quant, answer = json.loads(done.stdout)
    assert (engine, quant) == ("toy", "HALF")
    assert answer
    manifest = json.loads((tmp_path / "bundle/manifest.json").read_bytes())
    assert {"tokens-equal", "mean-kl", "same-top"} <= {gate["name"] for gate in manifest["gates"]}


def test_what_a_format_cannot_do_is_said_before_anything_is_made(tiny_folder: Path, text: Path, tmp_path: Path) -> None:
    done = run(tmp_path, tiny_folder, tmp_path, text)
    assert "toy has no types to choose: leave out --calibration, --task and limits" in done.stderr
    assert not (tmp_path / "bundle").exists()


def test_there_are_two_formats_here_and_what_is_unknown_is_refused_by_its_name() -> None:
    assert sorted(formats()) == ["gguf", "onnx"]
    with pytest.raises(InputError, match="there is no format 'toy'; there are gguf, onnx"):
        format_named("toy")
    with pytest.raises(InputError, match="made for the engine 'toy'"):
        format_for("toy")
    for name in ("toy", "llama_api", "..llama", ""):
        with pytest.raises(MissingDependencyError, match="there is no engine"):
            engine_kind(name)
