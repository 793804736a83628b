"""Redaction: how much of what identifies a person is found, in 20 languages' forms, and how much else is taken for it.

    python -m benchmarks.redaction --out results/redaction [--locales hu_HU,fi_FI] [--tasks snips.jsonl …]
    python -m benchmarks.redaction --out results/redaction --second-pass [--templates FILE] [--tasks snips.jsonl …]

Items are made with Faker (pinned, seeded) for each locale, and stand in English sentences and in the locale's own. An
item is found when no letter and no digit of it is left. "introduced" items have a word in front that says what they are
("passport", "Kennzeichen"); "bare" ones have none. The names in the sentences come from the same locale.

A task file has an object a line with "text" (and "arguments"). A text counts as a false alarm when anything in it is
taken for personal. "wrong" leaves out those where all that was taken lies in words that the labels call an artist, a
person, or those a table is for: those are names, if not private ones.

The time is that of one core, for a kilobyte of the sentences above, and of task texts where there are some.

`--second-pass` measures what is found again at home (benchmarks/redaction_second_pass.py): names by kind, false alarms
of both passes together, and the time of both.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from faker import Faker

from benchmarks.redaction_texts import BARE, LOCALES, NAMED, SENTENCES
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.telemetry.redaction.redact import redact

EACH = 12
"""Texts for each template that a locale has, at least, so that every form of Faker's comes up."""
SEED = 20
PEOPLE = ("artist", "artist_name", "person", "party_size_description")
PLACEHOLDER = re.compile(r"<[A-Z]+(?:_\d+)?>")
IDS = frozenset({"national id", "passport", "plate", "iban", "card", "phone", "ip", "mac", "birth", "secret", "email"})


class Item(NamedTuple):
    """A text, and what of it must go: kind, words, whether something introduces them."""

    text: str
    kind: str
    words: str
    is_bare: bool
    locale: str


def items(locales: Sequence[str], each: int = EACH) -> Iterator[Item]:
    """Yield the same items for the same locales, Faker's version and this file."""
    for locale in locales:
        fake = Faker(locale)
        fake.seed_instance(f"{SEED} {locale}")
        english = Faker("en_US")
        english.seed_instance(f"{SEED} {locale} en")
        makers = _makers(fake, english)
        for kind, make in makers.items():
            for is_bare, templates in ((False, _templates(NAMED, kind, locale)), (True, BARE[kind])):
                for number in range(each if templates else 0):
                    words = make()
                    template = templates[number % len(templates)]
                    text = template.replace("{x}", words).replace("{first}", str(fake.first_name()))
                    yield Item(text, kind, words, is_bare, locale)
        for sentence in SENTENCES.get(locale, ()) + SENTENCES["en_US"] * (locale != "en_US"):
            for _ in range(4):
                name = _name(fake)
                is_bare = not sentence.startswith("!")
                yield Item(sentence.lstrip("!").replace("{x}", name), "name", name, is_bare, locale)


def _templates(table: dict[str, dict[str, tuple[str, ...]]], kind: str, locale: str) -> tuple[str, ...]:
    return table[kind].get(locale, ()) + table[kind]["en"]


def _name(fake: Any) -> str:
    """A person's name without titles, which name nobody."""
    return f"{fake.last_name()}{fake.first_name()}" if fake.locales[0][:2] in ("zh", "ko") else (
        f"{fake.last_name()} {fake.first_name()}" if fake.locales[0][:2] in ("ja", "hu") else
        f"{fake.first_name()} {fake.last_name()}")  # fmt: skip


