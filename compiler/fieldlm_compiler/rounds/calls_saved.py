"""What the new bundle saves of the large model's calls: every threshold, by its calibration on watched customers."""

from fieldlm.core import charts
from fieldlm.core.charts import Scale, Svg
from fieldlm.formats.confidence import Confidence
from fieldlm_compiler.rounds.state import RoundDocument

TEACHERS = (0.9, 0.95, 0.98, 1.0)
"""How often large models may be right."""
DRAWN = 0.95
HEAD = ("right of the large model's", "kept here", "p", "right together")


def rows(document: RoundDocument) -> list[tuple[str, str, str, str]]:
    """Return how many answers may stay beside a large model without a loss against always asking it, by its right ones.

    Nothing where the bundle was not calibrated.
    """
    found = _calibration(document)
    if found is None:
        return []
    table: list[tuple[str, str, str, str]] = []
    for teacher in TEACHERS:
        at = found.threshold(teacher, teacher=teacher)
        together = next(point.right for point in found.curve(teacher) if point.share == at.share)
        table.append((f"{teacher:.0%}", f"{at.share:.0%}", f"{at.p:.3f}" if at.share else "–", f"{together:.1%}"))
    return table


def text(document: RoundDocument) -> list[str]:
    """Return the same for a terminal, as one line."""
    found = rows(document)
    deferral = [f"  deferral: {line}" for line in document.deferral]
    if not found:
        return deferral
    rights, kept = (" / ".join(row[at] for row in found) for at in (0, 1))
    return [
        f"  calls: beside a large model that is right in {rights}, {kept} of them are saved and nothing is lost",
        *deferral,
    ]


def curve(document: RoundDocument) -> Svg | None:
    """Draw the share that is right together over the share of the calls that are saved."""
    found = _calibration(document)
    if found is None:
        return None
    points = [(point.share, point.right) for point in found.curve(DRAWN)]
    low = min(right for _, right in points)
    kept = found.threshold(DRAWN, teacher=DRAWN).share
    return charts.plot(
        "Right together over calls saved",
        Scale(low=0.0, high=1.0, ticks=((0.0, "0 % saved"), (1.0, "100 %"))),
        Scale(low=low, high=1.0, ticks=((low, f"{low:.0%}"), (DRAWN, f"{DRAWN:.0%}"), (1.0, "100%"))),
        line=points,
        marks=[(kept, f"{kept:.0%} without a loss")] if kept else [],
    )


def _calibration(document: RoundDocument) -> Confidence | None:
    if not document.sure:
        return None
    counts = ((answers, right) for _, answers, right in document.sure)
    n, right = map(sum, zip(*counts, strict=True))
    return Confidence(held=tuple(document.sure), n=n, right=right)
