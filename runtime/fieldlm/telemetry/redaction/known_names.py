"""Names of some forty countries, word by word: `known_names.txt`, held as sorted checksums (four bytes a name).

One word in 70,000 that is no name has a name's checksum; no word of a task is looked up unless it has a capital.
"""

import functools
import zlib
from array import array
from bisect import bisect_left
from pathlib import Path

_PLACES = [
    "north",
    "south",
    "east",
    "west",
    "northern",
    "southern",
    "eastern",
    "western",
    "new",
    "old",
    "great",
    "little",
    "upper",
    "lower",
    "lake",
    "mount",
    "mt",
    "port",
    "fort",
    "cape",
    "saint",
    "st",
    "san",
    "santa",
    "santo",
    "sao",
    "são",
    "los",
    "las",
    "el",
    "la",
    "le",
    "les",
    "via",
    "rue",
    "bad",
    "sankt",
    "camp",
    "point",
    "bay",
]
_THINGS = [
    "park",
    "parks",
    "street",
    "road",
    "avenue",
    "lane",
    "drive",
    "square",
    "lake",
    "river",
    "hill",
    "hills",
    "valley",
    "county",
    "city",
    "town",
    "village",
    "island",
    "islands",
    "beach",
    "bay",
    "falls",
    "springs",
    "creek",
    "mountain",
    "mountains",
    "canyon",
    "forest",
    "museum",
    "theatre",
    "theatres",
    "theater",
    "theaters",
    "cinema",
    "cinemas",
    "cafe",
    "café",
    "restaurant",
    "bar",
    "grill",
    "diner",
    "pub",
    "bistro",
    "pizzeria",
    "kitchen",
    "house",
    "hotel",
    "inn",
    "hall",
    "tower",
    "bridge",
    "station",
    "airport",
    "school",
    "college",
    "university",
    "institute",
    "hospital",
    "clinic",
    "church",
    "cathedral",
    "castle",
    "palace",
    "stadium",
    "arena",
    "center",
    "centre",
    "mall",
    "market",
    "bank",
    "group",
    "inc",
    "ltd",
    "llc",
    "gmbh",
    "company",
    "corporation",
    "records",
    "orchestra",
    "band",
    "quartet",
    "festival",
    "award",
    "awards",
    "prize",
    "cup",
    "league",
    "club",
    "united",
    "fc",
    "airlines",
    "monument",
    "memorial",
    "day",
    "national",
    "state",
    "republic",
    "ave",
    "blvd",
    "st",
    "rd",
    "straße",
    "strasse",
    "platz",
    "allee",
]
PLACE_BEFORE, THING_BEHIND = frozenset(_PLACES), frozenset(_THINGS)
"""Words that make a place of a name behind them ("San …"), and a place or a firm of one before them ("… Park")."""


@functools.cache
def _marked(mark: str) -> "array[int]":
    lines = Path(__file__).with_name("known_names.txt").read_text(encoding="utf-8").split("\n")
    names = (name for line in lines if line.startswith(f"{mark} ") for name in line[2:].split())
    return array("I", sorted(zlib.crc32(name.encode()) for name in names))


def is_given(word: str) -> bool:
    """Say whether `word`, in folded case, is a first name and nothing else that is known."""
    return _holds(_marked("+"), word)


def is_name(word: str) -> bool:
    """Say whether `word`, in folded case, is a first or a last name, or a part of one."""
    return is_given(word) or is_surname(word) or _holds(_marked("~"), word)


def is_surname(word: str) -> bool:
    """Say whether `word`, in folded case, is a last name and nothing else that is known."""
    return _holds(_marked("="), word)


def _holds(numbers: "array[int]", word: str) -> bool:
    number = zlib.crc32(word.encode("utf-8", "replace"))
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number
