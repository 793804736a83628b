"""Preference loss: where a person corrected an answer, theirs shall be likelier than the one that they rejected (ORPO).

Beside the cross-entropy of the chosen answers stands −log σ(log odds(chosen) − log odds(rejected)), where odds(y) is
P/(1 − P) and log P the mean log-probability of y's tokens (J. Hong, N. Lee and J. Thorne 2024, arXiv:2403.07691).

Chosen for what it costs on two cores: the rejected answers' own way through the model, in the same row as the others,
and nothing else. DPO (Rafailov et al. 2023, arXiv:2305.18290) holds every answer against a reference as well: one more
pass over all pairs (the base with the adapter switched off, or as the adapter began), and numbers that an interrupted
run has to keep; and alone it lowers the chosen answers' own likelihood, too (Pal et al. 2024, arXiv:2402.13228), which
the cross-entropy here holds up. SimPO (Meng, Xia and Chen 2024, arXiv:2405.14734) costs as little, and has two values
to be set for each task, and no cross-entropy.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid

from fieldlm_compiler.learn.tokenized import TokenizedExample

LEAST = 1e-6
"""Nats. A mean loss below it counts as this: the odds of what is certain are infinite, and so is their gradient."""


def rejected_of(examples: Sequence[TokenizedExample]) -> list[TokenizedExample]:
    """Return the rejected answers of `examples`, of those that have one, as examples of their own."""
    return [TokenizedExample(tokens=each.rejected, answer_at=each.answer_at) for each in examples if each.rejected]


def log_odds_ratio(chosen: Sequence[torch.Tensor], rejected: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return how far the log odds of chosen answers are above those of rejected ones, (pairs,).

    Each answer is the losses of its tokens in nats, (tokens,) in float32.
    """
    return _log_odds(chosen) - _log_odds(rejected)


def preference_loss(chosen: Sequence[torch.Tensor], rejected: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the loss of each pair in nats, (pairs,), of what `log_odds_ratio` is given."""
    return -logsigmoid(log_odds_ratio(chosen, rejected))


def _log_odds(answers: Sequence[torch.Tensor]) -> torch.Tensor:
    log_p = -torch.stack([losses.mean() for losses in answers]).clamp(min=LEAST)
    return log_p - torch.log(-torch.expm1(log_p))
