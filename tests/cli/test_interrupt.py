"""Ctrl-C ends every command quietly and soon, from the first import on, in processes with a real signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle

BEGIN = "import sys; from fieldlm.__main__ import main; print('begin', flush=True); sys.exit(main())"


def interrupted(arguments: list[str], delay_s: float, where: Path) -> tuple[int, str]:
    """Send SIGINT to the whole group, as a terminal does, `delay_s` after the command began."""
    command = [sys.executable, "-c", BEGIN, *arguments]
    env = {**os.environ, "HOME": str(where), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": ""}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0, cwd=where, env=env
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begin\n"
        time.sleep(delay_s)
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, said = process.communicate(timeout=50)
        finally:
            process.kill()
    return process.returncode, said


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("arguments", [["devices", "--timeout", "60"], ["bench", "BUNDLE"]])
def test_an_interrupt_while_a_command_starts_is_no_traceback(
    arguments: list[str], delay_s: float, base_bundle: Bundle, tmp_path: Path
) -> None:
    given = [str(base_bundle.folder) if word == "BUNDLE" else word for word in arguments]
    code, said = interrupted(given, delay_s, tmp_path)
    assert code == 130, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("delay_s", [1.5, 4.0])
def test_an_interrupt_of_a_measurement_is_one_line_and_leaves_no_child(
    delay_s: float, base_bundle: Bundle, tmp_path: Path
) -> None:
    code, said = interrupted(["bench", str(base_bundle.folder), "--repetitions", "1000"], delay_s, tmp_path)
    assert code == 130
    assert "Traceback" not in said
    if said:
        assert said.splitlines()[-1] == "fieldlm bench: stopped"
