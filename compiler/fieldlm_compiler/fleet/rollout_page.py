"""Draw a rollout: one self-contained page that a browser reloads, no script and nothing from elsewhere."""

import math
import time
from html import escape

from fieldlm_compiler.fleet.controller import State
from fieldlm_compiler.fleet.waves import Evidence

RELOAD_S = 10
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #667085; --line: #d5dae2; --paper: #fbfbf9; --card: #fff;
        --good: #0f766e; --bad: #c2570c; --rest: #d5dae2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --line: #344054; --paper: #12161c;
        --card: #1a2029; --good: #2dd4bf; --bad: #fb923c; --rest: #344054 } }
* { box-sizing: border-box } body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif } main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem }
h1 { font-size: 1.8rem; margin: 0 0 .5rem } h2 { font-size: 1.1rem; margin: 0 0 .5rem } p { color: var(--soft) }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1rem 1.5rem;
  margin: 1rem 0 } svg { display: block; width: 100%; height: auto } svg text { fill: var(--ink); font-size: 12px }
.good { fill: var(--good) } .bad { fill: var(--bad) } .rest { fill: var(--rest) }
.limit { stroke: var(--ink); stroke-dasharray: 4 3 }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
td { padding: .3rem .75rem .3rem 0; border-top: 1px solid var(--line); vertical-align: top }
"""
WIDTH, ROW, LABEL = 760, 22, 190


def page(state: State) -> str:
    """Return the whole page."""
    seqs = ", ".join(f"{escape(t.profile)} {t.seq}" for t in state.tracks)
    acts = "".join(
        f"<tr><td>{_clock(act.at_ms)}</td><td>{escape(act.what)}</td><td>{escape(act.detail)}</td></tr>"
        for act in reversed(state.acts)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{RELOAD_S}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>fieldlm rollout</title>'
        f"<style>{STYLE}</style><main><h1>{state.status.capitalize()}, wave {state.wave + 1}</h1>"
        f"<p>Releases: {seqs}</p>"
        f"<section><h2>How far</h2>{_progress(state)}</section>"
        f"<section><h2>In trouble: updated devices above, others below</h2>{_troubles(state.evidence)}</section>"
        f"<section><h2>Evidence of harm; at the line the release is taken back</h2>{_proofs(state.evidence)}</section>"
        f"<section><h2>What was done</h2><table>{acts}</table></section></main></html>\n"
    )


def _progress(state: State) -> str:
    plan = state.plan()
    rows = [(t.profile, plan.share(t.profile, state.wave), f"of {t.size:,}") for t in state.tracks]
    return _bars([(name, share, "good", f"{share:.1%} {rest}") for name, share, rest in rows])


def _troubles(evidence: tuple[Evidence, ...]) -> str:
    rows: list[tuple[str, float, str, str]] = []
    for each in evidence:
        kinds = ", ".join(f"{number} {word}" for word, number in sorted(each.troubles.items()))
        rows.append((each.profile, _share(each.updated_bad, each.updated), "bad", f"{each.updated_bad} of "
                     f"{each.updated:,} {kinds}"))  # fmt: skip
        control = f"{each.control_bad} of {each.control:,}"
        rows.append(("", _share(each.control_bad, each.control), "good", control))
    return _bars(rows)


def _proofs(evidence: tuple[Evidence, ...]) -> str:
    rows = []
    for each in evidence:
        part = max(0.0, math.log(max(each.e_value, 1.0))) / math.log(each.limit)
        rows.append((each.profile, min(1.0, part), "bad" if each.is_harm else "good", f"e = {each.e_value:.3g}"))
    return _bars(rows, has_limit=True)


def _bars(rows: list[tuple[str, float, str, str]], *, has_limit: bool = False) -> str:
    if not rows:
        return "<p>Nothing was seen yet.</p>"
    room = WIDTH - LABEL - 240
    drawn: list[str] = []
    for number, (label, share, kind, words) in enumerate(rows):
        y = number * ROW
        drawn.append(
            f'<text x="0" y="{y + 14}">{escape(label)}</text>'
            f'<rect class="rest" x="{LABEL}" y="{y + 3}" width="{room}" height="14" rx="3"/>'
            f'<rect class="{kind}" x="{LABEL}" y="{y + 3}" width="{room * share:.1f}" height="14" rx="3"/>'
            f'<text x="{LABEL + room + 8}" y="{y + 14}">{escape(words)}</text>'
        )
    high = len(rows) * ROW
    limit = f'<line class="limit" x1="{LABEL + room}" x2="{LABEL + room}" y1="0" y2="{high}"/>' if has_limit else ""
    return f'<svg viewBox="0 0 {WIDTH} {high}" role="img">{"".join(drawn)}{limit}</svg>'


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _clock(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
