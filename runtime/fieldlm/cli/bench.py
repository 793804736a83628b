"""`fieldlm bench`: measure bundles on this machine, and say how near they are to what the memory allows."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.bench.formats import FORMATS, writer
from fieldlm.bench.parameters import FLASH_ATTENTION, LOAD_MODES, Sweep, specs, whole_numbers, words
from fieldlm.bench.report import check_target
from fieldlm.catalogue.names import MODEL
from fieldlm.core import options, terminal
from fieldlm.core.config import load_config
from fieldlm.core.errors import InputError
from fieldlm.engines.llama_layout import KV_TYPES
from fieldlm.formats.profile import load_profile

if TYPE_CHECKING:
    from fieldlm.bench.measure import Spec
    from fieldlm.formats.bundle import Bundle
    from fieldlm.hardware.detect import Detection

LISTS = ("depth", "threads", "batch", "ubatch", "key_type", "value_type", "flash_attention", "load_mode")


def main(argv: Sequence[str]) -> int:
    """Measure bundles one after the other and print what came out, or hold two results against each other."""
    args = _parse(argv)
    if args.compare:
        return _compare(args)
    sweep = Sweep(
        prompt=_flat(args.prompt) or (512,),
        gen=_flat(args.gen) or (128,),
        **{name: _flat(getattr(args, name)) for name in LISTS},
    )
    from fieldlm.catalogue.opening import advice, open_model

    names = [*args.models, *args.named]
    bundles = [open_model(name) for name in names]
    for bundle, name in zip(bundles, names, strict=True):
        if not bundle.manifest.is_proved:
            print(terminal.visible(advice(bundle, name)), file=sys.stderr, flush=True)
    base, found = _base(args)
    plans = [(bundle, spec) for bundle in bundles for spec in specs(bundle, sweep, base)]
    _measure(args, sweep, plans, found)
    return 0


def _measure(
    args: argparse.Namespace, sweep: Sweep, plans: "Sequence[tuple[Bundle, Spec]]", found: "Detection"
) -> None:
    from fieldlm.bench.bench import bench, describe, document
    from fieldlm.bench.remarks import remarks

    out = writer(args.output, sweep.asked) if args.output else None
    rows: list[dict[str, Any]] = []
    for number, (bundle, spec) in enumerate(plans):
        result = bench(bundle, msgspec.structs.replace(spec, bundle=str(bundle.folder)))
        rows += (made := document(bundle, result, found))
        if out:
            out.rows(made)
            for line in remarks(result, found):
                print(terminal.visible(f"! {line}"), file=sys.stderr, flush=True)
        elif not args.json:
            print(terminal.visible("\n" * bool(number) + describe(bundle, result, found)), flush=True)
    if out:
        out.end()
    elif args.json:
        terminal.show(rows, "", as_json=True)
    if args.report:
        from fieldlm.bench.report import bench_markdown, bench_page, write_report

        write_report(args.report, bench_page(rows), bench_markdown(rows))


def _compare(args: argparse.Namespace) -> int:
    from fieldlm.bench.comparison import compare, comparison_document, describe_comparison
    from fieldlm.bench.report import comparison_markdown, comparison_page, write_report

    found = compare(*args.compare)
    terminal.show(comparison_document(found), describe_comparison(found), as_json=args.json)
    if args.report:
        write_report(args.report, comparison_page(found), comparison_markdown(found))
    return 0


def _base(args: argparse.Namespace) -> "tuple[Spec, Detection]":
    """Return what `serve` would run here, by its settings, else by what fits this machine; and what this machine is."""
    from fieldlm.bench.measure import Spec
    from fieldlm.hardware.detect import detect
    from fieldlm.hardware.sensors import usable_cores

    config, found = load_config(), detect()
    profile = load_profile(config.profile) if config.profile else found.best
    cores, cpu = usable_cores(), profile.cpu
    threads = config.threads or max(1, min(cpu.decode_threads, cores))
    prefill = config.threads or max(1, min(cpu.prefill_threads or cpu.decode_threads, cores))
    spec = Spec(
        bundle="", prompt_tokens=0, gen_tokens=0, repetitions=args.repetitions, threads=threads,
        prefill_threads=prefill, seed=args.seed, delay_s=args.delay, profile=profile,
    )  # fmt: skip
    return spec, msgspec.structs.replace(found, best=profile)


def _flat(lists: Sequence[Sequence[Any]] | None) -> tuple[Any, ...]:
    return tuple(value for values in lists or () for value in values)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = terminal.parser(
        "bench",
        "Measure how fast a model is on this machine. Letters are llama-bench's; where it takes fixed values, what is "
        "not said is as serve runs it here. Lists (128,512) and ranges (1-4, 0-4096+1024, 16-256*2) make a test each.",
        "fieldlm bench smollm2",
        "fieldlm bench model.gguf -p 512 -n 64 -t 1-4",
        "fieldlm bench model.gguf -d 0,2048 -ctk f16,q8_0 -fa on -o md",
        "fieldlm bench model.gguf -r 10 -o json > today.json",
        "fieldlm bench --compare yesterday.json today.json --report difference.html",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=MODEL)
    parser.add_argument("-m", "--model", dest="named", action="append", default=[], metavar="MODEL", help="the same")
    _add_tests(parser)
    _add_ways(parser)
    parser.add_argument(
        "-o", "--output", choices=tuple(FORMATS), default="", metavar="FORMAT",
        help=f"print llama-bench's {', '.join(FORMATS)}",
    )  # fmt: skip
    parser.add_argument(
        "--compare", nargs=2, type=options.existing_file, default=[], metavar=("A", "B"),
        help="hold two results of -o json or jsonl against each other, instead of measuring",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=options.new_file, metavar="FILE", help="write a page (.html) or Markdown to paste (.md), too"
    )
    args = parser.parse_args(argv)
    models = [*args.models, *args.named]
    if args.compare and models:
        raise InputError(f"--compare takes results and measures nothing; leave {models[0]} out")
    if not args.compare and not models:
        parser.error("the following arguments are required: MODEL")
    if args.output and (args.json or args.compare):
        raise InputError("--json, --compare and -o each say what to print; give one of them")
    if args.report:
        check_target(args.report)
    return args


def _add_tests(parser: argparse.ArgumentParser) -> None:
    tokens = (0, options.CONTEXT[1])
    lists: list[tuple[str, tuple[str, ...], tuple[int, int], str]] = [
        (
            "prompt",
            ("--prompt-tokens", "--n-prompt", "-p"),
            tokens,
            "tokens of the prompt, 0 for no such test (default: 512)",
        ),
        ("gen", ("--gen-tokens", "--n-gen", "-n"), tokens, "tokens of the answer, 0 for no such test (default: 128)"),
        ("depth", ("--n-depth", "-d"), tokens, "tokens that stand before both (default: 0)"),
        ("threads", ("--threads", "-t"), (0, options.THREADS[1]), "threads (default: those that serve would use)"),
        ("batch", ("--batch-size", "-b"), options.BATCH, "tokens of the prompt in one step (default: 256)"),
        ("ubatch", ("--ubatch-size", "-ub"), options.BATCH, "and how many are computed at once (default: all)"),
    ]
    for name, flags, (least, most), said in lists:
        parser.add_argument(
            *flags, dest=name, action="append", type=whole_numbers(least, most), metavar="N,…", help=said
        )
    parser.add_argument(
        "--repetitions", "-r", type=options.whole(1, 10_000), default=5, metavar="N", help="how often to measure"
    )
    parser.add_argument(
        "--delay", type=options.real(0, 86_400), default=0.0, metavar="SECONDS", help="rest before each test, to cool"
    )
    parser.add_argument(
        "--seed", type=options.whole(*options.SEED), default=1, metavar="N", help="random seed of the prompts"
    )


def _add_ways(parser: argparse.ArgumentParser) -> None:
    caches, switches, modes = tuple(KV_TYPES), tuple(FLASH_ATTENTION), tuple(LOAD_MODES)
    lists = [
        ("key_type", ("--cache-type-k", "-ctk"), caches, f"type of the cache's keys: {', '.join(caches)}"),
        ("value_type", ("--cache-type-v", "-ctv"), caches, "and of its values"),
        ("flash_attention", ("--flash-attn", "-fa"), switches, "flash attention: on, off or auto"),
        ("load_mode", ("--load-mode", "-lm", "--mmap", "-mmp"), modes, "weights read (none) or mapped (mmap)"),
    ]
    for name, flags, known, said in lists:
        parser.add_argument(*flags, dest=name, action="append", type=words(*known), metavar="TYPE,…", help=said)
