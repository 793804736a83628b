"""The system prompt's keys and values survive a restart, and nothing that is damaged or foreign is taken for them."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fieldlm.core.tasks import Tasks
from fieldlm.engines import EngineOptions, RunningAnswer, Sampling
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.chat_template import render
from fieldlm.inference.generations import Generations, Serving
from fieldlm.inference.prompt_snapshots import Snapshots, read, system_tokens, write
from fieldlm.inference.warmup import warm
from tests.support.material import tiny_bundle

SYSTEM = "You carry things in a café. " + " ".join(f"Table {i} stands by window {i}." for i in range(12))
WRITER = """
import io, os, signal, sys
from pathlib import Path
from fieldlm.inference.prompt_snapshots import read, write

class Half(io.FileIO):
    "A disk that has taken half of a file when the power goes."
    def write(self, data):
        super().write(data[: len(data) // 2])
        signal.raise_signal(signal.SIGKILL)

path = Path(sys.argv[1])
tokens, state = read(path)
os.fdopen = lambda number, mode: Half(number, mode)
write(path, tokens, state)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "b", system_prompt=SYSTEM)


@pytest.fixture(scope="module")
def kept(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the snapshot that a first start has left."""
    folder = tmp_path_factory.mktemp("kv")
    live = start(bundle, folder)
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.kv")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    live.close()
    return folder


def start(bundle: Bundle, folder: Path) -> Generations:
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=2))
    ready = warm(live, Snapshots(folder))
    deadline = time.monotonic() + 60
    while (why := ready()) is not None:
        assert time.monotonic() < deadline, why
        time.sleep(0.01)
    return live


def ask(serving: Serving, text: str) -> RunningAnswer:
    prompt = serving.engine.tokenize(render(serving.bundle, [{"role": "user", "content": text}]))
    return serving.engine.start(prompt, Sampling(max_tokens=12), adapter=serving.adapter)


def said(generation: RunningAnswer) -> str:
    return "".join(chunk.text for chunk in generation)


def test_a_second_start_computes_nothing_of_the_system_prompt_and_answers_the_same(bundle: Bundle, kept: Path) -> None:
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=2))
    prefix = len(system_tokens(live.current))
    assert prefix > 100
    fresh = ask(live.current, "Where is table 3?")
    text = said(fresh)
    assert fresh.timings.cached_tokens == 0
    live.close()
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=2))
    assert Snapshots(kept).restore(live.current)
    restored = ask(live.current, "Where is table 3?")
    assert said(restored) == text
    assert restored.timings.cached_tokens >= prefix
    live.close()


def test_a_server_that_closes_meanwhile_warns_of_nothing(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=2))

    class ClosedMeanwhile(Snapshots):
        def save(self, serving: Serving) -> bool:
            live.close()
            return super().save(serving)

    tasks = Tasks()
    ready = warm(live, ClosedMeanwhile(tmp_path), tasks)
    tasks.close(60)
    assert ready() is None
    assert not list(tmp_path.glob("*.kv"))
    assert caplog.text == ""


def test_what_is_damaged_cut_short_or_foreign_is_as_good_as_not_there(
    bundle: Bundle, kept: Path, tmp_path: Path
) -> None:
    (good,) = kept.glob("*.kv")
    data = good.read_bytes()
    path = tmp_path / good.name
    live = Generations(bundle, EngineOptions(threads=1, context=512, parallel=2))
    for place in (0, 20, 60, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert not Snapshots(tmp_path).restore(live.current), f"byte {place}"
        path.write_bytes(data[:place])
        assert not Snapshots(tmp_path).restore(live.current), f"cut at {place}"
    # Whole, and yet not what llama.cpp wrote: it refuses, and answers as if nothing had been.
    found = read(good)
    assert found is not None
    write(path, found[0], found[1][: len(found[1]) // 2])
    assert not Snapshots(tmp_path).restore(live.current)
    assert said(ask(live.current, "Hello"))
    live.close()


def test_another_context_template_or_prompt_has_a_snapshot_of_its_own(
    bundle: Bundle, kept: Path, tmp_path: Path
) -> None:
    shorter = Generations(bundle, EngineOptions(threads=1, context=256, parallel=1))
    assert not Snapshots(kept).restore(shorter.current)
    shorter.close()
    other = Generations(
        tiny_bundle(tmp_path / "b", system_prompt=SYSTEM + " Hurry."), EngineOptions(threads=1, context=512, parallel=2)
    )
    assert not Snapshots(kept).restore(other.current)
    other.close()


def test_a_kill_in_the_middle_of_a_write_leaves_a_clean_boot(bundle: Bundle, kept: Path) -> None:
    (good,) = kept.glob("*.kv")
    ended = subprocess.run([sys.executable, "-c", WRITER, str(good)], check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (-signal.SIGKILL, "")
    (torn,) = kept.glob(".*.part")
    assert 0 < torn.stat().st_size < good.stat().st_size
    assert read(good) is not None
    live = start(bundle, kept)
    assert said(ask(live.current, "Hello"))
    Snapshots(kept).save(live.current)
    assert [path.name for path in kept.iterdir()] == [good.name]
    live.close()


def test_a_start_after_a_kill_before_the_first_snapshot_makes_one(bundle: Bundle, kept: Path, tmp_path: Path) -> None:
    (good,) = kept.glob("*.kv")
    (tmp_path / f".{good.name}.123.part").write_bytes(good.read_bytes()[:100_000])
    live = start(bundle, tmp_path)
    deadline = time.monotonic() + 60
    while [path.name for path in tmp_path.iterdir()] != [good.name]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    live.close()
