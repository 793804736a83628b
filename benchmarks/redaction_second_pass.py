"""What the second pass at home finds of names, beside the first: `python -m benchmarks.redaction --second-pass`.

Four kinds: whole names, first names, last names standing alone, whole names in lower case; of the 20 locales, of ten
that neither the rules nor the weights were made for, and in templates that others wrote (presidio-research's, where
`--templates` names the file). Names in scripts without spaces are the first pass's alone.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faker import Faker

from benchmarks.redaction_texts import LOCALES, SENTENCES
from fieldlm_compiler.learn.redacted.second_pass import Names, again

UNSEEN = ["id_ID", "hu_HU", "ro_RO", "fi_FI", "hr_HR", "vi_VN", "hi_IN", "fa_IR", "no_NO", "da_DK"]
KINDS = ("whole", "first", "last", "lower")
SEED = 31
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_PERSONS = {
    "person": "whole", "name": "whole", "name_female": "whole", "name_male": "whole", "first_name": "first",
    "first_name_male": "first", "first_name_female": "first", "first_name_nonbinary": "first", "last_name": "last",
    "last_name_male": "last", "last_name_female": "last",
}  # fmt: skip


class Named(NamedTuple):
    """A text, the name in it and its kind."""

    text: str
    name: str
    kind: str


def named(locales: Sequence[str], each: int = 2) -> Iterator[Named]:
    """Yield names of all kinds in English sentences and the locale's own; the same for the same Faker."""
    for locale in locales:
        fake: Any = Faker(locale)
        fake.seed_instance(f"{SEED} {locale}")
        for sentence in SENTENCES.get(locale, ()) + SENTENCES["en_US"] * (locale != "en_US"):
            for kind in KINDS:
                for _ in range(each):
                    yield _filled(sentence.lstrip("!"), "{x}", _name(fake, kind), kind)


def in_templates(file: Path, locales: Sequence[str]) -> Iterator[Named]:
    """Yield names in a file's templates, a line each, with slots such as {{person}} and {{city}}."""
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(line for line in lines if any(slot in _PERSONS for slot in _SLOT.findall(line))):
        for locale in locales:
            fake: Any = Faker(locale)
            fake.seed_instance(f"{SEED} {locale} {number}")
            slots = [match for match in _SLOT.finditer(line) if match[1] in _PERSONS]
            slot = slots[number % len(slots)]
            before, after = (_others(fake, part) for part in (line[: slot.start()], line[slot.end() :]))
            for kind in (_PERSONS[slot[1]], *(["lower"] if _PERSONS[slot[1]] == "whole" else [])):
                yield _filled(f"{before}\0{after}", "\0", _name(fake, kind), kind)


def _others(fake: Any, text: str) -> str:
    def fill(found: re.Match[str]) -> str:
        make = {"person": "name", "organization": "company", "nationality": "country"}.get(found[1], found[1])
        try:
            return str(getattr(fake, make)()).replace("\n", ", ")
        except AttributeError:
            return "12"

    return _SLOT.sub(fill, text)


def _filled(sentence: str, slot: str, name: str, kind: str) -> Named:
    text = sentence.replace(slot, name)
    return Named(text.lower() if kind == "lower" else text, name.lower() if kind == "lower" else name, kind)


def _name(fake: Any, kind: str) -> str:
    first, last = str(fake.first_name()), str(fake.last_name())
    if kind in ("first", "last"):
        return first if kind == "first" else last
    gap = "" if fake.locales[0][:2] in ("zh", "ko") else " "
    return f"{last}{gap}{first}" if fake.locales[0][:2] in ("zh", "ko", "ja", "hu") else f"{first} {last}"


def seen_again(text: str, names: Names = "learned") -> str:
    """Return a text as an example has it, if a device redacted it with this version's rules."""
    prompt = json.dumps([{"role": "user", "content": text}], ensure_ascii=False)
    made = again({"prompt": prompt, "redacted": "yes"}, names=names)
    return json.loads(made["prompt"])[0]["content"]


def recall(made: Sequence[Named]) -> dict[str, dict[str, float]]:
    """Return by kind the share of names of which no word is left, in percent, after one pass and after two."""
    table: dict[str, dict[str, float]] = {}
    for kind in ("all", *KINDS):
        mine = [each for each in made if kind in ("all", each.kind)]
        if mine:
            table[kind] = {
                "names": len(mine),
                "first pass": _share(mine, "listed"),
                "second pass": _share(mine, "learned"),
            }
    return table


def _share(made: Sequence[Named], names: Names) -> float:
    return round(100 * sum(_is_gone(each, seen_again(each.text, names)) for each in made) / len(made), 1)


def _is_gone(each: Named, clean: str) -> bool:
    left = re.findall(r"\w+", re.sub(r"<[A-Z]+(?:_\d+)?>", " ", clean))
    before = re.findall(r"\w+", each.text.replace(each.name, " ", 1))
    return not any(word in left and word not in before for word in re.findall(r"\w+", each.name)) and (
        each.name not in clean
    )


def beside_placeholders(locales: Sequence[str] = tuple(SENTENCES)) -> list[str]:
    """Return the sentences in which a word is taken for a name beside the person whom a device has hidden already."""
    told = [sentence.lstrip("!").replace("{x}", "<NAME_1>") for of in locales for sentence in SENTENCES[of]]
    return [clean for text in told if (clean := seen_again(text)) != text]


def tables(templates: Path | None) -> dict[str, Any]:
    """Return all of it."""
    found: dict[str, Any] = {"20 locales": recall(list(named(LOCALES))), "10 unseen": recall(list(named(UNSEEN)))}
    if templates is not None:
        found["templates"] = recall(list(in_templates(templates, LOCALES)))
    return found


def show(found: dict[str, Any], write: Callable[[str], None] = print) -> None:
    write(f"{'names':<24} {'of':>6} {'first pass':>10} {'second pass':>11}")
    for where, table in found.items():
        for kind, row in table.items():
            write(f"{where + ', ' + kind:<24} {row['names']:>6} {row['first pass']:>10} {row['second pass']:>11}")
