"""Speculative decoding by n-gram (prompt) lookup, without a draft model.

What may come next is what followed when the last words stood in the prompt, in a prediction, or in the answer itself.

An extract, an edited text, a call that repeats its order: much of such an answer has been written before. Computing
several tokens at once costs less than one after the other, so those that are likely to follow are computed beside the
one that is due, and as many are kept as the answer then chooses by itself, each from its own logits: the same text,
sooner. Wrong guesses cost time. So nothing is drafted before guesses have proved right, which costs nothing to watch,
and a draft is as long as pays by what steps have taken on this machine, or there is none.
"""

from collections.abc import Sequence

GRAM = 3  # tokens that have to be alike before what followed is a guess
MOST_ROWS = 16  # tokens of a step that has a draft
# What a step of so many tokens costs, in steps of one, before any was timed: SmolLM2-135M Q8_0, two cores with AVX2. A
# larger model or a GPU pays less.
COSTS = {2: 2.0, 4: 2.5, 8: 3.7, 16: 5.4}
WORTH = 1.1  # tokens for the time of one that have to be expected: what is foreseen is not what comes
# The share of guesses that come true, before any was made; and how much the newest one counts.
TRUST, TRUST_PREDICTION = 0.6, 0.85
NEWEST = 0.15
MOST_TRUST = 0.98
NEWEST_TIME = 0.2


class Costs:
    """What steps of several tokens cost by the clock, in steps of one; for one thread."""

    def __init__(self) -> None:
        self._one_s = 0.0
        self._found = dict(COSTS)

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step that computed `rows` tokens of one answer and nothing else."""
        if rows == 1:
            self._one_s += (seconds - self._one_s) * (NEWEST_TIME if self._one_s else 1)
        elif rows <= MOST_ROWS and self._one_s:
            size = _size(rows)
            self._found[size] += (seconds / self._one_s - self._found[size]) * NEWEST_TIME

    def of(self, rows: int) -> float:
        return 1.0 if rows == 1 else self._found[_size(rows)]

    def forget(self) -> None:
        """Halve what was learned: a neighbour that made long steps dear may be gone, and who drafts none never sees."""
        self._found = {size: (cost + COSTS[size]) / 2 for size, cost in self._found.items()}


class Lookup:
    """Prompt lookup: drafts for one answer to `prompt`; `prediction` is what its author expects it to be, if given."""

    def __init__(self, prompt: Sequence[int], prediction: Sequence[int] = ()) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Where what followed a run of tokens stands in the text; the newest run counts."""
        self._guess: int | None = None
        """Where the token that is guessed to come next stands in the text."""
        self._trust = TRUST_PREDICTION if prediction else TRUST
        self._known = len(prompt)
        self._add_all(prompt)
        if prediction:
            # Between the prompt's end and itself: its first words are a guess at once, and so is what they lead to.
            end = prompt[-GRAM:]
            self._guess = len(prompt) + len(end)
            self._add_all([*end, *prediction, *end])

    def follow(self, tokens: Sequence[int]) -> None:
        """Take note of what was said: `tokens` are prompt and answer so far, and only ever grow."""
        for token in tokens[self._known :]:
            if self._guess is not None:
                is_right = self._text[self._guess] == token
                self._trust = min(MOST_TRUST, self._trust + (is_right - self._trust) * NEWEST)
                self._guess = self._guess + 1 if is_right else None
            before = self._add(token)
            if self._guess is None:
                self._guess = before
        self._known = len(tokens)

    def draft(self, pending: int, most: int, costs: Costs) -> list[int]:
        """Return up to `most` tokens to compute behind `pending` ones; none where that would not pay."""
        if self._guess is None or pending >= MOST_ROWS or most < 1:
            return []
        guessed = self._text[self._guess : self._guess + MOST_ROWS]
        # What is being repeated already goes on as it began.
        guessed = (guessed * MOST_ROWS)[: min(most, MOST_ROWS - pending)]
        best, best_worth = 0, WORTH
        for count in {len(guessed), *(rows - pending for rows in COSTS)}:
            if 0 < count <= len(guessed):
                expected = (1 - self._trust ** (count + 1)) / (1 - self._trust)
                worth = expected * costs.of(pending) / costs.of(pending + count)
                best, best_worth = (count, worth) if worth > best_worth else (best, best_worth)
        return guessed[:best]

    def _add(self, token: int) -> int | None:
        """Add one token; return where what followed the run that it ends stood before."""
        self._text.append(token)
        run = tuple(self._text[-GRAM:])
        before = self._after.get(run)
        self._after[run] = len(self._text)
        return before

    def _add_all(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._add(token)


def _size(rows: int) -> int:
    """Return the least number of tokens whose cost is kept that is no smaller."""
    return next(size for size in COSTS if rows <= size)


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens `a` and `b` begin with in common, by halving: slices compare at C's speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
