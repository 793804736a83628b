"""How long the story waits: while something moves."""

from pathlib import Path

import pytest

from fieldlm.core.errors import UnavailableError
from fieldlm_compiler.demo.processes import Process, wait

BUSY = "import time\nend = time.process_time() + 3\nwhile time.process_time() < end: pass\n"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])\ninput()\n"


def test_a_wait_goes_on_while_something_moves_and_ends_when_nothing_does(tmp_path: Path) -> None:
    process = Process("sleeper", "import time; time.sleep(600)", [], tmp_path / "log")
    looks = iter(range(1000))
    try:
        wait("it is so", lambda: next(looks) >= 8, [process], moved=lambda: next(looks), still_s=0.5)
        assert next(looks) >= 8
        with pytest.raises(UnavailableError, match="nothing has moved for 0 s while waiting until it is so"):
            wait("it is so", lambda: False, [process], moved=lambda: None, still_s=0.3)
    finally:
        process.stop()


def test_a_process_that_ended_ends_the_wait(tmp_path: Path) -> None:
    process = Process("short one", "raise SystemExit('no room')", [], tmp_path / "log")
    with pytest.raises(UnavailableError, match="the short one ended: no room"):
        wait("it is so", lambda: False, [process], moved=lambda: None)


def test_what_a_child_computes_is_its_parents(tmp_path: Path) -> None:
    process = Process("parent", CHILD, [], tmp_path / "log")
    try:
        wait("it has computed", lambda: process.computed_s() >= 2, [process], moved=process.computed_s)
    finally:
        process.stop()
