"""Energy: what the machine measures of its own power, by the first source that is there and that works.

A counter (RAPL) is read when it is asked; a sensor of power (INA3221, INA219, the Pi 5's PMIC, a battery) is sampled in
the background, and the samples are added up as trapezoids. Each source covers something else, the processor or the
whole board, so a figure is told with its source and compared with none of another. Nothing is estimated: where no
source works there is no figure, and the reasons are told.
"""

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from fieldlm.core.tasks import PROCESS
from fieldlm.hardware.limits import LIVE, read_text

SAMPLE_S = 0.1
"""Between two samples. One of the Pi 5's PMIC takes its firmware 23 ms (zeus, raspberry-pi backend)."""
MOST_W = 5000.0
"""What no device this runs on takes: a sensor that says more is broken."""
TRY_S = 0.05
"""A counter that works has moved by then: RAPL counts every millisecond."""
VCGENCMD_S = 2.0
SERVE_S, COUNTER_S = 2.0, 60.0
"""Between two samples of a power sensor while a device serves, and between two looks at a counter, which else may have
gone round unseen."""
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VDD_TOTAL")
"""What Jetson boards call the rail that feeds all others."""
_NO_RAILS = ("NC", "sum of shunt voltages")
_SINGLE_SENSORS = ("ina219", "ina226", "ina231", "ina238", "ina260")
_PMIC = re.compile(r"(\w+?)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]")


@dataclass(frozen=True, kw_only=True)
class EnergyFacts:
    """What a figure of energy is of."""

    source: str
    """rapl, ina3221, …: as the kernel or the firmware calls it."""
    covers: str
    """processor, board, or what is behind the sensor."""
    is_sampled: bool
    """Whether it is the sum of samples of power; a counter misses nothing."""


class EnergySource(Protocol):
    """One way to measure energy."""

    @property
    def facts(self) -> EnergyFacts: ...

    def joules(self) -> float | None:
        """Return what was used since some moment in the past; None when it cannot be read."""
        ...

    def sampling(self) -> contextlib.AbstractContextManager[None]:
        """Return a block for as long as which samples are taken, where it takes any."""
        ...


class Rapl:
    """RAPL's counters (Intel, AMD) of all sockets, and of the memory beside them. Readable for root, mostly.

    See the kernel's Documentation/power/powercap: microjoules that begin anew at `max_energy_range_uj`. A counter that
    is not read for that long (half an hour at full load) has lost a round.
    """

    facts = EnergyFacts(source="rapl", covers="processor", is_sampled=False)

    def __init__(self, root: Path = LIVE) -> None:
        found = sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        self._zones = [zone for zone in found if re.match(r"package-|dram$", read_text(zone, "name"))]
        self._last = dict[Path, int]()
        self._sum_uj = 0
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        return bool(self._zones)

    def joules(self) -> float | None:
        with self._lock:
            for zone in self._zones:
                text = read_text(zone, "energy_uj")
                if not text.isdigit():
                    return None
                now, range_uj = int(text), int(read_text(zone, "max_energy_range_uj") or 0)
                more = now - self._last.get(zone, now)
                self._sum_uj += more if more >= 0 else more + range_uj
                self._last[zone] = now
            return self._sum_uj / 1e6

    @contextmanager
    def sampling(self) -> Generator[None]:
        yield


class PowerSensor:
    """A sensor that says watts, added up over time."""

    def __init__(self, source: str, covers: str, watts: Callable[[], float | None], sample_s: float = SAMPLE_S) -> None:
        self.facts = EnergyFacts(source=source, covers=covers, is_sampled=True)
        self._read = watts
        self._sample_s = sample_s
        self._lock = threading.Lock()
        self._sum_j = 0.0
        self._last: tuple[float, float] | None = None

    def watts(self) -> float | None:
        """Return the power now; None where the sensor is silent, or says what cannot be."""
        watts = self._read()
        return watts if watts is not None and 0 < watts < MOST_W else None

    def joules(self) -> float | None:
        """Take a sample, and return the sum of all since the first."""
        with self._lock:
            watts, now_s = self.watts(), time.monotonic()
            if watts is None:
                self._last = None
                return None
            if self._last is not None:
                at_s, before_w = self._last
                self._sum_j += (watts + before_w) / 2 * (now_s - at_s)
            self._last = now_s, watts
            return self._sum_j

    @contextmanager
    def sampling(self) -> Generator[None]:
        is_over = threading.Event()

        def sample() -> None:
            while not is_over.wait(self._sample_s):
                self.joules()

        sampler = PROCESS.start("energy", sample)
        try:
            yield
        finally:
            is_over.set()
            sampler.join()


class EnergyTotal(NamedTuple):
    """What was used while it was measured: joules, the seconds that they cover, and of what."""

    joules: float
    measured_s: float
    facts: EnergyFacts


