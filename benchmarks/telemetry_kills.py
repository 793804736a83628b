"""Kill devices, broker and collector at random, and count what is lost and what is doubled.

    python -m benchmarks.telemetry_kills --kills 10000

Real processes, real SIGKILL, Mosquitto with its persistence, whose files are deleted with each kill. Devices write all
the time; what a device has reported as durable has to be in the store once at the end, and gaps have to be none.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core import terminal
from fieldlm.core.logs import logger, to_terminal
from tests.support.telemetry_kills import run

log = logger(__name__)


def main(argv: Sequence[str]) -> int:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args(argv)
    log.info(f"seed {args.seed}")
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), kills=args.kills, seed=args.seed, devices=args.devices)
    terminal.show(result, "\n".join(f"{k:<8} {v}" for k, v in msgspec.structs.asdict(result).items()), as_json=False)
    return 1 if result.lost or result.doubled or result.gaps else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
