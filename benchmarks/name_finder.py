"""Make the weights of the workshop's name finder (`fieldlm_compiler/learn/redacted/name_finder.py`).

    python -m benchmarks.name_finder --tasks snips-train.jsonl home-robot-train.jsonl banking77-train.jsonl [--out DIR]

Persons are Faker's (pinned, seeded), of locales that benchmarks/redaction.py does not measure, in the sentences
of benchmarks/name_finder_texts.py, half of them in lower case. What is no person: their other words, sentences
about goods, places, firms and words that nobody knows, and the task files' training parts (SNIPS, Coucke et al. 2018,
CC0 1.0; home-robot, NLU-Evaluation-Data, Liu et al. 2019, CC BY 4.0; banking77, Casanueva et al. 2020, CC BY 4.0), an
object a line with "text", "name" and "arguments". There a "person" whom one writes to or meets is one; a text that
names a person elsewhere, an artist, or who a table is for, is left out, for nobody can say what it should be.

The model is an averaged perceptron with a margin, in whole numbers: every run makes the same bytes of the same
input. An eighth of all sources (templates, requests) is held out; the thresholds let `--most-wrong` of its
requests, and three times as many of the sentences made up, have a word taken for a person though nobody is named.
"""

import argparse
import hashlib
import json
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faker import VERSION, Faker
from numpy.typing import NDArray

from benchmarks.name_finder_texts import GOODS, LANGUAGES, LATIN, NUMBERS, PEOPLE, ROLES, STATES, THINGS, WORDS
from fieldlm.core.files import canonical_json, write_whole
from fieldlm.telemetry.redaction.names import is_lookup
from fieldlm_compiler.learn.redacted import name_finder
from fieldlm_compiler.learn.redacted.name_features import BUCKETS, Token, features, has_capitals, tokens_of

SEED = 29
EACH = {"en": 70, "else": 45}
"""Sentences for each template about persons."""
EACH_THING = 110
PROVIDERS = [f"faker.providers.{of}" for of in ("person", "address", "company", "lorem")]
PASSES = 6
HIDDEN = (0.2, 0.32)
"""Which share of sentences about persons has the first of them hidden by a device, wholly, and up to here in part."""
PLACED = "<NAME>"
REACH = (2, 3, 5)
"""How often one, two and three neighbours at once are looked at while fitting, in parts."""
MARGIN = 60
"""By how much a word has to be on its side of naught, a name above it and others below."""
HELD_OUT = 8
"""One source of so many is held out."""
SPOKEN_OF = ("email_", "calendar_", "lists_", "social_query", "alarm_")
"""Intents whose "person" is somebody one knows."""
_SLOT = re.compile(r"\{([xytckrwna])\}")


LEFT_OUT = ("party_size_description", "artist", "artist_name")
"""Slots whose words are somebody's name, if not always one to hide: a text with one says nothing of either."""
TASK = ".jsonl: "


class Sentence(NamedTuple):
    """A text, and where persons stand in it, in characters."""

    text: str
    persons: tuple[tuple[int, int], ...] = ()
    source: str = ""
    """The template, or the words, that it comes of: all of one source are fitted on, or held out."""

    @property
    def is_held_out(self) -> bool:
        return zlib.crc32(self.source.encode()) % HELD_OUT == 0


class Word(NamedTuple):
    """One word: its features, and whether it is a person's name."""

    buckets: NDArray[np.int32]
    is_name: bool


def sentences(tasks: Sequence[Path], share: float = 1.0) -> list[Sentence]:
    """Return all sentences, the same for the same task files and Faker's version; `share` of each template's.

    Those that ask for works and places are left out, for the finder leaves them alone.
    """
    rng = random.Random(SEED)
    made = [*_people(rng, share), *_things(rng, share)]
    for path in tasks:
        made += _task(path, rng)
    return [sentence for sentence in dict.fromkeys(made) if not is_lookup(sentence.text)]


def _people(rng: random.Random, share: float) -> Iterator[Sentence]:
    for language, templates in PEOPLE.items():
        makers = [_Maker(locale, rng) for locale in (LATIN if language == "en" else LANGUAGES[language])]
        for template in templates:
            for _ in range(max(1, round(share * EACH["en" if language == "en" else "else"]))):
                maker = rng.choice(makers)
                yield _cased(_filled(template, maker.person), rng)._replace(source=template)


def _things(rng: random.Random, share: float) -> Iterator[Sentence]:
    places, words = [_Maker(locale, rng) for locale in LATIN], [_words(locale) for locale in WORDS]
    fill: dict[str, Callable[[], str]] = {
        "t": lambda: rng.choice(GOODS), "r": lambda: rng.choice(ROLES), "a": lambda: rng.choice(STATES),
        "n": lambda: rng.choice(NUMBERS), "c": lambda: rng.choice(places).place(),
        "k": lambda: rng.choice(places).firm(), "w": lambda: _nonsense(rng, words),
    }  # fmt: skip
    for template in THINGS:
        for _ in range(max(1, round(share * EACH_THING))):
            text = _SLOT.sub(lambda found: fill[found[1]](), template)
            yield _cased(Sentence(text), rng)._replace(source=template)
    for known in words:
        for _ in range(max(1, round(share * 400))):
            text = " ".join(rng.choices(known, k=rng.randint(3, 9)))
            yield _cased(Sentence(text), rng)._replace(source=text)


