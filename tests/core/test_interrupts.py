"""Ctrl-C that comes while C calls Python is raised behind that call."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from fieldlm.core.interrupts import heeding_interrupts
from fieldlm.engines.llama_api import log

CALLED_BY_C = ctypes.CFUNCTYPE(None)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_a_callback_dropped_is_raised_behind_the_call() -> None:
    hook, seen = sys.unraisablehook, list[str]()

    def call() -> None:
        with heeding_interrupts():
            CALLED_BY_C(lambda: signal.raise_signal(signal.SIGINT))()
            seen.append("the library went on to its end")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert seen == ["the library went on to its end"]
    assert sys.unraisablehook is hook


def test_whoever_listens_to_the_librarys_log_hears_it_and_the_log_is_free_again() -> None:
    with pytest.raises(KeyboardInterrupt), log.listening():
        CALLED_BY_C(lambda: signal.raise_signal(signal.SIGINT))()
    with log.listening() as sizes:
        assert sizes == {}


def test_other_threads_leave_the_hook_alone() -> None:
    seen: list[object] = []

    def look() -> None:
        with heeding_interrupts():
            seen.append(sys.unraisablehook)

    hook = sys.unraisablehook
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [hook]
