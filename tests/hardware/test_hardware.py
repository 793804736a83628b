"""Every machine in `fixtures/machines` is known for what it is, with evidence, from its files alone."""

import functools
import json
import platform
import struct
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli import profiles
from fieldlm.cli.detect import main
from fieldlm.core.errors import ProfileError
from fieldlm.formats.profile import load_profile, profile_names
from fieldlm.hardware import facts as facts_module
from fieldlm.hardware import sensors
from fieldlm.hardware.cores import physical_cores
from fieldlm.hardware.detect import Detection, as_large_as, detect
from fieldlm.hardware.facts import read_facts
from fieldlm.hardware.limits import allowed_cpus, cpu_list
from tests.support.machines import machine_names, materialise, read_machine, sysroot

KNOWN = [name for name in machine_names() if "refused" not in read_machine(name)["expect"]]


def expected(name: str) -> dict[str, Any]:
    return read_machine(name)["expect"]


@functools.cache
def found_of(name: str) -> Detection:
    return detect(sysroot(name))


def read(name: str) -> dict[str, Any]:
    """Return what fieldlm says of a machine, by the names that its file expects it under."""
    found = found_of(name)
    best, facts = found.best, found.facts
    return {
        "profile": best.id,
        "confidence": found.confidence,
        "name": facts["cpu_name"],
        "cores": facts["cores"],
        "big_cores": facts["big_cores"],
        "usable_cores": facts["usable_cores"],
        "threads": best.cpu.decode_threads,
        "memory_mb": facts["memory_mb"],
        "available_mb": sensors.memory_available_mb(sysroot(name)),
        "budget_mb": best.memory.model_budget_mb,
        "idle": [each.name for each in found.idle],
    }


def test_there_are_machines_enough_and_each_says_what_of_it_is_real() -> None:
    assert len(machine_names()) >= 100
    assert all(read_machine(name)["recorded"] or read_machine(name)["composed"] for name in machine_names())
    assert sum(bool(read_machine(name)["recorded"]) for name in machine_names()) >= 40


@pytest.mark.parametrize("name", KNOWN)
def test_a_machine_is_known_for_what_it_is(name: str) -> None:
    wanted, facts = expected(name), found_of(name).facts
    assert read(name) == {key: value for key, value in wanted.items() if key != "facts"}
    for key, value in wanted.get("facts", {}).items():
        assert (list(facts[key]) if isinstance(facts[key], tuple) else facts[key]) == value, key


@pytest.mark.parametrize("name", KNOWN)
def test_every_point_has_a_line_of_evidence(name: str) -> None:
    best = found_of(name).matches[0]
    assert bool(best.evidence) == (best.score > 0)


@pytest.mark.parametrize("name", sorted(set(machine_names()) - set(KNOWN)))
def test_a_machine_that_nothing_is_for_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ProfileError, match=expected(name)["refused"]) as refused:
        detect(sysroot(name))
    assert "\n" not in str(refused.value)


def test_every_profile_is_some_machines() -> None:
    recognised = {expected(name)["profile"] for name in KNOWN}
    assert set(profile_names()) == recognised


@pytest.mark.parametrize("name", KNOWN)
def test_what_fits_a_machine_asks_for_nothing_that_it_has_not(name: str) -> None:
    best, facts = found_of(name).best, read_facts(sysroot(name))
    if facts.cores:
        assert facts.memory_total_mb >= best.memory.model_budget_mb
        assert facts.memory_mb >= 0.7 * best.memory.model_budget_mb
        assert set(best.cpu.isa if best.generic else ()) <= set(facts.isa)


def test_a_board_ruled_out_by_memory_is_named_with_the_reason() -> None:
    reasons = {match.profile: match.ruled_out for match in detect(sysroot("pi-5-container-2gb")).ruled_out}
    assert reasons["rpi5-8gb"] == "the control group allows 2147 MB of 8442; the profile is for 7500 to 20000 MB"


def test_a_board_of_a_known_chip_is_named_when_its_memory_rules_it_out(tmp_path: Path) -> None:
    machine = read_machine("rk3588s-orange-pi-5-8gb") | {"memory": {"total_kb": 1_960_000}}
    reasons = {match.profile: match.ruled_out for match in detect(materialise(machine, tmp_path)).ruled_out}
    assert reasons["rk3588"].startswith("/proc/meminfo has 2007 MB; the profile is for")


def test_of_two_profiles_that_fit_the_closer_one_is_taken_unless_a_bundle_was_made_for_the_other() -> None:
    root = sysroot("pi-5-16gb")
    assert detect(root).best.id == "rpi5-16gb"
    assert detect(root, made_for="rpi5-8gb").best == load_profile("rpi5-8gb")
    assert detect(root, made_for="rpi4-8gb").best.id == "rpi5-16gb", "that one does not fit"
    generic = detect(root, made_for="generic-aarch64-dotprod")
    assert (generic.best.id, generic.confidence) == ("generic-aarch64-dotprod", "low")


