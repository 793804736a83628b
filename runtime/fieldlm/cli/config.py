"""`fieldlm config`: every setting, its value and where it comes from."""

from collections.abc import Sequence
from pathlib import Path

from fieldlm.core import terminal
from fieldlm.core.config import SETTINGS, load_config
from fieldlm.formats.profile import load_profile


def main(argv: Sequence[str]) -> int:
    """Print every setting with its value and where it comes from."""
    args = terminal.parser("config", "Show every setting, its value and where it comes from.").parse_args(argv)
    config = load_config()
    if config.profile:
        load_profile(config.profile)
    values = {name: getattr(config, name) for name in SETTINGS}
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    document = {name: {"value": value, "origin": config.origins[name]} for name, value in shown.items()}
    rows = [(name, _words(value), config.origins[name]) for name, value in shown.items()]
    terminal.show(document, terminal.table(rows, ["setting", "value", "from"]), as_json=args.json)
    return 0


def _words(value: object) -> str:
    return {"": "–", "True": "true", "False": "false"}.get(str(value), str(value))
