"""`fieldlm bench`: measure bundles on this machine, and say how near they are to what the memory allows."""

import argparse
import random
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.bench.formats import FORMATS, writer
from fieldlm.bench.parameters import (
    FLASH_ATTENTION,
    LOAD_MODES,
    Sweep,
    name_of,
    pair,
    reals,
    specs,
    whole_numbers,
    words,
)
from fieldlm.bench.report import check_target
from fieldlm.catalogue.names import MODEL
from fieldlm.core import options, terminal
from fieldlm.core.config import load_config
from fieldlm.core.errors import InputError
from fieldlm.core.urls import shown
from fieldlm.core.wording import visible
from fieldlm.engines.llama_layout import KV_TYPES
from fieldlm.formats.profile import load_profile

if TYPE_CHECKING:
    from fieldlm.bench.load import Level, LoadSpec
    from fieldlm.bench.measure import Spec
    from fieldlm.formats.bundle import Bundle
    from fieldlm.hardware.detect import Detection
    from fieldlm.network.http_client import HttpClient

DRAWN = (1, 2**31 - 1)  # seeds that may be drawn; any of them may be said by hand again
LOAD = ("concurrency", "rate", "deadline", "first-word", "minutes", "out")
LISTS = ("depth", "threads", "batch", "ubatch", "key_type", "value_type", "flash_attention", "load_mode")


def main(argv: Sequence[str]) -> int:
    """Measure bundles one after the other and print what came out, or hold two results against each other."""
    args = _parse(argv)
    if args.compare:
        return _compare(args)
    if args.url:
        return _load(args)
    sweep = Sweep(
        prompt=_flat(args.prompt) or (512,),
        gen=_flat(args.gen) or (128,),
        pairs=tuple(args.pairs),
        **{name: _flat(getattr(args, name)) for name in LISTS},
    )
    from fieldlm.catalogue.opening import advice, open_model

    names = [*args.models, *args.named]
    bundles = [open_model(name) for name in names]
    for bundle, name in zip(bundles, names, strict=True):
        if not bundle.manifest.is_proved:
            print(visible(advice(bundle, name)), file=sys.stderr, flush=True)
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
    remarked: list[str] = []
    try:
        for number, (bundle, spec) in enumerate(plans):
            which = f", test {number + 1} of {len(plans)}" if len(plans) > 1 else ""
            result = bench(bundle, msgspec.structs.replace(spec, bundle=str(bundle.folder)), which=which)
            rows += (made := document(bundle, result, found))
            if out:
                out.rows(made)
                remarked += [f"! {name_of(spec)}: {line}" for line in remarks(result, found)]
            elif not args.json:
                print(visible("\n" * bool(number) + describe(bundle, result, found)), flush=True)
        if out:
            out.end()
    finally:
        # Behind the table: on a terminal they would stand in its midst. Not lost where the run is stopped.
        for line in remarked:
            print(visible(line), file=sys.stderr, flush=True)
    if args.json and not out:
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


def _load(args: argparse.Namespace) -> int:
    """Put load on a running server: level by level, or one for minutes."""
    from fieldlm.bench.load import Level, LevelResult, LoadSpec, run_level, served_model, summary
    from fieldlm.bench.load_report import describe_load, load_document, load_pages
    from fieldlm.bench.report import write_report
    from fieldlm.network.http_client import HttpClient

    client = HttpClient(args.url)
    spec = LoadSpec(
        model=served_model(client, "".join([*args.models, *args.named])),
        prompt_tokens=(_flat(args.prompt) or (64,))[0],
        gen_tokens=(_flat(args.gen) or (64,))[0],
        # What an earlier run asked, the server may have kept.
        seed=random.SystemRandom().randint(*DRAWN) if args.seed is None else args.seed,
        deadline_s=args.deadline,
        first_word_s=args.first_word,
    )
    rates = [Level(rate=rate) for rate in _flat(args.rate)]
    levels = [Level(concurrency=most) for most in _flat(args.concurrency) or (() if rates else (1,))] + rates
    if args.minutes:
        return _soak(args, client, spec, levels[0])
    found: list[LevelResult] = []
    is_stopped = False
    try:
        for number, level in enumerate(levels):
            # A first answer warms up what is not asked about, and prompts are no level's again.
            run_level(client, spec, Level(concurrency=1), 1, name=f"warm-up {number}", on_end=_nothing)
            with terminal.progress(f"load {level.words}", args.requests) as progress:
                name, on_end = f"level {number}", progress.update
                asked = run_level(client, spec, level, args.requests, name=name, on_end=on_end)
            found.append(summary(level, asked, spec))
    except KeyboardInterrupt:
        # What was measured is not lost.
        if not found:
            raise
        is_stopped = True
    document = load_document(client.url, spec, found)
    terminal.show(document, describe_load(client.url, spec, found), as_json=args.json)
    if args.report:
        write_report(args.report, *load_pages(client.url, spec, found))
    if is_stopped:
        raise KeyboardInterrupt
    return 1 if any(not level.requests - sum(level.failed.values()) for level in found) else 0


