"""`fieldlm verify BUNDLE`: whether it is whole, by whom it is, and whether it answers as it should on this machine.

With `--on-device` it is measured, too, and held against what its profile foresees: see `on_device`.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core import terminal
from fieldlm.formats.bundle import SIGNATURE, Bundle, open_bundle
from fieldlm.formats.profile import load_profile

# All but one of the usual three: another processor may round one answer away.
SHARE_NEEDED = 0.6
VOID = 75
"""The exit code, EX_TEMPFAIL, of a measurement that says nothing of this machine: run it again when it is quiet."""


def main(argv: Sequence[str]) -> int:
    """Check every byte and the signature, load the bundle, ask its probes, print its gates.

    Returns 1 when an answer is no, and `VOID` when there is none, for the measurement was void; then `ok` is None.
    """
    parser = terminal.parser(
        "verify",
        "Check a bundle's bytes and signature, load it and ask its probe questions.",
        "fieldlm verify smollm2-rpi5-8gb",
        "fieldlm verify smollm2-rpi5-8gb --on-device",
    )
    parser.add_argument("bundle", type=Path, help="the bundle's folder")
    parser.add_argument("--key", action="append", default=[], metavar="KEYID", help="a signer you trust; none: any")
    parser.add_argument(
        "--on-device", action="store_true", help="measure it here, and write what came out beside the bundle"
    )
    parser.add_argument("--profile", help="the kind of device this is (with --on-device); none: the bundle's")
    args = parser.parse_args(argv)
    if args.profile and not args.on_device:
        parser.error("--profile goes with --on-device")
    from fieldlm.bench import calibration

    open_bundle(args.bundle, digests=False)  # what is no bundle is refused before anything is said
    with terminal.progress(f"check {args.bundle}"):
        bundle = open_bundle(args.bundle, trusted=frozenset(args.key))
    profile = load_profile(args.profile or bundle.manifest.profile) if args.on_device else None
    found = verify(bundle)
    report = found | {"signer": signer(bundle), "trusted": bool(args.key)}
    text = _text(report)
    is_void = False
    if profile:
        overlay = calibration.confirm(bundle, profile, found["probes"])
        is_void = overlay.is_void and bool(report["ok"])
        report |= {"ok": None if is_void else report["ok"] and overlay.holds, "overlay": overlay}
        text += f"\n{calibration.words(overlay)}"
        text += "" if overlay.is_void else f"\n  written to {calibration.overlay_path(bundle)}"
    terminal.show(report, text, as_json=args.json)
    if is_void:
        return VOID
    return 0 if report["ok"] else 1


def verify(bundle: Bundle) -> dict[str, Any]:
    """Load `bundle` and ask its probes; return what was found, with `ok` for the verdict.

    Raises EngineError when it cannot be loaded or does not answer.
    """
    from fieldlm.inference import probe
    from fieldlm.inference.model import Model

    started_s = time.monotonic()
    with Model.open(bundle, parallel=1) as model, terminal.progress("ask the probe questions"):
        load_s = time.monotonic() - started_s
        agreed = probe.score(model)
        memory_mb = model.engine.memory_mb()
    manifest = bundle.manifest
    return {
        "ok": agreed >= SHARE_NEEDED and all(gate.passed for gate in manifest.gates),
        "bundle": bundle.id,
        "folder": str(bundle.folder),
        "model": manifest.model.name,
        "profile": manifest.profile,
        "quant": manifest.recipe.quant,
        "bytes": manifest.size,
        "probes": agreed,
        "gates": msgspec.to_builtins(manifest.gates),
        "held_against_source": manifest.is_held_against_source,
        "load_s": round(load_s, 2),
        "memory_mb": {part: round(size, 1) for part, size in memory_mb.items()},
    }


def signer(bundle: Bundle) -> str:
    """Return the key id of who signed the bundle; `open_bundle` has checked that the signature is good."""
    return str(json.loads((bundle.folder / SIGNATURE).read_bytes())["keyid"])


def _text(report: dict[str, Any]) -> str:
    source = "" if report["held_against_source"] else "  its weights came quantised: held against no source model"
    vouched = "trusted" if report["trusted"] else "not compared with anyone: give --key"
    gates = [[gate["name"], f"{gate['value']:g}", f"{gate['limit']:g}", gate["unit"]] for gate in report["gates"]]
    verdict = "✓ it is what it says" if report["ok"] else "✗ it answers otherwise than when it was made; fetch it again"
    return "\n".join(
        [
            f"{report['folder']}  generation {report['bundle'][:12]}",
            f"  {report['model']} as {report['quant']} for {report['profile']}, {report['bytes'] / 1e6:.1f} MB, whole",
            f"  signed by {report['signer']} ({vouched})",
            f"  loads in {report['load_s']} s, {sum(report['memory_mb'].values()):.0f} MB",
            f"  {report['probes']:.0%} of its probes are answered as expected",
            terminal.table(gates, ["gate", "value", "limit", "unit"]),
            *filter(None, [source]),
            f"  {verdict}",
        ]
    )
