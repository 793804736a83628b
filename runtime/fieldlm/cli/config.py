"""`fieldlm config`: every setting, its value and where it comes from; or all of them as a file to begin with."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from fieldlm.core import terminal
from fieldlm.core.config import SETTINGS, default_words, load_config
from fieldlm.core.urls import shown_all
from fieldlm.formats.profile import load_profile

HEAD = """\
# Settings of fieldlm. `fieldlm config` prints every one of them and where it comes from.
# A line that is commented out shows the default. After a change: systemctl restart fieldlm
"""
PAGE = """\
# Settings

Each setting is a flag of `fieldlm serve` (`--spool-mb 64`), a variable (`FIELDLM_SPOOL_MB=64`) and a line of the
settings file (`spool_mb = 64`). The flag counts before the variable, the variable before the file. The file is
`$FIELDLM_CONFIG`, else `~/.config/fieldlm/config.toml`, else `/etc/fieldlm/config.toml`; `fieldlm config --template
toml` prints one to begin with. A switch is true or false; its flags are `--share` and `--no-share`. `fieldlm config`
says what holds, and why. This page is written by `fieldlm config --template markdown`.
"""


def main(argv: Sequence[str]) -> int:
    """Print every setting with its value and where it comes from."""
    parser = terminal.parser(
        "config",
        "Show every setting, its value and where it comes from.",
        "fieldlm config",
        "fieldlm config --template toml > ~/.config/fieldlm/config.toml",
    )
    parser.add_argument(
        "--template", choices=("toml", "markdown"), help="print a settings file with every default instead, or a page"
    )
    args = parser.parse_args(argv)
    if args.template:
        text = as_toml() if args.template == "toml" else as_markdown()
        terminal.show({"template": text}, text, as_json=args.json)
        return 0
    config = load_config(strict=True)
    if config.profile:
        load_profile(config.profile)
    values = {name: getattr(config, name) for name in SETTINGS}
    told = {name: str(value) if isinstance(value, Path) else shown_all(value) for name, value in values.items()}
    document = {name: {"value": value, "origin": config.origins[name]} for name, value in told.items()}
    rows = [(name, _words(value), config.origins[name]) for name, value in told.items()]
    terminal.show(document, terminal.table(rows, ["setting", "value", "from"]), as_json=args.json)
    return 0


def as_toml(*, without: Sequence[str] = ()) -> str:
    """Return a settings file in which every line is commented out and shows its default."""
    lines, group = [HEAD.rstrip()], ""
    for name, each in SETTINGS.items():
        if name in without:
            continue
        lines += [""] if each.group != group else []
        group = each.group
        lines.append(f"{f'# {name} = {default_words(name)}':<31} # {each.help}")
    return "\n".join(lines) + "\n"


def as_markdown() -> str:
    """Return the page docs/settings.md."""
    lines, group = [PAGE.rstrip()], ""
    for name, each in SETTINGS.items():
        if each.group != group:
            lines += ["", f"## {each.group}", "", "| setting | default | what it is |", "|---|---|---|"]
        group = each.group
        lines.append(f"| `{name}` | `{default_words(name)}` | {each.help} |")
    return "\n".join(lines) + "\n"


def _words(value: object) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, cast(list[object], value)))
    return {"": "–", "True": "true", "False": "false"}.get(str(value), str(value))
