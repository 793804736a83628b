"""Damaged blocks, hellos, acknowledgements, topics and policies by the million: nothing crashes or is wrongly accepted.

    python -m benchmarks.fuzz_wire --inputs 1000000

Sound messages are changed at random: bits, bytes, cuts, pieces of others; half of the blocks behind their compression,
because nothing else gets past zstd's and msgpack's own checks. What is accepted has to be what it says: its numbers
ascend within its head's range, and encoded again it gives the same records.
"""

import argparse
import random
import sys
import time
from collections.abc import Sequence

from tests.support.fuzz_wire import run


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    args = parser.parse_args(argv)
    print(f"seed {args.seed}", flush=True)
    began_s = time.monotonic()
    for word, count in sorted(run(args.inputs, args.seed).items()):
        print(f"{word:<16} {count:>9,}")
    print(f"{args.inputs:,} inputs in {time.monotonic() - began_s:.0f} s, no crash, nothing wrongly accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
