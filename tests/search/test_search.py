"""The search from one end to the other on a small model: limits, gates, and what is refused with one clear line."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fieldlm.bench.calibration import BESIDE_MB
from fieldlm.cli import verify
from fieldlm.cli.main import main as fieldlm
from fieldlm.core.errors import GateError, InputError
from fieldlm.formats.bundle import Bundle, CacheTypes, open_bundle
from fieldlm.formats.gguf import read_header
from fieldlm.formats.profile import Profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.compile.assemble import draft_manifest, report_path
from fieldlm_compiler.compile.explain import page
from fieldlm_compiler.export.format import lower
from fieldlm_compiler.export.imatrix import read_imatrix
from fieldlm_compiler.pipeline.pack import draft
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.search.forecast import Foresight
from fieldlm_compiler.search.kv_cache import legal_caches
from fieldlm_compiler.verify import gates as proof
from fieldlm_compiler.verify.against_source import weigh_serving
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from tests.support import tiny_models

Build = Callable[..., Bundle]
SMALL_MB = 0.6  # between the smallest mixture, 0.5 with what lies beside it, and full weights, 0.8
SEARCH = """
import sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from fieldlm.formats.profile import load_profile

model, text, out, work, limit = sys.argv[1:]
compile_model(model, profile=load_profile("generic-x86-64-avx2"), out=Path(out), work=Path(work),
              key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
              request=SearchRequest(calibration=(Path(text),), limits=Limits(max_bundle_mb=float(limit))))
"""


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that knows some of sixteen orders by heart."""
    folder = tiny_models.tiny_llama(tmp_path_factory.mktemp("taught") / "tiny-taught", seed=3)
    return tiny_models.teach(folder, tiny_models.conversations(16))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("task") / "task.jsonl"
    return tiny_models.write_lines(path, tiny_models.conversations(16))


@pytest.fixture(scope="module")
def searched(build: Build, tiny_folder: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    request = SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB))
    return build(tiny_folder, tmp_path_factory.mktemp("searched") / "bundle", request=request)


def test_the_best_mixture_under_a_size_says_how_it_was_found(searched: Bundle) -> None:
    bundle = open_bundle(searched.folder)
    weights = bundle.need("base")
    assert SMALL_MB - 0.1 < weights.stat().st_size / 1e6 + BESIDE_MB < SMALL_MB
    search = json.loads(bundle.need("report").read_bytes())["search"]
    sizes = [point["bytes"] for point in search["frontier"]]
    assert sizes == sorted(sizes)
    assert search["trials"][0]["bytes"] == weights.stat().st_size
    assert search["trials"][0]["measured"]["kl"]["value"] < search["trials"][1]["measured"]["kl"]["value"]
    assert set(search["types"]) == {name for name, each in read_header(weights).tensors.items() if len(each.shape) > 1}
    assert bundle.manifest.recipe.quant.startswith("MIX-")
    assert set(bundle.manifest.recipe.options) == {"calibration_sha256", "types_sha256"}
    assert verify.verify(bundle)["ok"]


def test_the_same_search_again_is_the_same_bundle_out_of_the_cache(
    build: Build, tiny_folder: Path, text: Path, searched: Bundle, tmp_path: Path
) -> None:
    request = SearchRequest(calibration=(text,), limits=Limits(max_bundle_mb=SMALL_MB))
    again = build(tiny_folder, tmp_path / "again", request=request)
    assert again.id == searched.id
    assert all(stage["cached"] for stage in json.loads(report_path(tmp_path / "again").read_bytes())["stages"])


def test_what_is_foreseen_is_what_the_engine_then_holds(
    tiny: Checkpoint, stages: Stages, profile: Profile, searched: Bundle
) -> None:
    full, manifest = lower(tiny, "gguf", stages), draft_manifest(tiny, profile)
    types = json.loads(searched.need("report").read_bytes())["search"]["types"]
    foreseen = Foresight(full.base, profile, 100.0).foresee(types)
    assert foreseen.bytes == searched.need("base").stat().st_size
    bundle = draft(manifest, [proof.BundlePart(role="base", name="model.gguf", source=searched.need("base"))])
    held = weigh_serving(bundle, profile).value
    assert foreseen.ram.total == pytest.approx(sum(held.values()), rel=0.08)