def test_an_architecture_without_a_profile_is_refused_with_the_way_out() -> None:
    with pytest.raises(ProfileError, match=r"no profile fits this machine .*--profile"):
        detect(sysroot("visionfive2-riscv"))


@pytest.mark.parametrize("name", ["pi-4-4gb-32bit", "armv7-two-cores"])
def test_a_32_bit_system_is_said_to_be_one_with_what_to_do(name: str) -> None:
    with pytest.raises(ProfileError, match=r"this is a 32-bit system, .*; install the 64-bit version"):
        detect(sysroot(name))


def as_live(monkeypatch: pytest.MonkeyPatch, name: str, machine: str) -> Path:
    """Let the files of a machine be those of this one, whose kernel says `machine`."""
    root = sysroot(name)
    monkeypatch.setattr(facts_module, "LIVE", root)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    return root


def test_an_emulated_system_is_what_its_kernel_says_and_not_what_cpuinfo_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_live(monkeypatch, "desktop-avx2", "aarch64")
    facts = read_facts(root)
    assert (facts.arch, facts.cpu_name, facts.isa) == ("aarch64", "", ("neon",))
    assert detect(root).best.id == "generic-aarch64"


def test_a_32_bit_python_on_a_64_bit_kernel_is_a_32_bit_system(monkeypatch: pytest.MonkeyPatch) -> None:
    root = as_live(monkeypatch, "pi-5-8gb", "aarch64")
    assert detect(root).best.id == "rpi5-8gb"
    monkeypatch.setattr(struct, "calcsize", {"P": 4}.get)
    with pytest.raises(ProfileError, match="32-bit system"):
        detect(root)


def test_an_empty_folder_gives_empty_facts(tmp_path: Path) -> None:
    facts = read_facts(tmp_path)
    assert (facts.arch, facts.cores, facts.memory_total_mb, facts.isa) == ("", 0, 0, ())


def test_this_machine_is_recognised() -> None:
    found = detect()
    assert found.facts["memory_total_mb"] > 0
    assert found.best.cpu.arch == found.facts["arch"]
    assert found.facts["usable_cores"] == physical_cores()


def shown(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    assert main(["--sysroot", str(sysroot(name))]) == 0
    return capsys.readouterr().out.splitlines()


def profiled(capsys: pytest.CaptureFixture[str], name: str) -> list[str]:
    assert profiles.main([name]) == 0
    return capsys.readouterr().out.splitlines()


def test_detect_prints_the_profile_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "pi-5-8gb")
    assert lines[0].startswith("rpi5-8gb  Raspberry Pi 5, 8 GB or more  (confidence high")
    assert "  /proc/device-tree/model is 'Raspberry Pi 5 Model B Rev 1.0'" in lines
    assert not [line for line in lines if line.startswith(("idle", "ruled out"))]


def test_detect_says_what_lies_idle_and_what_would_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    (gpu,) = (line for line in shown(capsys, "workstation-rtx4090") if line.startswith("idle"))
    assert gpu.startswith("idle: NVIDIA GeForce RTX 4090 (gpu); it takes llama.cpp built with")
    assert gpu.endswith("a profile that promises it (docs/gpu.md)")
    (nouveau,) = (line for line in shown(capsys, "desktop-nouveau-gtx1060") if line.startswith("idle"))
    assert "it takes NVIDIA's own driver" in nouveau
    npu = [line for line in shown(capsys, "orangepi-5-4gb") if "RKNPU" in line]
    assert npu == ["idle: RKNPU, 6 TOPS (npu); it takes RKLLM, with Rockchip's own kernel (airockchip/rknn-llm)"]


