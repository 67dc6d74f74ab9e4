"""The tables of the page: where hrt stands, every row, where the figures come from. Everything is escaped."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hrt.perf.bench.pareto import Standing, latency, nbytes, standings
from hrt.perf.measuring.bursts import slack
from hrt.perf.measuring.results import OK, Row

LONG = 600  # characters of a fact that are shown at once
COLUMNS = (
    "method",
    "backend",
    "batch",
    "target",
    "error",
    "bytes",
    "p50 us",
    "p95",
    "p99",
    "p99.9",
    "cold",
    "beside best dense",
)
COLUMNS += ("note",)


def standings_table(rows: Sequence[Row]) -> str:
    """One line per workload and target: hrt's rank in bytes, and in latency at every batch size."""
    rows = [r for r in rows if r.status != OK or r.error is not None]  # real-time rows have no error of their own
    small, fast = standings(rows, nbytes), standings(rows, latency)
    if not small and not fast:
        return "<p>No row of hrt's here was compared at an error.</p>"
    batches = sorted({s.batch for s in fast})
    head = "".join(f"<th>{escape(h)}</th>" for h in ("error", "bytes", *(f"latency, batch {b}" for b in batches)))
    lines = []
    for workload, target in dict.fromkeys((s.workload, s.target) for s in (*small, *fast)):
        at = {s.batch: s for s in fast if (s.workload, s.target) == (workload, target)}
        first = next((s for s in small if (s.workload, s.target) == (workload, target) and s.of), None)
        cells = [_standing(first, "smaller", "larger"), *(_standing(at.get(b), "faster", "slower") for b in batches)]
        lines.append(f'<tr><td class="text">{escape(workload)}</td><td>{target:g}</td>{"".join(cells)}</tr>')
    return (
        "<p>Rank among all methods that reach the error, and beside the best of the others.</p>"
        f'<div class="wide"><table><thead><tr><th class="text">workload</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _standing(s: Standing | None, better: str, worse: str) -> str:
    if s is None or not s.of:
        return "<td>not measured</td>"
    if s.rank is None or s.ratio is None:
        said = "hrt does not reach it" if s.rank is None else f"1 of {s.of}: no other method"
        return f'<td class="{"lost" if s.rank is None else "won"}">{said}</td>'
    ahead = s.ratio >= 1
    factor = s.ratio if ahead else 1 / s.ratio
    title = escape(f"best: {s.best.method}, {s.best.backend}" if s.best else "", quote=True)
    if s.noisy:
        return f'<td title="{title}">{s.rank} of {s.of}: too noisy to judge</td>'
    if s.even:
        return f'<td class="even" title="{title}">{s.rank} of {s.of}: no difference</td>'
    return (
        f'<td class="{"won" if s.won else "lost"}" title="{title}">{s.rank} of {s.of}: '
        f"{factor:.2f}x {better if ahead else worse}</td>"
    )


def rows_table(rows: Sequence[Row]) -> str:
    """Every row in the order given. Rows that were not measured carry their reason."""
    head = "".join(f"<th{_class(c)}>{escape(c)}</th>" for c in COLUMNS)
    body = "".join(map(_row, rows))
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(r: Row) -> str:
    names = f'<td class="text">{escape(r.method)}</td><td class="text">{escape(r.backend)}</td>'
    place = f"<td>{r.batch}</td><td>{r.target:g}</td>"
    if r.status != OK and r.p50_us is None:
        why = f": {r.note}" if r.note else ""
        span = len(COLUMNS) - 4
        return (
            f'<tr class="unmeasured">{names}{place}<td class="text" colspan="{span}">{escape(r.status + why)}</td></tr>'
        )
    figures = [
        number(r.error, "{:.1e}"),
        number(r.nbytes),
        *map(number, (r.p50_us, r.p95_us, r.p99_us, r.p999_us, r.cold_us)),
    ]
    cells = "".join(f"<td>{c}</td>" for c in figures)
    said = r.note if r.status == OK else f"{r.status}: {r.note}"
    note = f'<td class="note">{escape(said)}</td>'
    style = ' class="hrt"' if r.family == "hrt" else ""
    return f"<tr{style}>{names}{place}{cells}{_beside(r)}{note}</tr>"


def _beside(r: Row) -> str:
    ratio = r.ratio_vs_best_dense
    if ratio is None or ratio <= 0:
        return "<td></td>"
    around, style, word = "", "won" if ratio > 1 else "lost", "faster" if ratio > 1 else "slower"
    if r.ratio_low is not None and r.ratio_high is not None:
        around = f"<br><small>{r.ratio_low:.2f} to {r.ratio_high:.2f}</small>"
        if r.ratio_low <= 1 <= r.ratio_high or 1 / slack(r.noise) <= ratio <= slack(r.noise):
            style, word = "even", "no difference"
    if r.status != OK:
        style, word = "even", "no verdict"
    return f'<td class="{style}">{ratio:.2f}x: {word}{around}</td>'


def about(facts: Mapping[str, Any], workload: str) -> str:
    """What a workload is, from facts["about"], and why hrt does not win where it does not, from facts["why"]; nothing
    where the facts hold something else.
    """
    told, why = facts.get("about"), facts.get("why")
    said = told.get(workload) if isinstance(told, Mapping) else None
    lines = (
        [w for w in why if isinstance(w, Mapping) and w.get("workload") == workload] if isinstance(why, list) else []
    )
    texts = [f"batch {w.get('batch')}, error {w.get('target')}: {w.get('line')}" for w in lines]
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    head = f"<p>{escape(str(said))}</p>" if said else ""
    return head + (f"<h3>Where hrt does not win, and why</h3><ul>{items}</ul>" if items else "")


def facts_table(facts: Mapping[str, Any]) -> str:
    """Command, commit, versions, machine, threads, and whatever else is known of the run, but for histograms."""
    lines = []
    for key, value in facts.items():
        if key not in ("realtime", "about", "why"):  # which stand in their sections
            shown = escape(value if isinstance(value, str) else _listed(value))
            if len(shown) > LONG:
                shown = f"<details><summary>{len(shown):,} characters</summary>{shown}</details>"
            lines.append(f'<tr><td class="text">{escape(str(key))}</td><td class="fact">{shown}</td></tr>')
    return f"<table><tbody>{''.join(lines)}</tbody></table>" if lines else "<p>Nothing was recorded.</p>"


def _listed(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return json.dumps(value)


def number(value: float | None, form: str = "") -> str:
    """A figure as it stands in a table; empty where there is none."""
    if value is None or value != value:
        return ""
    if form:
        return form.format(value)
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:,.1f}"


def _class(column: str) -> str:
    return ' class="text"' if column in ("method", "backend", "note") else ""
