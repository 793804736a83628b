"""`fieldlm profiles`: list them, show one with the source of every number, refuse an impossible one."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import msgspec

from fieldlm.core import terminal
from fieldlm.formats.profile import Profile, load_profile, profile_names, profile_sha256
from fieldlm.formats.profile_lint import cautions, lint
from fieldlm.hardware.detect import left_open

OPEN = "each machine has its own, which `fieldlm detect` says there; here it is what one has that nothing is known of"
SECTIONS = ("cpu", "memory", "power", "thermal", "gguf", "onnx", "runtime", "expect")


def main(argv: Sequence[str]) -> int:
    """List all profiles, show the named one, or check them; 1 when a checked one is impossible."""
    parser = terminal.parser(
        "profiles", "List the device profiles, show one, or check it.", "fieldlm profiles", "fieldlm profiles rpi5-8gb"
    )
    parser.add_argument("profile", nargs="?", metavar="NAME|FILE", help="a shipped profile, or the path of a .toml")
    parser.add_argument("--lint", action="store_true", help="say what is impossible in it (in all, without a name)")
    args = parser.parse_args(argv)
    names = [args.profile] if args.profile else profile_names()
    profiles = [load_profile(name) for name in names]
    if args.lint:
        return _lint(profiles, as_json=args.json)
    if args.profile:
        terminal.show(document(profiles[0]), describe(profiles[0]), as_json=args.json)
    else:
        terminal.show([document(profile) for profile in profiles], overview(profiles), as_json=args.json)
    return 0


def _lint(profiles: Sequence[Profile], *, as_json: bool) -> int:
    found = {profile.id: {"reasons": lint(profile), "cautions": cautions(profile)} for profile in profiles}
    lines: list[str] = []
    for name, said in found.items():
        lines.append(f"{name}: {'impossible' if said['reasons'] else 'ok'}")
        lines += [f"  ✗ {reason}" for reason in said["reasons"]]
        lines += [f"  · {caution}" for caution in said["cautions"]]
    terminal.show(found, "\n".join(lines), as_json=as_json)
    return 1 if any(said["reasons"] for said in found.values()) else 0


def document(profile: Profile) -> dict[str, Any]:
    """Return the profile with its digest, for JSON."""
    return {**msgspec.to_builtins(profile), "sha256": profile_sha256(profile)}


def overview(profiles: Sequence[Profile]) -> str:
    """Return one row for each profile."""
    rows = [
        (
            p.id,
            p.title,
            _marked(p, "cpu.decode_threads", p.cpu.decode_threads),
            _marked(p, "memory.model_budget_mb", p.memory.model_budget_mb),
            p.gguf.default_quant,
            " ".join(p.engines),
        )
        for p in profiles
    ]
    table = terminal.table(rows, ["profile", "device", "threads", "budget MB", "quant", "engines"])
    return table + (f"\n* {OPEN}" if any(map(left_open, profiles)) else "")


def _marked(profile: Profile, name: str, value: object) -> str:
    return f"{value}{'*' if name in left_open(profile) else ''}"


def describe(profile: Profile) -> str:
    """Return everything the profile says; every number with its kind and source."""
    parts = [
        f"{profile.id}  {profile.title}\nsha256 {profile_sha256(profile)}",
        terminal.table(
            [(name, _marked(profile, name, value), *rest) for name, value, *rest in settings_of(profile)],
            ["setting", "value", "kind", "source"],
        ),
    ]
    if profile.accelerators:
        rows = [(a.kind, a.name, "yes" if a.used else "not yet", a.source) for a in profile.accelerators]
        parts.append(terminal.table(rows, ["accelerator", "name", "used", "source"]))
    if profile.power.modes:
        modes = [(m.name, m.watts or "–", "default" if m.default else "", m.source) for m in profile.power.modes]
        parts.append(terminal.table(modes, ["power mode", "watts", "", "source"]))
    if profile.references:
        references = [
            (r.model, r.quant, r.mode, r.prefill_tokens_s or "–", r.decode_tokens_s or "–", r.source)
            for r in profile.references
        ]
        header = ["published for", "quant", "how", "prefill/s", "decode/s", "source"]
        parts.append(terminal.table(references, header))
    if left_open(profile):
        parts.append(f"* {OPEN}")
    return "\n\n".join(parts)


def settings_of(profile: Profile) -> Iterator[tuple[str, str, str, str]]:
    """Yield every setting that says something: its name, value, kind and source."""
    for section in SECTIONS:
        values: dict[str, Any] = msgspec.to_builtins(getattr(profile, section))
        for name, value in values.items():
            if value in (None, "", [], ()) or name == "modes":
                continue
            said = profile.sources.get(f"{section}.{name}")
            words = " ".join(map(str, cast(list[object], value))) if isinstance(value, list | tuple) else str(value)
            yield f"{section}.{name}", words, said.kind if said else "", said.source if said else ""
