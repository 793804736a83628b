"""Surrogates: where a device wrote <NAME_1>, an example says a name that nobody has, so that copying can be learnt.

In one example a placeholder has one stand-in wherever it stands, and two placeholders have two. It is drawn by a hash
of the session's, which only the device can make, and of the placeholder: the person's own words never came here, so
nothing leads back to them, and no table is kept that would have to be forgotten. Another session draws anew.

Numbers and addresses come from what is reserved for examples: 555-0100 to 0199 (NANPA), 07700 900000 to 900999 (Ofcom),
06 39 98 (Arcep); RFC 2606 names, RFC 5737 and RFC 9542 addresses; card numbers that payment firms publish for tests;
an IBAN of the bank TEST, the country XX (ISO 3166, users' own) for ids.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

PLACEHOLDER = re.compile(r"<(NAME|EMAIL|IBAN|CARD|KEY|ADDRESS|PHONE|ID|DATE|IP|MAC)(?:_(\d{1,4}))?>")
"""What has a stand-in; a fleet's own <CUSTOM> has none, for nobody knows its form."""
_FIRST = [
    "Alex",
    "Robin",
    "Kim",
    "Sam",
    "Charlie",
    "Noa",
    "Sasha",
    "Jamie",
    "Taylor",
    "Jordan",
    "Casey",
    "Morgan",
    "Riley",
    "Quinn",
    "Avery",
    "Rowan",
    "Skyler",
    "Emery",
    "Finley",
    "Harper",
    "Ariel",
    "Noor",
    "Yuki",
    "Akira",
    "Jun",
    "Min",
    "Hana",
    "Ravi",
    "Asha",
    "Kiran",
    "Amal",
    "Nour",
    "Dara",
    "Luca",
    "Andrea",
    "Mika",
    "Toni",
    "Kai",
    "Jona",
    "Elia",
    "Sky",
    "Remy",
    "Lou",
    "Camille",
    "Maxime",
    "Dominique",
    "Frankie",
    "Ellis",
]
_LAST = [
    "Alder",
    "Birk",
    "Castell",
    "Dorn",
    "Elmes",
    "Farrow",
    "Garvin",
    "Holt",
    "Ivers",
    "Jarrow",
    "Kestrel",
    "Lindt",
    "Marlow",
    "Norden",
    "Orsel",
    "Parrish",
    "Quist",
    "Rosen",
    "Sandell",
    "Tarn",
    "Uller",
    "Verne",
    "Wick",
    "Yarrow",
    "Zeller",
    "Ashby",
    "Brandt",
    "Corell",
    "Devane",
    "Ekland",
    "Fenn",
    "Granger",
]
_STREETS = ("Example Street", "Sample Road", "Specimen Avenue", "Model Lane", "Fiction Street", "Pattern Road")
_CARDS = (
    "4111111111111111", "4242424242424242", "4012888888881881", "5555555555554444", "5105105105105100",
    "378282246310005", "6011111111111117", "3530111333300000",
)  # fmt: skip


def surrogate(kind: str, number: int) -> str:
    """Return the stand-in of a kind that a number of 64 bits chooses."""
    return _MAKERS[kind](number)


def kinds_in(text: str) -> set[str]:
    """Return the kinds of the placeholders in `text` that have stand-ins."""
    return {kind for kind, _ in PLACEHOLDER.findall(text)}


class Surrogates:
    """The stand-ins of one example; `texts` are all of it, read first to know who is in it."""

    def __init__(self, session: str, texts: Iterable[str]) -> None:
        self._key = session.encode("utf-8", "replace")
        self._made: dict[tuple[str, str], str] = {}
        numbers: dict[str, set[str]] = {}
        for kind, index in (found for text in texts for found in PLACEHOLDER.findall(text)):
            numbers.setdefault(kind, set()).add(index)
        # Feedback after a restart, and devices before numbers were given, say <NAME>: it is the one there is.
        self._only = {kind: min(found - {""}) for kind, found in numbers.items() if len(found - {""}) == 1}
        self.kinds = sorted(numbers)

    def show(self, text: str) -> str:
        """Return `text` with stand-ins."""
        return PLACEHOLDER.sub(lambda found: self._of(found[1], found[2] or ""), text)

    def show_all(self, value: Any) -> Any:
        """Return a JSON value with stand-ins in every text of it."""
        if isinstance(value, str):
            return self.show(value)
        if isinstance(value, dict):
            return {key: self.show_all(item) for key, item in cast(dict[str, Any], value).items()}
        return [self.show_all(item) for item in cast(list[Any], value)] if isinstance(value, list) else value

    def _of(self, kind: str, index: str) -> str:
        index = index or self._only.get(kind, "")
        if (kind, index) not in self._made:
            taken = {_who(kind, said) for (other, _), said in self._made.items() if other == kind}
            drawn = (self._draw(kind, index, attempt) for attempt in range(_ATTEMPTS))
            # A text of a hundred card numbers has one of them twice.
            self._made[kind, index] = next(
                (made for made in drawn if _who(kind, made) not in taken), self._draw(kind, index, 0)
            )
        return self._made[kind, index]

    def _draw(self, kind: str, index: str, attempt: int) -> str:
        word = f"{kind} {index} {attempt}".encode()
        return surrogate(kind, int.from_bytes(hmac.digest(self._key, word, hashlib.sha256)[:8]))


def _who(kind: str, made: str) -> str:
    """Two people of a text have two first names."""
    return made.split(maxsplit=1)[0] if kind == "NAME" else made


_ATTEMPTS = 64


def _name(n: int) -> str:
    """A first name, and for every other a last name, too."""
    first = _FIRST[n % len(_FIRST)]
    return first if n >> 32 & 1 else f"{first} {_LAST[(n >> 16) % len(_LAST)]}"


def _phone(n: int) -> str:
    line = n >> 8
    return (
        f"({200 + line // 100 % 700}) 555-01{line % 100:02d}",
        f"07700 900{line % 1000:03d}",
        f"06 39 98 {line // 100 % 100:02d} {line % 100:02d}",
    )[n % 3]


def _iban(n: int) -> str:
    account = f"TEST{n % 10**14:014d}"
    digits = "".join(str(int(letter, 36)) for letter in f"{account}GB00")
    return f"GB{98 - int(digits) % 97:02d}{account}"


_MAKERS: dict[str, Callable[[int], str]] = {
    "NAME": _name,
    "EMAIL": lambda n: (
        f"{_FIRST[n % len(_FIRST)].lower()}.{n >> 16 & 0xFFF}@example.{('com', 'org', 'net')[n >> 40 & 1]}"
    ),
    "IBAN": _iban,
    "CARD": lambda n: _CARDS[n % len(_CARDS)],
    "KEY": lambda n: f"example-key-{n & 0xFFFFFFFF:08x}",
    "ADDRESS": lambda n: f"{n % 199 + 1} {_STREETS[(n >> 16) % len(_STREETS)]}",
    "PHONE": _phone,
    "ID": lambda n: f"XX{n % 10**7:07d}",
    "DATE": lambda n: f"{1940 + n % 66}-{n // 66 % 12 + 1:02d}-{n // 792 % 28 + 1:02d}",
    "IP": lambda n: f"{('192.0.2', '198.51.100', '203.0.113')[n % 3]}.{(n >> 8) % 254 + 1}",
    "MAC": lambda n: f"00:00:5e:00:53:{n & 0xFF:02x}",
}
