"""Every machine in `fixtures/sysroots` is recognised, with evidence, from its files alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from fieldlm.core.errors import ProfileError
from fieldlm.hardware import detect as hardware
from fieldlm.hardware.detect import detect, detect_main
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
    assert detect_main(["--sysroot", str(SYSROOTS / "pi-5-8gb")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rpi5-8gb  Raspberry Pi 5, 8 GB or more  (confidence high")
    assert "  /proc/device-tree/model is 'Raspberry Pi 5 Model B Rev 1.0'" in lines


def test_detect_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert detect_main(["--json", "--sysroot", str(SYSROOTS / "pi-zero-2w")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["profile"] == "pi-zero-2w"
    assert document["facts"]["isa"] == ["neon"]


def test_available_memory_is_what_the_control_group_has_left() -> None:
    # 2 GiB allowed, 512 MiB used of which 100 MiB are file cache.
    assert (
        hardware.memory_available_mb(SYSROOTS / "pi-5-container-2gb") == (2147483648 - 536870912 + 104857600) // 10**6
    )
    assert hardware.memory_available_mb(SYSROOTS / "pi-5-8gb") == 8_245_000 * 3 // 4 * 1024 // 10**6


def test_the_hottest_sensible_sensor_counts(tmp_path: Path) -> None:
    assert hardware.temperature_c(tmp_path) is None
    for number, degrees in enumerate(("48312", "-274000", "61000", "nonsense", "0")):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "temp").write_text(f"{degrees}\n")
    assert hardware.temperature_c(tmp_path) == 61.0


def test_the_own_process_has_a_size() -> None:
    assert 5 < hardware.rss_mb() <= hardware.peak_rss_mb() + 0.1
    assert hardware.usable_cores() >= 1
