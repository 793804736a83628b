"""`fieldlm demo`: how much of the story is told, where, and what came of it."""

import json
import shutil
import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fieldlm.core import options, terminal
from fieldlm.core.errors import InputError
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.formats.profile import load_profile
from fieldlm_compiler.demo.size import QUICK, StorySize


def main(argv: Sequence[str]) -> int:
    """Run `fieldlm demo`."""
    args = _parser().parse_args(argv)
    size = _size(args)
    # Told to end by whatever means, the story takes its processes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.fresh:
        shutil.rmtree(args.folder, ignore_errors=True)
    from fieldlm.hardware.detect import detect
    from fieldlm_compiler.demo.report import page
    from fieldlm_compiler.demo.story import Story
    from fieldlm_compiler.demo.summary import words

    profile = load_profile(args.profile) if args.profile else detect().best
    _check_same(args.folder, {"size": asdict(size), "profile": profile.id})
    report = Story(args.folder, profile, size).tell()
    write_whole(args.folder / "report.json", canonical_json(report))
    write_whole(args.folder / "report.html", page(report).encode())
    terminal.show(report, words(report, args.folder), as_json=args.json)
    return 0


def _size(args: Any) -> StorySize:
    """Return what was asked for: the whole story or the quick one, with what was said of its size."""
    said = {name: getattr(args, name) for name in ("sentences", "held_out", "epochs")}
    return replace(QUICK if args.quick else StorySize(), **{name: value for name, value in said.items() if value})


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with a half-told story under other settings."""
    path = folder / "settings.json"
    wanted = json.loads(canonical_json(settings))
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise InputError(f"{folder} holds a demo with other settings ({path}); add --fresh to start over")
    write_whole(path, canonical_json(settings))


def _parser() -> Any:
    parser = terminal.parser(
        "demo",
        "Run the kiosk story: one turn of the circle, on this machine.",
        "fieldlm demo",
        "fieldlm demo --quick",
        "fieldlm demo --folder /tmp/demo --fresh",
    )
    parser.add_argument("--folder", type=options.new_folder, default=Path("demo"), help="where everything goes")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument("--profile", default="", help="device profile (default: detected)")
    parser.add_argument("--quick", action="store_true", help="a short story: fewer sentences, and fewer right answers")
    sizes = (
        ("sentences", options.whole(1), "what training customers say"),
        ("held-out", options.whole(1), "what held-out customers say"),
        ("epochs", options.real(0, 10_000, above=True), "passes over the dataset"),
    )
    for name, kind, words_of in sizes:
        default, quick = (getattr(each, name.replace("-", "_")) for each in (StorySize(), QUICK))
        parser.add_argument(f"--{name}", type=kind, help=f"{words_of} (default: {default}, quick {quick})")
    return parser