def _makers(fake: Any, english: Any) -> dict[str, Callable[[], str]]:
    number = english.random

    def secret() -> str:
        made = [
            f"sk-{english.password(40, special_chars=False)}", f"ghp_{english.password(36, special_chars=False)}",
            f"AKIA{english.password(16, special_chars=False, lower_case=False)}", english.sha256(),
            english.uuid4(), english.password(20, special_chars=False), english.password(12),
        ]  # fmt: skip
        return number.choice(made)

    def card() -> str:
        plain = english.credit_card_number()
        return plain if number.random() < 0.5 or len(plain) != 16 else " ".join(re.findall("....", plain))

    def birth() -> str:
        day = english.date_of_birth(minimum_age=5, maximum_age=95)
        form = number.choice(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%y", "%d %B %Y", "%B %d, %Y", "%d-%m-%Y"])
        return day.strftime(form)

    return {
        "national id": fake.ssn, "passport": fake.passport_number, "plate": fake.license_plate, "iban": fake.iban,
        "card": card, "phone": fake.phone_number, "ip": number.choice([english.ipv4, english.ipv6]),
        "mac": english.mac_address, "birth": birth, "secret": secret, "email": fake.email,
    }  # fmt: skip


def is_found(item: Item, clean: str) -> bool:
    """Say whether nothing of the item's words is left where they stood."""
    before, after = item.text.split(item.words, 1)
    left = PLACEHOLDER.sub(" ", clean)
    kept = Counter(re.findall(r"\w+", f"{before} {after}"))
    words = [word for word in re.findall(r"\w+", item.words) if not kept[word]]
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", left) for word in words) and _compact(item) not in left


def _compact(item: Item) -> str:
    return item.words


def recall(made: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Return by kind how many are found of how many, introduced and bare, and the worst locales."""
    table: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(item.kind for item in made):
        mine = [(item, is_found(item, redact(item.text))) for item in made if item.kind == kind]
        rows = {"introduced": [f for i, f in mine if not i.is_bare], "bare": [f for i, f in mine if i.is_bare]}
        shares = {
            locale: _share([f for i, f in mine if i.locale == locale])
            for locale in dict.fromkeys(i.locale for i in made)
        }
        table[kind] = {
            "found": sum(f for _, f in mine), "of": len(mine), "share": _share([f for _, f in mine]),
            **{name: _share(found) for name, found in rows.items()},
            "by locale": shares, "missed": [i.text for i, f in mine if not f],
        }  # fmt: skip
    return table


def _share(found: Sequence[bool]) -> float | None:
    return round(100 * sum(found) / len(found), 1) if found else None


def false_alarms(file: Path, clean_of: Callable[[str], str] = redact) -> dict[str, Any]:
    """Return the share of a task's texts in which anything is taken for personal, in percent."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    taken = [(row, clean) for row in rows if (clean := clean_of(row["text"])) != row["text"]]
    wrong = [(row, clean) for row, clean in taken if not _only_people(row, clean)]
    return {
        "texts": len(rows), "taken": round(100 * len(taken) / len(rows), 2),
        "wrong": round(100 * len(wrong) / len(rows), 2),
        "wrong texts": [clean for _, clean in wrong],
    }  # fmt: skip


def _only_people(row: dict[str, Any], clean: str) -> bool:
    slots = row.get("arguments") or {}
    told = [value for key in PEOPLE for value in _listed(slots.get(key))]
    people = {word for value in told for word in re.findall(r"\w+", str(value).casefold())}
    gone = Counter(re.findall(r"\w+", row["text"].casefold())) - Counter(
        re.findall(r"\w+", PLACEHOLDER.sub(" ", clean).casefold())
    )
    return bool(gone) and gone.keys() <= people


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def microseconds(texts: Sequence[str], rounds: int = 3, clean_of: Callable[[str], str] = redact) -> float:
    """Return what a kilobyte of these texts costs; the best of a few rounds, for others run here, too."""
    size = sum(len(text.encode()) for text in texts) / 1024
    best = float("inf")
    for _ in range(rounds):
        began = time.process_time()
        for text in texts:
            clean_of(text)
        best = min(best, time.process_time() - began)
    return round(best / size * 1e6, 1)


def _second_pass(args: argparse.Namespace) -> int:
    from benchmarks.redaction_second_pass import beside_placeholders, seen_again, show, tables

    found = tables(args.templates)
    alarms, speed = dict[str, Any](), dict[str, float]()
    for file in args.tasks:
        alarms[file.stem] = false_alarms(file, seen_again)
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        speed[file.stem] = microseconds(texts, 1, seen_again)
    beside = beside_placeholders()
    document = {
        "names": found,
        "wrong beside placeholders": beside,
        "false alarms": alarms,
        "microseconds per KB": speed,
    }
    write_whole(args.out / "second-pass.json", canonical_json(document))
    show(found)
    print(f"{len(beside)} sentences with a placeholder have another word taken")
    for name, row in alarms.items():
        print(f"{name}: {row['taken']} % of {row['texts']} texts touched, {row['wrong']} % wrongly")
    print(f"µs per KB: {speed}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--locales", default=",".join(LOCALES))
    parser.add_argument("--tasks", type=Path, nargs="*", default=[])
    parser.add_argument("--second-pass", action="store_true", help="measure names found again at home instead")
    parser.add_argument("--templates", type=Path, help="with --second-pass: presidio-research's templates.txt")
    args = parser.parse_args(argv)
    if args.second_pass:
        return _second_pass(args)
    made = list(items(args.locales.split(",")))
    table = recall(made)
    alarms = {file.stem: false_alarms(file) for file in args.tasks}
    speed = {"sentences": microseconds([item.text for item in made])}
    for file in args.tasks:
        texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        speed[file.stem] = microseconds(texts)
    document = {"recall": table, "false alarms": alarms, "microseconds per KB": speed, "locales": args.locales}
    write_whole(args.out / "redaction.json", canonical_json(document))
    print(f"{'kind':<12} {'found':>11} {'share':>6} {'introduced':>10} {'bare':>6}  worst locales")
    for kind, row in table.items():
        worst = sorted((s, name) for name, s in row["by locale"].items() if s is not None)[:4]
        print(
            f"{kind:<12} {row['found']:>5}/{row['of']:<5} {row['share']:>6} {row['introduced']!s:>10} "
            f"{row['bare']!s:>6}  " + ", ".join(f"{name} {share:.0f}" for share, name in worst)
        )
    ids = [row for kind, row in table.items() if kind in IDS]
    print(f"all but names: {100 * sum(r['found'] for r in ids) / sum(r['of'] for r in ids):.2f} %")
    for name, row in alarms.items():
        print(f"{name}: {row['taken']} % of {row['texts']} texts touched, {row['wrong']} % wrongly")
    print(f"µs per KB: {speed}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
