"""`python -m hrt.perf.summary`: results of the harness as the table in the README, in Markdown: for every workload and
error how much smaller and faster than the best dense form hrt is, its rank among the methods that keep the error, who
is first where it is not, and why.

    python -m hrt.perf --json build/results.json
    python -m hrt.perf.summary build/results.json
    python -m hrt.perf.summary build/results.json --why      # the lines, for every row that hrt does not win
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from hrt.errors import HrtError
from hrt.perf.rows import NOISY, Results, Row, merged, read
from hrt.perf.why import OURS, best_rows, rank

NONE = "-"


def table(results: Results) -> str:
    """One line per workload and error."""
    batches = sorted({r.batch for r in results.rows})
    head = ["network", "error", "bytes of dense / hrt", *(f"batch {b}: best dense / hrt" for b in batches)]
    lines = [_line(head), "|" + "---|" * len(head)]
    for (workload, target), rows in groupby(_sorted(results.rows), key=lambda r: (r.workload, r.target)):
        groups = {b: list(g) for b, g in groupby(rows, key=lambda r: r.batch)}
        times = [_time(groups[b]) if b in groups else NONE for b in batches]
        lines.append(
            _line([workload, f"{target:.0e}".replace("e-0", "e-"), _bytes(next(iter(groups.values()))), *times])
        )
    return "\n".join(lines)


def reasons(results: Results) -> list[str]:
    """Why, for every row that hrt does not win, and the workloads that gave no row of hrt's."""
    lines = [f"{w['workload']}, {w['target']:g}, batch {w['batch']}: {w['line']}" for w in results.facts.get("why", [])]
    measured = {r.workload for r in results.rows if r.method == OURS}
    absent = {r.workload: r.note for r in results.rows if r.workload not in measured}
    return lines + [f"{name}: not measured: {note}" for name, note in absent.items()]


def _bytes(rows: Sequence[Row]) -> str:
    best = best_rows(rows)
    dense = next((r.nbytes for r in rows if r.method == "dense float32" and r.nbytes), None)
    ours = best.get(OURS)
    if ours is None or not ours.nbytes or not dense:
        return NONE
    return f"{dense / ours.nbytes:.1f}x, {_place(rows, 'nbytes')}"


def _time(rows: Sequence[Row]) -> str:
    best = best_rows(rows)
    ours = best.get(OURS)
    if ours is None or ours.p50_us is None:
        return NONE
    if ours.status == NOISY or ours.ratio_vs_best_dense is None:
        return f"{ours.p50_us:,.1f} us, too noisy to compare"
    around = f"({ours.ratio_low:.2f} to {ours.ratio_high:.2f})"
    return f"{ours.ratio_vs_best_dense:.2f}x {around}, {_place(rows, 'p50_us')}"


def _place(rows: Sequence[Row], by: str) -> str:
    found = rank(rows, by)
    if found is None:
        return NONE
    first = "" if found.place == 1 else f", first: {found.first}"
    return f"{found.text}{first}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _sorted(rows: Sequence[Row]) -> list[Row]:
    order = {name: k for k, name in enumerate(dict.fromkeys(r.workload for r in rows))}
    return sorted(rows, key=lambda r: (order[r.workload], -r.target, r.batch))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print. Returns 0, or 2 for a file that is none of the harness."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.summary", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=Path, help="what `python -m hrt.perf --json` wrote; several add up")
    parser.add_argument("--why", action="store_true", help="print why hrt does not win where it does not")
    args = parser.parse_args(arguments)
    try:
        parts = [read(path) for path in args.results]
    except HrtError as error:
        print(f"hrt.perf.summary: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    results = merged(parts)
    why = [line for part in parts for line in reasons(part)]
    print("\n".join(f"- {line}" for line in why) if args.why else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
