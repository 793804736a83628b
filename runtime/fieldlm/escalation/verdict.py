"""Who answered, and who may: what requests and records say of a large model, with or without one on this device."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fieldlm.engines import Timings

if TYPE_CHECKING:
    from fieldlm.escalation.large_reply import LargeReply

Who = Literal["small", "large"]
Wish = Literal["auto", "never", "redacted", "always"]
"""What a request says of the large model: the device decides, no, only without what identifies a person, yes."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Who answered and why the large model did or did not, with what each of them computed; for record and ledger."""

    by: Who
    why: str = ""
    """Why the large model was asked; empty where it was not."""
    note: str = ""
    """Why the answer is not the large model's although it was wanted."""
    small: Timings | None = None
    large: "LargeReply | None" = None
