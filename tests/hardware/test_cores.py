"""How many threads decode beside busy neighbours: decided on numbers, read from the kernel's own."""

import os
import threading
from pathlib import Path

import pytest

from fieldlm.engines import EngineOptions, Sampling, llama
from fieldlm.hardware.cores import (
    LOOKS_TO_LOWER,
    LOOKS_TO_RAISE,
    CpuTime,
    ThreadCount,
    fast_cores,
    home,
    physical_cores,
    read_cpu_time,
    stay,
)
from fieldlm.hardware.processor_kinds import Processor
from tests.support.machines import sysroot


def looks(count: ThreadCount, others: list[float], cores: int = 2) -> list[int]:
    return [count.observe(cores, taken) for taken in others]


def test_where_no_file_names_processors_python_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_says(root: Path) -> dict[int, Processor]:
        del root
        return {}

    for name in ("processors", "allowed_cpus"):
        monkeypatch.setattr(f"fieldlm.hardware.cores.{name}", nobody_says)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert physical_cores() == fast_cores() == 8


def test_all_cores_are_used_while_nobody_else_wants_them() -> None:
    assert looks(ThreadCount(2), [0.0, 0.1, 0.05, 0.2, 0.0] * 4) == [2] * 20


def test_one_spike_changes_nothing() -> None:
    assert looks(ThreadCount(2), [1.0, 0.0, 1.0, 0.0]) == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("cores", "others", "threads"),
    [
        # what one busy process gets beside two threads on two cores is two thirds of one
        (2, 0.66, 1),
        (2, 1.0, 1),
        (2, 0.4, 2),
        (2, 2.0, 1),
        (4, 0.8, 3),
        (4, 2.0, 2),
        (4, 9.0, 1),
        (8, 3.0, 4),
        (8, 4.6, 3),
    ],
)
def test_threads_give_way_to_who_takes_cores(cores: int, others: float, threads: int) -> None:
    assert looks(ThreadCount(min(cores, 4)), [others] * LOOKS_TO_LOWER, cores)[-1] == threads


def test_threads_come_back_later_than_they_went() -> None:
    count = ThreadCount(2)
    assert looks(count, [1.0] * LOOKS_TO_LOWER)[-1] == 1
    assert looks(count, [0.0] * LOOKS_TO_RAISE) == [1] * (LOOKS_TO_RAISE - 1) + [2]


def test_a_neighbour_between_the_two_limits_leaves_things_as_they_are() -> None:
    high, low = ThreadCount(2), ThreadCount(2)
    looks(low, [1.0] * LOOKS_TO_LOWER)
    assert looks(high, [0.4] * 20) == [2] * 20
    assert looks(low, [0.4] * 20) == [1] * 20


@pytest.mark.parametrize(
    ("machine", "threads", "fast"),
    [
        ("rk3588-rock-5b-16gb", 4, {4, 5, 6, 7}),
        ("rk3588-rock-5b-16gb", 5, set[int]()),
        ("pi-5-8gb", 4, set[int]()),
        ("laptop-avx2-i3-1315u", 2, {0, 1, 2, 3}),
        ("laptop-avx2-i3-1315u", 3, set[int]()),
        ("macbook-m1", 4, set[int]()),
        # small cores with the clock of large ones, known by their name, and by Intel's list
        ("odroid-n2plus-4gb", 4, {2, 3, 4, 5}),
        ("nanopi-m5-rk3576-8gb", 4, {4, 5, 6, 7}),
        ("core-ultra-285h-minipc-64gb", 6, {0, 1, 2, 3, 4, 5}),
        # capacities that a kernel measured, of four kinds
        ("snapdragon-8-gen-2-12gb", 5, {3, 4, 5, 6, 7}),
        # no clock and no capacity
        ("genio-700-mt8188-8gb", 2, {6, 7}),
        ("jetson-agx-orin-64gb-15w", 4, set[int]()),
    ],
)
def test_threads_stay_on_fast_cores_where_there_are_slow_ones_beside(
    machine: str, threads: int, fast: set[int]
) -> None:
    assert home(threads, sysroot(machine), range(32) if machine == "macbook-m1" else None) == fast


def test_those_of_one_core_and_those_that_are_off_are_one_core_and_none() -> None:
    assert physical_cores(sysroot("smt-off-8c16t")) == 8
    assert physical_cores(sysroot("core-ultra-155h-32gb")) == 16
    assert physical_cores(sysroot("epyc-7451-96-threads")) == 48
    assert physical_cores(sysroot("jetson-agx-orin-64gb-15w")) == 4
    assert physical_cores(sysroot("steam-deck-16gb"), {0, 1, 2}) == 2
    assert physical_cores(sysroot("docker-v2-cpuset")) == 3
    assert physical_cores(sysroot("systemd-v2-quota150")) == 1


