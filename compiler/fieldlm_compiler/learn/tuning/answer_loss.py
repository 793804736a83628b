"""Cross-entropy of the answers, in one packed row where that is the model's own computation, else one by one.

Packing lays examples side by side and brings its own attention. A model whose layers mix neighbours in another way (a
convolution, a recurrent state, attention sinks, chunks) would compute something else than the device does with what was
trained. So nothing is assumed of a family: before the first step the log-probabilities of real examples are held
against transformers' own forward, of the same weights: of a base in 4 bits, those.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch.nn.functional import cross_entropy, log_softmax

from fieldlm.core.logs import logger
from fieldlm_compiler.learn.tokenized import TokenizedExample
from fieldlm_compiler.learn.tuning.four_bits import multiplied_in
from fieldlm_compiler.learn.tuning.packing import ATTENTION_OF_ROWS, pack
from fieldlm_compiler.learn.tuning.preference_loss import log_odds_ratio, preference_loss, rejected_of
from fieldlm_compiler.learn.tuning.processes.team import ALONE, Team
from fieldlm_compiler.learn.tuning.tuning_state import ThreadChoice

log = logger(__name__)

if TYPE_CHECKING:
    from fieldlm_compiler.learn.tuning.packing import Row

OWN_ATTENTION = "eager"
"""Transformers' plainest attention, which leaves nothing of a family out."""
NEAR = 2e-3
"""Nats, relative above one. Rounding of float32 stays a hundred times below it; the least of the differences that were
found in a family (LFM2's convolution over a border, random weights) lies above, for the token that it meets."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How examples fare; None where there is nothing to measure."""

    loss: float | None
    """Mean cross-entropy per answer token, in nats."""
    exact: dict[str, tuple[int, int]]
    """By task, how many of its answers greedy decoding would give to the token, and of how many."""
    preferred: float | None
    """Share of pairs whose right answer has the higher mean log-probability of a token."""
    log_odds: float | None
    """Mean of `log_odds_ratio` over pairs."""

    @property
    def exact_match(self) -> float | None:
        """The share of `exact` answers, as a mean over tasks."""
        return sum(right / total for right, total in self.exact.values()) / len(self.exact) if self.exact else None


@dataclass(frozen=True)
class _Sums:
    """What one process finds of its share of the examples, of which `Measured` is made."""

    total: float
    """Cross-entropy of all its answers, in nats."""
    count: int
    """Of its answers' tokens."""
    hit: Counter[str]
    ratios: list[float]