def test_without_a_size_the_smallest_mixture_that_keeps_the_task_is_taken(
    build: Build, taught: Path, text: Path, task: Path, tmp_path: Path
) -> None:
    request = SearchRequest(calibration=(text,), task=task, limits=Limits(min_task=0.9))
    bundle = build(taught, tmp_path / "bundle", request=request)
    gates = {gate.name: gate for gate in bundle.manifest.gates}
    assert gates["task"].value >= 0.9
    assert gates["task-served"].value >= 0.9
    trials = json.loads(bundle.need("report").read_bytes())["search"]["trials"]
    assert len(trials) > 1
    measured = [(trial["bytes"], trial["measured"]) for trial in trials]
    kept = [size for size, each in measured if each["task_kept"]["value"] >= 0.9]
    assert bundle.need("base").stat().st_size == min(kept)


def test_a_task_that_full_weights_do_not_know_judges_nothing(
    build: Build, tiny_folder: Path, text: Path, task: Path, tmp_path: Path
) -> None:
    request = SearchRequest(calibration=(text,), task=task, limits=Limits(max_bundle_mb=SMALL_MB))
    with pytest.raises(GateError, match="full weights answer none of the task right: it needs a model that was tuned"):
        build(tiny_folder, tmp_path / "out", request=request)


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        (
            Limits(max_bundle_mb=0.3),
            r"the smallest of tiny-llama has \d\.\d MB of files, --max-bundle-mb leaves 0\.3; allow",
        ),
        (Limits(max_ram_mb=5), r"has \d+ MB of memory \(weights \d+, cache \d+, buffers \d+\), --max-ram-mb leaves"),
        (Limits(min_tokens_per_s=1e6), r"has about \d+ tokens/s here, --min-tokens-per-s wants 1e\+06; allow"),
        (
            Limits(max_bundle_mb=SMALL_MB, max_kl=1e-6),
            r"kl is .*, the limit 1e-06 nats/token: the best mixture .* about \d\.\d MB would pass, or --max-kl",
        ),
    ],
)
def test_limits_that_cannot_all_be_kept_say_what_would(
    build: Build, tiny_folder: Path, text: Path, tmp_path: Path, *, limits: Limits, line: str
) -> None:
    with pytest.raises(GateError, match=line):
        build(tiny_folder, tmp_path / "out", request=SearchRequest(calibration=(text,), limits=limits))
    assert not (tmp_path / "out").exists()


def test_calibration_that_is_empty_or_foreign_is_one_line(
    build: Build, tiny_folder: Path, searched: Bundle, work: Path, tmp_path: Path
) -> None:
    files = {
        "empty.txt": (b"", r"empty\.txt is empty; name a file with text"),
        "noise.txt": (bytes(range(128, 256)) * 9, r"noise\.txt is not text \(byte 0\); calibration takes \.txt"),
        "odd.jsonl": (b'{"prompt": "x"}\n', r'odd\.jsonl line 1 has neither "messages" nor "text"'),
        "broken.jsonl": (b"{\n", r"broken\.jsonl line 1 is not JSON"),
        "weights.gguf": (searched.need("base").read_bytes(), r"is a GGUF file without an importance matrix"),
        "noise.gguf": (b"GGUF" + bytes(60), r"noise\.gguf is"),
    }
    for name, (content, line) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=line):
            build(tiny_folder, tmp_path / "out", request=SearchRequest(calibration=(tmp_path / name,)))
    with pytest.raises(InputError, match=r"gone\.txt does not exist"):
        build(tiny_folder, tmp_path / "out", request=SearchRequest(calibration=(tmp_path / "gone.txt",)))


def test_sums_of_another_model_are_refused_and_those_of_this_one_are_added(
    build: Build, tiny_folder: Path, text: Path, work: Path, *, searched: Bundle, tmp_path: Path
) -> None:
    own = next(work.glob("calibrated-*/imatrix.gguf"))
    wide = tiny_models.tiny_llama(tmp_path / "wide", hidden=96)
    limits = Limits(max_bundle_mb=2 * SMALL_MB)
    with pytest.raises(InputError, match=r"imatrix\.gguf was collected on another model: it does not fit blk\."):
        build(wide, tmp_path / "out", request=SearchRequest(calibration=(text, own), limits=limits))
    build(tiny_folder, tmp_path / "out", request=SearchRequest(calibration=(text, own), limits=limits))
    counts = {max(read_imatrix(path).counts.values()) for path in work.glob("calibrated-*/imatrix.gguf")}
    assert any(one + max(read_imatrix(own).counts.values()) in counts for one in counts)


