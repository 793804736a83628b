"""Golden answers (probes): prompts with the answers a healthy copy of the bundle gives: the file probe.json in it.

    {"prompts": [{"messages": [{"role": "user", "content": "…"}], "expect": "…", "max_tokens": 16}]}

The compiler writes it from what the finished artefact answers greedily through the runtime's own engine, and ends each
answer before the first token that was a near tie: rounding, which differs between processors, cannot tip the rest.
"""

from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import BundleError


class Probe(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One conversation, and how the greedy answer of a healthy copy begins, in `max_tokens` tokens.

    `adapter` is which of several adapters answers, "" for the first, or the only one.
    """

    messages: list[dict[str, Any]]
    expect: str
    max_tokens: int
    adapter: str = ""


class Probes(msgspec.Struct, frozen=True, kw_only=True):
    """The content of probe.json."""

    prompts: tuple[Probe, ...]


def load_probes(path: Path) -> tuple[Probe, ...]:
    """Read the probes at `path`; raises BundleError when there are none or they are damaged."""
    try:
        probes = msgspec.json.decode(path.read_bytes(), type=Probes).prompts
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}; fetch or compile the bundle again") from error
    if not probes:
        raise BundleError(f"{path} holds no prompts; fetch or compile the bundle again")
    return probes
