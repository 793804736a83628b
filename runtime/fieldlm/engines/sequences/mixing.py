"""Mixing adapters: answers with different ones in one step, where llama.cpp is built with `packaging/patches`.

A step reads the weights of the base once for all of them, and of each adapter its own few megabytes. All of its tokens
have to be outputs, so prompts stay in steps of their own adapter.
"""

from fieldlm.engines.llama_api import LoraAdapter
from fieldlm.engines.prompt_lookup import MOST_ROWS
from fieldlm.engines.sequences.slots import Slot

Group = tuple[LoraAdapter | None, int | None]
"""Who is computed together: an adapter, and a sequence where that is computed alone."""
MIXED: Group = (None, -1)
"""Answers with several adapters."""


def mixed(groups: dict[Group, list[Slot]]) -> dict[Group, list[Slot]]:
    """Return `groups` with the answers being written in one, `MIXED`.

    As they are where those are of one group, or have more tokens than one step may have rows of logits.
    """
    writing = {
        group: [slot for slot in slots if slot.request and slot.request.count]
        for group, slots in groups.items()
        if group[1] is None
    }
    together = [slot for slots in writing.values() for slot in slots]
    if sum(map(bool, writing.values())) < 2 or sum(len(slot.pending) for slot in together) > MOST_ROWS:
        return groups
    left = {group: [slot for slot in slots if slot not in together] for group, slots in groups.items()}
    return {MIXED: together, **{group: slots for group, slots in left.items() if slots}}
