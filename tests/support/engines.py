"""A small real constraint for engine tests: the answer is one of a few token sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError
from fieldlm.engines import Guide


@dataclass(frozen=True)
class OneOf:
    """A `Constraint`. No sequence may be the beginning of another; `breaks_after` tokens it raises, as bugs do."""

    sequences: tuple[tuple[int, ...], ...]
    breaks_after: int | None = None

    def guide(self) -> Guide:
        return _Path(self)


class _Path:
    def __init__(self, constraint: OneOf) -> None:
        self._left = constraint.sequences
        self._breaks_after = constraint.breaks_after
        self._count = 0

    def forced(self) -> Sequence[int]:
        """Return how all sequences that are left go on in common."""
        common: list[int] = []
        for tokens in zip(*(sequence[self._count :] for sequence in self._left), strict=False):
            if len(set(tokens)) > 1:
                break
            common.append(tokens[0])
        return common

    def allow(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        allowed = np.full_like(logits, -np.inf)
        following = sorted({sequence[self._count] for sequence in self._left})
        allowed[following] = logits[following]
        return allowed

    def accept(self, token: int) -> None:
        self._left = tuple(sequence for sequence in self._left if sequence[self._count] == token)
        if not self._left:
            raise EngineError(f"token {token} is in none of the sequences")
        self._count += 1
        if self._count == self._breaks_after:
            raise ValueError("this constraint is broken")

    @property
    def is_complete(self) -> bool:
        return any(len(sequence) == self._count for sequence in self._left)
