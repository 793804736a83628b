"""How much of the demo's story is told."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StorySize:
    """How much of the story is told; the defaults are the demo's."""

    sentences: int = 2200
    held_out: int = 200
    before: float = 0.5
    """The share of held-out customers and strangers who come before as well: the base gets nothing right."""
    epochs: float = 1.5
    batch: int = 8
    known: float = 0.1
    rank: int = 16
    quants: tuple[str, ...] = ("Q8_0", "Q4_K_M", "Q4_0")


QUICK = StorySize(sentences=220, held_out=60, epochs=1.0, batch=4, quants=("Q8_0",))
