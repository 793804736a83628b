"""Shadow answers: what a candidate made of live requests for nobody to see, in numbers, and when that is worse.

Of each request both generations' answers are held against each other. The evidence is in the pairs where one did well
and the other did not (McNemar's test, as an e-value): were the candidate no worse, each would be as likely to go
against it as for it, so that looking after every pair costs nothing (Ville), and a candidate is refused without cause
in about one of a thousand periods by either. A device ends its own period by it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Literal

import msgspec

from fieldlm.core.wording import counted

LEAST, MOST = 12, 10_000
"""Requests of a period: with fewer than twelve nothing can be refused."""
HOURS = 24.0
ALPHA = 0.001
SUPPOSED = (0.6, 0.7, 0.8, 0.9, 0.99)  # shares of the pairs that go against a bad candidate

Worse = Literal["shadow-invalid", "shadow-wrong"]
End = Literal["", "full", "time", "worse", "memory", "asked"]


class ShadowAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer in numbers; `meaning` says which others say the same, and stays in memory."""

    is_valid: bool
    """Whether it is an answer: whole where it has a form, of that form, and not empty."""
    meaning: bytes = b""
    tokens: int = 0
    duration_s: float = 0.0
    confidence: float | None = None


class ShadowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How a candidate did beside the generation that serves, over `answers` requests that both have answered.

    `valid_lost` counts what was valid of the serving generation alone, `valid_won` of the candidate alone; `right`,
    `right_lost` and `right_won` are the same of those `judged` by people.
    """

    wanted: int = 0
    answers: int = 0
    agreed: int = 0
    valid: int = 0
    valid_lost: int = 0
    valid_won: int = 0
    judged: int = 0
    right: int = 0
    right_lost: int = 0
    right_won: int = 0
    passed: int = 0
    """Live requests for which there was no time, or that were asked before."""
    end: End = ""
    """Why it is over, or was not begun: memory was short, or the update was asked for by hand; "" while it goes on."""

    @property
    def serving_valid(self) -> int:
        return self.valid + self.valid_lost - self.valid_won

    @property
    def serving_right(self) -> int:
        return self.right + self.right_lost - self.right_won

    def told(self) -> dict[str, str]:
        """Return the figures as words, for a record."""
        return {f"shadow_{name}": str(value) for name, value in msgspec.structs.asdict(self).items()}

    def worse(self) -> tuple[Worse, str] | None:
        """Say in what the candidate is worse than the generation that serves, None where nothing shows that."""
        if lost_e(self.valid_lost, self.valid_won) > 1 / ALPHA:
            return "shadow-invalid", (
                f"in the shadow {self.valid} of {counted(self.answers, 'answer')} are valid, "
                f"{self.serving_valid} of the serving generation's"
            )
        if lost_e(self.right_lost, self.right_won) > 1 / ALPHA:
            return "shadow-wrong", (
                f"in the shadow {self.right} of {counted(self.judged, 'answer')} are as people say, "
                f"{self.serving_right} of the serving generation's"
            )
        return None

    def describe(self) -> str:
        """Return the figures in words."""
        if self.end in ("memory", "asked"):
            why = "memory does not hold both" if self.end == "memory" else "it was asked for by hand"
            return f"no answer in the shadow: {why}"
        end = {"": ", going on", "time": ", its time is over"}.get(self.end, "")
        judged = f"; of {self.judged} judged by people {self.right} right, before {self.serving_right}"
        return (
            f"in the shadow {self.answers:,} of {counted(self.wanted, 'answer')}{end}: {self.agreed:,} agree, "
            f"{self.valid:,} valid, before {self.serving_valid:,}{judged if self.judged else ''}"
        )


def read_figures(detail: Mapping[str, str]) -> ShadowFigures | None:
    """Read what `told` wrote into a record; None where there is nothing, or nothing that can be believed."""
    found = {name: detail[key] for name in ShadowFigures.__struct_fields__ if (key := f"shadow_{name}") in detail}
    try:
        figures = msgspec.convert(found, ShadowFigures, strict=False)
    except msgspec.ValidationError:
        return None
    numbers = [value for value in msgspec.structs.astuple(figures) if isinstance(value, int)]
    return figures if found and all(0 <= number <= MOST for number in numbers) else None


def lost_e(lost: int, won: int) -> float:
    """Return how much likelier it is that `lost` pairs go against the candidate and `won` for it if it is worse."""
    logs = (lost * math.log(2 * share) + won * math.log(2 * (1 - share)) for share in SUPPOSED)
    return sum(math.exp(min(log, 600.0)) for log in logs) / len(SUPPOSED)


def meaning(said: str) -> bytes:
    """Return the same for texts that say the same: JSON whatever its spelling, calls by name and arguments, words."""
    try:
        value = json.loads(said, parse_float=_number)
        text = json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        text = " ".join(said.split())
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _number(text: str) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value
