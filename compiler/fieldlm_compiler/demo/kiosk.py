"""Write what customers of a coffee-shop kiosk say, and the one right call for each sentence.

Everything is drawn from one seed, so a demo can be repeated; nothing is looked up from an answer list, the right call
is built beside the sentence. Phone numbers, addresses and cards are from ranges reserved for fiction and tests.
"""

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fieldlm_compiler.demo.menu import (
    ALLERGENS,
    DAYS,
    HELD_OUT,
    NAMES,
    NUMBERS,
    SIZES,
    STRANGERS,
    SURNAMES,
    TIMES,
    TRAINING,
    MenuVocabulary,
)
from fieldlm_compiler.demo.spelling_words import ENDINGS, HOUSE, SYLLABLES

CHOICE = re.compile(r"\(([^()]*)\)")
MANY = 8
HALF = 0.5

T = TypeVar("T")
Call = dict[str, Any]
Said = tuple[str, Call]


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One sentence of a customer and the call that answers it."""

    text: str
    call: Call

    @property
    def answer(self) -> str:
        """The right answer as the kiosk expects it: compact JSON, keys in the order of the function's signature."""
        return compact(self.call)


@dataclass(frozen=True, kw_only=True)
class Customer:
    """One visit: a session id, whether the customer agreed to share text, and what they say, in order."""

    session: str
    has_consented: bool
    utterances: tuple[Utterance, ...]


def count_readings(template: str) -> int:
    """Return how many sentences a template stands for, before its slots are filled."""
    return math.prod(found.count("|") + 1 for found in CHOICE.findall(template))


def compact(call: Call) -> str:
    return json.dumps(call, separators=(",", ":"), ensure_ascii=False)


def training_customers(sentences: int, *, seed: int = 1) -> list[Customer]:
    """Return visits that hold `sentences` different sentences together; nine of ten customers consent."""
    return _customers(TRAINING, sentences, seed=seed, prefix="visit")


def held_out_customers(sentences: int, *, seed: int = 2) -> list[Customer]:
    """Return visits whose phrasings and items no training customer uses."""
    return _customers(HELD_OUT, sentences, seed=seed, prefix="held-out")


def strangers(sentences: int, *, seed: int = 3) -> list[Customer]:
    """Return visits that are held out like those, and whose items have words that no training item has."""
    return _customers(STRANGERS, sentences, seed=seed, prefix="stranger")


def _customers(words: MenuVocabulary, sentences: int, *, seed: int, prefix: str) -> list[Customer]:
    rng = random.Random(f"{prefix}-{seed}")
    said = _distinct(words, sentences, rng)
    customers: list[Customer] = []
    while said:
        visit, said = said[: (count := rng.randint(1, 4))], said[count:]
        session = f"{prefix}-{seed}-{len(customers):04d}"
        customers.append(Customer(session=session, has_consented=rng.random() < 0.9, utterances=tuple(visit)))
    return customers


def _distinct(words: MenuVocabulary, count: int, rng: random.Random) -> list[Utterance]:
    talk = Talk(words, rng)
    seen: dict[str, Utterance] = {}
    while len(seen) < count:
        utterance = talk.utterance()
        seen.setdefault(utterance.text, utterance)
    return list(seen.values())


