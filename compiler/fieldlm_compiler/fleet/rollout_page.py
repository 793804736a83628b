"""Draw a rollout: one self-contained page, which reloads itself while the rollout goes on."""

import math
from collections.abc import Mapping

from fieldlm.core import charts
from fieldlm.core.charts import Svg
from fieldlm_compiler.fleet.controller import State
from fieldlm_compiler.fleet.page import clock, draw
from fieldlm_compiler.fleet.waves import Evidence

RELOAD_S = 10
"""While a rollout runs; its reader may pause it."""
ROOM = 1.1
"""A bar of evidence shows this much: the limit is at 1, and what is beyond it is seen to be."""

TWICE = "a device that was kept back in one wave and updated in a later one is counted in both"


def page(state: State) -> str:
    """Return the whole page."""
    plan = state.plan()
    far = [(t.profile, plan.share(t.profile, state.wave), t.size) for t in state.tracks]
    return draw(
        "rollout.html",
        f"{state.status.capitalize()}, wave {state.wave + 1}",
        "Releases: " + ", ".join(f"{track.profile} {track.seq}" for track in state.tracks),
        reload_s=RELOAD_S if state.status == "running" else None,
        progress=[
            (name, charts.bar("updated", [("good", part)]), f"{part:.1%} of {size:,}") for name, part, size in far
        ],
        troubles=[row for each in state.evidence for row in _troubles(each)],
        twice=f"{TWICE.capitalize()}." if any(is_counted_twice(state, each) for each in state.evidence) else "",
        proofs=[_proof(each) for each in state.evidence],
        failed=[(profile, failed_words(reasons)) for profile, reasons in state.failed.items()],
        shadows=[(profile, sums.describe()) for profile, sums in state.shadows.items()],
        acts=[(clock(act.at_ms), act.what, act.detail) for act in reversed(state.acts)],
    )


def is_counted_twice(state: State, each: Evidence) -> bool:
    """Say whether more devices of a profile were judged than it has: the last wave updates those kept back, too."""
    return any(t.profile == each.profile and each.updated + each.control > t.size for t in state.tracks)


def failed_words(reasons: Mapping[str, int]) -> str:
    """Return on how many devices an update failed for each reason."""
    return ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())


def _troubles(each: Evidence) -> list[tuple[str, Svg, str]]:
    kinds = ", ".join(f"{number} {word}" for word, number in sorted(each.troubles.items()))
    return [
        (
            each.profile,
            charts.bar("updated devices in trouble", [("bad", each.updated_bad)], whole=each.updated),
            f"{each.updated_bad} of {each.updated:,}" + (f": {kinds}" if kinds else ""),
        ),
        (
            "",
            charts.bar("devices kept back, in trouble", [("good", each.control_bad)], whole=each.control),
            f"{each.control_bad} of {each.control:,}",
        ),
    ]


def _proof(each: Evidence) -> tuple[str, Svg, str]:
    part = min(ROOM, math.log(max(each.e_value, 1.0)) / math.log(each.limit))
    kind = "bad" if each.is_harm else "good"
    return each.profile, charts.bar("evidence", [(kind, part)], whole=ROOM, limit=1.0), f"e = {each.e_value:.3g}"
