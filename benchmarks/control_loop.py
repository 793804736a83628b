"""How late is a control loop while the model answers: in its own process, and beside it in a server's?

    .venv/bin/python -m benchmarks.control_loop [MODEL] [--hz 20] [--seconds 30] [--row NAME …] [--json]

Each row is a process of its own. Its main thread wakes at fixed times by the monotonic clock, as a control loop does,
and notes how late it is; meanwhile another thread asks without a pause: a prompt of 400 tokens that is read anew, 48
tokens of an answer, and every third time an object of a known form, which was prepared. `beside` asks a server over
its unix socket. Rows with `fifo` give the loop's thread a real-time priority (SCHED_FIFO, which takes CAP_SYS_NICE or
an rtprio limit): what they are late is the process's own doing, whoever else computes on the machine. `unprepared`
compiles its first form while the loop runs. Lateness in milliseconds. Exit code 1: a fifo row that should keep its
period has its p99 above --most-ms.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx

from fieldlm import Model
from fieldlm.hardware.cores import physical_cores

FORM = {
    "type": "object",
    "properties": {"direction": {"enum": ["left", "right", "stop"]}, "metres": {"type": "integer", "maximum": 9}},
    "required": ["direction", "metres"],
}
SCENE = " ".join(f"The box {n} stands {n % 7} metres to the {('left', 'right')[n % 2]}." for n in range(32))
TOKENS = 48
ROWS: dict[str, dict[str, Any]] = {
    "idle": {},
    "in process": {"inside": {}},
    "in process, a core left": {"inside": {"threads": max(1, physical_cores() - 1)}},
    "beside": {"beside": True},
    "fifo, idle": {"fifo": 10},
    "fifo, in process": {"inside": {}, "fifo": 10},
    "fifo, unprepared": {"inside": {}, "fifo": 10, "unprepared": True},
    "fifo, beside": {"beside": True, "fifo": 10},
}
KEEPS_PERIOD = ("fifo, idle", "fifo, in process", "fifo, beside")


@contextlib.contextmanager
def _asking(ask: Callable[[int], object]) -> Generator[list[int]]:
    """Ask without a pause until the block ends; how often is counted in the list."""
    is_over, asked = threading.Event(), [0]

    def run() -> None:
        for n in itertools.count():
            if is_over.is_set():
                return
            ask(n)
            asked[0] = n + 1

    thread = threading.Thread(target=run, name="asking")
    thread.start()
    try:
        yield asked
    finally:
        is_over.set()
        thread.join()


@contextlib.contextmanager
def _inside(model_name: str, options: dict[str, Any], *, is_prepared: bool) -> Generator[list[int]]:
    with Model.open(model_name, parallel=1, **options) as model:
        if is_prepared:
            model.prepare(FORM)

        def ask(n: int) -> object:
            question = f"Scene {n}. {SCENE} Which way?"
            return (
                model.call(FORM, question, max_tokens=TOKENS)
                if n % 3 == 2
                else model.chat(question, max_tokens=TOKENS, ignore_eos=True)
            )

        with _asking(ask) as asked:
            yield asked


@contextlib.contextmanager
def _beside(model_name: str) -> Generator[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/fieldlm.sock"
        command = [sys.executable, "-m", "fieldlm", "serve", model_name, "--host", "none", "--socket", path]
        command += ["--state", f"{folder}/state", "--no-discovery", "--parallel", "1"]
        with (
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
            httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://localhost", timeout=120) as client,
        ):
            try:
                _wait(client)

                def ask(n: int) -> object:
                    said = [{"role": "user", "content": f"Scene {n}. {SCENE} Which way?"}]
                    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "move", "schema": FORM}}}
                    body = {"messages": said, "max_tokens": TOKENS, "stream": True}
                    body |= form if n % 3 == 2 else {}
                    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                        answer.raise_for_status()
                        return sum(len(line) for line in answer.iter_lines())

                with _asking(ask) as asked:
                    yield asked
            finally:
                server.terminate()


def _wait(client: httpx.Client) -> None:
    while True:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/ready").status_code == 200:
                return
        time.sleep(0.1)


def _loop(hz: float, seconds: float) -> list[float]:
    """Return how late each turn began, in milliseconds."""
    late: list[float] = []
    began_s = time.monotonic()
    for turn in range(1, int(hz * seconds) + 1):
        due_s = began_s + turn / hz
        time.sleep(max(0.0, due_s - time.monotonic()))
        late.append(1000 * (time.monotonic() - due_s))
    return late


def _measured(args: argparse.Namespace, row: dict[str, Any]) -> dict[str, float]:
    if "inside" in row:
        answering = _inside(args.model, row["inside"], is_prepared="unprepared" not in row)
    elif "beside" in row:
        answering = _beside(args.model)
    else:
        answering = contextlib.nullcontext([0])
    with answering as asked:
        while row.keys() & {"inside", "beside"} and not asked[0]:  # the first answer plans llama.cpp's memory
            time.sleep(0.05)
        if "fifo" in row:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(row["fifo"]))
        before, began_s = asked[0], time.monotonic()
        late = sorted(_loop(args.hz, args.seconds))
        rate = (asked[0] - before) / (time.monotonic() - began_s)
    at = {name: late[min(len(late) - 1, int(share * len(late)))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {**at, "most": late[-1], "over_2_ms": 100 * sum(each > 2 for each in late) / len(late), "answers_s": rate}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--hz", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=30.0, help="a row")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="all of them, unless named")
    parser.add_argument("--most-ms", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names: list[str] = args.row or list(ROWS)
    if args.here:
        print(json.dumps(_measured(args, ROWS[names[0]])))
        return 0
    if not args.json:
        print(
            f"{args.hz:g} Hz, {args.seconds:g} s a row, {physical_cores()} cores, load {os.getloadavg()[0]:.1f} before"
        )
        print(f"{'':<26}{'p50 ms':>8}{'p99 ms':>8}{'most ms':>9}{'over 2 ms':>11}{'answers a s':>13}")
    found: dict[str, dict[str, float]] = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.control_loop", args.model, "--here", "--row", name]
        command += ["--hz", str(args.hz), "--seconds", str(args.seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
        row = found[name] = json.loads(done.stdout.splitlines()[-1])
        if not args.json:
            print(
                f"{name:<26}{row['p50']:>8.2f}{row['p99']:>8.2f}{row['most']:>9.2f}{row['over_2_ms']:>10.1f}%"
                f"{row['answers_s']:>13.2f}",
                flush=True,
            )
    if args.json:
        print(json.dumps(found))
    return 1 if any(found[name]["p99"] > args.most_ms for name in KEEPS_PERIOD if name in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