class EnergyMeter:
    """The energy of this machine since it was started, for as long as its source says it. Any thread may ask."""

    def __init__(self, find: "Callable[[], tuple[EnergySource | None, tuple[str, ...]]] | None" = None) -> None:
        self._find = find or find_energy
        self._source: EnergySource | None = None
        self._lock = threading.Lock()
        self._last: tuple[float, float] | None = None
        self._joules = self._measured_s = 0.0
        self._watts = 0.0

    def run(self, is_over: threading.Event) -> None:
        """Look for a source, and measure with it until `is_over`; end at once where none works."""
        self._source, _ = self._find()
        if self._source is None:
            return
        self.step()
        while not is_over.wait(SERVE_S if self._source.facts.is_sampled else COUNTER_S):
            self.step()

    def step(self) -> None:
        """Add what was used since the last look, unless it cannot be: a counter that began anew, a silent sensor."""
        if self._source is None:
            return
        with self._lock:
            joules, now_s = self._source.joules(), time.monotonic()
            if joules is not None and self._last is not None:
                used_j, took_s = joules - self._last[1], now_s - self._last[0]
                if 0 <= used_j <= MOST_W * took_s:
                    self._joules += used_j
                    self._measured_s += took_s
                    self._watts = used_j / took_s if took_s else self._watts
            self._last = None if joules is None else (now_s, joules)

    def running_joules(self) -> float | None:
        """Return what was measured until now without waiting for a sensor, None where nothing measures.

        A counter is read. Of a sensor's samples the last power goes on until the next one.
        """
        source = self._source
        if source is None:
            return None
        if not source.facts.is_sampled:
            self.step()
        with self._lock:
            if self._last is None or not self._measured_s:
                return None
            return self._joules + self._watts * source.facts.is_sampled * (time.monotonic() - self._last[0])

    def joules(self) -> float | None:
        """Return what the source counts, since some moment in the past; None where there is none, or not yet."""
        return self._source.joules() if self._source else None

    def total(self) -> EnergyTotal | None:
        """Return what was measured until now; None where nothing was."""
        self.step()
        if self._source is None or not self._measured_s:
            return None
        return EnergyTotal(self._joules, self._measured_s, self._source.facts)


def find_energy(root: Path = LIVE) -> tuple[EnergySource | None, tuple[str, ...]]:
    """Return the best source that works, and why those before it do not.

    What covers the whole board comes before what covers the processor alone. That a sensor is there says little: it has
    to say something that can be, twice.
    """
    reasons: list[str] = []
    for source in _sources(root):
        with source.sampling():
            first = source.joules()
            time.sleep(TRY_S)
            second = source.joules()
        if first is None or second is None:
            reasons.append(f"{source.facts.source} cannot be read, or says what cannot be; try as root")
        elif second <= first:
            reasons.append(f"{source.facts.source} stands still")
        else:
            return source, tuple(reasons)
    return None, tuple(reasons) or ("no sensor of power is here",)


def _sources(root: Path) -> Iterator[EnergySource]:
    yield from _boards(root)
    if root == LIVE and (vcgencmd := shutil.which("vcgencmd")):
        yield PowerSensor("pmic", "board without its 5 V users", lambda: pmic_w(_said(vcgencmd)))
    yield from _batteries(root)
    if (rapl := Rapl(root)).is_there:
        yield rapl


def _boards(root: Path) -> Iterator[PowerSensor]:
    """Yield the sensors that sit in a board's supply."""
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = read_text(chip, "name")
        if name == "ina3221" and (rails := _rails(chip)):
            whole = [rail for rail in rails if rails[rail] in _TOTAL_RAILS]
            covers = "board" if whole else ", ".join(rails.values())
            yield PowerSensor(name, covers, lambda chip=chip, numbers=tuple(whole or rails): _rails_w(chip, numbers))
        elif name in _SINGLE_SENSORS:
            yield PowerSensor(name, "what is behind it", lambda chip=chip: _scaled(chip, "power1_input", 1e-6))


def _rails(chip: Path) -> dict[int, str]:
    """Return the channels of an INA3221 that are connected, by their numbers, with their labels."""
    labels = {n: read_text(chip, f"in{n}_label") for n in (1, 2, 3)}
    return {n: label for n, label in labels.items() if label and label not in _NO_RAILS}


def _rails_w(chip: Path, numbers: tuple[int, ...]) -> float | None:
    """Return the sum of voltage (mV) times current (mA) of some channels."""
    pairs = [(_scaled(chip, f"in{n}_input", 1e-3), _scaled(chip, f"curr{n}_input", 1e-3)) for n in numbers]
    return _sum_of_products(pairs)


def _batteries(root: Path) -> Iterator[PowerSensor]:
    """Yield the batteries that feed this machine now."""
    for battery in sorted((root / "sys/class/power_supply").glob("*")):
        if read_text(battery, "type") == "Battery" and read_text(battery, "status") == "Discharging":
            yield PowerSensor("battery", "whole machine", lambda battery=battery: _battery_w(battery))


def _battery_w(battery: Path) -> float | None:
    if read_text(battery, "status") != "Discharging":
        return None
    power_w = _scaled(battery, "power_now", 1e-6)
    if power_w is not None:
        return power_w
    return _sum_of_products([(_scaled(battery, "voltage_now", 1e-6), _scaled(battery, "current_now", 1e-6))])


def pmic_w(text: str) -> float | None:
    """Return the watts of all rails in what `vcgencmd pmic_read_adc` says on a Raspberry Pi 5.

    It does not see what is fed with 5 V: USB, hats, NVMe drives. A fit to a meter in the supply (jfikar, RPi5-power)
    is 1.1451 W + 0.5879; it is not used here, because it is an estimate.
    """
    read: dict[str, dict[str, float]] = {}
    for rail, unit, value in _PMIC.findall(text):
        read.setdefault(rail, {})[unit] = float(value)
    return _sum_of_products([(both["A"], both["V"]) for both in read.values() if len(both) == 2])


def _said(vcgencmd: str) -> str:
    try:
        command = [vcgencmd, "pmic_read_adc"]
        return subprocess.run(command, capture_output=True, text=True, timeout=VCGENCMD_S, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _sum_of_products(pairs: list[tuple[float | None, float | None]]) -> float | None:
    """Return the watts of voltages and currents; None without any, or where one is missing."""
    known = [abs(left * right) for left, right in pairs if left is not None and right is not None]
    return sum(known) if known and len(known) == len(pairs) else None


def _scaled(folder: Path, name: str, factor: float) -> float | None:
    text = read_text(folder, name)
    return float(text) * factor if re.fullmatch(r"-?\d+", text) else None
