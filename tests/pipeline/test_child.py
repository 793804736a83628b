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
from fieldlm_compiler.pipeline.fork_server import TORCH
from tests.support.failing_steps import abort_in_ggml, fill_disk, kill_parent, look_up, retold

ORPHAN = """import subprocess
from fieldlm_compiler.pipeline.child import call
from fieldlm_compiler.pipeline.fork_server import TORCH
call(subprocess.run, what="wait", preload={preload})(["sleep", "60"])"""


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


def test_a_step_that_needs_torch_is_a_fork_of_one_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = call(os.getppid, what="ask", preload=TORCH)()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIELDLM_TEST", "seen")
    assert call(os.getppid, what="ask", preload=TORCH)().value == first.value != os.getpid()
    (tmp_path / "here").touch()
    assert call(os.listdir, what="look", preload=TORCH)(".").value == ["here"]
    assert call(os.getenv, what="look", preload=TORCH)("FIELDLM_TEST").value == "seen"
    assert first.peak_mb > 100


def test_what_ends_a_forked_step_is_told_as_of_any_other_and_the_next_one_runs() -> None:
    with pytest.raises(EngineError, match=r"^could not do it \(signal SIGABRT\)"):
        call(os.abort, what="do it", preload=TORCH)()
    with pytest.raises(EngineError, match=r"exit code 1.*JSONDecodeError: Expecting value"):
        call(json.loads, what="read", preload=TORCH)("nonsense")
    with pytest.raises(InputError, match="no quantisation 'Q9'"):
        call(check_quant, what="check", preload=TORCH)("Q9")
    server = call(os.getppid, what="ask", preload=TORCH)().value
    os.kill(server, signal.SIGKILL)
    assert call(json.loads, what="read", preload=TORCH)("[1]").value == [1]


def test_a_server_that_dies_in_the_middle_ends_its_step() -> None:
    with pytest.raises(EngineError, match=r"^could not end it \(signal SIGKILL\)"):
        call(kill_parent, what="end it", preload=TORCH, env={"PYTHONPATH": str(Path(__file__).parents[2])})()
    assert call(json.loads, what="read", preload=TORCH)("[1]").value == [1]


@pytest.mark.parametrize("preload", ["None", "TORCH"])
def test_a_step_dies_with_the_compiler(preload: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", ORPHAN.format(preload=preload)], stderr=subprocess.DEVNULL)
    child = _wait_for_child(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline_s = time.monotonic() + 10
    while _is_alive(child) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not _is_alive(child)


def _wait_for_child(pid: int) -> int:
    """Return the pid of the step once it has asked to die with its parent, which it does before it starts its own."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        line = [pid]
        while children := Path(f"/proc/{line[-1]}/task/{line[-1]}/children").read_text().split():
            line.append(int(children[0]))
        if len(line) > 2 and b"sleep" in Path(f"/proc/{line[-1]}/cmdline").read_bytes():
            return line[-2]
        time.sleep(0.05)
    raise AssertionError("the step did not start")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