def _soak(args: argparse.Namespace, client: "HttpClient", spec: "LoadSpec", level: "Level") -> int:
    from fieldlm.bench import soak
    from fieldlm.bench.load_report import describe_soak, soak_document, soak_pages
    from fieldlm.bench.report import write_report
    from fieldlm.network.http_client import is_here

    head = soak.SoakHead(
        format=soak.FORMAT, url=client.url, spec=spec, level=level, window_s=soak.WINDOW_S, is_here=is_here(args.url)
    )
    with terminal.progress(f"soak, {level.words}", max(1, round(args.minutes * 60 / soak.WINDOW_S))) as progress:

        def on_window(done: int, window: soak.SoakWindow) -> None:
            progress.begun = progress.begun if progress.done else done - 1  # what the file held already
            progress.update(done, f"{window.tokens_per_s or 0:.1f} tokens/s")

        try:
            found = soak.soak(
                client, args.out, head, args.minutes, is_seed_said=args.seed is not None,
                on_window=on_window,
            )  # fmt: skip
        except KeyboardInterrupt:
            progress.note = f"what was measured is in {args.out}; the same command goes on from there"
            raise
    terminal.show(soak_document(found), describe_soak(found), as_json=args.json)
    if args.report:
        write_report(args.report, *soak_pages(found))
    return 0 if any(window.answers for window in found.windows) else 1


def _nothing(_done: int) -> None: ...


