"""`fieldlm list`: the models of the catalogue, and those that are in the cache."""

from collections.abc import Sequence
from typing import Any

from fieldlm.catalogue.model_cache import FetchedModel, listed
from fieldlm.catalogue.names import catalogue
from fieldlm.core import terminal
from fieldlm.formats.gguf import read_header

HEADER = ("name", "source", "MB", "licence", "here")


def main(argv: Sequence[str]) -> int:
    """Print what can be run by its name: the catalogue, then what else was fetched."""
    parser = terminal.parser(
        "list", "list the models that can be run by name, and which of them are here", "fieldlm list"
    )
    args = parser.parse_args(argv)
    here = {model.source: model for model in listed()}
    documents: list[dict[str, Any]] = [
        {
            "name": name,
            "source": entry.source,
            "size": entry.size,
            "sha256": entry.sha256,
            "licence": entry.licence,
            "about": entry.about,
            "path": str(here.pop(entry.source).path) if entry.source in here else None,
        }
        for name, entry in catalogue().items()
    ]
    documents += [_fetched(model) for model in here.values()]
    rows = [
        (each["name"], each["source"], f"{each['size'] / 1e6:.1f}", each["licence"], "yes" if each["path"] else "no")
        for each in documents
    ]
    terminal.show({"models": documents}, terminal.table(rows, HEADER), as_json=args.json)
    return 0


def _fetched(model: FetchedModel) -> dict[str, Any]:
    metadata = read_header(model.path).metadata
    return {
        "name": model.source,
        "source": model.source,
        "size": model.size,
        "sha256": model.sha256,
        "licence": model.licence or str(metadata.get("general.license") or "unknown"),
        "about": str(metadata.get("general.name") or ""),
        "path": str(model.path),
    }