def test_decoding_takes_the_large_cores_that_it_may_use() -> None:
    assert fast_cores(sysroot("rk3588-rock-5b-16gb")) == 4
    assert fast_cores(sysroot("core-ultra-155h-32gb")) == 6
    assert fast_cores(sysroot("pi-5-8gb")) == 4
    assert fast_cores(sysroot("ryzen-7840hs-amd-pstate")) == 8
    assert fast_cores(sysroot("docker-v2-cpuset")) == 3
    assert fast_cores(sysroot("systemd-v2-quota150")) == 1
    assert 1 <= fast_cores() <= physical_cores()


def test_without_sys_cpuinfo_says_which_processors_share_a_core(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    blocks = [
        f"processor\t: {cpu}\nphysical id\t: 0\ncore id\t\t: {cpu // 2}\nflags\t\t: lm avx2\n" for cpu in range(8)
    ]
    (tmp_path / "proc/cpuinfo").write_text("\n".join(blocks))
    assert physical_cores(tmp_path) == 4


def test_of_the_fast_cores_only_those_count_that_we_may_use() -> None:
    root = sysroot("rk3588-rock-5b-16gb")
    assert home(1, root, [0, 1, 4]) == {4}
    assert home(2, root, [0, 1, 4]) == set(), "two threads have no room on one"
    assert home(2, root, [0, 1]) == set(), "none of them is faster than the other"


def test_equal_cores_of_unequal_names_are_all_fast_and_of_three_kinds_the_slowest_is_left_out() -> None:
    assert home(4, sysroot("ryzen-7840hs-amd-pstate"), range(16)) == set()
    assert home(4, sysroot("qcs6490-three-clusters"), range(8)) == {4, 5, 6, 7}


def test_a_thread_and_those_it_starts_stay_where_they_were_put() -> None:
    first = min(os.sched_getaffinity(0))
    seen: list[set[int]] = []

    def look() -> None:
        seen.append(os.sched_getaffinity(0))

    def begin() -> None:
        stay({first})
        look()
        child = threading.Thread(target=look)
        child.start()
        child.join()

    before = os.sched_getaffinity(0)
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert seen == [{first}, {first}]
    assert os.sched_getaffinity(0) == before, "who started it is free"


def test_who_computes_stays_there_and_nobody_else(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = max(os.sched_getaffinity(0))
    before = os.sched_getaffinity(0)

    def at_last(_: int) -> frozenset[int]:
        return frozenset({last})

    monkeypatch.setattr(llama, "home", at_last)
    engine = llama.LlamaEngine(smollm2_gguf, EngineOptions(threads=1, context=64, parallel=1))
    assert list(engine.start(engine.tokenize("tea"), Sampling(max_tokens=2)))[-1].outcome == "length"
    (worker,) = [thread for thread in threading.enumerate() if thread.name == f"llama[{smollm2_gguf.name}]"]
    assert os.sched_getaffinity(worker.native_id or 0) == {last}
    assert os.sched_getaffinity(0) == before
    engine.close()


def test_there_is_always_one_thread() -> None:
    assert looks(ThreadCount(1), [5.0] * 10, cores=1) == [1] * 10


def test_others_took_what_was_not_ours() -> None:
    before = CpuTime(at_s=10.0, cores=2, busy_s=100.0, own_s=40.0)
    after = CpuTime(at_s=10.5, cores=2, busy_s=100.9, own_s=40.4)
    assert after.others_since(before) == pytest.approx(1.0)
    # Clocks of different grain can say that we did more than anybody.
    assert CpuTime(at_s=11.0, cores=2, busy_s=100.0, own_s=41.0).others_since(before) == 0.0


def test_the_kernel_is_read() -> None:
    first, second = read_cpu_time(), read_cpu_time()
    assert first is not None
    assert second is not None
    assert second.cores >= 1
    assert second.at_s >= first.at_s
    assert second.busy_s >= first.busy_s


@pytest.mark.parametrize("text", [None, "", "cpu  1 2 3", "cpu0 a b c d e f g h\n", "cpu99999 1 2 3 4 5 6 7 8\n"])
def test_where_the_kernel_does_not_say_nothing_is_decided(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "proc").mkdir()
    if text is not None:
        (tmp_path / "proc" / "stat").write_text(text)
    assert read_cpu_time(tmp_path) is None
