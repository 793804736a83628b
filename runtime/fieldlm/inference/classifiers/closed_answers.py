"""A bundle's classifier: whether it answers a request, and what an answer of its looks like beside the model's.

It answers a question that is asked for itself, behind a system prompt and beside tools that it was fitted to, of a task
that the bundle's router knows where there is one. All else is the language model's.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fieldlm.engines import Chunk, Engine
from fieldlm.engines.answer_stream import AnswerStream
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.classifier import (
    ClassifiedRequest,
    Classifier,
    ClosedAnswer,
    context_key,
    only_question,
    read_classifier,
)
from fieldlm.formats.router import Router
from fieldlm.inference.chat_template import as_served
from fieldlm.inference.router import router_of
from fieldlm.inference.tool_calls import spelt

CLASSIFIER = "classifier"
"""Who gave an answer that no language model gave."""


def classifier_of(bundle: Bundle) -> Classifier | None:
    """Return the bundle's classifier, None where it has none; raises BundleError where that is damaged."""
    path = bundle.path("classifier")
    return None if path is None else _read(bundle.id, path)


def classify(
    bundle: Bundle, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()
) -> ClassifiedRequest | None:
    """Return the answer to a conversation beside `tools`; None where the language model has to give it."""
    classifier = classifier_of(bundle)
    if classifier is None:
        return None
    served = as_served([dict(message) for message in messages], bundle.manifest.system_prompt)
    return classify_by(classifier, router_of(bundle), served, tools)


def classify_by(
    classifier: Classifier,
    router: Router | None,
    served: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] = (),
) -> ClassifiedRequest | None:
    """Return `classify` of a conversation with its system prompt; `router` is the bundle's, where it has one."""
    question = only_question(served)
    if not question or context_key(served, tools) not in classifier.facts.contexts:
        return None
    if router is not None and router.task(question) is None:
        return None
    return classifier.classify(question)


def text_of(answer: ClosedAnswer) -> str:
    """Return an answer as a small model would say it: its text, and its calls."""
    calls = (spelt(call.name, call.arguments) for call in answer.calls)
    return answer.text + "\n".join(calls)


def classified_stream(engine: Engine, prompt_tokens: int, text: str, p: float, *, began_s: float) -> AnswerStream:
    """Return the answer `text`, which is right with probability `p`, as one that is whole already.

    The prompt of `prompt_tokens` was not read: they count as those that a cache spares. `began_s` is when somebody
    began to look, by the monotonic clock.
    """
    made = AnswerStream(prompt_tokens=prompt_tokens, wake=lambda: None)
    timings = made.timings
    timings.cached_tokens = prompt_tokens
    # None of them was chosen, so that they say nothing of how fast the model is.
    timings.completion_tokens = timings.forced_tokens = len(engine.tokenize(text))
    timings.prefill_s = time.monotonic() - began_s
    timings.classified = p
    made.put(Chunk(text=text, tokens=(), outcome="stop"))
    return made


@lru_cache(maxsize=4)
def _read(_bundle_id: str, path: Path) -> Classifier:
    return read_classifier(path)
