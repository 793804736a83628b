"""A request whose answer is one of few: what the bundle's classifier says, in the form that was asked for.

Who asks for more than an answer (several, their tokens' probabilities, a thought) or names an adapter has the model.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

from fieldlm.api.chat_request import CompletionParams
from fieldlm.api.forms.fitted import MisfitError, fitted
from fieldlm.api.output_contract import OutputContract
from fieldlm.api.tools import Toolbox
from fieldlm.engines import RunningAnswer
from fieldlm.formats.classifier import ClosedAnswer
from fieldlm.inference.adapters import Chosen
from fieldlm.inference.classifiers.closed_answers import classified_stream, classify
from fieldlm.inference.generations import Serving


@dataclass(frozen=True, kw_only=True)
class ClosedRequest:
    """The answer `text` of the classifier, how likely it is right, and when it was looked for."""

    serving: Serving
    text: str
    p: float
    began_s: float

    def start(self, prompt: list[int]) -> RunningAnswer:
        """Return the answer to `prompt`, which nobody reads."""
        return classified_stream(self.serving.engine, len(prompt), self.text, self.p, began_s=self.began_s)


def closed_request(
    serving: Serving,
    asked: CompletionParams,
    messages: list[dict[str, Any]],
    toolbox: Toolbox | None,
    contract: OutputContract,
) -> ClosedRequest | None:
    """Return what the classifier answers to a conversation; None where the language model has to answer."""
    began_s = time.monotonic()
    if isinstance(serving, Chosen) or _wants_more(asked):
        return None
    found = classify(serving.bundle, messages, toolbox.plain if toolbox else ())
    if found is None:
        return None
    try:
        # It has to be what was asked for as much as what comes from elsewhere.
        text = fitted(found.answer.text, _calls(found.answer), contract, toolbox, asked)
    except MisfitError:
        return None
    sampling = asked.wanted()
    is_cut = any(stop in text for stop in sampling.stop) or len(serving.engine.tokenize(text)) > sampling.max_tokens
    return None if is_cut else ClosedRequest(serving=serving, text=text, p=found.p, began_s=began_s)


def _wants_more(asked: CompletionParams) -> bool:
    wish = asked.thinking()
    is_about_thoughts = wish is not None and bool(wish.wants or wish.most)
    return (asked.n or 1) > 1 or asked.wanted().logprobs is not None or bool(asked.logit_bias) or is_about_thoughts


def _calls(answer: ClosedAnswer) -> list[tuple[str, str]]:
    return [(call.name, json.dumps(call.arguments, ensure_ascii=False)) for call in answer.calls]
