"""A process that writes to a spool until it is killed: prints the number of records that are durable."""

import sys
from pathlib import Path

from fieldlm.formats.record import Record
from fieldlm.telemetry.spool import Spool


def main() -> None:
    with Spool(Path(sys.argv[1])) as spool:
        for number in range(1, 1_000_000):
            stream, kind = ("fb", "feedback") if number % 7 == 0 else ("gen", "generation")
            while not spool.append(Record(device="kiosk-1", stream=stream, kind=kind, response=f"{number}")):
                spool.flush()
            if number % 50 == 0:
                spool.flush()
                print(number, flush=True)


if __name__ == "__main__":
    main()
