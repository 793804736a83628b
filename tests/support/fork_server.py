"""Forks devices and collectors: a process that has imported everything is there in a millisecond, and dies like any.

stdin: one line of JSON a child, ["device", spool, url, name, run] or ["collect", url, store]. stdout: "forked PID", and
what the children say: "durable NAME RUN N" after each flush. A child ends when it is killed, or at SIGTERM after its
work: a device when the collector has committed everything, a collector when its queue is empty.
"""

import json
import os
import signal
import sys
from pathlib import Path

from fieldlm.formats.record import Record
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync, Timing
from fieldlm_compiler.collect.collect import Collector
from fieldlm_compiler.collect.parquet import Store

QUICK = Timing(ack_s=0.5, linger_s=0.05, backoff_base_s=0.02, backoff_cap_s=0.2)
ENDING = {signal.SIGTERM}


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The kernel buries the children.
    while line := sys.stdin.readline():
        what, *args = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.close(0)
            device(*args) if what == "device" else collect(*args)
            os._exit(0)
        say(f"forked {pid}")


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def device(path: str, url: str, name: str, run: int) -> None:
    with Spool(Path(path)) as spool:
        sync = Sync(spool, broker_url=url, fleet="shop", device=name, timing=QUICK)
        sync.start()
        number = 0
        while signal.sigtimedwait(ENDING, 0.02) is None:
            for _ in range(5):
                stream, kind = ("fb", "feedback") if number % 10 == 9 else ("gen", "generation")
                spool.append(Record(device=name, stream=stream, kind=kind, response=f"{name}-{run}-{number}"))
                number += 1
            if spool.flush():
                say(f"durable {name} {run} {number}")
        say(f"{'drained' if sync.drain(60) else 'stuck'} {name} {run} {number}")
        sync.stop()


def collect(url: str, folder: str) -> None:
    with Store(Path(folder)) as store, Collector(url, "shop", store):
        signal.sigwait(ENDING)


if __name__ == "__main__":
    main()