def test_a_kill_in_the_middle_of_the_search_costs_one_stage_and_changes_nothing(
    tiny_folder: Path, text: Path, searched: Bundle, tmp_path: Path
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    command = [sys.executable, "-c", SEARCH, str(tiny_folder), str(text), str(out), str(work), str(SMALL_MB)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline_s = time.monotonic() + 120
    while not list(work.glob(".mixture-*.part/model.gguf")) and time.monotonic() < deadline_s:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(work.glob("calibrated-*/stage.json")), "the kill came before there was anything to keep"
    assert not list(work.glob("mixture-*"))
    assert not out.exists()
    before = {path: path.stat().st_mtime_ns for path in work.glob("*/stage.json")}
    subprocess.run(command, check=True)
    assert open_bundle(out).id == searched.id
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-kl", "0"], "--max-kl: '0'; want a number, more than 0"),
        (["--max-ram-mb", "-5"], "--max-ram-mb: '-5'; want a number, more than 0"),
        (["--max-bundle-mb", "nan"], "--max-bundle-mb: 'nan'; want a number"),
        (["--min-task", "1.5", "--task", "TASK"], "--min-task: '1.5'; want a number, 0–1"),
        (["--min-task", "0.9"], "--min-task needs the task it is about"),
        (["--max-kl", "0.1", "--quant", "Q4_0"], "look for types: they go without --quant"),
    ],
)
def test_limits_that_make_no_sense_are_one_line(
    tiny_folder: Path,
    task: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: list[str],
    line: str,
) -> None:
    argv = [str(task) if each == "TASK" else each for each in arguments]
    profile = ["--profile", "generic-x86-64-avx2", "--keys", str(tmp_path)]
    assert fieldlm(["compile", str(tiny_folder), *argv, *profile, "--out", str(tmp_path / "out")]) == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_of_other_weights_than_the_artefact_is_caught_by_what_both_think(
    taught: Path, tiny: Checkpoint, stages: Stages, profile: Profile
) -> None:
    wrong = lower(open_checkpoint(str(taught)), "gguf", stages)
    with pytest.raises(GateError, match="the artefact is not its source"):
        proof.prove(draft_manifest(tiny, profile), wrong, tiny, profile, stages)


def test_under_a_memory_limit_a_coarser_cache_leaves_weights_more_room(
    build: Build, text: Path, profile: Profile, tmp_path: Path
) -> None:
    model = tiny_models.tiny_llama(tmp_path / "wide-heads", head_dim=32)
    long = msgspec.structs.replace(profile, gguf=msgspec.structs.replace(profile.gguf, context=2048))
    request = SearchRequest(calibration=(text,), limits=Limits(max_ram_mb=13.0))
    bundle = build(model, tmp_path / "bundle", profile=long, request=request)
    search = json.loads(bundle.need("report").read_bytes())["search"]
    sizes = [each["mb"] for each in search["caches"]]
    assert len(sizes) > 2
    assert sizes == sorted(sizes, reverse=True)
    assert bundle.manifest.cache == (msgspec.convert(search["cache"], CacheTypes) if search["cache"] else None)
    assert {trial["quant"] for trial in search["trials"]}
    held = weigh_serving(bundle, long).value
    assert sum(held.values()) <= 13.0
    assert "Keys and values" in page(bundle)


def test_caches_that_a_profile_or_the_width_of_a_head_rules_out_are_not_tried(
    tiny: Checkpoint, stages: Stages, profile: Profile
) -> None:
    narrow = lower(tiny, "gguf", stages).base
    assert legal_caches(narrow, profile) == [CacheTypes(keys="f16", values="f16")], "a block of q8_0 has 32 numbers"
    fixed = msgspec.structs.replace(profile, gguf=msgspec.structs.replace(profile.gguf, kv_k="q8_0", kv_v="f16"))
    assert legal_caches(narrow, fixed) == [CacheTypes(keys="q8_0", values="f16")]