def _base(args: argparse.Namespace) -> "tuple[Spec, Detection]":
    """Return what `serve` would run here, by its settings, else by what fits this machine; and what this machine is."""
    from fieldlm.bench.measure import Spec
    from fieldlm.hardware.cores import fast_cores
    from fieldlm.hardware.detect import detect

    config, found = load_config(), detect()
    profile = load_profile(config.profile) if config.profile else found.best
    cores, cpu = fast_cores(), profile.cpu
    threads = config.threads or max(1, min(cpu.decode_threads, cores))
    prefill = config.threads or max(1, min(cpu.prefill_threads or cpu.decode_threads, cores))
    spec = Spec(
        bundle="", prompt_tokens=0, gen_tokens=0, repetitions=args.repetitions, threads=threads,
        prefill_threads=prefill, seed=1 if args.seed is None else args.seed, delay_s=args.delay, profile=profile,
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
        "fieldlm bench --url http://127.0.0.1:8080 --rate 0.5,1 --deadline 5",
        "fieldlm bench --url http://127.0.0.1:8080 --minutes 30 --out soak.jsonl",
        "fieldlm bench --compare yesterday.json today.json --report difference.html",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "-m", "--model", dest="named", action="append", default=[], metavar="MODEL", help="a model, as MODEL"
    )
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
    _add_load(parser)
    args = parser.parse_args(argv)
    if not args.compare and not args.url and not args.models and not args.named:
        parser.error("the following arguments are required: MODEL")
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    models = [*args.models, *args.named]
    if args.compare and (models or args.url):
        raise InputError(
            f"--compare takes results and measures nothing; leave {models[0] if models else shown(args.url)} out"
        )
    if args.output and (args.json or args.compare or args.url):
        raise InputError("--json, --compare, --url and -o each say what to print; give one of them")
    if args.report:
        check_target(args.report)
    if not any(_flat(args.prompt) or (1,)) and not any(_flat(args.gen) or (1,)) and not args.pairs:
        raise InputError("there is nothing to measure with -p 0 and -n 0; give one of them tokens")
    of_load = {name: getattr(args, name.replace("-", "_")) for name in LOAD}
    if not args.url:
        if given := [name for name, value in of_load.items() if value]:
            raise InputError(f"--{given[0]} is for a running server; say which with --url")
        return
    if args.pairs:
        raise InputError("with --url a prompt is always answered; say -p and -n instead of -pg")
    if given := [name for name in LISTS if getattr(args, name)]:
        raise InputError(f"the server at --url decides on {given[0].replace('_', ' ')}; leave it out")
    if len(models) > 1 or any(len(_flat(values)) > 1 for values in (args.prompt, args.gen)):
        raise InputError("with --url there are one model, one -p and one -n; lists go with --concurrency and --rate")
    if bool(args.minutes) is not bool(args.out):
        raise InputError("--minutes and --out go together: what a soak finds is kept there, to go on with")
    if args.minutes and (args.rate or len(_flat(args.concurrency)) > 1):
        raise InputError("a soak has one load; give --minutes one --concurrency and no --rate")


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
        (
            "threads",
            ("--threads", "-t"),
            (0, options.THREADS[1]),
            "threads (default, and 0: those that serve would use)",
        ),
        ("batch", ("--batch-size", "-b"), options.BATCH, "tokens of the prompt in one step (default: 256)"),
        (
            "ubatch",
            ("--ubatch-size", "-ub"),
            options.BATCH,
            "tokens of a step that are computed at once (default: all)",
        ),
    ]
    for name, flags, (least, most), said in lists:
        parser.add_argument(
            *flags, dest=name, action="append", type=whole_numbers(least, most), metavar="N,…", help=said
        )
    parser.add_argument(
        "--prompt-gen", "-pg", dest="pairs", action="append", default=[],
        type=pair(1, options.CONTEXT[1]), metavar="P,N", help="a test of both in one: a prompt and its own answer",
    )  # fmt: skip
    parser.add_argument(
        "--repetitions", "-r", type=options.whole(1, 10_000), default=5, metavar="N", help="how often to measure"
    )
    parser.add_argument(
        "--delay", type=options.real(0, 86_400), default=0.0, metavar="SECONDS", help="rest before each test, to cool"
    )
    parser.add_argument(
        "--seed",
        type=options.whole(*options.SEED),
        metavar="N",
        help="random seed of the prompts (default: 1; with --url drawn anew, so that no cache of an earlier run helps)",
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    most = 128
    parser.add_argument(
        "--url",
        default="",
        help="put load on the running server there instead: http://HOST:PORT, https:// or unix:/PATH",
    )
    parser.add_argument(
        "--concurrency", action="append", type=whole_numbers(1, most), metavar="N,…",
        help="with --url: so many requests at once (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--rate", action="append", type=reals(0, 1000), metavar="R,…",
        help="with --url: so many requests a second, which arrive as strangers do (Poisson)",
    )  # fmt: skip
    parser.add_argument(
        "--requests", type=options.whole(1, 1_000_000), default=20, metavar="N", help="with --url: of each load"
    )
    for flag, said in (("--deadline", "an answer has to be whole"), ("--first-word", "it has to begin")):
        parser.add_argument(
            flag, type=options.real(0, 86_400, above=True), metavar="SECONDS", help=f"with --url: until when {said}"
        )
    parser.add_argument(
        "--minutes", type=options.real(0, 100_000, above=True), metavar="M",
        help="with --url and --out: keep the load up so long, and look for drift and throttling",
    )  # fmt: skip
    parser.add_argument(
        "--out",
        type=options.new_file,
        metavar="FILE",
        help="where --minutes keeps each half minute; said again, it goes on",
    )


def _add_ways(parser: argparse.ArgumentParser) -> None:
    caches, switches, modes = tuple(KV_TYPES), tuple(FLASH_ATTENTION), tuple(LOAD_MODES)
    lists = [
        ("key_type", ("--cache-type-k", "-ctk"), caches, f"type of the cache's keys: {', '.join(caches)}"),
        ("value_type", ("--cache-type-v", "-ctv"), caches, f"type of the cache's values: {', '.join(caches)}"),
        ("flash_attention", ("--flash-attn", "-fa"), switches, "flash attention: on, off or auto"),
        ("load_mode", ("--load-mode", "-lm", "--mmap", "-mmp"), modes, "weights read (none) or mapped (mmap)"),
    ]
    for name, flags, known, said in lists:
        parser.add_argument(*flags, dest=name, action="append", type=words(*known), metavar="TYPE,…", help=said)