@dataclass(frozen=True)
class AnswerLoss:
    """How one model's loss is computed."""

    model: Any
    """A PEFT model."""
    is_packed: bool
    team: Team = ALONE
    """The processes that share the work."""
    measuring: ThreadChoice = field(default_factory=ThreadChoice)
    """How many threads measure: a token takes less there than in a step of the training, and is compared by itself."""

    def logits(self, examples: Sequence[TokenizedExample]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits (a, vocabulary) of all answers' tokens, one example after the other, and these tokens."""
        if self.is_packed:
            row = pack(examples, self.model.device)
            return packed_logits(self.model, row), row.targets
        parts = [own_logits(self.model, example) for example in examples]
        targets = [token for example in examples for token in example.tokens[example.answer_at :]]
        return torch.cat(parts), torch.tensor(targets, device=self.model.device)

    def mean(self, examples: Sequence[TokenizedExample]) -> torch.Tensor:
        """Return the mean over the answers' tokens, in nats, to be differentiated."""
        logits, targets = self.logits(examples)
        return cross_entropy(logits, targets)

    def mean_and_worst(
        self,
        examples: Sequence[TokenizedExample],
        preference_weight: float = 0.0,
        *,
        whole: Sequence[TokenizedExample] | None = None,
    ) -> tuple[torch.Tensor, list[float]]:
        """Return the mean, to be differentiated, and the greatest loss that a token of each example's answer has.

        With a weight above 0 the preference loss of the pairs among the examples is added to the mean. It is divided by
        the number of examples, so that a pair counts alike in whichever step it comes. Of the `whole` batch `examples`
        may be a share: then the mean is divided by what the whole has, and all shares' results add up to its own.
        """
        whole = examples if whole is None else whole
        if preference_weight:
            return self._preferring(examples, preference_weight, whole)
        logits, targets = self.logits(examples)
        losses = cross_entropy(logits, targets, reduction="none")
        worst = torch.stack([each.max() for each in losses.detach().split(_answer_sizes(examples))])
        return losses.mean() * _token_share(examples, whole), worst.tolist()

    def _preferring(
        self, examples: Sequence[TokenizedExample], weight: float, whole: Sequence[TokenizedExample]
    ) -> tuple[torch.Tensor, list[float]]:
        chosen, corrected, rejected = self._in_pairs(examples)
        loss = torch.cat(chosen).mean() * _token_share(examples, whole)
        if rejected:
            loss = loss + weight * preference_loss(corrected, rejected).sum() / len(whole)
        return loss, torch.stack([each.detach().max() for each in chosen]).tolist()

    def _in_pairs(
        self, examples: Sequence[TokenizedExample]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        """Return the losses of the answers' tokens, in float32: of all right ones; of those in pairs; of the rejected.

        Rejected answers are laid in the same row, behind the same prefix, for one way through the model.
        """
        laid = [*examples, *rejected_of(examples)]
        logits, targets = self.logits(laid)
        losses = cross_entropy(logits.float(), targets, reduction="none").split(_answer_sizes(laid))
        chosen, rejected = [*losses[: len(examples)]], [*losses[len(examples) :]]
        return chosen, [each for each, example in zip(chosen, examples, strict=True) if example.rejected], rejected

    def evaluate(self, examples: Sequence[TokenizedExample], batch: int) -> float | None:
        """Return the mean cross-entropy per answer token in nats, or None without examples."""
        return self.measure(examples, batch).loss

    def measure(self, examples: Sequence[TokenizedExample], batch: int) -> Measured:
        """Return the loss of `examples`, which answers are right, and how far those in pairs are the likelier ones.

        Each process of the team asks its share of them, and all return the same.
        """
        mine = [examples[at] for at in self.team.share([example.work for example in examples])]
        found = self.team.all_of(self._measured(mine, batch))
        total, count = (sum(each) for each in zip(*((one.total, one.count) for one in found), strict=True))
        ratios = [each for one in found for each in one.ratios]
        hit = sum((one.hit for one in found), Counter[str]())
        of = Counter(example.task for example in examples)
        return Measured(
            loss=round(total / count, 4) if count else None,
            exact={task: (hit[task], of[task]) for task in sorted(of)},
            preferred=round(sum(each > 0 for each in ratios) / len(ratios), 4) if ratios else None,
            log_odds=round(sum(ratios) / len(ratios), 4) if ratios else None,
        )

    def _measured(self, examples: Sequence[TokenizedExample], batch: int) -> "_Sums":
        total, count = 0.0, 0
        right: list[bool] = []
        ratios: list[float] = []
        pairs = [example for example in examples if example.rejected]
        with torch.no_grad(), self.measuring.restored():
            for part in _batches(examples, batch):
                with self.measuring.step(_work(part)):
                    logits, targets = self.logits(part)
                    total += float(cross_entropy(logits.float(), targets, reduction="sum"))
                count += len(targets)
                # Where each token is the likeliest behind the right ones before it, greedy decoding gives them all.
                hits = (logits.argmax(-1) == targets).split(_answer_sizes(part))
                right += [bool(each.all()) for each in hits]
            for part in _batches(pairs, batch):
                with self.measuring.step(_work([*part, *rejected_of(part)])):
                    _, chosen, rejected = self._in_pairs(part)
                    ratios += log_odds_ratio(chosen, rejected).tolist()
        hit = Counter(example.task for example, is_right in zip(examples, right, strict=True) if is_right)
        return _Sums(total, count, hit, ratios)


def choose_loss(model: Any, examples: Sequence[TokenizedExample], batch: int, team: Team = ALONE) -> AnswerLoss:
    """Return how to compute the loss of `model`: packed if that is what transformers computes on `examples`.

    The `batch` longest are tried, in float32, because a window or a convolution shows only in what is longer than it.
    """
    longest = sorted([*examples, *rejected_of(examples)], key=lambda example: -len(example.tokens))[:batch]
    measuring = ThreadChoice(is_needed=model.device.type == "cpu")
    with torch.no_grad(), _in_float32(model), measuring.restored():
        own = _own(model, longest, measuring)
        why = _difference(model, longest, own, measuring) if own is not None else "it has no examples"
    if why is None:
        return AnswerLoss(model, is_packed=True, team=team, measuring=measuring)
    model.get_base_model().set_attn_implementation(OWN_ATTENTION)
    log.info(f"  examples go through the model one by one, because packed {why}")
    return AnswerLoss(model, is_packed=False, team=team, measuring=measuring)


def packed_logits(model: Any, row: "Row") -> torch.Tensor:
    """Return the logits (a, vocabulary) at the places of `row` whose next token is judged."""
    with _mixed(model) as causal:
        answer = causal(
            input_ids=row.tokens, position_ids=row.positions, use_cache=False, row=row, logits_to_keep=row.at
        )
        return answer.logits[0]


def own_logits(model: Any, example: TokenizedExample) -> torch.Tensor:
    """Return the logits (a, vocabulary) of the answer's tokens, by the model's own forward."""
    tokens = torch.tensor([example.tokens], device=model.device)
    at = torch.arange(example.answer_at - 1, len(example.tokens) - 1, device=model.device)
    with _mixed(model) as causal:
        return causal(input_ids=tokens, use_cache=False, logits_to_keep=at).logits[0]


@contextmanager
def _mixed(model: Any) -> Generator[Any]:
    """Yield the causal model, set to multiply in bfloat16 where its base is kept in it."""
    causal = model.get_base_model()
    # Under autocast the float32 adapter multiplies in bfloat16 too; peft's own cast to float32 would undo that.
    is_mixed = causal.dtype == torch.bfloat16
    mixed = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=is_mixed)
    with mixed, disable_input_dtype_casting(model, is_mixed):
        yield causal


def _own(model: Any, examples: Sequence[TokenizedExample], measuring: ThreadChoice) -> torch.Tensor | None:
    model.get_base_model().set_attn_implementation(OWN_ATTENTION)
    loss = AnswerLoss(model, is_packed=False, measuring=measuring)
    return torch.cat([_log_shares(loss, [each]) for each in examples]) if examples else None


def _difference(
    model: Any, examples: Sequence[TokenizedExample], own: torch.Tensor, measuring: ThreadChoice
) -> str | None:
    """Return why `examples` may not be packed, or None when their answers have `own` log-probabilities so too."""
    try:
        model.get_base_model().set_attn_implementation(ATTENTION_OF_ROWS)
        packed = _log_shares(AnswerLoss(model, is_packed=True, measuring=measuring), examples)
    # A family that was never packed fails in its own way.
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        return f"they cannot be computed ({type(error).__name__})"
    apart = float(((packed - own).abs() / own.abs().clamp(min=1.0)).max())
    return None if apart <= NEAR else f"they differ from its own computation by {apart:.1e}"


def _log_shares(loss: AnswerLoss, examples: Sequence[TokenizedExample]) -> torch.Tensor:
    with loss.measuring.step(_work(examples)):
        logits, targets = loss.logits(examples)
    return log_softmax(logits.float(), dim=-1).gather(1, targets[:, None])[:, 0]


@contextmanager
def _in_float32(model: Any) -> Generator[None]:
    """Hold the parameters of `model` in float32 for a while; from bfloat16 and back that loses nothing.

    Weights in 4 bits stay what they are, and their products are made in float32.
    """
    floating = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    held = [parameter.dtype for parameter in floating]
    for parameter in floating:
        parameter.data = parameter.data.float()
    try:
        with multiplied_in(model, torch.float32):
            yield
    finally:
        for parameter, dtype in zip(floating, held, strict=True):
            parameter.data = parameter.data.to(dtype)


def _token_share(examples: Sequence[TokenizedExample], whole: Sequence[TokenizedExample]) -> float:
    """Return which share of the answers' tokens of the `whole` are those of `examples`."""
    return sum(_answer_sizes(examples)) / sum(_answer_sizes(whole))


def _batches(examples: Sequence[TokenizedExample], batch: int) -> Iterator[Sequence[TokenizedExample]]:
    return (examples[start : start + batch] for start in range(0, len(examples), batch))


def _work(examples: Sequence[TokenizedExample]) -> int:
    return sum(example.work for example in examples)


def _answer_sizes(examples: Sequence[TokenizedExample]) -> list[int]:
    return [len(example.tokens) - example.answer_at for example in examples]
