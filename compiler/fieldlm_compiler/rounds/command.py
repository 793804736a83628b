"""`fieldlm round`: what came home becomes the next generation, unless it is not better than the one before."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fieldlm.core import options, terminal
from fieldlm.core.config import keys_folder
from fieldlm.core.errors import InputError
from fieldlm.core.logs import logger
from fieldlm.core.signing import load_or_create_key
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.hardware.detect import detect
from fieldlm_compiler.checkpoints.checkpoint import check_named
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.curate import EVAL_SHARE
from fieldlm_compiler.learn.quality.held_out import held_out_from
from fieldlm_compiler.learn.redacted.second_pass import NAMES, NAMES_HELP
from fieldlm_compiler.learn.tuning.four_bits import check_four_bits
from fieldlm_compiler.learn.tuning.recipe import add_recipe, recipe_of
from fieldlm_compiler.rounds.advice import ENOUGH
from fieldlm_compiler.verify.deferral import DEFERRALS

if TYPE_CHECKING:
    from fieldlm_compiler.rounds.state import FinishedRound
    from fieldlm_compiler.rounds.wish import RoundWish

log = logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Make the next round; 1 when it is refused."""
    args = _parser().parse_args(argv)
    from fieldlm_compiler.rounds.round import LearningRound
    from fieldlm_compiler.rounds.table import as_json, text

    if not args.consent:
        raise InputError("name the terms that allow training: --consent TERM, once for each")
    if not 0 < args.eval_share < 1:
        raise InputError(
            f"--eval-share {args.eval_share:g} holds out nobody or everybody; want more than 0, less than 1"
        )
    if args.lora == "dora":
        raise InputError("a round's adapter stays beside its base, and DoRA can only be merged: --lora lora or rslora")
    check_four_bits(recipe_of(args))
    profile = load_profile(args.profile) if args.profile else detect().best
    for base in args.base:
        check_named(base)
    open_sink(args.store, read_only=True).close()
    maker = LearningRound(_wish(args, profile))
    maker.check()
    done = maker.run()
    answer = as_json(done.document) | {"folder": str(done.folder)}
    said = [text(done)]
    if done.is_accepted:
        next_step = _publish(args, done, profile) if args.publish else _next(args, done)
        said.append(next_step)
        answer["next"] = next_step
    terminal.show(answer, "\n".join(said), as_json=args.json)
    return 0 if done.is_accepted else 1


def _wish(args: argparse.Namespace, profile: Profile) -> "RoundWish":
    from fieldlm_compiler.rounds.wish import RoundWish

    base, *others = dict.fromkeys(args.base)
    return RoundWish(
        store=args.store,
        base=base,
        bases=tuple(others),
        profile=profile,
        out=args.out,
        key=load_or_create_key(keys_folder(args.keys) / "signing.pem"),
        consents=tuple(dict.fromkeys(args.consent)),
        base_bundle=args.base_bundle,
        quants=tuple(args.quant),
        name=args.name,
        system_prompt=args.system_prompt,
        recipe=recipe_of(args),
        begin=args.begin,
        adapters=args.adapters,
        classifiers=args.classifiers,
        deferral=args.deferral,
        eval_share=args.eval_share,
        teacher=args.teacher,
        check_labels=args.check_labels,
        names=args.names,
        held_out_from=held_out_from(args.held_out_from) if args.held_out_from else None,
        enough=args.enough,
        let_go=frozenset(args.let_go),
    )


def _publish(args: argparse.Namespace, done: "FinishedRound", profile: Profile) -> str:
    from fieldlm_compiler.repository.publish import publish

    release = publish(done.bundle, args.publish, keys=keys_folder(args.keys), profile=profile.id)
    return (
        f"published as release {release.seq} of {release.profile}; in waves: "
        f"fieldlm rollout start --store {args.store} --to {args.publish} --broker mqtt://HOST"
    )


