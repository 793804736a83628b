"""How a placeholder is put, and what else is personal: the terms of redaction, without its patterns."""

import re
from collections.abc import Callable, Sequence

Patterns = Sequence[re.Pattern[str]]
"""What else a fleet calls personal, membership numbers for example."""

Put = Callable[[str, str], str]
"""(kind, words) → the placeholder that stands for them."""


def plain(kind: str, words: str) -> str:
    """Put a placeholder without a number."""
    return f"<{kind}>"
