"""An exam: a loaded model answers questions greedily, one after the other, as it would on a device.

What is judged is an answer. A model that thinks is asked without a thought where its template has a switch for that;
where it has none, it gets room for one, after which the thought is closed and the answer begins.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fieldlm.engines import Engine, Sampling, Timings
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.chat_template import Message, render, said_marks, template_of
from fieldlm.inference.thoughts.thought_reader import ThoughtFirst, parted_thought

SPARE_TOKENS = 16
"""Beyond the length of the right answer: one that goes on is wrong."""
THOUGHT_TOKENS = 1024
"""Of a thought that cannot be switched off; as much of them as the context holds beside prompt and answer."""


class Heard(NamedTuple):
    """What was answered, without what was thought before, and where its time went and how sure it was."""

    text: str
    timings: Timings


def exam_facts(bundle: Bundle) -> dict[str, Any]:
    """Return what of an exam hangs on how the model thinks, for the keys of stages: nothing for one that does not."""
    template = template_of(bundle)
    if template is None or (template.marks is None and not template.switches):
        return {}
    return {"thinks": False} if template.switches else {"thought_tokens": THOUGHT_TOKENS}


def exam_prompt(bundle: Bundle, messages: Sequence[Message], tools: Sequence[Message] | None = None) -> str:
    """Return the prompt that asks for an answer without a thought, as far as the template can be told so.

    Raises InputError for what the template refuses.
    """
    template = template_of(bundle)
    has_switch = template is not None and bool(template.switches)
    return render(bundle, messages, tools=tools, thinks=False if has_switch else None)


class Exam:
    """The questions to one model, which `engine` has loaded."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        template = template_of(bundle)
        self._engine = engine
        self._marks = template.marks if template else None
        self._must_think = template is not None and self._marks is not None and not template.switches
        self._said = said_marks(bundle, engine)

    def answer(self, prompt: str, tokens: Sequence[int], most: int, *, adapter: str | None = None) -> Heard | None:
        """Return the answer, of `most` tokens and a few, to `prompt`, which is `tokens`, with the adapter of that name.

        None where the served context does not hold it. One at a time: which answers share a batch would depend on the
        moment, and near ties on the batch.
        """
        if len(tokens) >= self._engine.context:
            return None
        marks = self._marks
        sampling = Sampling(max_tokens=most + SPARE_TOKENS)
        is_open = marks is not None and marks.is_open(prompt)
        if marks is not None:
            sampling = self._with_thought(sampling, ThoughtFirst(marks, is_open), len(tokens))
        running = self._engine.start(tokens, sampling, adapter=adapter)
        chunks = list(running)
        said = "".join(chunk.text for chunk in chunks)
        if marks is not None and is_open:
            said = marks.opens + said
        _, text = parted_thought(said, marks, chunks[-1].outcome or "stop")
        return Heard(text, running.timings)

    def _with_thought(self, sampling: Sampling, thought: ThoughtFirst, used: int) -> Sampling:
        """Return `sampling` with room for a thought behind `used` tokens of the prompt, where there has to be one."""
        sampling = replace(sampling, said=self._said, preamble=thought)
        if not self._must_think:
            return sampling
        from fieldlm.engines.constraint import grammars
        from fieldlm.inference.thoughts.thought_bound import ThoughtBound

        engine, marks = self._engine, thought.marks
        around = len(engine.tokenize(marks.opens + marks.closes + 2 * marks.space))
        left = engine.context - used - sampling.max_tokens - around
        most = min(THOUGHT_TOKENS, max(left, 0))
        bound = ThoughtBound(
            marks=marks,
            engine=engine,
            vocabulary=grammars(engine).vocabulary,
            said=dict(self._said),
            most=most,
            is_open=thought.is_open,
            answer_tokens=sampling.max_tokens,
        )
        return replace(sampling, max_tokens=sampling.max_tokens + around + most, constraint=bound)
