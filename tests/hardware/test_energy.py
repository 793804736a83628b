"""Energy is measured by the first source that works, told with what it covers, and never guessed."""

import contextlib
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.api.metrics import energy_readings
from fieldlm.hardware.energy import EnergyFacts, EnergyMeter, PowerSensor, Rapl, find_energy, pmic_w

RAPL = "sys/class/powercap"
HWMON = "sys/class/hwmon/hwmon3"
# As a Raspberry Pi 5 says it; EXT5V and BATT have a voltage and no current.
PMIC = """
     3V7_WL_SW_A current(0)=0.00390372A
       3V3_SYS_A current(1)=0.06245952A
      VDD_CORE_A current(7)=1.36800000A
     3V7_WL_SW_V volt(8)=3.71967700V
       3V3_SYS_V volt(9)=3.31125800V
      VDD_CORE_V volt(15)=0.72065250V
        EXT5V_V volt(24)=5.12472000V
         BATT_V volt(25)=0.00000000V
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def rapl(root: Path, *, package: int = 5_000_000, dram: int = 1_000_000) -> None:
    write(
        root,
        {
            f"{RAPL}/intel-rapl:0/name": "package-0",
            f"{RAPL}/intel-rapl:0/energy_uj": str(package),
            f"{RAPL}/intel-rapl:0/max_energy_range_uj": "10000000",
            f"{RAPL}/intel-rapl:0:0/name": "core",
            f"{RAPL}/intel-rapl:0:0/energy_uj": "777",
            f"{RAPL}/intel-rapl:0:1/name": "dram",
            f"{RAPL}/intel-rapl:0:1/energy_uj": str(dram),
            f"{RAPL}/intel-rapl:0:1/max_energy_range_uj": "20000000",
        },
    )


def jetson(root: Path, *, labels: tuple[str, str, str] = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")) -> None:
    files = {f"{HWMON}/name": "ina3221"}
    for number, label in enumerate(labels, 1):
        files |= {
            f"{HWMON}/in{number}_label": label,
            f"{HWMON}/in{number}_input": "5000",
            f"{HWMON}/curr{number}_input": str(number * 1000),
        }
    write(root, files)


def watts_of(root: Path) -> float | None:
    source, _ = find_energy(root)
    assert isinstance(source, PowerSensor)
    return source.watts()


def test_a_counter_of_packages_and_memory_goes_on_when_it_begins_anew(tmp_path: Path) -> None:
    rapl(tmp_path, package=9_000_000)
    counter = Rapl(tmp_path)
    assert counter.joules() == 0.0
    rapl(tmp_path, package=9_500_000, dram=1_250_000)
    assert counter.joules() == pytest.approx(0.75)
    rapl(tmp_path, package=250_000, dram=1_250_000)
    assert counter.joules() == pytest.approx(1.5), "it has passed its range of 10 J"


def test_a_counter_that_moves_is_taken(tmp_path: Path) -> None:
    rapl(tmp_path)
    is_over = threading.Event()

    def count() -> None:
        path, now = tmp_path / f"{RAPL}/intel-rapl:0/energy_uj", 5_000_000
        while not is_over.is_set():
            now += 1000
            part = path.with_name("part")
            part.write_text(f"{now}\n")
            part.replace(path)
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        source, reasons = find_energy(tmp_path)
    finally:
        is_over.set()
        thread.join()
    assert source is not None, reasons
    assert (source.facts.source, source.facts.covers, source.facts.is_sampled) == ("rapl", "processor", False)


@pytest.mark.parametrize(("text", "why"), [("5000000", "stands still"), ("", "cannot be read")])
def test_a_counter_that_is_there_and_does_not_count_is_none(tmp_path: Path, text: str, why: str) -> None:
    rapl(tmp_path)
    write(tmp_path, {f"{RAPL}/intel-rapl:0/energy_uj": text})
    source, reasons = find_energy(tmp_path)
    assert source is None
    assert why in reasons[0]


def test_a_jetsons_input_rail_is_the_board(tmp_path: Path) -> None:
    jetson(tmp_path)
    source, _ = find_energy(tmp_path)
    assert source is not None
    assert (source.facts.source, source.facts.covers) == ("ina3221", "board")
    assert watts_of(tmp_path) == pytest.approx(5.0), "not the rails behind it a second time"


def test_rails_without_a_common_one_are_added_up_and_named(tmp_path: Path) -> None:
    jetson(tmp_path, labels=("VDD_CPU", "NC", "VDD_SOC"))
    source, _ = find_energy(tmp_path)
    assert source is not None
    assert source.facts.covers == "VDD_CPU, VDD_SOC"
    assert watts_of(tmp_path) == pytest.approx(5.0 + 15.0)


def test_a_sensor_on_one_wire_says_watts(tmp_path: Path) -> None:
    write(tmp_path, {f"{HWMON}/name": "ina219", f"{HWMON}/power1_input": "4200000"})
    assert watts_of(tmp_path) == pytest.approx(4.2)


@pytest.mark.parametrize("power", ["0", "-1000000", "9999000000", "nan", ""])
def test_a_sensor_that_says_what_cannot_be_is_passed_over(tmp_path: Path, power: str) -> None:
    write(tmp_path, {f"{HWMON}/name": "ina219", f"{HWMON}/power1_input": power})
    source, reasons = find_energy(tmp_path)
    assert source is None
    assert "ina219" in reasons[0]


def test_a_battery_counts_while_it_feeds_the_machine(tmp_path: Path) -> None:
    battery = "sys/class/power_supply/BAT0"
    write(tmp_path, {f"{battery}/type": "Battery", f"{battery}/status": "Discharging"})
    write(tmp_path, {f"{battery}/voltage_now": "12000000", f"{battery}/current_now": "500000"})
    assert watts_of(tmp_path) == pytest.approx(6.0)
    write(tmp_path, {f"{battery}/status": "Charging"})
    assert find_energy(tmp_path) == (None, ("no sensor of power is here",))


def test_the_pi_5_says_its_rails() -> None:
    expected = 0.00390372 * 3.71967700 + 0.06245952 * 3.31125800 + 1.36800000 * 0.72065250
    assert pmic_w(PMIC) == pytest.approx(expected)
    assert pmic_w("") is None
    assert pmic_w("Command not registered") is None


def test_samples_are_added_up_as_trapezoids() -> None:
    said = iter([10.0, 20.0, 20.0])
    sensor = PowerSensor("x", "board", lambda: next(said))
    moments = [time.monotonic()]
    sums: list[float] = []
    for _ in range(3):
        joules = sensor.joules()
        assert joules is not None
        sums.append(joules)
        moments.append(time.monotonic())
        time.sleep(0.03)
    assert sums[0] == 0.0
    least_s = 0.03
    assert 15.0 * least_s <= sums[1] <= 15.0 * (moments[2] - moments[0])
    assert 20.0 * least_s <= sums[2] - sums[1] <= 20.0 * (moments[3] - moments[1])


def test_samples_are_taken_while_others_compute() -> None:
    taken = threading.Semaphore(0)

    def watts() -> float:
        taken.release()
        return 3.0

    sensor = PowerSensor("x", "board", watts, sample_s=0.001)
    with sensor.sampling():
        for _ in range(5):
            assert taken.acquire(timeout=60)


class Counter:
    """A source that says what it is told to."""

    facts = EnergyFacts(source="rapl", covers="processor", is_sampled=False)

    def __init__(self) -> None:
        self.now_j: float | None = 100.0

    def joules(self) -> float | None:
        return self.now_j

    @contextlib.contextmanager
    def sampling(self) -> Generator[None]:
        yield


def test_a_meter_adds_up_what_is_said_and_for_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 10.0, 20.0, 30.0, 40.0, 50.0))
    monkeypatch.setattr("fieldlm.hardware.energy.time.monotonic", lambda: next(clock))
    counter, is_over = Counter(), threading.Event()
    is_over.set()
    meter = EnergyMeter(lambda: (counter, ()))
    assert meter.total() is None, "nobody has looked for a source yet"
    meter.run(is_over)
    counter.now_j = 150.0
    assert meter.total() == (50.0, 10.0, counter.facts)
    counter.now_j = None
    assert meter.total() == (50.0, 10.0, counter.facts), "it is silent: neither joules nor seconds"
    counter.now_j = 400.0
    assert meter.total() == (50.0, 10.0, counter.facts), "what was used meanwhile nobody knows"
    counter.now_j = 260_000.0
    assert meter.total() == (50.0, 10.0, counter.facts), "26 kW: the counter began anew while the machine slept"
    counter.now_j = 260_020.0
    assert meter.total() == (70.0, 20.0, counter.facts)


def test_a_machine_without_a_sensor_has_no_energy() -> None:
    meter = EnergyMeter(lambda: (None, ("no sensor of power is here",)))
    meter.run(threading.Event())
    assert meter.total() is None
    assert list(energy_readings(meter)) == []


def test_energy_is_told_on_metrics_with_what_it_covers(tmp_path: Path) -> None:
    write(tmp_path, {f"{HWMON}/name": "ina219", f"{HWMON}/power1_input": "3500000"})
    meter, is_over = EnergyMeter(lambda: find_energy(tmp_path)), threading.Event()
    is_over.set()
    meter.run(is_over)
    time.sleep(0.05)
    read = {name: (labels, value) for name, _, labels, value in energy_readings(meter)}
    labels, joules = read["fieldlm_energy_joules_total"]
    assert labels == {"source": "ina219", "covers": "what is behind it"}
    assert joules == pytest.approx(3.5 * read["fieldlm_energy_measured_seconds_total"][1], rel=0.05)
