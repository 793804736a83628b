"""Batch invariance: whether a token comes out the same, bit for bit, whatever is computed in the same step.

Kernels take rows one by one, or several at once in another order of additions, by how many there are: so rounding, and
with it the answer where two words are as likely, hangs on what the cache held and on who else asked. For quantised
weights most processors have kernels that agree. That is tried: a prompt in one step and in several has to come to the
same logits. Where it does, answers are repeatable with all else going on as ever; elsewhere only by computing each
alone, from its beginning.

Floats never count as tried. Where few of them are multiplied (one tensor, an adapter), what differs is mostly rounded
away before anybody sees it, and shows in one token of a hundred.
"""

from collections.abc import Sequence

from fieldlm.engines.llama_api import Batch, Context, LoraAdapter
from fieldlm.engines.llama_layout import BF16, F16, F32
from fieldlm.formats.gguf import Header

PIECES = (1, 2, 3, 5, 8, 13, 40)
"""Tokens a step; together they are the prompt."""
STRIDE = 7919  # a prime: the ids that are tried are spread over the vocabulary


def is_plain(header: Header) -> bool:
    """Whether trying the model of `header` proves something: all that it multiplies is quantised, and met by every row.

    Experts see as many rows as were sent to them. Cells that a window of attention has left behind are used again, in
    an order that hangs on the steps before.
    """
    if any(key.endswith(".attention.sliding_window") for key in header.metadata):
        return False
    matrices = {name: tensor.type for name, tensor in header.tensors.items() if len(tensor.shape) > 1}
    return not any("_exps" in name or kind in (F32, F16, BF16) for name, kind in matrices.items())


class BatchInvariance:
    """What was found out about one context. For the engine's thread."""

    def __init__(self, context: Context, vocabulary: int, *, can_hold: bool) -> None:
        """`can_hold` is False where trying it would not prove it."""
        self._context = context
        self._tokens = [i * STRIDE % vocabulary for i in range(sum(PIECES))]
        self._batch = Batch(len(self._tokens))
        self._found: bool | None = None if can_hold else False

    @property
    def is_known(self) -> bool:
        """Whether it was found out, or needs no trial."""
        return self._found is not None

    def holds(self, adapter: LoraAdapter | None) -> bool:
        """Whether tokens are known to come out the same with `adapter`, which is multiplied in floats."""
        return bool(self._found) and adapter is None

    def find_out(self, sequence: int) -> None:
        """Try it, in the empty `sequence`, which is empty again afterwards. Takes the time of 72 tokens, twice."""
        self._context.allow()
        self._context.use(None)
        whole = self._logits([PIECES], sequence)
        parts = self._logits([(count,) for count in PIECES], sequence)
        if whole and parts:
            self._found = whole == parts

    def _logits(self, steps: Sequence[Sequence[int]], sequence: int) -> list[bytes]:
        """Return the bits of the logits behind each piece, computed in `steps` of pieces; none when that failed."""
        done, found = 0, list[bytes]()
        for pieces in steps:
            self._batch.clear()
            rows: list[int] = []
            for count in pieces:
                piece = self._tokens[done : done + count]
                rows.append(self._batch.add(piece, sequence=sequence, position=done, want_last=True))
                done += count
            if self._context.decode(self._batch):
                found.clear()
                break
            found += [self._context.logits(row).tobytes() for row in rows]
        self._context.cut(sequence)
        return found
