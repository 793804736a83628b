"""The device half's own tests on processors of the boards it is for, imitated by qemu.

What needs llama.cpp is not among them: tests/packaging has its kernels answer on imitated processors.
"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.arm_machine import ArmMachine, arm_machine
from tests.support.depth import DEPTH

PROCESSORS = {"cortex-a53": False, "cortex-a76": True}
"""Of a Pi 3 and of a Pi 5 → whether it multiplies bytes in one instruction, which models are fast by."""
LEAST = "cortex-a53"
"""What runs on it runs on those after it; they try all rooms in `make deep`."""
FEATURE = "from numpy._core import _multiarray_umath as math; print(math.__cpu_features__['ASIMDDP'])"
ROOMS = {
    "engines": ["test_sampling", "test_request", "test_fair_share"],
    "formats": ["test_block", "test_record", "test_router", "test_topics"],
    "telemetry": ["test_spool", "test_spool_trouble", "test_recorder"],
    "updates": ["test_gates", "test_regression_monitor", "test_update", "test_tuf_conformance"],
}
"""An imitated processor takes ten times as long; the files that take a minute on a real one are for `make deep`."""
if DEPTH > 1:
    ROOMS["telemetry"] += ["test_power_cuts"]
    ROOMS["updates"] += ["test_crash_points", "test_trust"]
    ROOMS["blobs"] = ["test_fetch", "test_tensor_chunks"]
OTHER_PROCESSES = "not kill"
"""Leaves out the tests that begin processes of their own, which would be this machine's."""


@pytest.fixture(scope="module")
def arm() -> ArmMachine:
    return arm_machine()


def tried(arm: ArmMachine, processor: str, room: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests of `room` on `processor`, without what the workshop's half shares."""
    files = [f"tests/{room}/{name}.py" for name in ROOMS[room]]
    plugins = ["-p", "tests.support.schedule", "-p", "tests.support.device_fixtures", "-p", "no:cacheprovider"]
    options = ["--noconftest", "-n0", "-q", "-k", OTHER_PROCESSES, f"--basetemp={folder / 'tests'}"]
    return arm.python(processor, "-m", "pytest", *plugins, *options, *files, FIELDLM_DEPTH="1")


@pytest.mark.parametrize(
    ("processor", "room"),
    [(name, room) for name in PROCESSORS for room in ROOMS if DEPTH > 1 or name == LEAST or room == "engines"],
)
def test_a_room_passes_its_tests_on(processor: str, room: str, arm: ArmMachine, tmp_path: Path) -> None:
    done = tried(arm, processor, room, tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"^[1-9]\d* passed", done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("processor", PROCESSORS)
def test_it_is_that_processor(processor: str, arm: ArmMachine) -> None:
    done = arm.python(processor, "-c", FEATURE)
    assert done.stdout.strip() == str(PROCESSORS[processor]), done.stderr
