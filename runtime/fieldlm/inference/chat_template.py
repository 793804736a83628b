"""Chat template: messages in, prompt text out, as the model's authors wrote it, in a sandbox.

The one renderer of the project: what a device is asked is written here, and what a model is trained on too. The prompt
is written out with its special tokens, the BOS among them where the template puts one; `Engine.tokenize` adds none, so
there is never a second. A special token that stands in somebody's words is no special token: a `SEAM` parts its text.
"""

import json
import re
import time
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from fieldlm.core.errors import BundleError, InputError
from fieldlm.engines import SEAM, Engine, SpecialTokens, engine_kind
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.thoughts.marks import SWITCHES, ThoughtMarks, marks_in
from fieldlm.inference.tool_calls import as_text, described

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]
OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})
"""What the renderer itself tells a template."""


class ChatTemplate:
    """A model's chat template with its special tokens."""

    def __init__(self, source: str, special: SpecialTokens) -> None:
        self.source = source
        self._special = special

    @cached_property
    def _template(self) -> "jinja2.Template":
        return _environment().from_string(self.source)

    @cached_property
    def variables(self) -> frozenset[str]:
        """The variables that it reads, the renderer's own among them."""
        from jinja2.meta import find_undeclared_variables

        environment = _environment()
        return frozenset(find_undeclared_variables(environment.parse(self.source)) - environment.globals.keys())

    @property
    def knows_tools(self) -> bool:
        """Whether it says itself which tools there are."""
        return "tools" in self.variables

    @property
    def switches(self) -> tuple[str, ...]:
        """The variables by which it switches thinking on and off."""
        return tuple(name for name in SWITCHES if name in self.variables)

    @cached_property
    def marks(self) -> ThoughtMarks | None:
        """What its model thinks between; None for one that does not think."""
        return marks_in(self.source)

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        return _control_of(self._special)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] | None = None,
        asks: bool = True,
        variables: Mapping[str, Any] | None = None,
        thinks: bool | None = None,
    ) -> str:
        """Return the text of `messages`; with `asks`, of the question for the next one too.

        `variables` are given to the template beside its own. `thinks` sets its switch, where it has one; a thought that
        it begins all the same is closed at once where it is False. None leaves thinking to the template.

        A template that knows no tools gets them as text: a system message that describes them, calls and their results
        as `tool_calls` spells them. Raises InputError when the template refuses the messages (a role it does not know,
        two answers in a row), BundleError when the template itself is broken.
        """
        import jinja2

        messages, tools = self._parted(list(messages)), self._parted(tools and list(tools))
        try:
            if not self.knows_tools:
                messages, tools = _without_tools(messages, tools), None
            given = {} if thinks is None else dict.fromkeys(self.switches, thinks)
            given |= self._parted(dict(variables or {}))
            text = self._filled(messages, given | {"tools": tools, "add_generation_prompt": asks})
            text.encode()
            return self.marks.closed(text) if self.marks and asks and thinks is False else text
        except UnicodeEncodeError as error:
            broken = ascii(error.object[error.start])
            raise InputError(f"a message holds {broken}, which is no character: send text in UTF-8") from error
        except jinja2.TemplateSyntaxError as error:
            raise BundleError(f"the chat template is broken in line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InputError(f"the model's chat template refuses these messages: {error}") from error

    def _filled(self, messages: Sequence[Message], given: Mapping[str, Any]) -> str:
        own = {**given, "bos_token": self._special.bos, "eos_token": self._special.eos}
        try:
            return self._template.render(own | {"messages": messages})
        except Exception:
            objects = [_with_objects(message) for message in messages]
            if objects == messages:
                raise
            # It reads one argument after the other, and of a call that broke off there is but a text.
            return self._template.render(own | {"messages": objects})

    def _parted(self, value: Any) -> Any:
        if self._control is None:
            return value
        if isinstance(value, str):
            return self._control.sub(rf"\1{SEAM}", value)
        if isinstance(value, dict):
            return {self._parted(key): self._parted(item) for key, item in cast(dict[Any, Any], value).items()}
        return [self._parted(item) for item in cast(list[Any], value)] if isinstance(value, list) else value


def parted(text: str, special: SpecialTokens) -> str:
    """Return `text` with a seam behind the first letter of each special token in it, so that it is text."""
    control = _control_of(special)
    return text if control is None else control.sub(rf"\1{SEAM}", text)


@lru_cache(maxsize=8)
def _control_of(special: SpecialTokens) -> re.Pattern[str] | None:
    texts = [re.escape(text) for text in special.control if len(text) > 1]
    # A look ahead, so that one that begins inside another is found as well.
    return re.compile(f"(?=(?:{'|'.join(texts)}))(.)", re.DOTALL) if texts else None


def render(
    bundle: Bundle,
    messages: Sequence[Message],
    *,
    tools: Sequence[Message] | None = None,
    asks: bool = True,
    variables: Mapping[str, Any] | None = None,
    thinks: bool | None = None,
) -> str:
    """Return the prompt that asks for the next message, as `ChatTemplate.render` does.

    The manifest's system prompt is put in front when `messages` has none. Raises InputError for a model without a chat
    template.
    """
    template = template_of(bundle)
    if template is None:
        raise InputError(without_template(bundle))
    served = as_served(messages, bundle.manifest.system_prompt)
    return template.render(served, tools=tools, asks=asks, variables=variables, thinks=thinks)


def template_of(bundle: Bundle) -> ChatTemplate | None:
    """Return the chat template of `bundle`, None for a model without."""
    if bundle.manifest.file("template") is None:
        return None
    return _template_of(bundle.need("template"), bundle.id, special_tokens(bundle))


def thought_marks(bundle: Bundle) -> ThoughtMarks | None:
    """Return what the model of `bundle` thinks between; None for one that does not think."""
    template = template_of(bundle)
    return None if template is None else template.marks


def said_marks(bundle: Bundle, engine: Engine) -> tuple[tuple[int, str], ...]:
    """Return the control tokens that thoughts stand between, and what each stands for; see `Sampling.said`."""
    if (marks := thought_marks(bundle)) is None:
        return ()
    ids = [(engine.tokenize(text), text) for text in marks.control(special_tokens(bundle).control)]
    return tuple((one[0], text) for one, text in ids if len(one) == 1 and not engine.detokenize(one))


def without_template(bundle: Bundle) -> str:
    """Return why `bundle`, which has no chat template, does not converse, and what it does."""
    return (
        f"{bundle.manifest.model.name} has no chat template: it goes on with a text and cannot converse; "
        "fieldlm serve it and ask /v1/completions, or take a model that was tuned to follow instructions"
    )


def question(bundle: Bundle, text: str) -> str:
    """Return the prompt that asks `text`, or goes on with it where the model has no chat template."""
    if bundle.manifest.file("template") is None:
        return opening(bundle) + text
    return render(bundle, [{"role": "user", "content": text}])


def as_served(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """Return `messages` with the bundle's own system prompt in front, when it has one and they have none."""
    if system_prompt and not any(message.get("role") in ("system", "developer") for message in messages):
        return [{"role": "system", "content": system_prompt}, *messages]
    return list(messages)


def opening(bundle: Bundle) -> str:
    """Return what text that goes in without a template begins with: the BOS for models that want one, else nothing."""
    special = special_tokens(bundle)
    return special.bos if special.adds_bos else ""


@lru_cache(maxsize=8)
def _template_of(path: Path, _bundle_id: str, special: SpecialTokens) -> ChatTemplate:
    return ChatTemplate(path.read_text(encoding="utf-8"), special)


def _without_tools(messages: Sequence[Message], tools: Sequence[Message] | None) -> list[Message]:
    plain = [as_text(message) for message in messages]
    if not tools:
        return plain
    system, rest = ([plain[0]["content"]], plain[1:]) if plain and plain[0]["role"] == "system" else ([], plain)
    return [{"role": "system", "content": "\n\n".join([*system, described(list(tools))])}, *rest]


def _with_objects(message: Message) -> Message:
    """Return `message` with the arguments of its calls as objects: a text is the only one of its object."""
    calls: list[Message] = []
    for call in cast(list[Message], message.get("tool_calls") or []):
        function = cast(Message, call.get("function") or {})
        if isinstance(text := function.get("arguments"), str):
            function = {**function, "arguments": {"arguments": text}}
        calls.append({**call, "function": function})
    return {**message, "tool_calls": calls} if calls else message


def _environment() -> "ImmutableSandboxedEnvironment":
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`: where trainers find the answer. It writes nothing."""

        tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

        def parse(self, parser: "Parser") -> "list[nodes.Node]":
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    functions: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": time.strftime}
    environment.globals.update(functions)
    return environment


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """As Transformers does it: no HTML escapes, keys in their order, spaces after separators."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def special_tokens(bundle: Bundle) -> SpecialTokens:
    """Return the special tokens: the manifest's `notes` say them (`bos_token`, `eos_token`), else the weights do."""
    notes, found = bundle.manifest.notes, engine_kind(bundle.manifest.engine).special_tokens(bundle)
    if "bos_token" in notes or "eos_token" in notes:
        return SpecialTokens(
            bos=str(notes.get("bos_token") or ""),
            eos=str(notes.get("eos_token") or ""),
            adds_bos=bool(notes.get("add_bos_token", False)),
            control=found.control,
        )
    return found
