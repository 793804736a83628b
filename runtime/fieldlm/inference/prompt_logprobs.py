"""Prompt log-probabilities: how likely each token of a text was after those before it (echo, perplexity, evaluation).

The text is answered with itself: a constraint leaves no other choice, and every choice is described by the logits that
it was made from. The answer is foreseen word by word, so an engine that drafts computes many tokens a step.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fieldlm.engines import DEFAULT_TERMS, Engine, RunningAnswer, Sampling, Schedule


@dataclass
class _RecitalGuide:
    """A `Guide` that allows the next of some tokens and nothing else."""

    tokens: Sequence[int]
    said: int = 0

    def forced(self) -> Sequence[int]:
        """Return nothing: a forced token is certain, and not described."""
        return ()

    def allow(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        token = self.tokens[self.said]
        only = np.full_like(logits, -np.inf)
        only[token] = logits[token]
        return only

    def accept(self, token: int) -> None:
        self.said += 1

    @property
    def is_complete(self) -> bool:
        return self.said >= len(self.tokens)


@dataclass(frozen=True)
class _Recital:
    """A `Constraint` that leaves one answer."""

    tokens: Sequence[int]

    def guide(self) -> _RecitalGuide:
        return _RecitalGuide(self.tokens)


def prompt_logprobs(
    engine: Engine, tokens: Sequence[int], *, top: int, adapter: str | None = None, terms: Schedule = DEFAULT_TERMS
) -> RunningAnswer:
    """Start an answer whose choices are those of `tokens` but the first, with the `top` likeliest beside each.

    There must be two tokens at least. Raises InputError as `Engine.start` does.
    """
    rest = tuple(tokens[1:])
    sampling = Sampling(max_tokens=len(rest), logprobs=top, ignore_eos=True, constraint=_Recital(rest), prediction=rest)
    return engine.start(tokens[:1], sampling, adapter=adapter, terms=terms)
