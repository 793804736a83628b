"""What an answer has to look like, as it is asked for; `constraint` compiles it."""

from dataclasses import dataclass
from typing import Literal

from fieldlm.core.errors import UnavailableError

Kind = Literal["json_schema", "json_object", "regex", "grammar"]
JSON_OBJECT = '{"type":"object"}'


@dataclass(frozen=True)
class Rule:
    """What an answer has to look like: a schema as JSON text, a regular expression, or a Lark or GBNF grammar."""

    kind: Kind
    text: str = JSON_OBJECT
    json_after: str | None = None
    """What an answer begins with before its JSON, whose numbers are bounded then; None where it is no JSON."""
    texts: tuple[tuple[str, str], ...] = ()
    """What stands before and behind texts in it that are no JSON."""
    said: tuple[tuple[int, str], ...] = ()
    """Control tokens that the answer says, and as what; see `Sampling.said`."""

    @property
    def json_begins(self) -> str | None:
        """Behind what the JSON of an answer begins; None where there is none."""
        return "" if self.kind in ("json_schema", "json_object") else self.json_after


class NotCompiledError(UnavailableError):
    """A rule is not compiled in the time that somebody has for it. Its compiler goes on: it may be there later."""
