"""Thousands of requests that are cancelled, late, dropped, urgent, patient, bound to schemas and adapters, at random.

    python -m benchmarks.chaos BUNDLE --adapters FOLDER --requests 10000

Afterwards memory, sequences and descriptors have to be where they were, and every outcome has to be accounted for: what
a client saw is what telemetry was told. `--adapters` holds bundles of adapters on the same base. Exit code 1 says no.
Ctrl-C lets those that run end, and reports what there was until then.
"""

import argparse
import json
from pathlib import Path

from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import open_bundle
from fieldlm.inference.adapters import Shelf
from fieldlm.inference.generations import Generations
from tests.support.chaos import run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--adapters", type=Path, required=True, help="folder with a bundle for each adapter")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    live = Generations(open_bundle(args.bundle), EngineOptions(context=512, parallel=4))
    names = sorted(path.name for path in args.adapters.iterdir() if path.is_dir())
    report = run(live, Shelf(live, args.adapters), names, args.requests, args.seed)
    live.close()
    print(json.dumps(report, default=vars, indent=2))
    return 1 if report["complaints"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