class _Maker:
    """Makes persons, places and firms of a locale."""

    def __init__(self, locale: str, rng: random.Random) -> None:
        self._fake: Any = Faker(locale, providers=PROVIDERS)
        self._fake.seed_instance(f"{SEED} {locale}")
        self._rng = rng

    def person(self) -> str:
        """A whole name, a first name or a last name."""
        first, last = str(self._fake.first_name()), str(self._fake.last_name())
        drawn = self._rng.random()
        return f"{first} {last}" if drawn < 0.4 else first if drawn < 0.68 else last

    def place(self) -> str:
        """A town, a country, or both."""
        town, country = str(self._fake.city()), str(self._fake.country())
        return self._rng.choice([town, town, country, f"{town} {country}", f"{town}, {country}"])

    def firm(self) -> str:
        return str(self._fake.company())


def _words(locale: str) -> list[str]:
    fake: Any = Faker(locale, providers=PROVIDERS)
    fake.seed_instance(f"{SEED} {locale} words")
    words = {str(word) for word in fake.words(600)}
    return sorted(word for word in words if not {"f", "g", "s"} & set(tokens_of(word)[0].kind))


_BEGIN = (*"bcdfghjklmnprstvwxz", "br", "cr", "st", "tr", "pl", "sh", "ch", "th", "qu")
_GO_ON = (*"aeiou", "ee", "oo", "ai", "ou", "ia", "y")


def _nonsense(rng: random.Random, words: Sequence[Sequence[str]]) -> str:
    """Return an invented word, as goods and programs have, or one of another language."""
    if rng.random() < 0.3:
        return rng.choice(rng.choice(words))
    made = "".join(rng.choice(_BEGIN) + rng.choice(_GO_ON) for _ in range(rng.randint(1, 3)))
    return made + rng.choice(["", "n", "x", "r", "l", "ta", "max", "o"])


def _filled(template: str, person: Callable[[], str]) -> Sentence:
    text, persons, end = "", list[tuple[int, int]](), 0
    for found in _SLOT.finditer(template):
        text += template[end : found.start()]
        name = person()
        persons.append((len(text), len(text) + len(name)))
        text, end = text + name, found.end()
    return Sentence(text + template[end:], tuple(persons))


def _cased(sentence: Sentence, rng: random.Random) -> Sentence:
    """Return the sentence as people type it: as it is, all in lower case, with a capital, or with a name hidden."""
    drawn, (text, persons, _) = rng.random(), sentence
    if drawn < 0.45 and len(text.lower()) == len(text):
        text = text.lower()
    elif drawn < 0.75:
        text = text[:1].upper() + text[1:]
    drawn = rng.random()
    if persons and drawn < HIDDEN[1]:
        return _hidden(text, persons, is_whole=drawn < HIDDEN[0])
    return Sentence(text, persons)


def _hidden(text: str, persons: Sequence[tuple[int, int]], *, is_whole: bool) -> Sentence:
    """Return a sentence in which a device has hidden the first person, or the first word of their name."""
    start, end = persons[0]
    cut = end if is_whole else start + len(text[start:end].split(" ", maxsplit=1)[0])
    moved = len(PLACED) - (cut - start)
    rest = [(start + len(PLACED) + 1, end + moved)] if cut < end else []
    others = [(a + moved, b + moved) for a, b in persons[1:]]
    return Sentence(f"{text[:start]}{PLACED}{text[cut:]}", tuple(rest + others))


def _task(path: Path, rng: random.Random) -> Iterator[Sentence]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        row: dict[str, Any] = json.loads(line) if line.strip() else {}
        slots = row.get("arguments") or {}
        if not row or not slots.keys().isdisjoint(LEFT_OUT):
            continue
        told = slots.get("person", [])
        persons = told if isinstance(told, list) else [told]
        if persons and not str(row["name"]).startswith(SPOKEN_OF):
            continue
        text = row["text"]
        found = [re.search(rf"(?<!\w){re.escape(str(name))}(?!\w)", text) for name in persons]
        spans = tuple(sorted(match.span() for match in found if match))
        source = f"{path.stem}{TASK}{text.lower()}"
        yield Sentence(text, spans, source)
        if not persons:
            yield _cased(Sentence(text), rng)._replace(source=source)


def words_of(made: Iterable[Sentence], *, seed: int | None) -> list[Word]:
    """Return the words that may name somebody; with a `seed` some are as unknown as what is not in the sentences."""
    rng = random.Random(seed)
    read = [(sentence, tokens_of(sentence.text)) for sentence in made]
    counts = Counter(token.low for _, tokens in read for token in tokens)
    found: list[Word] = []
    for sentence, tokens in read:
        is_cased = has_capitals(tokens)
        for place, token in enumerate(tokens):
            if token.may_name:
                is_name = _is_in(token, sentence.persons)
                is_known = seed is None or rng.random() < 1 - 2 / (1 + counts[token.low])
                is_listed = seed is None or rng.random() < 0.7
                most = 3 if seed is None else rng.choices((1, 2, 3), REACH)[0]
                buckets = features(tokens, place, is_cased=is_cased, is_known=is_known, is_listed=is_listed, most=most)
                found.append(Word(np.array(buckets, np.int32), is_name))
    return found