def test_a_machine_that_no_profile_names_is_told_why_those_of_its_name_do_not_fit(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    machine = read_machine("pi-5-8gb") | {"memory": {"total_kb": 2_900_000}}
    assert main(["--sysroot", str(materialise(machine, tmp_path))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "ruled out: rpi5-4gb: /proc/meminfo has 2969 MB; the profile is for 3500 to 4400 MB" in lines
    (taken,) = (line for line in lines if line.startswith("takes"))
    own = "takes from the machine: cpu.decode_threads 4, memory.model_budget_mb 1900; "
    assert taken.startswith(own)
    profile, _, numbers = taken.removeprefix(own).partition(" itself says ")
    told = [line.split() for line in profiled(capsys, profile) if line.startswith(("cpu.decode_th", "memory.model_b"))]
    assert [value for _, value, *_ in told] == [f"{number}*" for number in numbers.split(", ")]
    assert "* each machine has its own, which `fieldlm detect` says there" in profiled(capsys, profile)[-1]


def test_a_machine_whose_profile_leaves_nothing_open_has_one_budget(capsys: pytest.CaptureFixture[str]) -> None:
    """Of one with a GPU, too, that llama.cpp computes on: its memory is what counts."""
    for machine in ("pi-5-8gb", "laptop-nvidia-rtx4060"):
        lines = shown(capsys, machine)
        assert not [line for line in lines if line.startswith("takes")], machine
        assert not [line for line in profiled(capsys, lines[0].split()[0]) if "*" in line], machine


def test_detect_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--sysroot", str(sysroot("pi-5-16gb-hailo"))]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["profile"] == "rpi5-16gb"
    assert document["facts"]["isa"] == ["neon", "dotprod", "fp16"]
    assert [each["name"] for each in document["idle"]] == ["Hailo", "VideoCore"]
    assert document["taken"] == {}


def test_a_profile_that_leaves_cores_and_memory_open_takes_the_machines() -> None:
    generic, found = load_profile("generic-x86-64-avx2"), detect(sysroot("workstation-rtx4090")).best
    assert (generic.cpu.decode_threads, generic.memory.model_budget_mb) == (2, 2500)
    assert (found.cpu.decode_threads, found.cpu.prefill_threads) == (8, 8)
    assert found.memory.model_budget_mb == 51_000
    assert "avx512_vnni" in found.cpu.isa
    board = load_profile("rpi5-8gb")
    assert as_large_as(board, read_facts(sysroot("rk3588-rock-5b-16gb"))) == board, "a board knows its size"
    gpu = load_profile("laptop-nvidia")
    assert as_large_as(gpu, read_facts(sysroot("laptop-nvidia-rtx4060"))) == gpu, "its memory is the GPU's"


def test_a_few_megabytes_more_or_less_make_no_other_profile(tmp_path: Path) -> None:
    machine = read_machine("desktop-avx2")
    sizes = [machine | {"memory": {"total_kb": total_kb}} for total_kb in (16_000_000, 16_001_200, 15_998_000)]
    found = [detect(materialise(each, tmp_path / str(number))).best for number, each in enumerate(sizes)]
    assert found[0] == found[1] == found[2]


def test_little_memory_means_fewer_and_shorter_answers(tmp_path: Path) -> None:
    machine = read_machine("desktop-avx2")
    small = detect(materialise(machine | {"memory": {"total_kb": 1_200_000}}, tmp_path)).best
    assert (small.memory.model_budget_mb, small.runtime.parallel, small.gguf.context) == (180, 1, 2048)


def test_swap_is_no_room() -> None:
    # 1 GiB allowed, 800 MB used of which 10 MB are file cache; as much swap as one likes.
    assert sensors.memory_available_mb(sysroot("docker-v2-swap")) == (2**30 - 800_000_000 + 10_000_000) // 10**6


@pytest.mark.parametrize(
    ("name", "cpus"),
    [
        ("docker-v2-cpuset", {0, 2, 3}),
        ("systemd-v1-cpuset", {4, 5}),
        ("taskset-two", {1, 2}),
        ("docker-cgroup-v1", None),
    ],
)
def test_affinity_and_cpusets_of_both_versions_are_read(name: str, cpus: set[int] | None) -> None:
    assert allowed_cpus(sysroot(name)) == cpus


def test_a_list_of_processors_is_read_as_the_kernel_writes_it() -> None:
    assert cpu_list("0-3,8,10-11") == {0, 1, 2, 3, 8, 10, 11}
    assert cpu_list("") == cpu_list("nonsense") == set()


def test_the_hottest_sensible_sensor_counts(tmp_path: Path) -> None:
    assert sensors.temperature_c(tmp_path) is None
    for number, degrees in enumerate(("48312", "-274000", "61000", "nonsense", "0")):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(f"{degrees}\n")
    assert sensors.temperature_c(tmp_path) == 61.0


def test_the_zones_of_a_profile_count_before_a_hot_drive(tmp_path: Path) -> None:
    for number, (kind, degrees) in enumerate((("cpu-thermal", 51000), ("gpu-thermal", 55000), ("nvme", 78000))):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{degrees}\n")
    assert sensors.temperature_c(tmp_path, ("cpu-thermal", "gpu-thermal")) == 55.0
    assert sensors.temperature_c(tmp_path, ("cpu-thermal",)) == 51.0
    assert sensors.temperature_c(tmp_path, ("tj-thermal",)) == 78.0, "a kernel that names its zones otherwise"
    assert sensors.temperature_c(tmp_path) == 78.0


def test_the_own_process_has_a_size() -> None:
    assert 5 < sensors.rss_mb() <= sensors.peak_rss_mb() + 0.1
    assert physical_cores() >= 1
