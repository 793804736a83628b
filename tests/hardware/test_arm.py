"""The device half's own tests on processors of the boards it is for, imitated by qemu.

Every change tries what needs no llama.cpp. `make deep` tries its engine, too, where there is a compiler for ARM: built
as packages have it, with kernels for every arm64 processor, of which each takes its own.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.arm_machine import ArmMachine, arm_machine, has_compiler
from tests.support.debian_root import ROOT
from tests.support.depth import DEPTH
from tests.support.material import smollm2_gguf

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
ENGINE = ["test_llama_kernels", "test_special_texts"]
"""Of the engine's own tests those that wait for no answer: an imitated processor takes seconds for a token."""
ENGINE_OF_LEAST = ["test_memory_plan"]
"""What asks /proc/cpuinfo, which is this machine's there, too: it knows of no dot products."""
ASK = """
import json, sys
from pathlib import Path
from llama_cpp import llama_print_system_info
from fieldlm.engines import EngineOptions, Sampling
from fieldlm.engines.llama import LlamaEngine
engine = LlamaEngine(Path(sys.argv[1]), EngineOptions(threads=2, context=256, parallel=1))
said = [
    "".join(chunk.text for chunk in engine.start(engine.tokenize(prompt), Sampling(max_tokens=8, ignore_eos=True)))
    for prompt in json.loads(sys.argv[2])
]
engine.close()
print(json.dumps({"said": said, "uses": llama_print_system_info().decode()}))
"""
PROMPTS = (
    "<|im_start|>user\nName the days of the week.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nCount to ten.<|im_end|>\n<|im_start|>assistant\n",
)
OTHER_PROCESSES = "not kill"
"""Leaves out, by their names, the tests that begin processes of their own, which would be this machine's."""


@pytest.fixture(scope="module")
def arm() -> ArmMachine:
    return arm_machine()


@pytest.fixture(scope="module")
def arm_with_engine() -> ArmMachine:
    return arm_machine(with_engine=True)


def tried(
    arm: ArmMachine, processor: str, room: str, names: list[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Run the tests of `room` in the files of these names on `processor`, without what the workshop's half shares."""
    files = [f"tests/{room}/{name}.py" for name in names]
    plugins = ["-p", "tests.support.schedule", "-p", "tests.support.device_fixtures", "-p", "no:cacheprovider"]
    options = ["--noconftest", "-n0", "-q", "-k", OTHER_PROCESSES, f"--basetemp={folder / 'tests'}"]
    return arm.python(processor, "-m", "pytest", *plugins, *options, *files, FIELDLM_DEPTH="1")


@pytest.mark.parametrize(
    ("processor", "room"),
    [(name, room) for name in PROCESSORS for room in ROOMS if DEPTH > 1 or name == LEAST or room == "engines"],
)
def test_a_room_passes_its_tests_on(processor: str, room: str, arm: ArmMachine, tmp_path: Path) -> None:
    check(tried(arm, processor, room, ROOMS[room], tmp_path))


def check(done: subprocess.CompletedProcess[str]) -> None:
    """All has passed, and that was something."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"^[1-9]\d* passed", done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("processor", PROCESSORS)
def test_it_is_that_processor(processor: str, arm: ArmMachine) -> None:
    done = arm.python(processor, "-c", FEATURE)
    assert done.stdout.strip() == str(PROCESSORS[processor]), done.stderr


if DEPTH > 1 and has_compiler():

    @pytest.mark.parametrize(
        ("processor", "name"),
        [*((each, name) for name in ENGINE for each in PROCESSORS), *((LEAST, name) for name in ENGINE_OF_LEAST)],
    )
    def test_the_engine_passes_its_own_tests_on(
        processor: str, name: str, arm_with_engine: ArmMachine, tmp_path: Path
    ) -> None:
        check(tried(arm_with_engine, processor, "engines", [name], tmp_path))

    @pytest.mark.parametrize("processor", PROCESSORS)
    def test_the_engine_says_there_what_it_says_here(processor: str, arm_with_engine: ArmMachine) -> None:
        asked = ("-c", ASK, smollm2_gguf(), json.dumps(PROMPTS))
        there = arm_with_engine.python(processor, *asked)
        assert there.returncode == 0, there.stderr
        here = subprocess.run([sys.executable, *asked], cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(there.stdout)
        assert ("DOTPROD = 1" in found["uses"]) == PROCESSORS[processor]
        assert found["said"] == json.loads(here.stdout)["said"]
        assert all(found["said"])
