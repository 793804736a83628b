"""Near copies: texts that differ by a slip of the finger or a word, found by MinHash and held to their Jaccard index.

Signatures (Broder 1997) of a text's runs of four letters, in bands: only texts that agree in a band are compared.
"""

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from fieldlm_compiler.learn.agreement import answer_key
from fieldlm_compiler.learn.shapes import spelling

ALIKE = 0.8
"""Share of all runs of letters of two texts that both have, from which on one is a near copy of the other."""
LETTERS = 4
BANDS, ROWS = 16, 4
_PRIME = np.uint64(2**31 - 1)


class SplitExample(Protocol):
    """What is read of an example."""

    @property
    def messages(self) -> list[dict[str, Any]]: ...
    @property
    def answer(self) -> str: ...
    @property
    def split(self) -> str: ...


E = TypeVar("E", bound=SplitExample)


def near_copies(
    texts: Sequence[str], others: Sequence[str], answers: tuple[Sequence[str], Sequence[str]] | None = None
) -> list[bool]:
    """Say of each of `texts` whether one of `others` is the same or nearly; with `answers` of both, has the same one.

    Sentences that differ in a number, or in what is asked for, are often nearly the same and have other answers.
    """
    places: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    runs = [_runs(text) for text in others]
    for at, found in enumerate(runs):
        for band in _bands(found):
            places[band].append(at)

    def has_copy(index: int) -> bool:
        own = _runs(texts[index])
        candidates = {at for band in _bands(own) for at in places.get(band, ())}
        if answers is not None:
            candidates = {at for at in candidates if answers[1][at] == answers[0][index]}
        return any(len(own & runs[at]) >= ALIKE * len(own | runs[at]) for at in candidates)

    return [has_copy(index) for index in range(len(texts))]


def conversation(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what was said in a conversation, without a system prompt, which many have in common."""
    said = [m for m in messages if m.get("role") not in ("system", "developer")]
    return "\n".join(str(message.get("content") or "") for message in said)


def parted(examples: Sequence[E]) -> list[E]:
    """Return the examples without training examples that nearly are a held-out one, with the same answer."""
    train = [example for example in examples if example.split == "train"]
    held = [example for example in examples if example.split == "eval"]
    texts, held_texts = ([conversation(example.messages) for example in side] for side in (train, held))
    answers, held_answers = ([answer_key(example.answer) for example in side] for side in (train, held))
    copies = near_copies(texts, held_texts, (answers, held_answers))
    gone = {id(example) for example, is_copy in zip(train, copies, strict=True) if is_copy}
    return [example for example in examples if id(example) not in gone]


def _runs(text: str) -> frozenset[int]:
    said = f" {spelling(text)} "
    return frozenset(zlib.crc32(said[at : at + LETTERS].encode()) for at in range(max(1, len(said) - LETTERS + 1)))


def _bands(runs: frozenset[int]) -> list[tuple[int, bytes]]:
    dice = np.random.default_rng(0)
    factors, terms = (dice.integers(1, int(_PRIME), BANDS * ROWS, dtype=np.uint64) for _ in range(2))
    hashed = np.array(sorted(runs), np.uint64) % _PRIME
    least = ((factors[:, None] * hashed[None, :] + terms[:, None]) % _PRIME).min(axis=1)
    return [(band, least[band * ROWS : (band + 1) * ROWS].tobytes()) for band in range(BANDS)]
