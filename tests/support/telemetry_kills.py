"""Kill devices, broker and collector at random, and count what is lost and what is doubled.

Real processes, real SIGKILL, Mosquitto with its persistence, whose files are deleted with each kill. Devices write all
the time; what a device has reported as durable has to be in the store once at the end, and gaps have to be none.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from fieldlm.core import terminal
from fieldlm_compiler.collect.parquet import Store
from tests.support.brokers import Mosquitto

VICTIMS = {"device": 6, "broker": 3, "collector": 1}
LONGEST_PAUSE_S = 0.2


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of kills came to."""

    seed: int
    kills: dict[str, int]
    durable: int
    stored: int
    lost: int
    doubled: int
    gaps: int
    seconds: float


class Field:
    """Devices, a collector and a broker as processes that may be killed and started again at any time."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder = folder
        self.broker = Mosquitto(folder / "broker")
        self.names = [f"device-{number}" for number in range(devices)]
        self.pids: dict[str, int] = {}
        self.durable: dict[tuple[str, str], int] = {}
        self.ended: dict[str, str] = {}
        self._runs = Counter[str]()
        self._forked: list[int] = []
        self._news = threading.Condition()
        self._zygote: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.broker.start()
        script = [sys.executable, "-m", "tests.support.fork_server"]
        self._zygote = subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.start("collector")
        for name in self.names:
            self.start(name)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for who in list(self.pids):
            self._end(who, signal.SIGKILL)
        assert self._zygote
        assert self._zygote.stdin
        assert self._zygote.stdout
        self._zygote.stdin.close()
        self._zygote.wait()
        self._reader.join()
        self._zygote.stdout.close()
        self.broker.kill()

    def start(self, who: str) -> None:
        self._runs[who] += 1
        url, own = self.broker.url, self.folder / who
        asked = ["device", str(own / "spool.db"), url, who, self._runs[who]]
        self._ask(["collect", url, str(own)] if who == "collector" else asked, who)

    def kill(self, who: str) -> None:
        if who == "broker":
            self.broker.kill()
        else:
            self._end(who, signal.SIGKILL)

    def finish(self) -> None:
        """Let every device drain, then the collector write what it has."""
        for name in self.names:
            os.kill(self.pids[name], signal.SIGTERM)
        assert self._wait(lambda: len(self.ended) == len(self.names)), f"only {self.ended} ended"
        self._end("collector", signal.SIGTERM)
        for name in self.names:
            self._end(name, signal.SIGTERM)

    def _ask(self, words: list[Any], who: str) -> None:
        assert self._zygote
        assert self._zygote.stdin
        self._zygote.stdin.write(json.dumps(words) + "\n")
        self._zygote.stdin.flush()
        assert self._wait(lambda: bool(self._forked)), "the process that forks has ended"
        self.pids[who] = self._forked.pop()

    def _end(self, who: str, how: signal.Signals) -> None:
        pid = self.pids.pop(who)
        try:
            os.kill(pid, how)
            while True:
                os.kill(pid, 0)  # It is not our child; it is gone when there is nobody to ask.
                time.sleep(0.002)
        except ProcessLookupError:
            return

    def _read(self) -> None:
        assert self._zygote
        assert self._zygote.stdout
        for line in self._zygote.stdout:
            word, *rest = line.split()
            with self._news:
                if word == "forked":
                    self._forked.append(int(rest[0]))
                elif word in ("durable", "drained", "stuck"):
                    self.durable[rest[0], rest[1]] = int(rest[2])
                    if word != "durable":
                        self.ended[rest[0]] = word
                self._news.notify_all()

    def _wait(self, holds: Callable[[], bool]) -> bool:
        with self._news:
            return self._news.wait_for(holds, 120)


def run(folder: Path, *, kills: int, seed: int, devices: int = 6) -> Result:
    """Kill `kills` times: one to four victims die together and are started again after a pause."""
    rng = random.Random(seed)
    count = Counter[str]()
    began_s = time.monotonic()
    with Field(folder, devices) as field, terminal.progress("kills", kills) as progress:
        while count.total() < kills:
            victims = _choose(rng, field.names, min(rng.randint(1, 4), kills - count.total()))
            time.sleep(rng.uniform(0, LONGEST_PAUSE_S))
            for who in victims:
                field.kill(who)
            time.sleep(rng.uniform(0, LONGEST_PAUSE_S) * (rng.random() < 0.3))
            for who in rng.sample(victims, len(victims)):
                field.broker.start() if who == "broker" else field.start(who)
            count.update("device" if who in field.names else who for who in victims)
            progress.update(count.total())
        field.finish()
        stuck = {name for name, word in field.ended.items() if word == "stuck"}
    assert not stuck, f"{stuck} could not empty their spools"
    return _count(folder / "collector", field, count, seed, time.monotonic() - began_s)


def _choose(rng: random.Random, devices: Sequence[str], how_many: int) -> list[str]:
    chosen: dict[str, None] = {}
    while len(chosen) < how_many:
        kind = rng.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        chosen[rng.choice(devices) if kind == "device" else kind] = None
    return list(chosen)


def _count(folder: Path, field: Field, kills: Counter[str], seed: int, seconds: float) -> Result:
    with Store(folder, read_only=True) as store:
        stored = Counter(row["response"] for row in store.query("SELECT response FROM records"))
        gaps = store.gaps()
    durable = [f"{name}-{run}-{i}" for (name, run), count in field.durable.items() for i in range(count)]
    return Result(
        seed=seed,
        kills=dict(sorted(kills.items())),
        durable=len(durable),
        stored=stored.total(),
        lost=sum(name not in stored for name in durable),
        doubled=stored.total() - len(stored),
        gaps=len(gaps),
        seconds=round(seconds, 1),
    )
