"""A board that heats up as physics has it, in files as the kernel has them: the governor keeps it below the limit."""

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fieldlm.api.metrics import governor_readings
from fieldlm.engines import EngineOptions, Sampling, Schedule
from fieldlm.engines.llama import LlamaEngine
from fieldlm.hardware.energy import Rapl
from fieldlm.hardware.governor import DUTIES, GOVERNOR, Governor

THROTTLE_C = 80.0
THREADS = 4
SPEEDS = (0.0, 6.0, 9.0, 10.0, 10.5)
"""Tokens a second with so many threads: decoding waits for memory."""


@dataclass
class DueRequest:
    """An answer with a deadline."""

    due_s: float = math.inf
    count: int = 1
    most_left: int = 100


@dataclass
class Board:
    """A processor of first order: `resistance` degrees a watt in the end, of which it has gone 63 % after `tau_s`."""

    root: Path
    resistance: float = 7.0
    tau_s: float = 30.0
    idle_w: float = 2.0
    thread_w: float = 2.0
    awake_w: float = 0.0
    """Taken by what all threads share, as long as one computes."""
    now_s: float = 0.0
    used_j: float = 0.0
    ambient_c: float = 30.0
    temperature_c: float = 30.0
    powers: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    hottest_c: float = 0.0
    written_s: float = 0.0
    tokens: int = 0

    def pass_time(self, seconds: float, threads: int) -> None:
        watts = self.idle_w + self.thread_w * threads + (self.awake_w if threads else 0.0)
        end_c = self.ambient_c + self.resistance * watts
        self.temperature_c = end_c + (self.temperature_c - end_c) * math.exp(-seconds / self.tau_s)
        self.now_s += seconds
        self.used_j += watts * seconds
        self.powers.append((seconds, watts))
        self.hottest_c = max(self.hottest_c, self.temperature_c)
        if self.now_s >= self.written_s + 0.2:  # the governor looks once a second
            self.write_files()

    def write_files(self) -> None:
        self.written_s = self.now_s
        self._write("sys/class/thermal/thermal_zone0/temp", int(1000 * self.temperature_c))
        self._write("sys/class/powercap/intel-rapl:0/energy_uj", int(1e6 * self.used_j))

    def begin(self) -> None:
        self._write("sys/class/thermal/thermal_zone0/type", "cpu-thermal")
        self._write("sys/class/powercap/intel-rapl:0/name", "package-0")
        self._write("sys/class/powercap/intel-rapl:0/max_energy_range_uj", 10**15)
        self.write_files()

    def decode(self, governor: Governor, seconds: float, asked: Sequence[DueRequest] = ()) -> list[int]:
        """Decode for so long; returns the threads of each token."""
        end_s, used = self.now_s + seconds, list[int]()
        while self.now_s < end_s:
            threads = governor.threads(THREADS, asked)
            took_s = 1 / SPEEDS[threads]
            self.pass_time(took_s, threads)
            self.tokens += 1
            used.append(threads)
            if (rest_s := governor.rest_s(took_s, 1)) > 0:
                self.pass_time(rest_s, 0)
        return used

    def watts(self, last_s: float) -> float:
        """Return the mean power of the last seconds."""
        joules = passed_s = 0.0
        for seconds, watts in reversed(self.powers):
            joules, passed_s = joules + seconds * watts, passed_s + seconds
            if passed_s >= last_s:
                break
        return joules / passed_s

    def _write(self, name: str, value: object) -> None:
        path = self.root / name
        if not self.written_s:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    made = Board(tmp_path)
    made.begin()
    return made


def governor_of(board: Board, *, throttle_c: float | None = None, max_watts: float = 0.0) -> Governor:
    made = Governor()
    meter = Rapl(board.root)
    made.limit(
        throttle_c=throttle_c,
        zones=("cpu-thermal",),
        max_watts=max_watts,
        joules=meter.joules,
        root=board.root,
        now_s=lambda: board.now_s,
    )
    return made


def test_without_it_this_board_would_throttle(board: Board) -> None:
    assert set(board.decode(Governor(), 400)) == {THREADS}
    assert board.hottest_c > THROTTLE_C + 15


def test_a_board_that_heats_up_stays_below_its_throttle_point_and_works_on(board: Board) -> None:
    governor = governor_of(board, throttle_c=THROTTLE_C)
    board.decode(governor, 400)
    warm, before = board.tokens, board.now_s
    board.decode(governor, 400)
    assert board.hottest_c < THROTTLE_C
    assert governor.status().reason == "heat"
    # It would be easy to stay cool by doing nothing: of what the heat allows most is used.
    assert board.temperature_c > THROTTLE_C - 15
    assert (board.tokens - warm) / (board.now_s - before) > 0.6 * SPEEDS[THREADS]


def test_a_board_in_the_sun_rests_between_tokens(board: Board) -> None:
    board.ambient_c = 60.0
    governor = governor_of(board, throttle_c=THROTTLE_C)
    board.decode(governor, 600)
    assert board.hottest_c < THROTTLE_C
    assert governor.status().duty < 1.0


def test_a_board_that_stays_cool_is_never_held_back(board: Board) -> None:
    board.resistance = 3.0
    governor = governor_of(board, throttle_c=THROTTLE_C, max_watts=50.0)
    assert set(board.decode(governor, 600)) == {THREADS}
    assert (governor.status().reason, governor.status().threads, governor.status().duty) == ("", None, 1.0)


def test_when_it_is_cool_again_all_is_given_back(board: Board) -> None:
    governor = governor_of(board, throttle_c=THROTTLE_C)
    board.decode(governor, 600)
    board.resistance = 2.0
    board.decode(governor, 600)
    assert governor.status().reason == ""
    assert board.decode(governor, 5)[-1] == THREADS


