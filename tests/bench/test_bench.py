"""Bench measures a real bundle in a process of its own and says how far its figures can be believed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fieldlm.bench import bench
from fieldlm.bench.environment import EnvironmentSample, moment, steal_percent
from fieldlm.bench.llama_bench import FIELDS, SAMPLES
from fieldlm.bench.measure import BenchResult, Sample, Spec, measure
from fieldlm.bench.remarks import remarks
from fieldlm.bench.result import Result, interval
from fieldlm.cli.bench import main
from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Reading, engine_kind
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import load_profile
from fieldlm.hardware.bandwidth import Bandwidth, last_cache_mb, read_bandwidth
from fieldlm.hardware.detect import detect
from fieldlm.hardware.energy import EnergyFacts, PowerSensor
from tests.support.machines import sysroot
from tests.support.material import tiny_bundle

QUIET = EnvironmentSample(
    load_average=0.0, temperature_c=None, memory_available_mb=1000, busy_ticks=1000, steal_ticks=10, throttled=0
)
SPEC = Spec(bundle="b", prompt_tokens=512, gen_tokens=128, repetitions=3, threads=4, seed=1)
SAMPLE = Sample(ttft_s=5.1, prefill_s=5.0, prefill_tokens=512, decode_s=16.0, decode_tokens=128, cached_tokens=0)


def result(**changes: Any) -> Result:
    """A calm run on a Pi 5: 8 tokens/s of 1 GB at 10 GB/s are 80 %."""
    measured = changes.pop("measured", None) or BenchResult(
        load_s=1.0,
        samples=changes.pop("samples", (SAMPLE,) * 3),
        before_load_mb=30.0,
        after_load_mb=1000.0,
        peak_mb=1100.0,
        engine_mb={},
        engine_version="",
        system_info="",
        batch=257,
    )
    bandwidth = Bandwidth(
        read_gb_s=10.0,
        samples_gb_s=(10.0,) * len(measured.samples),
        threads=4,
        array_mb=100,
        cache_mb=2.0,
        is_beyond_cache=True,
    )
    calm = Result(
        spec=SPEC,
        measured=measured,
        bandwidth=bandwidth,
        reading=Reading(weights=1_000_000_000, kv_of_token=0, is_exact=True),
        before=QUIET,
        after=QUIET,
    )
    return msgspec.structs.replace(calm, **changes)


def said(changed: Result) -> str:
    return "\n".join(remarks(changed, detect(sysroot("pi-5-8gb"))))


def test_an_interval_holds_its_median_and_comes_out_the_same_each_time() -> None:
    samples = [10.0, 11.0, 9.0, 10.5, 30.0]
    found = interval(samples)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.median == 10.5 <= found.high
    assert found.samples == tuple(samples), "no outlier is dropped"
    assert found == interval(samples)


def test_one_sample_says_nothing_of_its_error() -> None:
    found = interval([7.0])
    assert (found.low, found.median, found.high) == (None, 7.0, None)
    assert found.words() == "7.0 [one run]"


@pytest.mark.parametrize("runs", [2, 3, 5, 10, 20])
def test_an_interval_holds_what_is_measured_nineteen_times_of_twenty(runs: int) -> None:
    draws = np.random.default_rng(1).normal(100.0, 5.0, (4000, runs))
    found = [interval(each) for each in draws.tolist()]
    held = [each.low <= 100.0 <= each.high for each in found if each.low is not None and each.high is not None]
    assert 0.93 <= sum(held) / len(draws) <= 0.97


def test_the_share_of_the_bandwidth_is_bytes_read_by_speed() -> None:
    assert result().decode.median == 8.0
    assert result().bandwidth_percent.median == pytest.approx(80.0)
    deep = result(reading=Reading(weights=1_000_000_000, kv_of_token=1_000_000, is_exact=True))
    assert deep.bandwidth_percent.median == pytest.approx(80.0 * 1.064), (
        "half of the answer's keys and values, on average"
    )


def test_energy_is_told_for_a_token_and_above_idle_or_not_at_all() -> None:
    assert result().joules_per_token is None
    told = result(samples=tuple(msgspec.structs.replace(SAMPLE, decode_j=128.0 * joules) for joules in (5.0, 6.0, 7.0)))
    assert told.joules_per_token is not None
    assert told.joules_per_token.median == pytest.approx(6.0)
    assert told.joules_per_token_above_idle is None, "nobody knows what it takes idle"
    board = EnergyFacts(source="ina219", covers="board", is_sampled=True)
    measured = msgspec.structs.replace(told.measured, idle_w=16.0, energy=board)
    told = msgspec.structs.replace(told, measured=measured)
    assert told.joules_per_token_above_idle is not None
    assert told.joules_per_token_above_idle.median == pytest.approx(6.0 - 16.0 * 16.0 / 128)
    assert said(told) == ""
    short = tuple(msgspec.structs.replace(each, decode_s=0.4) for each in told.measured.samples)
    assert "too short" in said(msgspec.structs.replace(told, measured=msgspec.structs.replace(measured, samples=short)))
    lost = (*told.measured.samples[:2], msgspec.structs.replace(SAMPLE, decode_j=None))
    assert result(samples=lost).joules_per_token is None, "one repetition was not measured"


def test_a_source_of_energy_is_read_around_each_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watts = iter(range(1, 1_000_000))
    sensor = PowerSensor("x", "board", lambda: 1 + next(watts) % 2)
    monkeypatch.setattr("fieldlm.bench.measure.find_energy", lambda: (sensor, ("rapl stands still",)))
    monkeypatch.setattr("fieldlm.bench.measure.IDLE_S", 0.05)
    spec = Spec(bundle="", prompt_tokens=8, gen_tokens=8, repetitions=2, threads=1, seed=1)
    found = measure(tiny_bundle(tmp_path / "b"), spec, on_step=lambda _: None)
    assert found.energy == sensor.facts
    assert found.no_energy == ("rapl stands still",)
    assert found.idle_w is not None
    assert 1.0 <= found.idle_w <= 2.0
    for sample in found.samples:
        assert sample.decode_j is not None
        assert sample.decode_j >= 0.9 * sample.decode_s, "a watt at least, for as long as it took"


def test_a_quiet_run_has_no_remarks() -> None:
    assert said(result()) == ""


def test_a_bundle_is_measured_as_its_profile_has_it_served(base_bundle: Bundle) -> None:
    profile = load_profile("generic-x86-64")
    gguf = msgspec.structs.replace(profile.gguf, kv_k="q8_0", flash_attention=True)
    mapped = msgspec.structs.replace(profile.runtime, mmap=True)
    spec = Spec(
        bundle=str(base_bundle.folder), prompt_tokens=8, gen_tokens=2, repetitions=1, threads=1, seed=1,
        profile=msgspec.structs.replace(profile, gguf=gguf, runtime=mapped),
    )  # fmt: skip
    run = bench.bench(base_bundle, spec, array_mb=64)
    row = bench.document(base_bundle, run, detect())[0]
    assert (row["type_k"], row["type_v"], row["flash_attn"], row["load_mode"]) == ("q8_0", "f16", 1, "mmap")
    assert run.reading.kv_of_token < engine_kind("llama").reading(base_bundle).kv_of_token, "and read less"
    plain = measure(base_bundle, msgspec.structs.replace(spec, profile=None), on_step=lambda done: None)
    assert run.measured.engine_mb["kv"] < 0.8 * plain.engine_mb["kv"], "keys are half as large"


def test_a_test_at_a_depth_computes_what_stands_before_it_once(base_bundle: Bundle) -> None:
    spec = Spec(
        bundle=str(base_bundle.folder), prompt_tokens=24, gen_tokens=3, repetitions=2, threads=1, prefill_threads=2,
        seed=1, depth=40, batch=16, ubatch=8,
    )  # fmt: skip
    found = measure(base_bundle, spec, on_step=lambda _: None)
    assert [(each.cached_tokens, each.prefill_tokens, each.decode_tokens) for each in found.samples] == [
        (40, 24, 3)
    ] * 2
    assert (found.batch, found.ubatch) == (16, 8)
    run = result(spec=spec, measured=found)
    prompt, generation = bench.document(base_bundle, run, detect())
    assert [(row["n_depth"], row["n_threads"], row["n_batch"], row["n_ubatch"]) for row in (prompt, generation)] == [
        (40, 2, 16, 8), (40, 1, 16, 8),
    ]  # fmt: skip
    assert "prefix cache" not in said(run)
    again = tuple(msgspec.structs.replace(each, cached_tokens=0, prefill_tokens=64) for each in found.samples)
    assert "the 40 tokens before a prompt" in said(result(samples=again, spec=spec))
    assert run.bandwidth_percent.median == pytest.approx(
        100 * run.decode.median * run.reading.at_depth(41.5) / 1e9 / run.bandwidth.read_gb_s, rel=0.2
    )


@pytest.mark.parametrize(("prompt", "gen", "name"), [(16, 0, "prefill"), (0, 4, "decode")])
def test_one_test_alone_leaves_the_other_out(prompt: int, gen: int, name: str, base_bundle: Bundle) -> None:
    spec = Spec(bundle="", prompt_tokens=prompt, gen_tokens=gen, repetitions=2, threads=1, seed=1)
    found = measure(base_bundle, spec, on_step=lambda _: None)
    run = result(spec=spec, measured=found)
    (row,) = bench.document(base_bundle, run, detect())
    assert (row["n_prompt"], row["n_gen"]) == (prompt, gen)
    assert (row["fieldlm"]["prefill_tokens_s"] is None) == (name == "decode")
    assert (row["fieldlm"]["bandwidth_percent"] is None) == (name == "prefill")
    shown = bench.describe(base_bundle, run, detect())
    assert f"{name}, {prompt or gen} tokens" in shown
    assert ("time to first token" in shown) == (name == "prefill")


def test_a_prompt_and_its_own_answer_are_one_test(base_bundle: Bundle) -> None:
    spec = Spec(
        bundle="", prompt_tokens=12, gen_tokens=3, repetitions=2, threads=1, seed=1, depth=5, is_combined=True
    )  # fmt: skip
    found = measure(base_bundle, spec, on_step=lambda _: None)
    assert [(each.cached_tokens, each.prefill_tokens, each.decode_tokens) for each in found.samples] == [(5, 12, 3)] * 2
    run = result(spec=spec, measured=found)
    (row,) = bench.document(base_bundle, run, detect())
    assert (row["n_prompt"], row["n_gen"], row["n_depth"]) == (12, 3, 5)
    for nanoseconds, speed, sample in zip(row["samples_ns"], row["samples_ts"], found.samples, strict=True):
        assert nanoseconds == pytest.approx(1e9 * (sample.prefill_s + sample.decode_s), abs=2)
        assert speed == pytest.approx(15e9 / nanoseconds, rel=1e-6)
    assert "both, 12 + 3 tokens at depth 5" in bench.describe(base_bundle, run, detect())
    assert row["fieldlm"]["energy"]["joules_per_token"] is None


def test_an_answer_that_ended_early_is_counted_as_what_came_and_remarked() -> None:
    short = msgspec.structs.replace(SAMPLE, decode_tokens=64, decode_s=8.0)
    run = result(samples=(SAMPLE, short, SAMPLE))
    assert run.decode.samples == (8.0, 8.0, 8.0)
    assert "1 answer ended early, the shortest after 64 tokens" in said(run)


def test_more_than_the_bandwidth_and_less_than_expected_are_remarked() -> None:
    small = Reading(weights=100_000_000, kv_of_token=0, is_exact=True)
    large = Reading(weights=2_000_000_000, kv_of_token=0, is_exact=True)
    assert "8 % of the bandwidth; rpi5-8gb expects 45 % at least" in said(result(reading=small))
    assert "more than there is" in said(result(reading=large))


def test_the_bytes_of_a_step_are_those_of_the_tensor_table(base_bundle: Bundle) -> None:
    kind = engine_kind(base_bundle.manifest.engine)
    found = kind.reading(base_bundle)
    # SmolLM2-135M: 30 layers, 3 KV heads of 64, keys and values in F16.
    assert found.kv_of_token == 30 * 3 * (64 + 64) * 2
    assert found.weights == kind.weight_bytes(base_bundle), "its embedding is its head, so all of it is read"
    assert found.is_exact


def test_the_bandwidth_of_this_machine_is_measured() -> None:
    found = read_bandwidth(2, array_mb=64, rounds=3)
    assert found.read_gb_s == max(found.samples_gb_s) > 0
    assert len(found.samples_gb_s) == 3


def test_the_last_cache_is_found(tmp_path: Path) -> None:
    assert last_cache_mb(tmp_path) == 0
    for number, size in enumerate(("64K", "512K", "2M")):
        index = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{number}"
        index.mkdir(parents=True)
        (index / "size").write_text(f"{size}\n")
    assert last_cache_mb(tmp_path) == pytest.approx(2.097152)


def test_a_machine_that_says_nothing_gives_an_empty_moment(tmp_path: Path) -> None:
    found = moment(tmp_path)
    assert (found.load_average, found.busy_ticks, found.temperature_c, found.throttled) == (0.0, 0, None, None)
    assert steal_percent(found, found) == 0.0


@pytest.fixture(scope="module")
def rows(base_bundle: Bundle) -> list[dict[str, Any]]:
    spec = Spec(bundle=str(base_bundle.folder), prompt_tokens=24, gen_tokens=4, repetitions=2, threads=1, seed=1)
    found = bench.bench(base_bundle, spec, array_mb=64)
    return json.loads(msgspec.json.encode(bench.document(base_bundle, found, detect())))


def test_a_real_run_has_llama_benchs_fields(rows: list[dict[str, Any]]) -> None:
    prompt, generation = rows
    assert list(prompt) == [*FIELDS, *SAMPLES, "fieldlm"]
    assert {name: type(prompt[name]) for name in FIELDS} == FIELDS
    assert (prompt["n_prompt"], prompt["n_gen"]) == (24, 0)
    assert (generation["n_prompt"], generation["n_gen"]) == (0, 4)
    assert len(generation["samples_ns"]) == len(generation["samples_ts"]) == 2
    for nanoseconds, speed in zip(generation["samples_ns"], generation["samples_ts"], strict=True):
        assert speed == pytest.approx(4e9 / nanoseconds, rel=1e-6)
    assert prompt["model_type"] == "llama 135M Q4_1"


def test_a_real_run_records_what_it_was_taken_in(rows: list[dict[str, Any]], base_bundle: Bundle) -> None:
    ours = rows[0]["fieldlm"]
    assert ours["sha256"]["model.gguf"] == base_bundle.manifest.files[0].sha256
    assert ours["environment"]["packages"]["llama-cpp-python"] in rows[0]["build_commit"]
    assert "CPU" in ours["system_info"]
    assert ours["environment"]["facts"]["arch"] in ("x86_64", "aarch64")


def test_a_run_says_what_it_computed_on(rows: list[dict[str, Any]], base_bundle: Bundle) -> None:
    here = {name: rows[0][name] for name in ("backends", "gpu_info", "n_gpu_layers")}
    assert here == {"backends": "CPU", "gpu_info": "", "n_gpu_layers": 0}, "this build of llama.cpp knows no GPU"
    run = result()
    gpu = msgspec.structs.replace(run.measured, gpu="CUDA0 (NVIDIA H200)", gpu_layers=31)
    row = bench.document(base_bundle, msgspec.structs.replace(run, measured=gpu), detect())[0]
    assert (row["backends"], row["gpu_info"], row["n_gpu_layers"]) == ("CUDA", "CUDA0 (NVIDIA H200)", 31)


def test_a_real_run_counts_every_token_and_no_cached_one(rows: list[dict[str, Any]]) -> None:
    for sample in rows[0]["fieldlm"]["samples"]:
        assert sample["prefill_tokens"] + sample["cached_tokens"] == 24
        assert sample["cached_tokens"] <= 2, "prompts are drawn anew"
        assert sample["decode_tokens"] == 4
        assert sample["ttft_s"] >= sample["prefill_s"]


def test_the_peak_of_memory_is_the_bundles_own(rows: list[dict[str, Any]], base_bundle: Bundle) -> None:
    memory_mb = rows[0]["fieldlm"]["memory_mb"]
    assert memory_mb["python"] + base_bundle.manifest.size / 1e6 < memory_mb["peak"] < 700


def test_more_tokens_than_the_model_holds_are_refused_with_the_reason(base_bundle: Bundle) -> None:
    spec = Spec(bundle=str(base_bundle.folder), prompt_tokens=9000, gen_tokens=1, repetitions=1, threads=1, seed=1)
    with pytest.raises(EngineError, match="the model holds 2048 tokens, 9008 are needed"):
        bench.bench(base_bundle, spec, array_mb=64)
    deep = msgspec.structs.replace(spec, prompt_tokens=16, depth=999_999)
    with pytest.raises(EngineError, match="are needed for -d 999999, -p 16, -n 1; ask for fewer"):
        bench.bench(base_bundle, deep, array_mb=64)


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest.json"):
        main([str(tmp_path)])


def test_the_command_prints_rows_alone_where_it_is_asked_to(
    base_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldlm.hardware.bandwidth.last_cache_mb", lambda: 0.0)
    page = tmp_path / "run.html"
    command = [
        str(base_bundle.folder),
        "-p",
        "6,8",
        "-n",
        "2",
        "-r",
        "2",
        "-t",
        "1",
        "-ub",
        "4",
        "-ctk",
        "q8_0",
        "-fa",
        "on",
    ]
    assert main([*command, "-o", "jsonl", "--report", str(page)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(6, 0), (0, 2), (8, 0)]
    for row in rows:
        ran = {name: row[name] for name in ("n_threads", "n_batch", "n_ubatch", "type_k", "flash_attn")}
        assert ran == {"n_threads": 1, "n_batch": 256, "n_ubatch": 4, "type_k": "q8_0", "flash_attn": 1}
    assert page.read_text().count("<svg") == 3


def test_the_command_prints_medians_with_intervals(base_bundle: Bundle) -> None:
    run = result()
    shown = bench.describe(base_bundle, run, detect(sysroot("pi-5-8gb")))
    assert "smollm2-135m-instruct Q4_1, llama, 4 threads, 3 repetitions, on Cortex-A76" in shown
    assert "8.0 [8.0, 8.0]" in shown
    assert "1100" in shown


def test_a_worker_that_was_killed_is_said_to_be(base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = subprocess.Popen
    begun: list[subprocess.Popen[bytes]] = []

    def start(*given: Any, **more: Any) -> subprocess.Popen[bytes]:
        begun.append(real(*given, **more))
        return begun[-1]

    def gone(*_: Any, **__: Any) -> Bandwidth:
        begun[-1].kill()
        begun[-1].wait()
        return Bandwidth(read_gb_s=1.0, samples_gb_s=(1.0,), threads=1, array_mb=1, cache_mb=1.0, is_beyond_cache=False)

    monkeypatch.setattr(bench.subprocess, "Popen", start)
    monkeypatch.setattr(bench, "read_bandwidth", gone)
    spec = Spec(bundle=str(base_bundle.folder), prompt_tokens=8, gen_tokens=8, repetitions=2, threads=1, seed=1)
    with pytest.raises(EngineError, match="ended with -9; -9 means that memory ran out"):
        bench.bench(base_bundle, spec, array_mb=64)
