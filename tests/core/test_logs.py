"""Logging: silent for who embeds a model and configures nothing, routable, and on the command line a bare line."""

import os
import subprocess
import sys

import pytest

from fieldlm.core.logs import RecentLines, TerminalHandler, logger
from fieldlm.formats.bundle import Bundle
from tests.test_boundaries import SOURCES, name_of

EMBEDS = """
import sys
{setup}
from fieldlm import Model
from fieldlm.core.logs import logger
from fieldlm.engines import Sampling
with Model.open(sys.argv[1], context=128) as model:
    print(model.chat("Hello", Sampling(max_tokens=4)).text)
    logger("fieldlm.inference.model").info("the bell rings")
    logger("fieldlm_compiler.search.search").warning("the house burns")
"""
ROUTES = """
import logging
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s|%(levelname)s|%(message)s")
"""


def embed(setup: str, bundle: Bundle) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", EMBEDS.format(setup=setup), str(bundle.folder)]
    return subprocess.run(program, capture_output=True, text=True, check=True, timeout=300)


def test_a_program_that_configures_nothing_sees_nothing_but_what_it_asked_for(base_bundle: Bundle) -> None:
    done = embed("", base_bundle)
    assert done.stdout.strip()
    assert done.stderr == ""


def test_a_program_that_has_a_handler_gets_the_records_of_both_halves_under_one_name(base_bundle: Bundle) -> None:
    done = embed(ROUTES, base_bundle)
    assert done.stderr == ""
    assert "fieldlm.inference.model|INFO|the bell rings\n" in done.stdout
    assert "fieldlm.compiler.search.search|WARNING|the house burns\n" in done.stdout


def test_importing_the_package_imports_no_logging() -> None:
    program = "import sys, fieldlm; sys.exit('logging' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


PRINTS = """
import logging, sys
from fieldlm.core import logs
logs.to_terminal()
logs.to_terminal()
logging.basicConfig()
log = logs.logger("fieldlm.device.device")
log.info("ready")
log.warning("too hot\\nfor this")
print(logs.RECENT.last("1")[0][20:])
"""


def test_the_command_line_prints_each_line_bare_and_once_and_keeps_it_for_the_owner() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert done.stderr == "ready\ntoo hot\nfor this\n"
    assert done.stdout == "too hot\nfor this\n"


def test_the_journal_gets_the_priority_of_each_line() -> None:
    read, write = os.pipe()
    status = os.fstat(write)
    environment = os.environ | {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    subprocess.run([sys.executable, "-c", PRINTS], stderr=write, stdout=subprocess.DEVNULL, check=True, env=environment)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "<6>ready\n<4>too hot\n<4>for this\n"


def test_a_stderr_that_is_not_the_journal_gets_no_priorities(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # systemd's, inherited by a shell that has redirected its stderr
    TerminalHandler().handle(logger("fieldlm.x").makeRecord("fieldlm.x", 30, __file__, 1, "as it is", (), None))
    assert capsys.readouterr().err == "as it is\n"


def test_of_what_was_logged_the_last_lines_are_kept() -> None:
    kept, own = RecentLines(), logger("fieldlm.x")
    for number in range(1100):
        kept.handle(own.makeRecord("fieldlm.x", 20, __file__, 1, "line %d", (number,), None))
    assert len(kept.last("all")) == 1000
    assert [line.split(" ", 2)[2] for line in kept.last("2")] == ["line 1098", "line 1099"]


def test_every_module_logs_through_the_one_tree() -> None:
    own = [name_of(path) for path in SOURCES if "logging.getLogger(__name__)" in path.read_text()]
    assert not own, "logger(__name__) of fieldlm.core.logs puts it where embedders look"
