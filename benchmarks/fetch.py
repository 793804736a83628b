"""What fetching costs: kills in the middle of it, and many devices at one site.

    python -m benchmarks.fetch kills --mb 1024 --kills 1000
    python -m benchmarks.fetch site --devices 50 --mb 64

`kills` fetches a file in processes that end by SIGKILL after a random number of bytes; what all of them read together
may be 1.02 times the file and a megabyte for each kill. `site` lets devices, each with a server and a folder of its
own, begin at the same moment; one line of a set speed leads to the repository, and what went over it may be 1.1 times
the file. MB are 2^20 bytes.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fieldlm.core import terminal
from fieldlm.core.files import CHUNK_BYTES
from tests.support.fetching import kill_often, one_site


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "site"))
    parser.add_argument("--mb", type=int, default=64, help="size of the file")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--line-mb-s", type=float, default=4.0, help="speed of the line, MB a second")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder, size = Path(name), args.mb * CHUNK_BYTES
        if args.what == "kills":
            result = kill_often(folder, size=size, kills=args.kills, seed=args.seed)
            is_good = result.moved_bytes <= result.limit_bytes
        else:
            result = one_site(folder, devices=args.devices, size=size, line_bytes_s=args.line_mb_s * CHUNK_BYTES)
            is_good = result.times_the_model <= 1.1
    terminal.show(
        result, "\n".join(f"{k:<28} {v}" for k, v in msgspec.structs.asdict(result).items()), as_json=args.json
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
