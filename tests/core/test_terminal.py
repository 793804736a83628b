"""What a person sees on the terminal, whoever wrote it."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fieldlm.core import terminal
from fieldlm.core.errors import InputError
from fieldlm.core.logs import RECENT, logger, to_terminal
from fieldlm.core.wording import visible

HOSTILE = "\x1b]0;pwned\x07\x1b[31mRED\x1b[2J\x9b5m\u202eevil"
SPELT = r"\x1b]0;pwned\x07\x1b[31mRED\x1b[2J\x9b5m\u202eevil"


def test_what_another_machine_says_is_shown_and_not_obeyed(capfd: pytest.CaptureFixture[str]) -> None:
    to_terminal()
    logger("fieldlm.test").warning("refused: %s", HOSTILE)
    terminal.show({}, terminal.table([[HOSTILE, "two\nlines"]], ("state", "outcome")), as_json=False)
    out, err = capfd.readouterr()
    assert err == f"refused: {SPELT}\n"
    assert out.splitlines()[2] == f"{SPELT}  two\\nlines"
    assert RECENT.last("1")[0].endswith(SPELT)


def test_what_people_write_is_shown_as_it_is() -> None:
    for text in ("Fläche 3 m² · 80 °C – 100 %", "茶を二つ ください", "مرحبا", "👩\u200d🚀", "می\u200cخواهم", "─━✓"):
        assert visible(text) == text


FULL = """
import resource, signal
from fieldlm.core.logs import logger, to_terminal
to_terminal()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
logger("fieldlm.test").warning("nobody hears this")
"""


def test_a_log_on_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        assert subprocess.run([sys.executable, "-c", FULL], stderr=log, check=False).returncode == 0


@pytest.mark.parametrize(("has_failed", "mark"), [(False, "✓"), (True, "✗")])
def test_what_ended_badly_has_no_tick(has_failed: bool, mark: str, capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.progress("update") as line:
        line.note, line.has_failed = "failed" if has_failed else "updated", has_failed
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"  {mark} update  ")


SILENT = """
import time
from fieldlm.core.terminal import progress
with progress("convert"):
    time.sleep(2.5)
"""
RESUMED = """
from fieldlm.core.terminal import progress
with progress("soak", 120) as line:
    line.done = line.begun = 2
    line.started_s -= 30
    line.tick(0)
    line.update(3)
    line.tick(0)
"""


def on_a_terminal(program: str) -> str:
    """What `program` writes to a terminal."""
    own, its = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", program], stderr=its) as process:
        os.close(its)
        said = b""
        try:
            while piece := os.read(own, 4096):
                said += piece
        except OSError:  # how Linux says that nobody writes any more
            pass
    os.close(own)
    assert process.returncode == 0
    return said.decode()


def test_the_clock_of_a_silent_step_goes_on() -> None:
    told = re.findall(r"convert … (\d+) s", on_a_terminal(SILENT))
    assert {"0", "1", "2"} <= {*told}


def test_the_pace_of_a_resumed_run_is_its_own() -> None:
    told = re.findall(r"3/120, (\d+) s left", on_a_terminal(RESUMED))
    assert told
    # One step in thirty seconds, and 117 to go; how long the process took meanwhile stands beside it.
    assert 3510 <= int(told[0]) < 7020


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ("", "required: --to, what (one of show pull), whom; see: fieldlm release"),
        ("--to here", "required: what (one of show pull), whom; see"),
        ("show mine", "required: --to; see"),
        ("show", "required: --to, whom; see"),
        ("--to here nothing mine", "invalid choice"),
    ],
)
def test_all_that_is_missing_is_said_at_once(given: str, lacks: str) -> None:
    made = terminal.parser("release", "Show or pull.")
    made.add_argument("what", choices=("show", "pull"))
    made.add_argument("whom")
    made.add_argument("--to", required=True)
    with pytest.raises(InputError) as told:
        made.parse_args(given.split())
    assert lacks in str(told.value)
    args = made.parse_args(["show", "mine", "--to", "here"])
    assert (args.what, args.whom, args.to) == ("show", "mine", "here")
    with pytest.raises(InputError, match="required: --to; see"):
        made.parse_args(["show", "mine"])
