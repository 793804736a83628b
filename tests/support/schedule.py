"""Tests on several cores (pytest-xdist): a file is one piece of work, and what takes longest begins first.

Tests of a file share its fixtures, so they stay in one process and in order. `tests/durations.json` holds the seconds
that each file took when `make durations` measured last. A file that is not in it begins first: nobody knows how long it
takes. A test has to say nothing: ports are free ones, folders are each test's own, and engines watch the cores.
`--quick` looks only at files that take a moment; it does not even import the others.
"""

import contextlib
import functools
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.support import depth

# Each worker has about a core: threads of linear algebra that wait for each other in a loop would take the others'.
ALONE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
DURATIONS = Path(__file__).resolve().parents[1] / "durations.json"
QUICK_S = 0.7
TOGETHER = ("tests/packaging/",)
"""Folders whose files share what is made once for all of them: the package and a Debian to install it in."""


@functools.cache
def durations() -> dict[str, float]:
    """Return the seconds of each piece that was measured."""
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def piece_of(nodeid: str) -> str:
    """Return the piece of work that a test belongs to: its file, or one of the folders that stay together."""
    return next((folder for folder in TOGETHER if nodeid.startswith(folder)), nodeid.partition("::")[0])


def longest_first(nodeids: list[str], seconds: dict[str, float]) -> list[str]:
    """Sort pieces by what they took; tests of a piece keep their order."""
    return sorted(nodeids, key=lambda nodeid: (-seconds.get(piece_of(nodeid), float("inf")), piece_of(nodeid)))


class LongestFirst(LoadScopeScheduling):
    """Gives each free worker the longest piece that is left."""

    def _split_scope(self, nodeid: str) -> str:
        return piece_of(nodeid)

    def schedule(self) -> None:
        self.config.option.loadscopereorder = False  # by number of tests, which says little
        has_begun = self.collection is not None
        super().schedule()
        for node in self.nodes if has_begun else ():
            self._reschedule(node)  # a worker begins its last test when it is told that there is no other

    def _reschedule(self, node: Any) -> None:
        if node in self.registered_collections:  # one in the place of another that died may still be collecting
            super()._reschedule(node)

    def _assign_work_unit(self, node: Any) -> None:
        with contextlib.suppress(OSError):  # of a worker that has just died; `remove_node` takes what it was given
            super()._assign_work_unit(node)

    def remove_node(self, node: Any) -> str | None:
        """Take the worker `node` away and return the test during which it died; xdist's own would try that for ever."""
        workload = self.assigned_work.pop(node)
        left = [(unit, test) for unit in workload.values() for test, is_done in unit.items() if not is_done]
        if not left:
            return None
        unit, died = left[0]
        unit[died] = True
        for name in [name for name in reversed(workload) if not all(workload[name].values())]:
            self.workqueue[name] = workload[name]
            self.workqueue.move_to_end(name, last=False)
        for other in self.assigned_work:
            self._reschedule(other)
        return died


# A machine that others use is slow, and that is no fault of what is tried: no example is timed.
hypothesis.settings.register_profile("fieldlm", deadline=None)
hypothesis.settings.load_profile("fieldlm")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help="write what each file takes to durations.json")
    parser.addoption("--quick", action="store_true", help=f"only files that took {QUICK_S} s at most, and new ones")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        os.environ.update(ALONE)
    else:
        config.pluginmanager.register(_Told(config))
    if config.getoption("--write-durations"):
        config.pluginmanager.register(_Durations())


def pytest_report_header() -> str:
    return f"FIELDLM_DEPTH={depth.DEPTH:g} FIELDLM_SEED={depth.SEED}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.getoption("--quick") and collection_path.suffix == ".py":
        piece = piece_of(collection_path.relative_to(config.rootpath).as_posix())
        return durations().get(piece, 0.0) > QUICK_S or None
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        ordered = longest_first([item.nodeid for item in items], durations())
        places = {nodeid: place for place, nodeid in enumerate(ordered)}
        items.sort(key=lambda item: places[item.nodeid])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LongestFirst:
    return LongestFirst(config, log)


class _Told:
    """Names a test as soon as it fails, and those that run when somebody ends all of them."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began_s: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began_s[nodeid] = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._tell(report.nodeid, "failed")
        if str(report.when) == "???":  # xdist's word where the worker died, which does not say that it ended
            self._began_s.pop(report.nodeid, None)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._began_s.pop(nodeid, None)

    def pytest_keyboard_interrupt(self) -> None:
        for test in self._began_s:
            self._tell(test, "was running")

    def _tell(self, test: str, what: str) -> None:
        terminal: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        took_s = time.monotonic() - self._began_s.get(test, time.monotonic())
        terminal.write_line(f"\n{test} {what} after {took_s:.0f} s")


class _Durations:
    """Adds up what each piece took, with its fixtures, where the results of all workers come together."""

    def __init__(self) -> None:
        self._seconds = defaultdict[str, float](float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[piece_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            rows = durations() | {piece: round(seconds, 1) for piece, seconds in self._seconds.items()}
            there = {piece: rows[piece] for piece in sorted(rows) if (session.config.rootpath / piece).exists()}
            DURATIONS.write_text(json.dumps(there, indent=1) + "\n")