class Talk:
    """One way of talking: draws sentences out of a vocabulary."""

    def __init__(self, words: MenuVocabulary, rng: random.Random) -> None:
        self.words = words
        self.rng = rng
        self._decks: dict[Sequence[Any], list[Any]] = {}
        kinds: dict[Callable[[], Said], int] = {
            self.order: words.orders,
            self.remove_item: 9,
            self.price: 9,
            self.allergen: 9,
            self.opening_hours: 7,
            self.book_table: 11,
            self.call_staff: 9,
        }
        self._kinds, self._shares = tuple(kinds), tuple(kinds.values())

    def utterance(self) -> Utterance:
        text, call = self._pick(self._kinds, self._shares)()
        return Utterance(text=self._manners(text, call), call=call)

    def order(self) -> Said:
        phrases, items = zip(*(self._item() for _ in range(self._item_count())), strict=True)
        text, items = self._swap(self._listing(phrases), list(items))
        arguments: Call = {"items": items}
        if self.rng.random() < self.words.places_said:
            said, place = self._pick(self.words.places)
            text, arguments = f"{text} {self._fill(said)}", {**arguments, "place": place}
        return self._say("order", items=text), {"name": "order", "arguments": arguments}

    def remove_item(self) -> Said:
        item = self._any_item()
        return self._say("remove_item", item=item), {"name": "remove_item", "arguments": {"item": item}}

    def price(self) -> Said:
        arguments: Call = {"item": self._any_item()}
        thing = arguments["item"]
        if thing not in self.words.plain and self.rng.random() < 0.5:
            arguments["size"] = self.rng.choice(SIZES)
            thing = f"{arguments['size']} {thing}"
        return self._say("price", thing=thing), {"name": "price", "arguments": arguments}

    def allergen(self) -> Said:
        arguments = {"item": self._any_item(), "allergen": self.rng.choice(ALLERGENS)}
        return self._say("allergen", **arguments), {"name": "allergen", "arguments": arguments}

    def opening_hours(self) -> Said:
        day = self.rng.choice(DAYS)
        text = self._say("opening_hours", day=day).replace("on today", "today").replace("on tomorrow", "tomorrow")
        return text, {"name": "opening_hours", "arguments": {"day": day}}

    def book_table(self) -> Said:
        people, day, time = self.rng.randint(2, 8), self.rng.choice(DAYS), self.rng.choice(TIMES)
        text = self._say("book_table", people=self._number(people), day=day, time=time)
        text = text.replace("on today", "today").replace("on tomorrow", "tomorrow")
        return text, {"name": "book_table", "arguments": {"people": people, "day": day, "time": time}}

    def call_staff(self) -> Said:
        text, reason = self._pick(self.words.call_staff)
        return self._fill(text), {"name": "call_staff", "arguments": {"reason": reason}}

    def _say(self, kind: str, **slots: object) -> str:
        """Fill a template of that kind; one that can be read in many ways is drawn more often than one that cannot."""
        templates: tuple[str, ...] = getattr(self.words, kind)
        template = self._pick(templates, [min(MANY, count_readings(each)) for each in templates])
        return self._fill(template).format(**slots)

    def _pick(self, of: Sequence[T], weights: Sequence[int] = ()) -> T:
        """Draw one of these by its weight; where the vocabulary is drawn evenly, as from a deck dealt to its end."""
        if not self.words.is_even:
            return self.rng.choices(of, weights)[0] if weights else self.rng.choice(of)
        deck = self._decks.setdefault(of, [])
        if not deck:
            deck += [each for each, count in zip(of, weights or [1] * len(of), strict=True) for _ in range(count)]
            self.rng.shuffle(deck)
        return deck.pop()

    def _fill(self, template: str) -> str:
        """Choose one of what stands between brackets."""
        filled = CHOICE.sub(lambda found: self.rng.choice(found[1].split("|")), template)
        return " ".join(filled.split())

    def _any_item(self) -> str:
        return self._name(self.words.drinks + self.words.plain)

    def _name(self, known: tuple[str, ...]) -> str:
        """Return an item's name: a known one, or a made-up word, alone or as a part of a known one."""
        name = self._pick(known)
        if self.rng.random() >= self.words.made_up:
            return name
        word = self._word()
        first, _, rest = name.partition(" ")
        return self.rng.choice((word, f"{word} {rest or first}", f"{first} {word}"))

    def _word(self) -> str:
        """Take a word from elsewhere, or make one up."""
        if self.rng.random() < HALF:
            return self._pick((*HOUSE.split(),))
        syllables = self.rng.choices(SYLLABLES.split(), k=self.rng.randint(1, 3))
        return "".join(syllables) + self.rng.choice(ENDINGS.split())

    def _number(self, number: int) -> str:
        return NUMBERS[number] if self.rng.random() < 0.6 else str(number)

    def _item_count(self) -> int:
        return self.rng.choices((1, 2, 3), (0.62, 0.33, 0.05))[0]

    def _item(self) -> tuple[str, Call]:
        """Return how one item is said ("two large lattes with oat milk") and what it is, in the order it is said."""
        quantity = self.rng.choices((1, 2, 3, 4, 5), (0.6, 0.22, 0.1, 0.05, 0.03))[0]
        is_drink = self.rng.random() < 0.5
        name = self._name(self.words.drinks if is_drink else self.words.plain)
        size = self.rng.choice(SIZES) if is_drink and self.rng.random() < 0.5 else ""
        item: Call = {"quantity": quantity} | ({"size": size} if size else {}) | {"item": name}
        lead = f"{size} {name if quantity == 1 else plural(name)}".strip()
        article = "an" if lead[0] in "aeiou" else "a"
        count = self.rng.choice((article, article, article, "one")) if quantity == 1 else self._number(quantity)
        return f"{count} {lead}{self._additions(item, is_drink=is_drink)}", item

    def _additions(self, item: Call, *, is_drink: bool) -> str:
        """Draw a milk or an extra, write it into `item` and return how it is said."""
        roll = self.rng.random()
        if is_drink and roll < 0.3:
            item["milk"] = self._pick(self.words.milks)
            return f" with {item['milk']} milk"
        if is_drink and roll < 0.45:
            item["extra"] = extra = self._pick(self.words.extras)
            return f" {extra}" if extra.startswith("no ") else f" with {extra}"
        return ""

    def _listing(self, phrases: tuple[str, ...]) -> str:
        if len(phrases) == 1:
            return phrases[0]
        return ", ".join(phrases[:-1]) + self.rng.choice((" and ", " and ", " plus ")) + phrases[-1]

    def _swap(self, text: str, items: list[Call]) -> Said | tuple[str, list[Call]]:
        """Let the customer change their mind about a single item now and then."""
        if len(items) > 1 or self.rng.random() > 0.15:
            return text, items
        if self.rng.random() < 0.6:
            wrong, (right, item) = text, self._item()
            return self._say("swap_item", wrong=wrong, right=right), [item]
        number = self.rng.randint(2, 6)
        said = self._say("swap_number", wrong=text, number=self._number(number))
        return said, [{**items[0], "quantity": number}]

    def _manners(self, text: str, call: Call) -> str:
        """Add greetings, thanks, personal details and slips of the finger; none of them changes what is meant."""
        text = re.sub(r"\ba ([aeiou])", r"an \1", text)
        if self.rng.random() < 0.3:
            text = f"{self._say('hello')}, {text}"
        if self.rng.random() < 0.3:
            text = f"{text}, {self._say('thanks')}"
        if self.rng.random() < 0.12:
            text = f"{text}, {self._personal()}"
        if self.rng.random() < 0.15:
            text = self._slip(text, call)
        return text[0].upper() + text[1:] if self.rng.random() < 0.4 else text

    def _personal(self) -> str:
        rng, name = self.rng, self.rng.choice(NAMES)
        return self._say(
            "personal",
            name=rng.choice((name, f"{name} {rng.choice(SURNAMES)}")),
            phone=f"555-01{rng.randint(0, 99):02d}-{rng.randint(1000, 9999)}",
            email=f"{name.lower()}{rng.randint(1, 99)}@example.com",
            card="4111 1111 1111 1111",
        )

    def _slip(self, text: str, call: Call) -> str:
        """Swap two neighbouring letters in one of the first two words, unless the answer depends on it."""
        words = text.split(" ")
        index = self.rng.randrange(2)
        if index >= len(words) or not words[index].isalpha() or len(words[index]) < 4 or words[index] in _PROTECTED:
            return text
        if words[index][:3] in compact(call):
            return text
        word = words[index]
        at = self.rng.randrange(1, len(word) - 2)
        words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        return " ".join(words)


def plural(name: str) -> str:
    """Return the English plural of an item's name, by its last word."""
    if name.endswith(("sh", "ch", "s", "x")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


_PROTECTED = frozenset(
    word
    for words in (TRAINING, HELD_OUT, STRANGERS)
    for phrase in (
        *words.drinks,
        *words.plain,
        *words.milks,
        *words.extras,
        *SIZES,
        *DAYS,
        *ALLERGENS,
        *NUMBERS.values(),
    )
    for word in (*phrase.split(), *plural(phrase).split())
)
