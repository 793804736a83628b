"""A device for the end-to-end tests: records as fast as asked, says what is durable, may be killed at any time.

argv: spool, broker URL, device, run, records, pause in seconds. Prints "durable N" after each flush, and "drained".
"""

import sys
import time
from pathlib import Path

from fieldlm.formats.record import Record
from fieldlm.telemetry.spool import Spool
from fieldlm.telemetry.sync import Sync, Timing

QUICK = Timing(ack_s=1.0, linger_s=0.1, backoff_base_s=0.1, backoff_cap_s=0.5)


def main() -> None:
    path, url, device, run, count, pause_s = sys.argv[1:]
    with Spool(Path(path)) as spool:
        sync = Sync(spool, broker_url=url, fleet="shop", device=device, timing=QUICK)
        sync.start()
        for number in range(int(count)):
            stream, kind = ("fb", "feedback") if number % 10 == 9 else ("gen", "generation")
            spool.append(Record(device=device, stream=stream, kind=kind, response=f"{device}-{run}-{number}"))
            if number % 20 == 19:
                assert spool.flush()
                print("durable", number + 1, flush=True)
                time.sleep(float(pause_s))
        spool.flush()
        print("durable", count, flush=True)
        print("drained" if sync.drain(30) else "stuck", {s: e[0] for s, e in spool.ends().items()}, flush=True)
        sync.stop()


if __name__ == "__main__":
    main()
