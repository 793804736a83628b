"""Fair share (round robin) among adapter groups, where one step cannot compute everybody: a batch has one adapter.

Who gives way (a batch answer, a measurement) waits for the others, and still comes on: an update that is tried while
people never stop asking would otherwise never end.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

STEPS = 8  # pip's llama.cpp plans its memory again at a switch, so it is paid once for several tokens
STEPS_BEHIND = 2  # of those who give way, as long as somebody waits for an answer meanwhile
STEPS_AHEAD = 16  # of the others before that: it costs them an eighth of their speed

Group = TypeVar("Group", bound=Hashable)


class FairShare(Generic[Group]):
    """Round robin: shares steps among groups of answers that cannot be computed together. For one thread."""

    def __init__(self) -> None:
        self._current: Group | None = None
        self._steps = 0
        self._step = 0
        self._kept_waiting = 0
        self._served: dict[Group, int] = {}

    def next(self, groups: Mapping[Group, bool]) -> Group:
        """Return who computes the next step; the value of each of `groups` says whether all of it gives way."""
        rivals = self._rivals(groups)
        self._step += 1
        if self._current in rivals and (len(rivals) == 1 or self._steps < STEPS):
            self._steps += 1
        else:
            self._served = {group: step for group, step in self._served.items() if group in groups}
            others = [group for group in rivals if group != self._current]
            self._current, self._steps = min(others, key=lambda group: self._served.get(group, 0)), 1
        self._served[self._current] = self._step
        return self._current

    def _rivals(self, groups: Mapping[Group, bool]) -> list[Group]:
        ahead = [group for group, gives_way in groups.items() if not gives_way]
        behind = [group for group, gives_way in groups.items() if gives_way]
        if not ahead or not behind:
            self._kept_waiting = 0
            return ahead or behind
        if self._current in behind:
            if self._steps < STEPS_BEHIND:
                return behind
            self._kept_waiting = 0
        self._kept_waiting += 1
        return behind if self._kept_waiting > STEPS_AHEAD else ahead
