"""Ctrl-C while a model loads ends the load, in a process of its own and with a real signal."""

import signal
import subprocess
import sys
import time

import pytest

from fieldlm.formats.bundle import Bundle

PROGRAM = """
import sys, time
from fieldlm import Model
from fieldlm.engines import llama
print("begin", flush=True)
try:
    model = Model.open(sys.argv[1], threads=1, context=128)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4])
def test_an_interrupt_in_the_middle_of_a_load_is_never_swallowed(base_bundle: Bundle, delay_s: float) -> None:
    command = [sys.executable, "-c", PROGRAM, str(base_bundle.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "begin\n"
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=50)
    assert (process.returncode, complaints) == (130, "")
