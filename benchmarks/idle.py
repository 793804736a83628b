"""What a device takes while nobody asks it anything: wake-ups, processor time, bytes written.

    .venv/bin/python -m benchmarks.idle BUNDLE [--seconds 60] [--settle 20] [--json] [-- --broker mqtt://… …]
    .venv/bin/python -m benchmarks.idle --pid PID

The first starts `fieldlm serve BUNDLE` with what comes after `--`, waits until it is ready and has settled, and ends it
again; the second looks at one that runs. A wake-up is a thread that gave up its core by itself, which it does to wait
(`voluntary_ctxt_switches` of all threads); a battery's processor cannot sleep deeply through many of them. Written is
what went to write(2), to files, pipes and terminals alike, and what of it reached the disk.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from fieldlm.cli.broker import free_port
from tests.support.served_process import wait_until_ready

WANT_WAKEUPS_S, WANT_CPU = 3.0, 0.002
FIELDLM = str(Path(sys.executable).with_name("fieldlm"))
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """One look of `seconds` at a process."""

    seconds: float
    wakeups_s: float
    busiest: tuple[tuple[int, float], ...]
    """Threads by their wake-ups a second, the busiest first."""
    cpu: float
    """Share of one core."""
    written: int
    on_disk: int

    @property
    def is_met(self) -> bool:
        return self.wakeups_s <= WANT_WAKEUPS_S and self.cpu <= WANT_CPU and self.on_disk == 0


class _Counted(msgspec.Struct, frozen=True):
    switches: dict[int, int]
    cpu_ns: int
    written: int
    on_disk: int


def watch(pid: int, seconds: float) -> Idle:
    """Look at the process `pid` for so long. Raises FileNotFoundError when it is not there."""
    before, began_s = _count(pid), time.monotonic()
    time.sleep(seconds)
    after, took_s = _count(pid), time.monotonic() - began_s
    each = {
        thread: (count - before.switches.get(thread, 0)) / took_s for thread, count in after.switches.items()
    }  # a thread that has ended meanwhile is left out
    return Idle(
        seconds=took_s,
        wakeups_s=sum(each.values()),
        busiest=tuple(sorted(each.items(), key=lambda pair: -pair[1])[:5]),
        cpu=(after.cpu_ns - before.cpu_ns) / 1e9 / took_s,
        written=after.written - before.written,
        on_disk=after.on_disk - before.on_disk,
    )


def _count(pid: int) -> _Counted:
    process = Path(f"/proc/{pid}")
    switches = dict[int, int]()
    cpu_ns = 0
    for thread in (process / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found = _SWITCHES.search((thread / "status").read_text())
            cpu_ns += int((thread / "schedstat").read_text().split()[0])
            switches[int(thread.name)] = int(found[1]) if found else 0
    said = dict(line.split(": ") for line in (process / "io").read_text().splitlines())
    return _Counted(switches, cpu_ns, int(said["wchar"]), int(said["write_bytes"]))


@contextmanager
def served(bundle: str, state: Path, *more: str) -> Generator[int]:
    """Serve `bundle` inside the block, ready from its beginning; gives the process."""
    port = free_port()
    command = [FIELDLM, "serve", bundle, "--state", str(state), "--port", str(port), *more]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", child)
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def show(found: Idle) -> str:
    """Return `found` as lines."""
    busiest = ", ".join(f"{thread}: {rate:.2f}" for thread, rate in found.busiest if rate)
    return (
        f"wake-ups   {found.wakeups_s:.2f} a second (≤ {WANT_WAKEUPS_S:g}); threads {busiest or 'all asleep'}\n"
        f"processor  {100 * found.cpu:.3f} % of a core (≤ {100 * WANT_CPU:g})\n"
        f"written    {found.written} bytes, {found.on_disk} of them to the disk (0), in {found.seconds:.0f} s"
    )


def main() -> int:
    """Measure, and say whether it is what was wanted: exit code 0, else 1."""
    parser = argparse.ArgumentParser(description="Measure what an idle device takes.")
    parser.add_argument("bundle", nargs="?", help="what to serve")
    parser.add_argument("more", nargs="*", help="of the command line of `fieldlm serve`, after --")
    parser.add_argument("--pid", type=int, help="a process that serves already")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--settle", type=float, default=20.0, help="seconds from ready to the measurement")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if (args.bundle is None) == (args.pid is None):
        parser.error("say what to serve, or the --pid of what serves")
    if args.pid:
        found = watch(args.pid, args.seconds)
    else:
        with tempfile.TemporaryDirectory() as folder, served(args.bundle, Path(folder) / "state", *args.more) as pid:
            time.sleep(args.settle)
            found = watch(pid, args.seconds)
    print(json.dumps(msgspec.to_builtins(found)) if args.json else show(found))
    return 0 if found.is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
