"""Ctrl-C ends every command quietly and soon, from the first import on, in processes with a real signal."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.cli.main import RESUMED
from fieldlm.formats.bundle import Bundle
from fieldlm_compiler.collect.parquet import Store
from tests.support.depth import scaled
from tests.support.tiny_models import conversations, write_lines
from tests.support.usage import Usage, sentences

BEGIN = "import sys; from fieldlm.__main__ import main; print('begin', flush=True); sys.exit(main())"


def interrupted(arguments: list[str], delay_s: float, where: Path) -> tuple[int, str]:
    """Send SIGINT to the whole group, as a terminal does, `delay_s` after the command began."""
    command = [sys.executable, "-c", BEGIN, *arguments]
    env = {**os.environ, "HOME": str(where), "XDG_STATE_HOME": "", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": ""}
    asked = where / "asked"
    asked.write_text("Count to a thousand.\n")
    with (
        asked.open() as stdin,
        subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
            cwd=where,
            env=env,
        ) as process,
    ):
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


def test_a_bench_that_is_terminated_leaves_no_worker_and_no_traceback(base_bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fieldlm", "bench", str(base_bundle.folder), "-p", "8", "-n", "8", "-r", "10000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            time.sleep(0.1)
        time.sleep(6.0)
        process.terminate()
        # The worker writes to the same stderr, which is at its end when both are gone.
        _, said = process.communicate(timeout=50)
    assert process.returncode == -signal.SIGTERM
    assert "Traceback" not in said
    assert "Exception ignored" not in said


IN_A_CALLBACK = "ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))()"
IN_A_FINALIZER = "type('Held', (), {'__del__': lambda _: signal.raise_signal(signal.SIGINT)})()"
IN_AN_IMPORT = "import catches_all"


@pytest.mark.parametrize("where", [IN_A_CALLBACK, IN_A_FINALIZER, IN_AN_IMPORT])
def test_an_interrupt_is_not_lost_where_python_or_a_library_drops_its_exception(where: str, tmp_path: Path) -> None:
    caught = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (tmp_path / "catches_all.py").write_text(caught)
    begin = "import ctypes, signal\nfrom fieldlm.__main__ import heed_interrupts\nheed_interrupts()"
    ran = f"{begin}\n{where}\nprint('goes on')"
    done = subprocess.run([sys.executable, "-c", ran], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


IN_A_THREAD = "threading.Thread(target=lambda: (time.sleep(0.3), kill(), time.sleep(60)), daemon=False).start()"
IN_AN_EXIT_HANDLER = "atexit.register(kill)"
IN_THE_LAST_CLEANING = "sys.held = type('Held', (), {'__del__': lambda _, kill=kill: kill()})()"


@pytest.mark.parametrize("where", [IN_A_THREAD, IN_AN_EXIT_HANDLER, IN_THE_LAST_CLEANING])
def test_an_interrupt_after_the_work_is_done_changes_nothing_but_hastens_the_end(where: str, tmp_path: Path) -> None:
    begin = "import atexit, functools, os, signal, sys, threading, time\nfrom fieldlm.__main__ import main"
    kill = "kill = functools.partial(os.kill, os.getpid(), signal.SIGINT)"
    ran = f"{begin}\n{kill}\n{where}\nsys.argv = ['fieldlm', 'version']\nsys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", ran], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=50
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fieldlm ")


POINTS = 20
TOLD_TO_STOP = ("serve", "collect", "fleet", "chat")
"""What Ctrl-C is no failure of once they run: it is how servers are told to stop, and it stops one answer of `chat`."""
# Command → for how long its points are spread from its start on, in seconds; none of them ends by itself before.
LONG: dict[str, tuple[str, float]] = {
    "run": ("run BUNDLE --max-tokens 2000 PROMPT", 4.0),
    "chat": ("chat BUNDLE --max-tokens 2000", 4.0),
    "bench": ("bench BUNDLE --repetitions 1000", 6.0),
    "verify": ("verify BUNDLE", 0.7),
    "serve": ("serve MADE --port 0 --state state", 6.0),
    "compile": ("compile MODEL --profile generic-x86-64-avx2 --out out --keys keys", 8.0),
    "tune": ("tune MODEL --dataset DATASET --out out --epochs 1000", 12.0),
    "demo": ("demo --folder demo", 12.0),
    "round": ("round SAID --base MODEL --profile generic-x86-64-avx2 --consent kiosk-2026 --out out --keys keys", 12.0),
    "pull": ("pull hf:org/name:model.gguf", 3.0),
    "collect": ("collect --store store --broker mqtt://127.0.0.1:1", 3.0),
    "fleet": ("fleet --store STORE --serve --port 0", 4.0),
    "devices": ("devices --timeout 60", 3.0),
}


@pytest.fixture
def silent_url() -> Generator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def given(base_bundle: Bundle, tiny_compiled: Bundle, tiny_folder: Path, tmp_path: Path) -> dict[str, str]:
    """What the words in capitals of `LONG` stand for."""
    write_lines(tmp_path / "train.jsonl", conversations(64))
    write_lines(tmp_path / "eval.jsonl", conversations(8))
    Store(tmp_path / "store").close()
    orders = [(said, "order") for said in itertools.islice(sentences("order"), 40)]
    Usage(tmp_path / "said").customers(orders, prefix="customer")
    folders = {"BUNDLE": base_bundle.folder, "MADE": tiny_compiled.folder, "MODEL": tiny_folder, "DATASET": tmp_path}
    named = {name: str(folder) for name, folder in folders.items()}
    named["SAID"] = str(tmp_path / "said")
    return named | {"STORE": str(tmp_path / "store"), "PROMPT": "Write all numbers from one to a thousand, in words."}


@pytest.mark.parametrize("name", LONG)
def test_an_interrupt_at_any_point_ends_a_long_command(
    name: str, given: dict[str, str], silent_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", silent_url)
    words, span_s = LONG[name]
    points = scaled(2, most=POINTS)
    for number in range(points):
        where = tmp_path / f"{number}"
        where.mkdir()
        # Closer together at the start, where modules and the model are loaded.
        delay_s = span_s * ((number + 0.5) / points) ** 2
        began_s = time.monotonic()
        code, said = interrupted([given.get(word, word) for word in words.split()], delay_s, where)
        print(f"{name} {delay_s:.2f} s: {code} after {time.monotonic() - began_s - delay_s:.2f} s")
        assert code in ((0, 130) if name in TOLD_TO_STOP else (130,)), f"{name} after {delay_s:.2f} s: {code}\n{said}"
        assert "Traceback" not in said, f"{name} after {delay_s:.2f} s:\n{said}"
        assert "Exception ignored" not in said
        if "run the same command again" in said:
            assert name in RESUMED
