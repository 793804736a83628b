"""An idle device sleeps: all its threads together wake hardly ever, and nothing is written."""

from pathlib import Path

from benchmarks.idle import WANT_WAKEUPS_S, served, watch
from fieldlm.cli.broker import EmbeddedBroker
from fieldlm.core.files import link_or_copy
from fieldlm.formats.bundle import Bundle
from tests.support import material

PROFILE = "generic-x86-64-avx2"
WINDOWS, WINDOW_S = 12, 10.0


def test_a_device_of_which_nobody_asks_anything_sleeps(base_bundle: Bundle, tmp_path: Path) -> None:
    """With all that could keep it awake: a broker without a collector, neighbours, several models."""
    bundle = material.compiled_for(base_bundle, PROFILE, tmp_path / "bundle")
    link_or_copy(material.smollm2_gguf(), tmp_path / "small.gguf")
    broker = EmbeddedBroker(port=0)
    broker.start()
    more = ("--profile", PROFILE, "--threads", "1", "--context", "512", "--models", str(tmp_path / "small.gguf"))
    try:
        with served(str(bundle), tmp_path / "state", *more, "--broker", broker.url) as pid:
            seen = [watch(pid, WINDOW_S)]
            # What a start leaves to be done is done within a minute or two; counted are wake-ups, and not how long.
            while len(seen) < WINDOWS and (seen[-1].wakeups_s > WANT_WAKEUPS_S or seen[-1].written):
                seen.append(watch(pid, WINDOW_S))
    finally:
        broker.stop()
    assert seen[-1].wakeups_s <= WANT_WAKEUPS_S, seen
    assert (seen[-1].written, seen[-1].on_disk) == (0, 0), seen
