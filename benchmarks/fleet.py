"""A fleet against one collector: real sockets for a thousand devices, virtual time for a million.

    python -m benchmarks.fleet --seconds 300                  1,000 devices, 20,000 records/s, Mosquitto between
    python -m benchmarks.fleet --virtual-minutes 30           a million devices' blocks, straight into the collector

Devices speak the real protocol (hello, blocks, acknowledgements) over connections of their own, but have no spool: what
they send are a few made blocks with new numbers. Every record is counted in the store at the end. The collector's
share of one core says whether it keeps up on a machine that does other things meanwhile.
"""

import argparse
import sys
from collections.abc import Sequence

import msgspec

from fieldlm.core import terminal
from fieldlm.core.logs import to_terminal
from tests.support.simulated_fleet import real, virtual


def main(argv: Sequence[str]) -> int:
    to_terminal()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--rate", type=int, default=20_000, help="records a second, all together")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--block", type=int, default=40, help="records in a block of the real run; 2 s of each device")
    parser.add_argument("--virtual-minutes", type=float)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    result = (
        virtual(args.devices or 1_000_000, args.virtual_minutes, 128)
        if args.virtual_minutes
        else real(args.devices or 1000, args.rate, args.seconds, args.block)
    )
    text = "\n".join(f"{key:<18} {value}" for key, value in msgspec.structs.asdict(result).items())
    terminal.show(msgspec.to_builtins(result), text, as_json=args.json)
    return 1 if result.lost or result.doubled or result.waiting else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
