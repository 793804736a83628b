"""What a request says about thinking, held against what the model's chat template can be told.

A template that has a switch is told; what it cannot be told is refused by name. An answer that is held to a form, or a
call that must come, is written without a thought, unless one is asked for: what is bounded by `max_tokens` or a
deadline has to be whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fieldlm.inference.chat_template import OWN_VARIABLES, ChatTemplate
from fieldlm.inference.thoughts.marks import EFFORT, SWITCHES
from fieldlm.network.json_api import ApiError

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
GIVEN = "chat_template_kwargs"
BUDGET = "thinking_token_budget"


@dataclass(frozen=True, kw_only=True)
class ThinkingWish:
    """What a request says; `effort_name` is how its API calls the effort."""

    effort: Effort | None = None
    is_on: bool | None = None
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the template is to be told beside."""
    most: int | None = None
    """Tokens that a thought may have."""
    effort_name: str = EFFORT

    def refuse(self) -> None:
        """Raise ApiError for variables that no template may be given, and for on and off at once."""
        for name, value in self.variables.items():
            where = f"{GIVEN}.{name[:64]}"
            if name in OWN_VARIABLES or not name.isidentifier():
                raise _invalid(where, "is none that a request may set")
            if not isinstance(value, bool | int | float | str | None):
                raise _invalid(where, f"is {value!r:.60}; want a text, a number, true, false or null")
            if name in SWITCHES and not isinstance(value, bool | None):
                raise _invalid(where, f"is {value!r:.60}; want true or false")
        if len(set(self._said().values())) > 1:
            raise _invalid(", ".join(self._said()), "ask for thinking and for none")

    def _said(self) -> dict[str, bool]:
        """Return by parameter whether it asks for thinking or for none."""
        said: dict[str, bool | None] = {
            self.effort_name: None if self.effort is None else self.effort != "none",
            "enable_thinking": self.is_on,
            **{f"{GIVEN}.{name}": self.variables.get(name) for name in SWITCHES},
        }
        return {name: value for name, value in said.items() if value is not None}

    @property
    def wants(self) -> bool | None:
        """Whether thinking is asked for, or none; None where nothing is said."""
        return next(iter(self._said().values()), None)

    def told(self, template: ChatTemplate, *, is_formed: bool) -> "Told":
        """Return what `template` is told for an answer that is held to a form, or is not.

        Raises ApiError for what it cannot be told.
        """
        reads, said = template.variables, self._said()
        param, wants = next(iter(said.items()), ("", None))
        variables = {name: value for name, value in self.variables.items() if name not in SWITCHES}
        for name in variables.keys() - reads:
            known = ", ".join(sorted(reads - OWN_VARIABLES)) or "none"
            raise _unsupported(f"{GIVEN}.{name}", f"this model's chat template does not read it; it reads {known}")
        can_think = template.marks is not None or EFFORT in reads
        if wants is False and can_think and not template.switches:
            raise _unsupported(param, "this model thinks, and its chat template has no switch for that")
        if wants and not can_think and not template.switches:
            raise _unsupported(param, "this model does not think")
        if self.effort not in (None, "none"):
            if EFFORT not in reads:
                what = "this model's chat template cannot be told how much to think; enable_thinking says whether"
                raise _unsupported(self.effort_name, what)
            variables[EFFORT] = self.effort
        is_bound = (is_formed and bool(wants)) or self.most is not None
        if is_bound and template.marks is None and can_think:
            what = "where this model's thoughts end is not known here, so that they cannot be bounded"
            raise _unsupported(param or BUDGET, what)
        thinks = False if is_formed and not wants else wants
        return Told(variables, thinks, is_bound and thinks is not False and template.marks is not None)


@dataclass(frozen=True)
class Told:
    """What a template is told: variables, and whether the model is to think; None leaves that to the template."""

    variables: dict[str, Any]
    thinks: bool | None
    is_bound: bool = False
    """Whether the thought has to end, by a budget or because a form follows."""


def _unsupported(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}", param=param, code="unsupported_parameter")


def _invalid(param: str, what: str) -> ApiError:
    return ApiError(400, f"{param} {what}", param=param, code="invalid_value")
