"""The prompt of one conversation, as its request wants it thought about."""

from collections.abc import Sequence

from fieldlm.api.chat_request import CompletionParams
from fieldlm.api.output_contract import OutputContract
from fieldlm.api.thoughts.wishes import ThinkingWish, Told
from fieldlm.api.tools import Toolbox
from fieldlm.engines import Constraint
from fieldlm.engines.rules.grammars import grammars
from fieldlm.inference.chat_template import ChatTemplate, Message, render, template_of
from fieldlm.inference.generations import Serving
from fieldlm.inference.thoughts.thought_bound import ThoughtBound


class AskedPrompt:
    """What a model is asked: written once, where that may take a while."""

    def __init__(
        self,
        serving: Serving,
        messages: Sequence[Message],
        toolbox: Toolbox | None,
        wish: ThinkingWish | None,
        *,
        is_formed: bool,
        asks: bool = True,
        most: int = 0,
    ) -> None:
        self._serving = serving
        self._messages = messages
        self._toolbox = toolbox
        self._wish = wish or ThinkingWish()
        self._is_formed = is_formed
        self._asks = asks
        self._most = most if self._wish.most is None else self._wish.most
        self._is_bound = False
        self.is_open = False
        """Whether it has begun a thought; known once it is written."""

    @classmethod
    def of(
        cls,
        serving: Serving,
        asked: CompletionParams,
        messages: Sequence[Message],
        toolbox: Toolbox | None,
        *,
        asks: bool = True,
    ) -> "AskedPrompt":
        """Return what `asked` asks with `messages`."""
        is_formed = bool(asked.rules()) or (toolbox is not None and toolbox.binds)
        most = asked.wanted().max_tokens // 2  # of a thought before a form, where nobody says how much
        return cls(serving, messages, toolbox, asked.thinking(), is_formed=is_formed, asks=asks, most=most)

    def text(self) -> str:
        """Write it; raises ApiError and InputError for what the template cannot be told."""
        template = template_of(self._serving.bundle)
        told = Told({}, None) if template is None else self._told(template)
        self._is_bound = told.is_bound
        prompt = render(
            self._serving.bundle,
            self._messages,
            tools=self._toolbox.plain if self._toolbox else None,
            asks=self._asks,
            variables=told.variables,
            thinks=told.thinks,
        )
        self.is_open = template is not None and template.marks is not None and template.marks.is_open(prompt)
        return prompt

    def held_to(self, contract: OutputContract) -> Constraint | None:
        """Return what the answer is held to: the rule of `contract`, behind a thought where that is bounded."""
        if not self._is_bound or contract.thoughts is None:
            return contract.rule
        return ThoughtBound(
            marks=contract.thoughts,
            engine=self._serving.engine,
            vocabulary=grammars(self._serving.engine).vocabulary,
            said=dict(contract.said),
            most=self._most,
            is_open=self.is_open,
            then=contract.rule,
        )

    def _told(self, template: ChatTemplate) -> Told:
        from jinja2 import TemplateError

        try:
            return self._wish.told(template, is_formed=self._is_formed)
        except TemplateError:  # `render` says what is wrong with it
            return Told({}, None)
