"""A whole `fieldlm serve` on a disk that takes no byte more: it answers, says what is wrong, and is well afterwards."""

import resource
import signal
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fieldlm.formats.bundle import Bundle
from tests.device.test_service import PROFILE, ask, chat, command, refusal
from tests.support import material
from tests.support.served_process import free_port
from tests.support.waiting import wait_until

# No process begun by this makes a file longer; where the disk is really full the words are others, and the way is this.
FULL = ("sh", "-c", 'ulimit -S -f 0; exec "$@"', "sh")
PATIENCE_S = 300
TROUBLES = ("slots-unwritable", "disk-full", "disk-error", "read-only")


@pytest.fixture(scope="module")
def bundle(base_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, compiled for PROFILE."""
    return material.compiled_for(base_bundle, PROFILE, tmp_path_factory.mktemp("bundle") / "bundle")


@contextmanager
def serving(bundle: Path, state: Path, first: Sequence[str] = (), *, kill: bool = False) -> Generator[tuple[int, int]]:
    """Serve until the block ends and yield port and process; then the server has to end well, unless it is killed."""
    port = free_port()
    arguments = [*first, *command(bundle, state, "--port", str(port))]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        try:
            wait_until(lambda: child.poll() is not None or ask(port, "GET", "/ready")[0] == 200, patience_s=PATIENCE_S)
            assert child.poll() is None, child.communicate()[1]
            yield port, child.pid
            child.kill() if kill else child.terminate()
            said = child.communicate(timeout=PATIENCE_S)[1]
            assert "Traceback" not in said
            assert child.returncode == (-signal.SIGKILL if kill else 0), said
        finally:
            child.kill()


def free(process: int) -> None:
    """Let there be space again."""
    resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def troubles(port: int) -> dict[str, Any]:
    """Return what the server says of its disk, by name; a busy disk may hang for a moment, which is none of these."""
    status, facts = ask(port, "GET", "/v1/fieldlm/status")
    assert status == 200
    return {each["name"]: each["detail"] for each in facts["health"] if each["name"] in TROUBLES}


@pytest.mark.parametrize("was_killed", [False, True])
def test_a_server_on_a_full_disk_answers_says_so_and_is_well_afterwards(
    bundle: Path, tmp_path: Path, was_killed: bool
) -> None:
    state = tmp_path / "state"
    with serving(bundle, state, kill=was_killed) as (port, _):
        assert troubles(port) == {}
    with serving(bundle, state, FULL) as (port, child):
        assert chat(port)[0] == 200
        assert "cannot be written" in troubles(port)["slots-unwritable"]
        assert ask(port, "GET", "/health")[0] == 200
        if not was_killed:
            free(child)
            wait_until(lambda: troubles(port) == {}, patience_s=PATIENCE_S)
    with serving(bundle, state) as (port, _):
        assert chat(port)[0] == 200
        assert troubles(port) == {}


def test_a_first_start_on_a_full_disk_is_refused_in_one_line(bundle: Path, tmp_path: Path) -> None:
    code, said = refusal([*FULL, *command(bundle, tmp_path / "state", "--port", "0")])
    assert code == 2
    assert str(tmp_path / "state") in said
