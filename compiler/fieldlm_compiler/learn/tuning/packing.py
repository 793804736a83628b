"""Sequence packing with a shared prefix: `[prefix][example 1][example 2]…`, and the attention that keeps them apart.

The examples share their beginning (the system prompt), so it is computed once a step: every example sees the prefix and
itself. The attention below does no work for pairs that may not see each other, where a mask over the whole row would do
all of it and throw most away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fieldlm_compiler.learn.tokenized import TokenizedExample

ATTENTION_OF_ROWS = "fieldlm_packed"
"""What a model is loaded with (`attn_implementation`), to be given a `Row` as the keyword `row`."""
NEVER = -1e9
"""Stands for minus infinity among scores."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Examples laid side by side: n tokens, of which the first `shared` belong to all m examples."""

    tokens: torch.Tensor
    """(1, n)"""
    positions: torch.Tensor
    """(1, n): where each token stands in its own conversation."""
    at: torch.Tensor
    """(a,): the places whose next token is judged."""
    targets: torch.Tensor
    """(a,): those next tokens."""
    shared: int
    places: torch.Tensor
    """(m, longest): where in the row each example's own tokens are; short ones are filled up with any place."""
    ranks: torch.Tensor
    """(n - shared,): for each own token of the row, its index in `places`, flattened."""
    future: torch.Tensor
    """(longest, longest): true where a key comes after the query."""

    def to(self, device: torch.device | str) -> "Row":
        """Return this row with its tensors on `device`."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: t.to(device) for name, t in held.items() if isinstance(t, torch.Tensor)})


def pack(examples: Sequence[TokenizedExample], device: torch.device | str = "cpu") -> Row:
    """Lay `examples` side by side behind their common prefix, on `device`."""
    shared = _common_prefix([example.tokens[: example.answer_at] for example in examples])
    longest = max(len(example.tokens) for example in examples) - shared
    tokens, positions = list(examples[0].tokens[:shared]), list(range(shared))
    at: list[int] = []
    targets: list[int] = []
    ranks: list[int] = []
    places = torch.full((len(examples), longest), shared)
    for number, example in enumerate(examples):
        start, count = len(tokens), len(example.tokens) - shared
        at += range(start - shared + example.answer_at - 1, start + count - 1)
        targets += example.tokens[example.answer_at :]
        tokens += example.tokens[shared:]
        positions += range(shared, len(example.tokens))
        places[number, :count] = torch.arange(start, start + count)
        ranks += range(number * longest, number * longest + count)
    return Row(
        tokens=torch.tensor([tokens]),
        positions=torch.tensor([positions]),
        at=torch.tensor(at),
        targets=torch.tensor(targets),
        shared=shared,
        places=places,
        ranks=torch.tensor(ranks),
        future=torch.ones(longest, longest, dtype=torch.bool).triu(1),
    ).to(device)


def _common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens all rows share; the last token of a prompt is never shared away."""
    shortest = min(len(row) for row in rows) - 1
    return next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    row: Row,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer over a packed row, as transformers calls it.

    `query` is (1, query heads, n, d), `key` and `value` (1, key heads, n, d); returns (1, n, query heads, d). All
    queries meet the prefix in one product, and their own example in a batched one. A key more than `sliding_window`
    positions back is not seen; `softcap` bounds the scores, as Gemma 2 does. What else a family asks for is not known
    here, and shows before the first step (`answer_loss.choose_loss`).
    """
    del module, attention_mask
    own = query.shape[2] - row.shared
    first_q, own_q = query[0].split((row.shared, own), dim=1)
    first_k, own_k = key[0].split((row.shared, own), dim=1)
    first_v, own_v = value[0].split((row.shared, own), dim=1)
    heads, width = own_k.shape[0], own_k.shape[2]
    group, (count, longest) = own_q.shape[0] // heads, row.places.shape
    window = sliding_window if sliding_window and sliding_window < row.shared + longest else None
    prefix = _attend_prefix(first_q, first_k, first_v, scaling=scaling, window=window, softcap=softcap)

    places = row.places.flatten() - row.shared
    k = own_k.index_select(1, places).view(heads, count, longest, width)
    v = own_v.index_select(1, places).view(heads, count, longest, width)
    q = own_q.index_select(1, places).view(heads, group, count, longest, width).transpose(1, 2) * scaling
    q = q.reshape(heads, count * group * longest, width)

    to_prefix = _capped(q @ first_k.transpose(1, 2), softcap)
    to_own = _capped(q.view(heads, count, group * longest, width) @ k.transpose(2, 3), softcap)
    hidden = row.future
    if window:
        ranks = torch.arange(row.shared + longest, device=query.device)
        back = ranks[row.shared :, None] - ranks[None, :] >= window
        to_prefix = to_prefix.view(heads, count * group, longest, row.shared)
        to_prefix = to_prefix.masked_fill(back[:, : row.shared], NEVER).view(heads, -1, row.shared)
        hidden = hidden | back[:, row.shared :]
    to_own = to_own.view(heads, count, group, longest, longest).masked_fill(hidden, NEVER)
    scores = torch.cat((to_prefix, to_own.view(heads, -1, longest)), dim=-1)
    shares = scores.softmax(-1, dtype=torch.float32).to(v.dtype)
    on_prefix, on_own = shares.split((row.shared, longest), dim=-1)
    seen = (on_own.reshape(heads, count, group * longest, longest) @ v).view(q.shape) + on_prefix @ first_v
    seen = seen.view(heads, count, group, longest, width).transpose(1, 2).reshape(heads * group, -1, width)
    return torch.cat((prefix, seen.index_select(1, row.ranks)), dim=1).transpose(0, 1)[None].contiguous(), None


def _attend_prefix(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scaling: float, window: int | None, softcap: float | None
) -> torch.Tensor:
    """Attention of the shared beginning on itself: (query heads, n, d)."""
    length = q.shape[1]
    if softcap is None and (window is None or window >= length):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    ranks = torch.arange(length, device=q.device)
    back = ranks[:, None] - ranks[None, :]
    hidden = (back < 0) | (back >= (window or length))
    grouped = q.view(k.shape[0], -1, length, q.shape[2]) * scaling
    scores = _capped(grouped @ k[:, None].transpose(2, 3), softcap).masked_fill(hidden, NEVER)
    return (scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v[:, None]).reshape(q.shape)


def _capped(scores: torch.Tensor, softcap: float | None) -> torch.Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_OF_ROWS, attend)
