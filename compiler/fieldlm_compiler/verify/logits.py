"""Logits of every next token of a text, read through the very decode path that will answer on a device.

A constraint allows nothing but the text itself and keeps the logits it is shown, so one reader does for every engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError
from fieldlm.engines import Engine, Sampling

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Tokens to be read as they are, after others that are only given. None of those read may end an answer."""

    given: tuple[int, ...]
    read: tuple[int, ...]


@dataclass(kw_only=True)
class _Reader:
    """A constraint and its only guide."""

    tokens: Sequence[int]
    rows: list[Floats] = field(default_factory=list[Floats])

    def guide(self) -> "_Reader":
        return self

    def forced(self) -> Sequence[int]:
        return ()

    def allow(self, logits: Floats) -> Floats:
        """Keep `logits`, and make the token that is written the best."""
        self.rows.append(np.array(logits, np.float32))
        shown = np.full_like(logits, -1.0)
        shown[self.tokens[len(self.rows) - 1]] = 0.0
        return shown

    def accept(self, token: int) -> None:
        assert token == self.tokens[len(self.rows) - 1], "nothing else was allowed"

    @property
    def is_complete(self) -> bool:
        return len(self.rows) == len(self.tokens)


def read(engine: Engine, passages: Sequence[Passage], *, adapter: str | None = None) -> Iterator[Floats]:
    """Yield the logits of each passage, [tokens read, vocabulary], in order.

    Raises EngineError when the engine ends a passage early.
    """
    for passage in passages:
        reader = _Reader(tokens=passage.read)
        # One after the other: which share a batch would depend on the moment, and the last digit of a logit on that.
        sampling = Sampling(max_tokens=len(passage.read), constraint=reader)
        *_, last = engine.start(passage.given, sampling, adapter=adapter)
        if len(reader.rows) != len(reader.tokens):
            raise EngineError(f"the engine stopped reading at token {len(reader.rows)}: {last.error or last.outcome}")
        yield np.stack(reader.rows)
