"""A count and what is counted."""

import pytest

from fieldlm.core.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (0, ("file",), "0 files"),
        (1, ("file",), "1 file"),
        (1200, ("record",), "1,200 records"),
        (2, ("stage from the cache", "stages from the cache"), "2 stages from the cache"),
        (1, ("reply", "replies"), "1 reply"),
    ],
)
def test_what_is_one_is_said_so(number: int, words: tuple[str, ...], said: str) -> None:
    assert counted(number, *words) == said
