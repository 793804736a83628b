"""Families of models that can be tuned: those of which transformers has a language model that reads from left to right.

What it calls a family is `model_type` in a model's config.json.
"""

from collections.abc import Sequence

from fieldlm_compiler.pipeline.child import call
from fieldlm_compiler.pipeline.fork_server import TORCH


def without_trainer(families: Sequence[str]) -> set[str]:
    """Return those of `families` that nothing here tunes."""
    ran = call(find_without, what="look for trainers", preload=TORCH)(families=list(families))
    return set(ran.value)


def find_without(families: list[str]) -> list[str]:
    """Return those of `families` that transformers has no such model of. Runs in a child process."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [each for each in families if each not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