def _is_in(token: Token, persons: Sequence[tuple[int, int]]) -> bool:
    return any(start <= token.start < end for start, end in persons)


def fitted(words: Sequence[Word], passes: int = PASSES) -> NDArray[np.int8]:
    """Return a weight for each bucket: the mean over all steps of a perceptron with a margin, to 8 bits."""
    rng = random.Random(SEED)
    now, late = np.zeros(BUCKETS, np.int64), np.zeros(BUCKETS, np.int64)
    order, step = list(range(len(words))), 1
    for _ in range(passes):
        rng.shuffle(order)
        for at in order:
            word = words[at]
            total = int(now[word.buckets].sum())
            if (total if word.is_name else -total) < MARGIN:
                by = 1 if word.is_name else -1
                np.add.at(now, word.buckets, by)
                np.add.at(late, word.buckets, by * step)
            step += 1
    mean = now * step - late
    most = int(np.sort(np.abs(mean))[-max(1, BUCKETS // 4000)])
    return np.clip(mean * 127 // max(1, most), -127, 127).astype(np.int8)


def thresholds(weights: NDArray[np.int8], held_out: Sequence[Sentence], most_wrong: float) -> tuple[int, int]:
    """Return from which sum on a word is a name, alone and beside another, by the texts that name nobody.

    Of the requests in task files no more than `most_wrong` have a word taken, of those made up (towns that nobody asks
    for) three times as many.
    """
    tops: dict[bool, list[int]] = {}
    for sentence in held_out:
        if not sentence.persons:
            tops.setdefault(TASK in sentence.source, []).append(_top(weights, sentence))
    shares = {True: most_wrong, False: 3 * most_wrong}
    begin = max(1, *(_above(of, shares[is_asked]) for is_asked, of in tops.items()))
    return begin, max(1, begin // 3)


def _above(tops: Sequence[int], share: float) -> int:
    """Return what no more than a share of `tops` reach."""
    return sorted(tops)[max(0, len(tops) - 1 - int(len(tops) * share))] + 1


def _top(weights: NDArray[np.int8], sentence: Sentence) -> int:
    return max((sum(weights[word.buckets].tolist()) for word in words_of([sentence], seed=None)), default=-(10**6))


def found(weights: name_finder.NameWeights, held_out: Sequence[Sentence]) -> dict[str, float]:
    """Return the share of words of persons that are found in sentences that were not fitted on, in percent, by kind."""
    counts: Counter[tuple[str, bool]] = Counter()
    for sentence in held_out:
        spans = name_finder.found_names(sentence.text, weights=weights)
        for start, end in sentence.persons:
            name = sentence.text[start:end]
            kind = ("whole" if " " in name else "one word") + (", lower case" if name.islower() else "")
            counts[kind, any(a < end and start < b for a, b in spans)] += 1
    kinds = sorted({kind for kind, _ in counts})
    return {kind: round(100 * counts[kind, True] / (counts[kind, True] + counts[kind, False]), 1) for kind in kinds}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=name_finder.WEIGHTS.parent)
    parser.add_argument("--most-wrong", type=float, default=0.001)
    parser.add_argument("--share", type=float, default=1.0, help="of the sentences of each template")
    args = parser.parse_args(argv)
    document = make(args.tasks, args.out, share=args.share, most_wrong=args.most_wrong)
    print(canonical_json(document).decode())
    return 0


def make(tasks: Sequence[Path], out: Path, *, share: float = 1.0, most_wrong: float = 0.001) -> dict[str, Any]:
    """Write `name_weights.bin` and `name_weights.json` to `out`; return what the latter says."""
    made = sentences(tasks, share)
    held_out = [sentence for sentence in made if sentence.is_held_out]
    weights = fitted(words_of((sentence for sentence in made if not sentence.is_held_out), seed=SEED))
    begin, go_on = thresholds(weights, held_out, most_wrong)
    data = weights.tobytes()
    told = found(name_finder.NameWeights(memoryview(data).cast("b"), begin, go_on), held_out)
    document = {
        "begin": begin, "go_on": go_on, "sha256": hashlib.sha256(data).hexdigest(), "seed": SEED, "share": share,
        "passes": PASSES, "sentences": len(made), "faker": VERSION, "most_wrong": most_wrong,
        "found_held_out": told,
        "made_by": "python -m benchmarks.name_finder --tasks " + " ".join(path.name for path in tasks),
        "tasks": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tasks},
    }  # fmt: skip
    write_whole(out / name_finder.WEIGHTS.name, data)
    write_whole(out / name_finder.CARD.name, canonical_json(document))
    return document


if __name__ == "__main__":
    raise SystemExit(main())
