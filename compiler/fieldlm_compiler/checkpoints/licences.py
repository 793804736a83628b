"""Licences: what a model card or a licence file says, read as it is written and never guessed to be more permissive."""

import re
from pathlib import Path
from typing import Any, cast

UNKNOWN = "unknown"
AND = " AND "
# The titles of licences, as the first lines of their files say them.
TITLES = {
    r"apache license,? version 2\.0.*": "apache-2.0",
    r"(the )?mit license( \(mit\))?": "mit",
    r"gemma terms of use": "gemma",
    r"llama (\d(?:\.\d)?) community license agreement": "llama{}",
    r"(?:tongyi )?qwen research license agreement": "qwen-research",
    r"(the )?3-clause bsd license|bsd 3-clause license": "bsd-3-clause",
}
TITLE_LINES = 6


def licence_of(folder: Path) -> str:
    """Return the licence that the model card in `folder` names, or that its licence file is; `unknown` without either.

    A licence that the card calls `other` goes by its own name. Of several, every one counts: they are joined by AND.
    """
    return _of_card(folder / "README.md") or _of_files(folder) or UNKNOWN


def together(*licences: str) -> str:
    """Return what has to be kept by who uses works under each of `licences`; an unknown one counts beside others."""
    return AND.join(dict.fromkeys(name for each in licences for name in each.split(AND)))


def _of_card(readme: Path) -> str | None:
    import yaml

    if not readme.is_file():
        return None
    front = re.match(r"---\s*\n(.*?)\n---", readme.read_text("utf-8-sig", errors="replace"), flags=re.DOTALL)
    try:
        card = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError:
        return None
    if not isinstance(card, dict):
        return None
    named, own = (_names(cast(dict[str, Any], card).get(key)) for key in ("license", "license_name"))
    if own:
        named = [name for name in named if name.lower() != "other"] or own
    return together(*named) or None


def _names(value: object) -> list[str]:
    each = cast(list[object], value) if isinstance(value, list) else [value]
    return [name.strip() for name in each if isinstance(name, str) and name.strip()]


def _of_files(folder: Path) -> str | None:
    for path in sorted(folder.glob("LICENSE*")):
        head = path.read_text("utf-8-sig", errors="replace")[:2000]
        lines = [each for line in head.splitlines() if (each := " ".join(line.lower().split()).strip("#*_=-. "))]
        for title, name in TITLES.items():
            # A title may go over two lines.
            for at in range(min(TITLE_LINES, len(lines))):
                for said in (lines[at], " ".join(lines[at : at + 2])):
                    if found := re.fullmatch(title, said):
                        return name.format(found[1]) if "{}" in name else name
    return None
