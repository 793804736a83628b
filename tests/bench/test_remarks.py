"""What was seen beside a run voids or qualifies it: each thing alone, on a machine that is otherwise at rest."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fieldlm.bench.environment import EnvironmentSample, moment, steal_percent
from fieldlm.bench.remarks import fall_of, findings, remarks
from fieldlm.bench.result import Result
from fieldlm.hardware.detect import detect
from tests.bench.test_bench import SAMPLE, result
from tests.support.machines import sysroot

PI_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
INTEL = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
SPENT_S = 10.0
QUIET = {
    "proc/loadavg": "0.02 0.1 0.1 1/100 1",
    "proc/stat": "cpu 1000 0 0 9000 0 0 0 10 0 0",
    "proc/pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000",
    "proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 total=0",
    "proc/vmstat": "pgpgin 5\npswpin 0\npswpout 0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "55000",
    "sys/class/power_supply/BAT0/status": "Full",
    "sys/fs/cgroup/cpu.stat": "nr_periods 9\nnr_throttled 0",
    PI_FIRMWARE: "0",
    INTEL: "3",
}
# What changes until the end, what is said then, and whether the figures are void for it.
SEEN = [
    ({"proc/loadavg": "9.50 1.0 1.0 1/100 1"}, "load 9.5 at the end with 4 threads of ours", False),
    ({"proc/stat": "cpu 1500 0 0 9400 0 0 0 60 0 0"}, "the hypervisor took 5 % of the CPU", False),
    ({"proc/stat": "cpu 1500 0 0 9300 0 0 0 210 0 0"}, "the hypervisor took 20 % of the CPU", True),
    ({"proc/pressure/cpu": "some avg10=30.00 total=4000000"}, "30 % of the time: neighbours, or more threads", True),
    ({"proc/pressure/memory": "some avg10=9.00 total=1000000"}, "waited for memory 10 % of the time", True),
    ({"proc/vmstat": "pswpin 5000\npswpout 5000"}, "MB went to swap or came back", True),
    ({"sys/class/thermal/thermal_zone0/temp": "86200"}, "86 °C; rpi5-8gb throttles from 80 °C", False),
    ({"sys/class/power_supply/BAT0/status": "Discharging"}, "on battery", False),
    ({"sys/fs/cgroup/cpu.stat": "nr_periods 99\nnr_throttled 7"}, "CPU quota stopped it 7 times", True),
    ({INTEL: "5"}, "the CPU was throttled by heat", True),
    ({PI_FIRMWARE: "1"}, "Raspberry Pi's firmware says: its voltage was too low", True),
    ({PI_FIRMWARE: "10000"}, "Raspberry Pi's firmware says: its voltage was too low", True),
    ({PI_FIRMWARE: "20000"}, "Raspberry Pi's firmware says: the clock was capped", True),
    ({PI_FIRMWARE: "0x40000"}, "Raspberry Pi's firmware says: the firmware throttled", True),
    ({PI_FIRMWARE: "8"}, "Raspberry Pi's firmware says: it was hot", True),
]  # fmt: skip


def looked_at(root: Path, files: dict[str, str]) -> EnvironmentSample:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return msgspec.structs.replace(moment(root), at_s=0.0)


def seen(root: Path, changes: dict[str, str]) -> Result:
    """Return a calm run on a Pi 5 beside which the machine became what `changes` say."""
    before = looked_at(root, QUIET)
    return result(before=before, after=msgspec.structs.replace(looked_at(root, changes), at_s=SPENT_S))


def said(changed: Result) -> list[str]:
    return remarks(changed, detect(sysroot("pi-5-8gb")))


def test_a_machine_at_rest_is_not_remarked_on(tmp_path: Path) -> None:
    assert said(seen(tmp_path, QUIET)) == []


@pytest.mark.parametrize(("changes", "words", "voids"), SEEN)
def test_each_thing_alone_is_said_and_voids_or_qualifies(
    changes: dict[str, str], words: str, voids: bool, tmp_path: Path
) -> None:
    (found,) = findings(seen(tmp_path, changes), detect(sysroot("pi-5-8gb")))
    assert words in found.words
    assert found.voids is voids
    assert str(found).startswith("void: ") is voids


def test_what_was_so_before_the_run_is_not_held_against_it(tmp_path: Path) -> None:
    before = looked_at(tmp_path, {**QUIET, PI_FIRMWARE: "e0000", INTEL: "9"})
    assert said(result(before=before, after=before)) == []
    assert said(result(before=msgspec.structs.replace(before, load_average=2.0), after=before)) == [
        "load 2.0 before the start: others were computing"
    ]


def test_what_voids_is_said_first(tmp_path: Path) -> None:
    words = said(seen(tmp_path, {"proc/loadavg": "9.50 1 1 1/1 1", PI_FIRMWARE: "4"}))
    assert [line.startswith("void: ") for line in words] == [True, False]


def test_shares_are_of_the_time_between(tmp_path: Path) -> None:
    run = seen(tmp_path, {"proc/stat": "cpu 1500 0 0 9300 0 0 0 210 0 0"})
    assert steal_percent(run.before, run.after) == 20.0


@pytest.mark.parametrize(
    ("speeds", "falls"),
    [
        ((32.7, 31.0, 30.1, 28.9, 28.0), True),
        ((30.0, 31.0, 29.0, 30.5, 30.0), False),
        ((28.0, 28.9, 30.1, 31.0, 32.7), False),
        ((30.0, 28.0), False),
        ((30.0, 30.0, 30.0), False),
        ((30.0, 29.0, 28.0), True),
        ((30.0, 28.9, 28.5), False),
    ],
)
def test_speed_that_falls_from_run_to_run_is_void(speeds: tuple[float, ...], falls: bool) -> None:
    of_decode = tuple(msgspec.structs.replace(SAMPLE, decode_s=128 / speed) for speed in speeds)
    of_prefill = tuple(msgspec.structs.replace(SAMPLE, prefill_s=512 / speed) for speed in speeds)
    for name, samples in (("decode", of_decode), ("prefill", of_prefill)):
        words = [line for line in said(result(samples=samples)) if line.startswith(f"void: {name} fell by")]
        assert len(words) == falls


def test_chance_makes_one_in_twenty_fall() -> None:
    for runs in (3, 5, 10):
        draws = np.random.default_rng(3).normal(30.0, 3.0, (2000, runs)).tolist()
        assert sum(fall_of(tuple(each)) > 0 for each in draws) / len(draws) < 0.065


def test_clocks_that_fall_between_runs_are_remarked() -> None:
    clocks = tuple(msgspec.structs.replace(SAMPLE, clock_mhz=mhz) for mhz in (2400.0, 2400.0, 1500.0))
    assert said(result(samples=clocks)) == ["void: the clock fell from 2400 to 1500 MHz between repetitions"]