@pytest.mark.parametrize("max_watts", [9.0, 7.0, 5.0, 3.0])
def test_a_budget_of_power_is_kept(board: Board, max_watts: float) -> None:
    governor = governor_of(board, max_watts=max_watts)
    board.decode(governor, 400)
    assert board.watts(last_s=200) <= 1.05 * max_watts
    assert board.watts(last_s=200) > 0.7 * max_watts, "it uses what it may"
    assert governor.status().reason == "power"


def test_where_fewer_threads_cost_more_for_a_token_it_rests_instead(board: Board) -> None:
    """A board whose caches take 4 W as long as anything computes: there the sooner all sleeps the better."""
    board.awake_w, board.thread_w = 4.0, 0.5
    governor = governor_of(board, max_watts=4.8)
    board.decode(governor, 3)
    board.pass_time(20.0, 0)
    board.decode(governor, 200)
    before, began_s = board.tokens, board.now_s
    board.decode(governor, 200)
    found = governor.status()
    assert found.joules_per_token[1] > 1.2 * found.joules_per_token[2], "it has tried both"
    assert found.duty < 1.0
    assert board.watts(last_s=200) <= 1.02 * 4.8
    of_one_thread = SPEEDS[1] * (4.8 - board.idle_w) / (board.awake_w + board.thread_w)
    assert (board.tokens - before) / (board.now_s - began_s) > 1.05 * of_one_thread


def test_an_answer_with_a_deadline_is_never_late_because_of_it(board: Board) -> None:
    governor = governor_of(board, throttle_c=THROTTLE_C, max_watts=3.0)
    board.decode(governor, 600)
    assert governor.status().duty < 1.0
    urgent = DueRequest(due_s=board.now_s + 10.5, most_left=100)
    began, before_s = board.tokens, board.now_s
    while urgent.most_left:
        board.decode(governor, 0.001, [DueRequest(), urgent])
        urgent.most_left -= 1
    assert board.tokens - began == 100
    assert board.now_s <= urgent.due_s
    assert board.now_s - before_s == pytest.approx(100 / SPEEDS[THREADS], rel=0.1), "at full speed"


def test_a_deadline_that_is_far_away_changes_nothing(board: Board) -> None:
    governor = governor_of(board, max_watts=3.0)
    board.decode(governor, 600)
    far = [DueRequest(due_s=board.now_s + 3600, most_left=50)]
    assert set(board.decode(governor, 20, far)) == {1}


def test_without_sensors_a_budget_holds_nothing_back_and_the_status_says_that_nothing_is_measured(
    tmp_path: Path,
) -> None:
    governor = Governor()
    governor.limit(throttle_c=THROTTLE_C, max_watts=1.0, root=tmp_path)
    assert governor.threads(THREADS) == THREADS
    assert (governor.status().watts, governor.status().temperature_c, governor.status().reason) == (None, None, "")


def test_the_metrics_tell_what_is_held_back_and_nothing_where_there_is_no_limit(board: Board) -> None:
    assert list(governor_readings(Governor())) == []
    governor = governor_of(board, max_watts=3.0)
    board.decode(governor, 60)
    read = {(name, labels.get("reason", "")): value for name, _, labels, value in governor_readings(governor)}
    assert (read["fieldlm_governor_active", "power"], read["fieldlm_governor_active", "heat"]) == (True, False)
    assert read["fieldlm_governor_threads", ""] == 1
    assert read["fieldlm_governor_duty_ratio", ""] < 1.0


def test_a_rest_has_an_end_and_the_rungs_lead_down(board: Board) -> None:
    assert list(DUTIES) == sorted(DUTIES, reverse=True)
    board.temperature_c = THROTTLE_C - 1
    board.tau_s = 1e9
    board.write_files()
    governor = governor_of(board, throttle_c=THROTTLE_C)
    board.decode(governor, 60)
    assert (governor.status().threads, governor.status().duty) == (1, DUTIES[-1])
    assert governor.rest_s(60.0, 1) <= 0.5


def test_threads_of_several_engines_ask_it_at_once(board: Board) -> None:
    governor = governor_of(board, throttle_c=THROTTLE_C)
    wrong: list[BaseException] = []

    def ask() -> None:
        try:
            for _ in range(200):
                assert 1 <= governor.threads(THREADS) <= THREADS
                governor.rest_s(0.1, 1)
                governor.status()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_an_engine_on_a_hot_board_computes_with_fewer_threads_and_says_the_same(
    smollm2_gguf: Path, board: Board
) -> None:
    """The real engine, beside a sensor that is always too hot."""
    board.temperature_c = THROTTLE_C - 1
    board.write_files()
    engine = LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=128, parallel=1))
    sampling = Sampling(max_tokens=12, temperature=0)
    seconds = itertools.count(0.0)  # at each look at the clock one has passed
    try:
        cool = "".join(chunk.text for chunk in engine.start([1, 2, 3], sampling))
        GOVERNOR.limit(throttle_c=THROTTLE_C, zones=("cpu-thermal",), root=board.root, now_s=seconds.__next__)
        assert "".join(chunk.text for chunk in engine.start([1, 2, 3], sampling)) == cool
        found = GOVERNOR.status()
        assert (found.reason, found.temperature_c) == ("heat", pytest.approx(THROTTLE_C - 1, abs=0.1))
        assert found.duty < 1.0
        due = list(engine.start([1, 2, 3], sampling, terms=Schedule(deadline_s=3600)))
        assert due[-1].outcome == "length"
    finally:
        GOVERNOR.limit()
        engine.close()
