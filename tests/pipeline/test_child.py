"""A step in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldlm.core.errors import EngineError, InputError, NoSpaceError
from fieldlm.formats.bundle import CacheTypes
from fieldlm_compiler.export.quantize import check_quant
from fieldlm_compiler.pipeline.child import call
from tests.support.failing_steps import abort_in_ggml, fill_disk, look_up, retold

ORPHAN = """import subprocess
from fieldlm_compiler.pipeline.child import call
call(subprocess.run, what="wait")(["sleep", "60"])"""


def test_a_step_answers_with_its_memory_and_time() -> None:
    ran = call(json.loads, what="read")("[1, 2]")
    assert ran.value == [1, 2]
    assert ran.peak_mb > 5
    assert ran.seconds > 0


def test_a_step_is_handed_paths_and_structs_as_they_are() -> None:
    cache = CacheTypes(keys="f16", values="q8_0")
    ran = call(retold, what="tell", env={"PYTHONPATH": str(Path(__file__).parents[2])})([Path("/a")], cache=cache)
    assert ran.value == "PosixPath /a CacheTypes q8_0"
    with pytest.raises(TypeError, match="cannot be handed a object"):
        call(json.dumps, what="tell")({"a": object()})


def test_an_abort_is_one_line_that_names_the_signal() -> None:
    with pytest.raises(EngineError, match=r"^could not do it \(signal SIGABRT\)"):
        call(os.abort, what="do it")()


def test_an_abort_in_ggml_is_told_by_what_it_asserted_and_not_by_the_debugger() -> None:
    with pytest.raises(EngineError, match=r"SIGABRT\): /src/ggml-cpu/ops\.cpp:12: GGML_ASSERT\(n > 0\) failed$"):
        call(abort_in_ggml, what="do it", env={"PYTHONPATH": str(Path(__file__).parents[2])})()


def test_an_exception_that_says_nothing_is_told_with_its_place() -> None:
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with pytest.raises(EngineError, match=r'KeyError: \'n_ctx\' at failing_steps\.py line \d+: return str\(.*"n_ctx"'):
        call(look_up, what="do it", env=environment)()


def test_a_crash_is_told_by_the_last_line_of_its_stderr() -> None:
    with pytest.raises(EngineError, match=r"exit code 1.*JSONDecodeError: Expecting value"):
        call(json.loads, what="read")("nonsense")


def test_the_error_a_step_raises_comes_through_as_it_is() -> None:
    with pytest.raises(InputError, match="no quantisation 'Q9'"):
        call(check_quant, what="check")("Q9")


def test_a_full_disk_is_called_a_full_disk() -> None:
    with pytest.raises(NoSpaceError, match="No space left"):
        call(fill_disk, what="write", env={"PYTHONPATH": str(Path(__file__).parents[2])})()


def test_a_step_dies_with_the_compiler() -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN], stderr=subprocess.DEVNULL)
    child = _wait_for_child(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline_s = time.monotonic() + 10
    while _is_alive(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not _is_alive(child)


def _wait_for_child(pid: int) -> int:
    """Return the pid of the step once it has asked to die with its parent, which it does before it starts its own."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/task/{child}/children").read_text().split():
                return int(child)
        time.sleep(0.05)
    raise AssertionError("the step did not start")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
