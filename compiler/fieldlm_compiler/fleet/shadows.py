"""Shadow periods of a fleet: what a release made of live requests before it was switched to, on all devices together.

Requests of one device are anything but independent, and one device may be broken, so devices are counted and not
requests: each on which the release did worse than the generation before stands against each on which it did better.
"""

from collections.abc import Iterable

import msgspec

from fieldlm.core.wording import counted
from fieldlm.formats.shadow import ShadowFigures, lost_e


class ShadowSums(msgspec.Struct, frozen=True, kw_only=True):
    """The sums of the devices whose candidate answered something, and on how many it did worse or better."""

    devices: int = 0
    none: int = 0
    """Devices that went on without: memory was short, it was asked for by hand, or nobody asked anything."""
    answers: int = 0
    agreed: int = 0
    valid: int = 0
    serving_valid: int = 0
    judged: int = 0
    right: int = 0
    serving_right: int = 0
    valid_worse: int = 0
    valid_better: int = 0
    right_worse: int = 0
    right_better: int = 0

    def worse(self, limit: float) -> str:
        """Say in what the release does worse on more devices than chance explains; "" where nothing shows that.

        `limit` is how much likelier that has to be than chance.
        """
        for what, lost, won in (
            ("valid answers", self.valid_worse, self.valid_better),
            ("answers as people say", self.right_worse, self.right_better),
        ):
            if (e := lost_e(lost, won)) >= limit:
                on = f"{counted(lost, 'device')} of {self.devices}, more on {won}"
                return f"in the shadow fewer {what} on {on}; e = {e:.3g}, limit {limit:.3g}"
        return ""

    def describe(self) -> str:
        """Return the sums in words."""
        judged = f"; of {self.judged:,} judged by people {self.right:,} right, before {self.serving_right:,}"
        none = f"; {counted(self.none, 'device')} went on without" if self.none else ""
        return (
            f"{counted(self.answers, 'answer')} on {counted(self.devices, 'device')}: {self.agreed:,} agree, "
            f"{self.valid:,} valid, before {self.serving_valid:,}{judged if self.judged else ''}{none}"
        )


def add_up(every: Iterable[ShadowFigures]) -> ShadowSums | None:
    """Add up what the devices of a fleet saw; None where none was to see anything."""
    known = list(every)
    seen = [each for each in known if each.answers]
    sums = {
        name: sum(getattr(each, name) for each in seen)
        for name in ("answers", "agreed", "valid", "serving_valid", "judged", "right", "serving_right")
    }
    for name in ("valid", "right"):
        lost_won = [(getattr(each, f"{name}_lost"), getattr(each, f"{name}_won")) for each in seen]
        sums |= {f"{name}_worse": sum(lost > won for lost, won in lost_won)}
        sums |= {f"{name}_better": sum(lost < won for lost, won in lost_won)}
    return ShadowSums(devices=len(seen), none=len(known) - len(seen), **sums) if known else None
