"""An adapter kept apart is judged on the quantised base, may be tuned against it, and is measured beside merging it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fieldlm.cli import verify
from fieldlm.core.errors import GateError, InputError
from fieldlm.engines import EngineOptions, Sampling, Timings
from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm.formats.confidence import LearnedDeferral, read_confidence
from fieldlm.formats.probe import load_probes
from fieldlm.formats.profile import Profile
from fieldlm.inference.chat_template import render
from fieldlm.inference.confidence import calibration_of, confidence, signals
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.model import Model
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.checkpoints.peft_adapter import WEIGHTS
from fieldlm_compiler.compile.assemble import report_path
from fieldlm_compiler.compile.build import compile_model, main
from fieldlm_compiler.compile.named_adapters import AdapterGateError, NamedAdapter
from fieldlm_compiler.compile.unpack import unpack
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds.groups import deferral_of
from fieldlm_compiler.verify.confidence import describe
from fieldlm_compiler.verify.limits import Limits, SearchRequest
from tests.support import tiny_models
from tests.support.task_bundles import word_router

Build = Callable[..., Bundle]
ROWS = tiny_models.conversations(16)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.tiny_llama(tmp_path_factory.mktemp("taught") / "taught", seed=4)
    return tiny_models.teach(folder, ROWS, steps=300, learning_rate=1e-3)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_lines(tmp_path_factory.mktemp("task") / "task.jsonl", ROWS)


@pytest.fixture(scope="module")
def base(taught: Path, build: Build, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(taught, tmp_path_factory.mktemp("base") / "base", quants=("Q8_0",))


def adapter(folder: Path, model: Path, *, strength: float) -> Path:
    """Write a random LoRA whose change is multiplied by `strength`."""
    tiny_models.tiny_adapter(folder, model)
    tensors = load_file(folder / WEIGHTS)
    save_file({name: each * strength if "lora_B" in name else each for name, each in tensors.items()}, folder / WEIGHTS)
    return folder


def test_an_adapter_is_judged_on_the_quantised_base_and_measured_beside_merging_it(
    taught: Path, task: Path, base: Bundle, build: Build, tmp_path: Path
) -> None:
    lora = adapter(tmp_path / "lora", taught, strength=1e-4)
    asked = {"adapter": lora, "base_bundle": base.folder, "request": SearchRequest(task=task)}
    bundle = build(taught, tmp_path / "out", compare=True, **asked)
    gates = {gate.name: gate for gate in bundle.manifest.gates}
    assert gates["task-served"].value >= 0.98
    kept = json.loads(report_path(bundle.folder).read_bytes())["kept"]
    assert kept["apart"]["right"] == kept["merged"]["right"] > 0
    assert kept["apart"]["ships_bytes"] == bundle.need("adapter").stat().st_size
    assert kept["merged"]["ships_bytes"] == base.need("base").stat().st_size
    assert kept["merged"]["quant"] == "Q8_0"
    # Speeds and the comparison are no part of what is signed.
    assert build(taught, tmp_path / "again", **asked).id == bundle.id


def asked_of(rows: list[dict[str, Any]], taught: Path, base: Bundle, folder: Path) -> dict[str, Any]:
    """Return what asks for an adapter apart from `base`, judged by `rows`, of which it need not know all."""
    return {
        "adapter": adapter(folder / "lora", taught, strength=1e-4),
        "base_bundle": base.folder,
        "request": SearchRequest(
            task=tiny_models.write_lines(folder / "task.jsonl", rows), limits=Limits(min_task=0.5)
        ),
    }


def test_an_adapters_bundle_knows_how_likely_its_answers_are_right(
    taught: Path, base: Bundle, build: Build, tmp_path: Path
) -> None:
    rows = tiny_models.conversations(48)
    asked = asked_of(rows, taught, base, tmp_path)
    bundle = build(taught, tmp_path / "out", **asked)
    assert base.path("confidence") is None
    found = read_confidence(bundle.need("confidence").read_bytes(), what="it")
    assert (found.n, found.reason) == (48, "")
    assert 3 <= found.right <= len(ROWS) + 8
    assert json.loads(bundle.need("report").read_bytes())["confidence"] == describe(found)
    live = Generations(open_bundle(bundle.folder), EngineOptions(context=256, parallel=1, threads=1))
    try:
        known, new = (
            [confidence(live.current, answered(live.current, row)) for row in part] for part in (ROWS, rows[16:])
        )
    finally:
        live.close()
    assert all(p is not None and 0 < p < 1 for p in known + new)
    assert sum(p or 0 for p in known) / len(known) > sum(p or 0 for p in new) / len(new)


def test_a_learned_deferral_is_asked_for_and_the_bundle_says_so(
    taught: Path, base: Bundle, build: Build, tmp_path: Path
) -> None:
    rows = tiny_models.conversations(48)
    asked = asked_of(rows, taught, base, tmp_path)
    bundle = build(taught, tmp_path / "out", deferral="learned", **asked)
    found = read_confidence(bundle.need("confidence").read_bytes(), what="it")
    assert isinstance(found.learned, LearnedDeferral)
    assert found.must_understand == ("learned",)
    said = json.loads(bundle.need("report").read_bytes())["confidence"]
    assert said == describe(found) == json.loads(report_path(bundle.folder).read_bytes())["confidence"]
    assert said[-1].startswith("  deferral: learned of ")
    (line,) = deferral_of(bundle)
    assert line == found.deferral
    live = Generations(open_bundle(bundle.folder), EngineOptions(context=256, parallel=1, threads=1))
    try:
        timings = answered(live.current, ROWS[0])
        assert confidence(live.current, timings) == found.chance(signals(timings)) is not None
    finally:
        live.close()
    plain = build(taught, tmp_path / "plain", **asked)
    assert deferral_of(plain) == []
    assert plain.id != bundle.id


def test_without_a_task_there_is_nothing_to_learn_a_deferral_from(taught: Path, tmp_path: Path) -> None:
    asked = [str(taught), "--deferral", "learned", "--out", str(tmp_path / "out")]
    with pytest.raises(InputError, match=r"^--deferral learned is fitted to answers to a task; name its examples with"):
        main(asked)


def answered(serving: Serving, row: dict[str, Any]) -> Timings:
    prompt = serving.engine.tokenize(render(serving.bundle, row["messages"][:-1]))
    answer = serving.engine.start(prompt, Sampling(max_tokens=20), adapter=serving.adapter)
    list(answer)
    return answer.timings


DRINKS, FOOD = "tea milk rice soup", "bread salt fish cake"


def apart(folder: Path, taught: Path, **strengths: float) -> list[NamedAdapter]:
    """Return adapters: `all` for the rest, `drinks` and `food` for a task each."""
    tasks = {"all": (), "drinks": ("t1",), "food": ("t2",)}
    return [
        NamedAdapter(folder=adapter(folder / name, taught, strength=strengths.get(name, 1e-4)), name=name, tasks=own)
        for name, own in tasks.items()
    ]


def test_several_are_each_judged_and_calibrated_by_what_the_router_gives_them(
    taught: Path, base: Bundle, build: Build, tmp_path: Path
) -> None:
    router = tmp_path / "router.npz"
    router.write_bytes(word_router({"t1": DRINKS, "t2": FOOD}).packed())
    task = tiny_models.write_lines(tmp_path / "task.jsonl", tiny_models.conversations(64))
    asked: dict[str, Any] = {
        "adapters": apart(tmp_path, taught),
        "base_bundle": base.folder,
        "router": router,
        "request": SearchRequest(task=task, limits=Limits(min_task=0.5)),
    }
    made = build(taught, tmp_path / "out", **asked)
    bundle = open_bundle(made.folder)
    assert [(each.name, each.tasks, each.confidence) for each in bundle.manifest.task_adapters] == [
        ("all", (), None),
        ("drinks", ("t1",), "confidence-drinks.json"),
        ("food", ("t2",), "confidence-food.json"),
    ]
    calibrated = {name: calibration_of(bundle, name) for name in ("all", "drinks", "food")}
    assert {name: found and found.n for name, found in calibrated.items()} == {"all": None, "drinks": 32, "food": 32}
    assert {gate.name for gate in bundle.manifest.gates} >= {"task-served:drinks", "task-served:food", "mean-kl"}
    assert "task-served" not in {gate.name for gate in bundle.manifest.gates}
    assert bundle.need("base").samefile(base.need("base"))
    assert {probe.adapter for probe in load_probes(bundle.need("probe"))} == {"", "drinks", "food"}
    assert verify.verify(bundle)["probes"] == 1.0
    with Model.open(bundle, threads=1, context=256) as model:
        answers = [model.chat(said, max_tokens=2).adapter for said in ("1 tea", "1 fish", "!")]
    assert answers == ["drinks", "food", "all"]
    assert build(taught, tmp_path / "again", **asked).id == bundle.id


def test_of_several_the_one_that_fails_its_gate_is_named(
    taught: Path, base: Bundle, build: Build, tmp_path: Path
) -> None:
    router = tmp_path / "router.npz"
    router.write_bytes(word_router({"t1": DRINKS, "t2": FOOD}).packed())
    task = tiny_models.write_lines(tmp_path / "task.jsonl", ROWS)
    with pytest.raises(AdapterGateError, match="adapter 'food': the adapter answers none of the task right") as failed:
        build(
            taught, tmp_path / "out", adapters=apart(tmp_path, taught, food=5.0), base_bundle=base.folder,
            router=router, request=SearchRequest(task=task, limits=Limits(min_task=0.5)),
        )  # fmt: skip
    assert failed.value.adapter == "food"
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_task_makes_no_bundle(
    taught: Path, task: Path, base: Bundle, build: Build, tmp_path: Path
) -> None:
    lora = adapter(tmp_path / "lora", taught, strength=5.0)
    with pytest.raises(GateError, match="answers none of the task right on full weights"):
        build(taught, tmp_path / "out", adapter=lora, base_bundle=base.folder, request=SearchRequest(task=task))
    assert not (tmp_path / "out").exists()


def test_an_adapter_tuned_against_the_quantised_base_fits_it(
    base: Bundle, build: Build, stages: Stages, tmp_path: Path
) -> None:
    quantised = base.need("base")
    unpacked = unpack(str(base.folder), tmp_path / "unpacked", stages)
    assert open_checkpoint(str(tmp_path / "unpacked")).sha256 == unpacked.sha256
    lora = tiny_models.tiny_adapter(tmp_path / "lora", tmp_path / "unpacked")
    bundle = build(quantised, tmp_path / "out", adapter=lora, base_bundle=base.folder)
    assert bundle.manifest.parent == base.id
    assert bundle.manifest.file("base") == base.manifest.file("base")


def test_the_search_is_refused_where_the_types_are_fixed(
    tiny: Checkpoint, base: Bundle, profile: Profile, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"profile": profile, "key": None, "out": tmp_path / "out"}
    with pytest.raises(InputError, match="the base has its types already"):
        compile_model(
            str(tiny.folder), adapter=tmp_path, base_bundle=base.folder,
            request=SearchRequest(limits=Limits(max_kl=0.1)), **options,
        )  # fmt: skip


def test_the_command_says_what_either_costs(
    taught: Path, base: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = adapter(tmp_path / "lora", taught, strength=1e-4)
    asked = ["--adapter", str(lora), "--base-bundle", str(base.folder), "--profile", base.manifest.profile]
    out = ["--out", str(tmp_path / "out"), "--keys", str(tmp_path / "keys")]
    assert main([str(taught), *asked, *out]) == 0
    said = capsys.readouterr().out
    assert "apart: " in said
    assert "merged as Q8_0: " in said
    assert "× as much to ship (--merge makes it)" in said
