"""The classifier: answers of tasks that have few, told from a request's words alone, without a language model.

Where a task's answers come from a closed set (a label, one function with few arguments), each is a class of a linear
head over the router's features (`router.py`), and one more class is everything else: requests of other tasks, and rare
answers. What the head says of a request is calibrated to how often it was right about customers that it had not seen;
below `least` it says nothing, and the language model answers.

    classifier.npz    weights [answers + 1, 2^14] int8, scales and biases [answers + 1]; facts: the rest, as JSON

A device without this version passes the file by, and its language model answers everything.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from fieldlm.core.errors import BundleError
from fieldlm.core.files import canonical_json
from fieldlm.formats.confidence import Confidence, read_confidence
from fieldlm.formats.growth import Growing, check_understood, is_readable
from fieldlm.formats.router import Router, check_head, read_arrays

FORMAT = "fieldlm.classifier/1"
NAME = "classifier.npz"
SIGNAL = "logprob"
"""What its calibration is made on: the log probability of the class that it takes a request for."""
SYSTEM = ("system", "developer")
"""The roles of system prompts."""
ELSE = ""
"""What the head calls the class of everything else."""


class ClosedCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a tool, which has its `name`."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    arguments: dict[str, Any]


class ClosedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a task: its text, or the calls that it makes."""

    task: str
    text: str = ""
    calls: tuple[ClosedCall, ...] = ()


class ClassifierFacts(Growing, frozen=True, kw_only=True):
    """What the file says beside its head. `contexts` are digests of what stood around the requests it was fitted to.

    `least` is the least probability of being right with which it answers.
    """

    format: str = FORMAT
    answers: tuple[ClosedAnswer, ...]
    contexts: tuple[str, ...]
    least: float
    confidence: Confidence


@dataclass(frozen=True, kw_only=True)
class ClassifiedRequest:
    """The answer that a request is taken to want, and how likely it is right."""

    answer: ClosedAnswer
    p: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Classifier:
    """`head` tells the classes apart: the numbers of `facts.answers` in their order, and ELSE as the last."""

    facts: ClassifierFacts
    head: Router

    @property
    def tasks(self) -> frozenset[str]:
        """The ids of the tasks that it answers."""
        return frozenset(answer.task for answer in self.facts.answers)

    def guess(self, text: str) -> tuple[ClosedAnswer | None, float]:
        """Return the answer that `text` most likely wants, None for none of these, and its log probability."""
        chances = self.head.chances(text)
        best = int(chances.argmax())
        logprob = math.log(max(float(chances[best]), 1e-12))
        return (self.facts.answers[best] if best < len(self.facts.answers) else None), logprob

    def classify(self, text: str) -> ClassifiedRequest | None:
        """Return the answer to `text`; None where it is no such request, or it is not sure enough."""
        answer, logprob = self.guess(text)
        p = self.facts.confidence.p(logprob)
        if answer is None or p is None or p < self.facts.least:
            return None
        return ClassifiedRequest(answer=answer, p=p)

    def packed(self) -> bytes:
        """Return the file; the same classifier gives the same bytes."""
        import numpy as np

        out = io.BytesIO()
        head = self.head
        facts = np.frombuffer(canonical_json(self.facts), np.uint8)
        np.savez_compressed(
            out, allow_pickle=False, weights=head.weights, scales=head.scales, biases=head.biases, facts=facts
        )
        return out.getvalue()


def context_key(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
    """Return a digest of what stands around a request: its system prompts, and the names of its tools.

    Behind another one the same words may want another answer.
    """
    systems = [str(each.get("content") or "") for each in messages if each.get("role") in SYSTEM]
    names = sorted(str((tool.get("function") or {}).get("name")) for tool in tools)
    return hashlib.sha256(canonical_json([systems, names])).hexdigest()[:16]


def only_question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what the user said where that is all that was said, as text; "" for any other conversation.

    What was said before may change what an answer has to be, and a classifier does not read it.
    """
    said = [each for each in messages if each.get("role") not in SYSTEM]
    if len(said) != 1 or said[0].get("role") != "user":
        return ""
    text = said[0].get("content")
    return text if isinstance(text, str) else ""


def read_classifier(path: Path) -> Classifier:
    """Load a file that `Classifier.packed` made; raises BundleError for what is none."""
    found = read_arrays(path, ("weights", "scales", "biases", "facts"), what="classifier")
    try:
        facts = msgspec.json.decode(found["facts"].tobytes(), type=ClassifierFacts)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{path} is no classifier: {error}") from error
    if not is_readable(facts.format, FORMAT):
        raise BundleError(f"{path} has format {facts.format!r}, this version reads {FORMAT!r}; update fieldlm")
    check_understood(facts, what=str(path), error=BundleError)
    read_confidence(msgspec.json.encode(facts.confidence), what=str(path))
    if not facts.answers:
        raise BundleError(f"{path} is no classifier: it has no answers; make it again")
    check_head(found, len(facts.answers) + 1, what=f"{path} is no classifier")
    if silent := [number for number, each in enumerate(facts.answers) if not (each.text or each.calls)]:
        raise BundleError(f"{path} is no classifier: its answer {silent[0]} says nothing; make it again")
    return Classifier(facts=facts, head=head_of(found["weights"], found["scales"], found["biases"]))


def head_of(weights: Any, scales: Any, biases: Any) -> Router:
    """Return the head with these weights [classes, PLACES], scales and biases [classes], the last class being ELSE."""
    names = (*(str(number) for number in range(len(scales) - 1)), ELSE)
    return Router(tasks=names, names=names, weights=weights, scales=scales, biases=biases, least=0.0)
