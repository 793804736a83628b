"""Text that comes in pieces, cut into what a voice can say: a sentence as soon as it is known to have ended."""

import re

ENDS = re.compile(r"""(?:[.!?…]+["'”’)\]]*(?=\s)|[。！？]+|\n)""")
NO_ENDS = re.compile(r"(?:^|\s)(?:Mr|Mrs|Ms|Dr|Prof|St|No|vs|e\.g|i\.e|z\.B|d\.h|[A-Z]|\d+)\.$")
LONGEST = 200
"""Characters after which a voice goes on without an end of a sentence, at the last comma or space."""


class Sentences:
    """Give it pieces with `push`, and at the end of the text take the rest with `finish`."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> list[str]:
        """Return the sentences that are whole now, without spaces around them."""
        self._held += piece
        said: list[str] = []
        while (end := self._end()) is not None:
            said.append(self._held[:end].strip())
            self._held = self._held[end:]
        return [sentence for sentence in said if sentence]

    def finish(self) -> list[str]:
        """Return what is left as a sentence, if there is anything."""
        rest, self._held = self._held.strip(), ""
        return [rest] if rest else []

    def _end(self) -> int | None:
        for match in ENDS.finditer(self._held):
            if not NO_ENDS.search(self._held[: match.end()]):
                return match.end()
        if len(self._held) > LONGEST:
            part = self._held[:LONGEST]
            return max(part.rfind(", ") + 1, part.rfind("; ") + 1) or part.rfind(" ") + 1 or LONGEST
        return None