def _next(args: argparse.Namespace, done: "FinishedRound") -> str:
    keys = f" --keys {args.keys}" if args.keys else ""
    rollout = f"fieldlm rollout start --store {args.store} --to REPOSITORY{keys}"
    return f"next: fieldlm publish {done.bundle} --to REPOSITORY --share 0{keys}, then: {rollout}"


def _parser() -> terminal.Parser:
    parser = terminal.parser(
        "round",
        "Make the next generation of what came home; exit code 1 when it is not better and the one before stays.",
        "fieldlm round store --base smollm2 --consent kiosk-2026 --out rounds",
        "fieldlm round store --base smollm2 --consent yes --out rounds --publish repo",
        "fieldlm round store --base smollm2 --base mymodel --consent yes --out rounds",
    )
    parser.add_argument("store", help="what `fieldlm collect` filled: FOLDER, delta:URI or kafka:BROKERS/TOPIC")
    parser.add_argument(
        "--base", action="append", required=True, metavar="MODEL",
        help="the model that is tuned: folder, .gguf or name; of several, the smallest that answers as well; repeat",
    )  # fmt: skip
    parser.add_argument("--out", type=options.new_folder, required=True, help="folder of all rounds")
    parser.add_argument(
        "--consent", action="append", default=[], metavar="TERM", help="a term of consent that allows training; repeat"
    )
    parser.add_argument("--profile", default="", help="the kind of device; none: this machine")
    parser.add_argument(
        "--base-bundle",
        type=options.existing_folder,
        metavar="BUNDLE",
        help="the base as devices have it; none: compiled",
    )
    parser.add_argument(
        "--quant", action="append", default=[], help="a candidate for the base, best first; may be repeated"
    )
    parser.add_argument("--name", default="", help="what clients call the model")
    parser.add_argument("--system-prompt", help="put in front of conversations that have none")
    parser.add_argument(
        "--from", dest="begin", choices=("best", "last", "fresh"), default="best",
        help="tune from the last accepted adapter, afresh, or both and take the better",
    )  # fmt: skip
    _add_answering(parser)
    parser.add_argument(
        "--enough", type=options.real(0, 1), default=ENOUGH, help="exact match from which the small model takes a task"
    )
    parser.add_argument(
        "--let-go",
        action="append",
        default=[],
        metavar="TASK",
        help="a task, by id or name, that may get worse; repeat",
    )
    _add_labels(parser)
    parser.add_argument(
        "--publish", type=options.new_folder, metavar="REPOSITORY", help="offer an accepted bundle there"
    )
    parser.add_argument("--keys", metavar="DIR", help="folder of the signing key; default: as configured")
    add_recipe(parser)
    return parser


def _add_answering(parser: terminal.Parser) -> None:
    """Add what of a bundle answers which task, and how sure it is."""
    parser.add_argument(
        "--adapters", choices=("one", "groups", "best"), default="one",
        help="one adapter for all tasks, one for each group of tasks as well, or those of groups that gain by it",
    )  # fmt: skip
    parser.add_argument(
        "--classifiers", choices=("none", "best"), default="none",
        help="best: tasks with few answers are answered by a classifier where it is sure and loses nothing",
    )  # fmt: skip
    parser.add_argument(
        "--deferral", choices=DEFERRALS, default="threshold",
        help="how likely an answer is right: by one signal, by several learned together, or by the better of the two",
    )  # fmt: skip


def _add_labels(parser: terminal.Parser) -> None:
    """Add what decides which records are examples, and who judges."""
    parser.add_argument("--eval-share", type=options.real(0, 1), default=EVAL_SHARE, help="share of customers held out")
    parser.add_argument(
        "--teacher", action="store_true", help="what the large model answered is right where nobody corrected it"
    )
    parser.add_argument(
        "--check-labels",
        action="store_true",
        help="leave out labels that others' labels of like requests speak against",
    )
    parser.add_argument("--names", choices=NAMES, default=NAMES[0], help=NAMES_HELP)
    parser.add_argument(
        "--held-out-from", metavar="WHEN", help="hold out the newest, too: a date, or their share, as 0.1"
    )
