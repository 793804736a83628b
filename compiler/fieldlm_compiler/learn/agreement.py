"""Label agreement: one answer for a prompt, by the number of customers who gave it, and no customer owns the data set.

A customer has one vote on a prompt, whatever they repeat. A correction outweighs a thumb up. An answer needs more than
half of the votes; without that the prompt is left out as a conflict. Which session somebody is their client says, so
where several devices vote on a prompt, each one's votes are capped (`_weights`). Who says far more than the others of a
fleet is an outlier: their votes count only where nobody else has one, and of what is left they keep their share.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Generic, Literal, Protocol, TypeVar

from fieldlm_compiler.learn.shapes import call_of

SESSION_FLOOR, DEVICE_FLOOR = 50, 500
"""So many examples a session, or a device, may always have."""
SHARE = 4
"""Times the median of all sessions, or devices, that one may have beyond that; on one prompt, times the next device."""

Lost = Literal["duplicate", "outvoted", "conflict", "over a session's share", "over a device's share"]


class Votes(Protocol):
    """What is read of an example."""

    @property
    def prompt_key(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def voter(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def response(self) -> str: ...
    @property
    def is_correction(self) -> bool: ...
    @property
    def is_about_somebody(self) -> bool: ...


E = TypeVar("E", bound=Votes)


@dataclass(frozen=True)
class Agreed(Generic[E]):
    """The examples that are kept, in their order; why others are not; and where people differed.

    A contradiction is the functions that were said to be right for one prompt; one alone, where its arguments differed.
    "text" stands for all answers that call none.
    """

    kept: list[E]
    lost: Counter[Lost]
    contradictions: Counter[tuple[str, ...]]

    @property
    def disputed(self) -> int:
        """On how many prompts people differed."""
        return self.contradictions.total()


def agree(examples: Sequence[E]) -> Agreed[E]:
    """Choose one example per prompt, then hold every session and device to its share."""
    outliers = _beyond(examples, lambda e: e.voter, SESSION_FLOOR) | _beyond(examples, lambda e: e.device, DEVICE_FLOOR)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[example.prompt_key].append(index)
    lost: Counter[Lost] = Counter()
    chosen: list[int] = []
    contradictions: Counter[tuple[str, ...]] = Counter()
    for members in groups.values():
        trusted = [i for i in members if not outliers & {examples[i].voter, examples[i].device}] or members
        votes = _votes([(i, examples[i]) for i in trusted])
        weights = _weights([examples[i].device for i in votes])
        counted: defaultdict[str, Fraction] = defaultdict(Fraction)
        for i in votes:
            counted[answer_key(examples[i].answer)] += weights[examples[i].device]
        best = max(counted, key=counted.__getitem__)
        if len(counted) > 1:
            contradictions[tuple(sorted({call_of(said)[0] for said in counted}))] += 1
        has_won = 2 * counted[best] > sum(counted.values())
        alike = [i for i in votes if answer_key(examples[i].answer) == best] if has_won else []
        # Of words about somebody each customer's stay: they get other names, and are how copying is learnt.
        winners = alike if any(examples[i].is_about_somebody for i in alike) else alike and [max(alike)]
        chosen += winners
        for index in members:
            if index not in winners:
                same = answer_key(examples[index].answer) == best
                lost["conflict" if not has_won else "duplicate" if same else "outvoted"] += 1
    kept = sorted(chosen)
    shares: tuple[tuple[Lost, Callable[[Votes], str], int], ...] = (
        ("over a session's share", _voter, SESSION_FLOOR),
        ("over a device's share", _device, DEVICE_FLOOR),
    )
    for reason, key, floor in shares:
        kept, over = _within([(i, examples[i]) for i in kept], key, floor)
        lost[reason] += over
    return Agreed([examples[i] for i in kept], lost, contradictions)


def answer_key(answer: str) -> str:
    """Return what two answers have in common that say the same: their JSON, or their words."""
    try:
        return json.dumps(json.loads(answer), sort_keys=True)
    except (ValueError, RecursionError):
        return " ".join(answer.split())


def prompt_key(text: str) -> str:
    """Return `text` without letter case, spaces, and marks at its end, by which near copies of a prompt differ."""
    return re.sub(r"[\s.!?…]+$", "", " ".join(text.casefold().split()))


def _voter(example: Votes) -> str:
    return example.voter


def _device(example: Votes) -> str:
    return example.device


def _votes(members: Sequence[tuple[int, Votes]]) -> list[int]:
    """Return one index per voter: the latest, of a correction if they gave one; corrections alone if there are any."""
    latest: dict[str, int] = {}
    is_correction = {i: example.is_correction for i, example in members}
    for index, example in members:
        before = latest.get(example.voter)
        if before is None or is_correction[index] >= is_correction[before]:
            latest[example.voter] = index
    corrections = [index for index in latest.values() if is_correction[index]]
    return corrections or list(latest.values())


def _weights(devices: Sequence[str]) -> dict[str, Fraction]:
    """Return what a vote from each device weighs on one prompt, from the device of every vote.

    A device alone has all its votes: nobody is there to be outvoted. Beside others it has at most `SHARE` times those
    of the next, for a device at a busy place has more customers, and never more than all others together: whoever
    invents sessions on one device can then win against nobody, and against many devices not even make a conflict.
    """
    counts = Counter(devices)
    (busiest, most), *others = counts.most_common(2)
    weights = dict.fromkeys(counts, Fraction(1))
    if others:
        weights[busiest] = Fraction(min(most, SHARE * others[0][1], len(devices) - most), most)
    return weights


def _limit(counts: Iterable[int], floor: int) -> float:
    found = list(counts)
    return max(floor, SHARE * median(found)) if found else floor


def _beyond(examples: Sequence[Votes], key: Callable[[Votes], str], floor: int) -> set[str]:
    counts = Counter(key(example) for example in examples)
    limit = _limit(counts.values(), floor)
    return {name for name, count in counts.items() if name and count > limit}


def _within(members: Sequence[tuple[int, Votes]], key: Callable[[Votes], str], floor: int) -> tuple[list[int], int]:
    """Return the indices that stay when nobody has more than a share; which ones is no matter of when they came."""
    owned: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for index, example in members:
        owned[key(example)].append((hashlib.sha256(example.response.encode()).hexdigest(), index))
    limit = int(_limit((len(group) for group in owned.values()), floor))
    kept = [index for group in owned.values() for _, index in sorted(group)[:limit]]
    return sorted(kept), len(members) - len(kept)
