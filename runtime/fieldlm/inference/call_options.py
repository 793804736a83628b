"""Call options: what `Model` and `AsyncModel` take beside a question, as keywords that a type checker knows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, TypedDict, cast

from fieldlm.core.errors import InputError
from fieldlm.engines import Constraint, Sampling, Schedule
from fieldlm.formats.profile import Profile
from fieldlm.inference.chat_template import Message

NAMES = tuple(field.name for field in fields(Sampling))
TERMS = tuple(field.name for field in fields(Schedule))
LIMITS = ("timeout", "timeout_s", "deadline", "deadline_ms")
"""What other libraries call a deadline."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`, each as it may be given by its name: `model.chat("hi", max_tokens=64)`."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: tuple[str, ...]
    presence_penalty: float
    frequency_penalty: float
    repeat_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    logprobs: int | None
    constraint: Constraint | None
    prediction: tuple[int, ...] | None
    ignore_eos: bool


class OpenOptions(TypedDict, total=False):
    """The options of `Model.open`."""

    threads: int | None
    context: int | None
    parallel: int
    profile: Profile | None
    repeatable: bool
    trusted: frozenset[str]


def sampling_of(sampling: object, options: Mapping[str, Any]) -> Sampling:
    """Return `sampling`, or the default one, with what `options` says otherwise.

    Raises InputError for an option that there is not and for what is no Sampling; values are checked by the engine.
    """
    if not isinstance(sampling, Sampling | None):
        raise InputError(f"sampling is {sampling!r}, want a Sampling, or its fields by name, such as max_tokens=64")
    for name in options:
        if name not in NAMES:
            if term := _term(name):
                raise InputError(f"there is no option {name!r}; it is part of when: terms=Schedule({term})")
            near = "".join(f", did you mean {one!r}?" for one in get_close_matches(name, NAMES, 1))
            raise InputError(f"there is no option {name!r}{near or '; there are ' + ', '.join(NAMES)}")
    return replace(sampling or Sampling(), **options)


def check_schedule(terms: object) -> None:
    if not isinstance(terms, Schedule):
        raise InputError(f"terms is {terms!r}, want a Schedule, such as Schedule(deadline_s=2.0)")
    for name, limit in (("deadline_s", terms.deadline_s), ("max_queue_s", terms.max_queue_s)):
        if limit is not None and (not _is_number(limit) or math.isnan(limit) or limit < 0):
            raise InputError(f"{name} is {limit!r}, want seconds from now on, 0 or more, or None for no limit")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _term(name: str) -> str:
    """Return how what `name` means is said in a Schedule; "" where it means nothing there."""
    near = "deadline_s" if name in LIMITS else next(iter(get_close_matches(name, TERMS, 1, 0.8)), "")
    return {"": "", "priority": 'priority="safety"', "alone": "alone=True"}.get(near, f"{near}=2.0")


def check_profile(profile: object) -> None:
    if not isinstance(profile, Profile | None):
        raise InputError(f"profile is {profile!r}, want a Profile, such as load_profile('rpi5-8gb') gives")


def conversation(messages: object) -> list[Message]:
    """Return `messages`, or one text as the user's message; raises InputError for what is neither."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    if isinstance(messages, Sequence) and not isinstance(messages, bytes):
        listed = list(cast(Sequence[object], messages))
        if listed and all(isinstance(each, Mapping) and "role" in each for each in listed):
            return cast(list[Message], listed)
    raise InputError(
        f"messages is {str(messages)[:60]!r} ({type(messages).__name__}), want a text, or a list such as "
        '[{"role": "user", "content": "hi"}]'
    )
