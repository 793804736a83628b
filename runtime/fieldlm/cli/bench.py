"""`fieldlm bench`: measure bundles on this machine, and say how near they are to what the memory allows."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from fieldlm.catalogue.names import MODEL
from fieldlm.core import options, terminal
from fieldlm.core.config import load_config
from fieldlm.formats.profile import load_profile


def main(argv: Sequence[str]) -> int:
    """Measure bundles one after the other and print what came out."""
    args = _parse(argv)
    from fieldlm.bench.bench import bench, describe, document
    from fieldlm.bench.measure import Spec
    from fieldlm.catalogue.opening import advice, open_model
    from fieldlm.hardware.detect import detect
    from fieldlm.hardware.sensors import usable_cores

    bundles = [open_model(name) for name in args.models]
    for bundle, name in zip(bundles, args.models, strict=True):
        if not bundle.manifest.is_proved:
            print(terminal.visible(advice(bundle, name)), file=sys.stderr, flush=True)
    config, found = load_config(), detect()
    # As `serve` would run it: what the settings say, else what fits this machine.
    profile = load_profile(config.profile) if config.profile else found.best
    found = msgspec.structs.replace(found, best=profile)
    threads = args.threads or config.threads or max(1, min(profile.cpu.decode_threads, usable_cores()))
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    for bundle in bundles:
        spec = Spec(
            bundle=str(bundle.folder),
            prompt_tokens=args.prompt_tokens,
            gen_tokens=args.gen_tokens,
            repetitions=args.repetitions,
            threads=threads,
            seed=args.seed,
            profile=profile,
        )
        result = bench(bundle, spec)
        rows += document(bundle, result, found)
        texts.append(describe(bundle, result, found))
    terminal.show(rows, "\n\n".join(texts), as_json=args.json)
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = terminal.parser(
        "bench",
        "Measure how fast a model is on this machine.",
        "fieldlm bench smollm2",
        "fieldlm bench model.gguf --gen-tokens 64 --threads 4",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--prompt-tokens",
        type=options.whole(1, options.CONTEXT[1]),
        default=512,
        metavar="N",
        help="tokens of the prompt",
    )
    parser.add_argument(
        "--gen-tokens", type=options.whole(1, options.CONTEXT[1]), default=128, metavar="N", help="tokens of the answer"
    )
    parser.add_argument(
        "--repetitions", type=options.whole(1, 10_000), default=5, metavar="N", help="how often to measure"
    )
    parser.add_argument(
        "--threads",
        type=options.whole(*options.THREADS, zero=True),
        default=0,
        metavar="N",
        help="0: those that serve would use",
    )
    parser.add_argument(
        "--seed", type=options.whole(*options.SEED), default=1, metavar="N", help="random seed of the prompts"
    )
    return parser.parse_args(argv)
