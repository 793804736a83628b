"""Every machine in `fixtures/sysroots` is recognised, with evidence, from its files alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fieldlm.cli.detect import main
from fieldlm.core.errors import ProfileError
from fieldlm.formats.profile import load_profile
from fieldlm.hardware import sensors
from fieldlm.hardware.cores import physical_cores
from fieldlm.hardware.detect import detect
from fieldlm.hardware.facts import read_facts

SYSROOTS = Path(__file__).parents[1] / "fixtures/sysroots"
MACHINES = sorted(path.parent for path in SYSROOTS.glob("*/expected.json"))


def expected(machine: Path) -> dict[str, Any]:
    return json.loads((machine / "expected.json").read_text())


def test_there_are_machines_enough() -> None:
    assert len(MACHINES) >= 20


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.name)
def test_a_machine_is_recognised(machine: Path) -> None:
    found = detect(machine)
    assert (found.best.id, found.confidence) == (expected(machine)["profile"], expected(machine)["confidence"])


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.name)
def test_the_facts_of_a_machine_are_read(machine: Path) -> None:
    facts = detect(machine).facts
    for name, value in expected(machine)["facts"].items():
        read = facts[name]
        assert (list(read) if isinstance(read, tuple) else read) == value, name


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.name)
def test_every_point_has_a_line_of_evidence(machine: Path) -> None:
    best = detect(machine).matches[0]
    assert bool(best.evidence) == (best.score > 0)


def test_a_board_ruled_out_by_memory_is_named_with_the_reason() -> None:
    found = detect(SYSROOTS / "pi-5-container-2gb")
    reasons = {match.profile: match.ruled_out for match in found.ruled_out}
    assert reasons["rpi5-8gb"] == "the control group allows 2147 MB of 8442; the profile is for 7500 to 20000 MB"


def test_an_architecture_without_a_profile_is_refused_with_the_way_out(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "proc/cpuinfo"
    cpuinfo.parent.mkdir()
    cpuinfo.write_text("processor\t: 0\nisa\t\t: rv64imafdc\n")
    with pytest.raises(ProfileError, match=r"no profile fits this machine .*--profile"):
        detect(tmp_path)


def test_an_empty_folder_gives_empty_facts(tmp_path: Path) -> None:
    facts = read_facts(tmp_path)
    assert (facts.arch, facts.cores, facts.memory_total_mb, facts.isa) == ("", 0, 0, ())


def test_this_machine_is_recognised() -> None:
    found = detect()
    assert found.facts["memory_total_mb"] > 0
    assert found.best.cpu.arch == found.facts["arch"]


def test_detect_prints_the_profile_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sysroot", str(SYSROOTS / "pi-5-8gb")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rpi5-8gb  Raspberry Pi 5, 8 GB or more  (confidence high")
    assert "  /proc/device-tree/model is 'Raspberry Pi 5 Model B Rev 1.0'" in lines


def test_detect_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--sysroot", str(SYSROOTS / "pi-zero-2w")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["profile"] == "pi-zero-2w"
    assert document["facts"]["isa"] == ["neon"]


def test_available_memory_is_what_the_control_group_has_left() -> None:
    # 2 GiB allowed, 512 MiB used of which 100 MiB are file cache.
    assert sensors.memory_available_mb(SYSROOTS / "pi-5-container-2gb") == (2147483648 - 536870912 + 104857600) // 10**6
    assert sensors.memory_available_mb(SYSROOTS / "pi-5-8gb") == 8_245_000 * 3 // 4 * 1024 // 10**6


@pytest.mark.parametrize(
    "machine", [each for each in MACHINES if "threads" in expected(each)], ids=lambda path: path.name
)
def test_a_generic_profile_takes_threads_and_memory_from_the_machine(machine: Path) -> None:
    wanted, best = expected(machine), detect(machine).best
    assert (best.cpu.decode_threads, best.cpu.prefill_threads) == (wanted["threads"], wanted["threads"])
    assert best.memory.model_budget_mb == wanted.get("budget_mb", load_profile(best.id).memory.model_budget_mb)


def test_a_32_bit_system_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    processor = ("processor\t: 0", "model name\t: ARMv7 Processor rev 3 (v7l)", "Features\t: half thumb neon vfpv4")
    (tmp_path / "proc/cpuinfo").write_text("\n".join(processor))
    with pytest.raises(ProfileError, match="linux on a 32-bit system, where 64 bits are needed"):
        detect(tmp_path)


def test_a_board_of_a_known_chip_is_named_when_its_memory_rules_it_out(tmp_path: Path) -> None:
    shutil.copytree(SYSROOTS / "rk3588s-orange-pi-5-8gb", tmp_path, dirs_exist_ok=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal:        3920000 kB\n")
    reasons = {match.profile: match.ruled_out for match in detect(tmp_path).ruled_out}
    assert reasons["rk3588"].startswith("/proc/meminfo has 4014 MB; the profile is for")


@pytest.mark.parametrize(
    "machine", [each for each in MACHINES if "physical_cores" in expected(each)], ids=lambda path: path.name
)
def test_control_groups_of_both_versions_bound_memory_and_cores(machine: Path) -> None:
    wanted = expected(machine)
    assert sensors.memory_available_mb(machine) == wanted["memory_available_mb"]
    assert physical_cores(machine, range(8)) == wanted["physical_cores"]


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
    assert sensors.usable_cores() >= 1
