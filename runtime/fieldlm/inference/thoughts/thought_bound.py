"""A thought that ends: after so many tokens, and before what the answer is held to.

The engine is told as it is of any form, token by token: while the model thinks all may come, after `most` tokens the
mark that ends a thought is forced, and behind it the answer is free, or follows a constraint of its own.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldlm.core.errors import EngineError
from fieldlm.engines import Constraint, Engine, Guide
from fieldlm.inference.thoughts.marks import ThoughtMarks
from fieldlm.inference.thoughts.thought_reader import ThoughtReader

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ThoughtBound:
    """A `Constraint`: a thought of at most `most` tokens, and then what `then` says, if anything.

    With `then` there is a thought, if only an empty one; without, it is the model's choice, and the answer ends after
    `answer_tokens`. `vocabulary` holds the bytes of each token, `said` what control tokens stand for. `is_open`: the
    prompt has begun the thought.
    """

    marks: ThoughtMarks
    engine: Engine
    vocabulary: Sequence[bytes]
    said: Mapping[int, str]
    most: int
    is_open: bool
    then: Constraint | None = None
    answer_tokens: int | None = None

    def guide(self) -> Guide:
        """See `Constraint.guide`."""
        return _BoundGuide(self)


class _BoundGuide:
    """A `Guide`: the state of one answer."""

    def __init__(self, bound: ThoughtBound) -> None:
        self._bound = bound
        self._reader = ThoughtReader(bound.marks)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._then: Guide | None = bound.then.guide() if bound.then else None
        self._count = self._answered = 0
        """Tokens of the thought, and of the answer."""
        self._is_over = False
        """Whether the thought has ended, or there is none."""
        opens, space = bound.marks.opens, bound.marks.space[:1]
        if bound.is_open:
            self._reader.push(opens)
        begins = self._then is not None and not bound.is_open
        self._due = bound.engine.tokenize(opens + space) if begins else []
        """What has to come next, whatever the model would say."""

    def forced(self) -> Sequence[int]:
        """See `Guide.forced`."""
        # A character, or what may be the mark itself, ends first.
        is_within = bool(self._decoder.getstate()[0]) or self._reader.is_holding
        if not self._due and self._reader.is_inside and self._count >= self._bound.most and not is_within:
            self._due = self._bound.engine.tokenize(self._bound.marks.closes + self._bound.marks.space)
        if self._due or not self._is_over or self._then is None:
            return list(self._due)
        return self._then.forced()

    def allow(self, logits: Floats) -> Floats:
        """See `Guide.allow`."""
        if self._is_over and self._then is not None:
            return self._then.allow(logits)
        allowed = logits.copy()
        if self._then is not None:
            allowed[[token for token in self._bound.engine.stop_tokens if token < allowed.size]] = -np.inf
        return allowed

    def accept(self, token: int) -> None:
        """See `Guide.accept`."""
        is_due = bool(self._due)
        if is_due and token != self._due.pop(0):
            raise EngineError(f"token {token} stands where a mark of a thought has to")
        if self._is_over and not is_due:
            self._answered += 1
            if self._then is not None:
                self._then.accept(token)
            return
        piece = self._bound.said.get(token, "").encode() or self._bound.vocabulary[token]
        was_inside = self._reader.is_inside
        _, answer = self._reader.push(self._decoder.decode(piece))
        self._count += was_inside and self._reader.is_inside and not is_due
        self._is_over = self._is_over or self._reader.has_ended or (was_inside and not self._reader.is_inside)
        if answer.strip() and self._then is not None:
            raise EngineError("the thought ended within a token, and the answer's form begins there; ask without")

    @property
    def is_complete(self) -> bool:
        """See `Guide.is_complete`."""
        if self._then is not None:
            return self._is_over and self._then.is_complete
        return self._bound.answer_tokens is not None and self._answered >= self._bound.answer_tokens
