"""Forward compatibility: what an older reader makes of a document that a newer writer made.

A format is called `fieldlm.bundle/1`, or `fieldlm.bundle/1.2` with a minor version. Another major version is another
format and is refused. A newer minor version may have fields, roles of files and words that this reader does not know;
it goes on without them, but for those that the writer lists in `must_understand`: without them the rest would be
misread, so the document is refused by their names.
"""

from collections.abc import Collection

import msgspec

from fieldlm.core.errors import FieldlmError


class Growing(msgspec.Struct, frozen=True, kw_only=True):
    """A document that may come from a newer writer. An empty list is not written: what is signed stays as it was."""

    must_understand: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET


def is_readable(found: str, known: str) -> bool:
    """Say whether the format `found` is `known` or a minor version of it."""
    minor = found.removeprefix(f"{known}.")
    return found == known or (minor != found and minor.isascii() and minor.isdigit())


def check_understood(document: Growing, *, what: str, error: type[FieldlmError], known: Collection[str] = ()) -> None:
    """Raise `error` when `document` must not be read without something that is neither a field of it nor `known`."""
    needed = document.must_understand
    if isinstance(needed, tuple):
        check_names(needed, {*document.__struct_fields__, *known}, what=what, error=error)


def check_names(needed: Collection[str], known: Collection[str], *, what: str, error: type[FieldlmError]) -> None:
    """Raise `error` with those of `needed` that are not `known`."""
    missing = [name for name in needed if name not in known]
    if missing:
        raise error(f"{what} needs {', '.join(missing)[:200]}, which this version does not know; update fieldlm")
