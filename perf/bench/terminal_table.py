"""The results as a table for the terminal: every method, losses as plain as wins, hrt's rank, and why where it is not
first. Made from `Results` alone, so that a file of results shows the same.
"""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from hrt.perf.bench.explain_rank import best_rows, rank
from hrt.perf.measuring.results import NOISY, OK, Results, Row

COLUMNS = ("method", "backend", "error", "bytes", "p50 us", "p95", "p99", "cold", "best dense / this", "what")


def show(results: Results, console: Console, every: bool = False) -> None:
    """Print all groups of rows. every: all executions of a method, not the fastest one alone."""
    for (workload, target), rows in groupby(_sorted(results.rows), key=lambda r: (r.workload, r.target)):
        about = results.facts.get("about", {}).get(workload, "")
        console.print(Text(f"\n{workload}, error {target:g}: {about}", style="bold"))
        for _, group in groupby(rows, key=lambda r: r.batch):
            console.print(table_of(results, list(group), every))
    for line in closing(results):
        console.print(Text(line))


def table_of(results: Results, rows: Sequence[Row], every: bool = False) -> RenderableType:
    """One workload at one error and batch size: the table, hrt's ranks, why."""
    first = rows[0]
    table = Table(title=f"batch {first.batch}", title_justify="left", pad_edge=False)
    for name in COLUMNS:
        right = name not in ("method", "backend", "what")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    best = best_rows(rows)
    shown = [r for r in rows if every or best.get(r.method, r) is r]
    last = {r.method: r for r in shown}  # of executions that all fail one says enough
    shown = [r for r in shown if every or r.method in best or last[r.method] is r]
    for r in sorted(shown, key=lambda r: (r.p50_us is None, r.p50_us or 0.0)):
        style = "bold" if r.method == "hrt" else "dim" if r.p50_us is None else None
        table.add_row(*_cells(r), style=style)
    lines = [Text(line) for line in verdict(results, rows)]
    return Group(table, *lines)


def verdict(results: Results, rows: Sequence[Row]) -> list[str]:
    """hrt's ranks in one line, and why in another where it is not first in both."""
    by_bytes, by_time = rank(rows, "nbytes"), rank(rows, "p50_us")
    if by_bytes is None or by_time is None:
        return ["hrt: no row that keeps the error"] if any(r.method == "hrt" for r in rows) else []
    lines = [
        f"hrt is number {by_bytes.text} in bytes (first: {by_bytes.first}), "
        + (
            "latency: the machine was too noisy to rank"
            if any(best_rows(rows)[m].status == NOISY for m in ("hrt", by_time.first))
            else f"number {by_time.text} in latency (first: {by_time.first})"
        )
    ]
    key = rows[0].workload, rows[0].batch, rows[0].target
    for said in results.facts.get("why", []):
        if (said["workload"], said["batch"], said["target"]) == key:
            lines.append(f"why: {said['line']}")
    return lines


def closing(results: Results) -> list[str]:
    """What holds for all rows: how noisy it was, how long it took, whether it was cut short."""
    facts = results.facts
    lines = [f"{name}: the same call differs from itself by {v:.1%}" for name, v in facts.get("noise", {}).items()]
    if "machine" in facts:
        machine = facts["machine"]
        load = f"{machine['load_average']} before and {facts.get('load_average_after')} after"
        lines.append(
            f"{facts.get('threads')} threads of {machine['processor']}, load average {load}; "
            f"{facts.get('seconds', 0):.0f} s; commit {facts.get('commit')}"
        )
    if facts.get("interrupted"):
        lines.append("INTERRUPTED: these are the rows up to there")
    return lines


def _cells(r: Row) -> list[str]:
    ratio = "-"
    if r.ratio_vs_best_dense is not None:
        ratio = f"{r.ratio_vs_best_dense:.2f} ({r.ratio_low:.2f} to {r.ratio_high:.2f})"
    times = [_us(v) for v in (r.p50_us, r.p95_us, r.p99_us, r.cold_us)]
    what = r.note if r.status == OK else f"{r.status.upper()}: {r.note}"
    error, nbytes = (
        "-" if v is None else t for v, t in ((r.error, f"{r.error or 0:.1e}"), (r.nbytes, f"{r.nbytes or 0:,}"))
    )
    return [r.method, r.backend, error, nbytes, *times, ratio, what]


def _us(v: float | None) -> str:
    return "-" if v is None else f"{v:,.1f}"


def _sorted(rows: Sequence[Row]) -> list[Row]:
    order = {name: k for k, name in enumerate(dict.fromkeys(r.workload for r in rows))}
    return sorted(rows, key=lambda r: (order[r.workload], -r.target, r.batch))
