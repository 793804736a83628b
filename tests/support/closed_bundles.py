"""Bundles with a classifier that knows each answer by one word."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.formats.bundle import Bundle, describe, write_bundle
from fieldlm.formats.classifier import (
    NAME,
    SIGNAL,
    Classifier,
    ClassifierFacts,
    ClosedAnswer,
    ClosedCall,
    context_key,
    head_of,
)
from fieldlm.formats.confidence import Confidence
from fieldlm.formats.router import PLACES, Router, features

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "pay",
        "description": "Ask for the bill.",
        "parameters": {
            "type": "object",
            "properties": {"how": {"enum": ["card", "cash"]}},
            "required": ["how"],
            "additionalProperties": False,
        },
    },
}
TEA = '{"drink": "tea"}'
PAY: dict[str, Any] = {"name": "pay", "arguments": {"how": "card"}}
DRINK, BILL, OTHER = "tea", "bill", "what is the weather"
"""What the classifier knows an answer to, twice, and what it knows none to."""
SURE = Confidence(signal=SIGNAL, steps=((-2.0, 0.1), (-0.5, 0.5), (-0.2, 0.97)), n=100, right=90)
ANSWERS = (
    ("tea", ClosedAnswer(task="t1", text=TEA)),
    ("bill", ClosedAnswer(task="t2", calls=(ClosedCall(**PAY),))),
)


def word_classifier(
    *, tools: Sequence[dict[str, Any]] = (TOOL,), system_prompt: str | None = None, least: float = 0.9
) -> Classifier:
    """Return a classifier that was asked without tools, and beside `tools`, behind `system_prompt` or none."""
    weights = np.zeros((len(ANSWERS) + 1, PLACES), np.int8)
    for place, (word, _) in enumerate(ANSWERS):
        weights[place, features(word)[0]] = 100
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    facts = ClassifierFacts(
        answers=tuple(answer for _, answer in ANSWERS),
        contexts=(context_key(system, ()), context_key(system, tools)),
        least=least,
        confidence=SURE,
    )
    scales = np.full(len(ANSWERS) + 1, 0.05, np.float32)
    return Classifier(facts=facts, head=head_of(weights, scales, np.array([0.0, 0.0, 4.0], np.float32)))


def with_classifier(bundle: Bundle, classifier: Classifier, router: Router | None = None) -> Bundle:
    """Return `bundle`, in its own folder, with `classifier`, and `router` where one is given."""
    return with_files(
        bundle,
        {NAME: ("classifier", classifier.packed())} | ({"router.npz": ("router", router.packed())} if router else {}),
    )


def with_files(bundle: Bundle, files: dict[str, tuple[str, bytes]]) -> Bundle:
    """Return `bundle`, in its own folder, with more files by their names, of a role each."""
    folder: Path = bundle.folder
    for name, (_, content) in files.items():
        (folder / name).write_bytes(content)
    described = (describe(folder, name, role) for name, (role, _) in files.items())
    manifest = msgspec.structs.replace(bundle.manifest, files=(*bundle.manifest.files, *described))
    return write_bundle(folder, manifest, Ed25519PrivateKey.generate())
