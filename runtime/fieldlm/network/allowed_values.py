"""Allowed values: what a parameter may be where only some words do, read from the type of the request.

msgspec says which word it does not know, and where; not which ones there are.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec.inspect as shapes

_UNKNOWN = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)
_STEP = re.compile(r"\.?(\w+)|\[[^\]]*\]")


def unknown_word(complaint: str, kind: Any, where: str) -> str | None:
    """Return what is wrong with the word that msgspec's `complaint` about `where` in `kind` is of, and what would do.

    They are in the order of the alphabet. None where it complains of something else.
    """
    unknown = _UNKNOWN.fullmatch(complaint)
    words = words_at(kind, where) if unknown else ()
    return f"{where} is {unknown[1]}; want one of {', '.join(words)}" if unknown and words else None


@lru_cache(maxsize=256)
def words_at(kind: Any, where: str) -> tuple[str, ...]:
    """Return the words that may stand at `where` in `kind`, as `tools[0].type`; none where any may."""
    here = list(_ways(shapes.type_info(kind)))
    tags = list[str]()
    for step in _STEP.finditer(where):
        tags = [str(way.tag) for way in here if isinstance(way, shapes.StructType) and way.tag_field == step[1]]
        here = [inner for way in here for each in _within(way, step[1]) for inner in _ways(each)]
    literals = [str(value) for way in here if isinstance(way, shapes.LiteralType) for value in way.values]
    return tuple(dict.fromkeys([*literals, *tags]))


def _ways(shape: shapes.Type) -> Iterator[shapes.Type]:
    """Yield the types that a value of `shape` may have."""
    if isinstance(shape, shapes.Metadata):
        yield from _ways(shape.type)
    elif isinstance(shape, shapes.UnionType):
        for each in shape.types:
            yield from _ways(each)
    else:
        yield shape


def _within(shape: shapes.Type, name: str | None) -> Iterator[shapes.Type]:
    """Yield the type of the field `name`, or without one that of an item."""
    if name is None:
        yield from [shape.item_type] if isinstance(shape, shapes.ListType) else []
    elif isinstance(shape, shapes.StructType):
        yield from (each.type for each in shape.fields if each.encode_name == name)
