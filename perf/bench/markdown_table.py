"""`python -m hrt.perf.bench.markdown_table`: results of the harness as the table in the README, in Markdown: for every workload and
error how much smaller and faster than the best dense form hrt is, its rank among the methods that keep the error, who
is first where it is not, and why.

    python -m hrt.perf --json build/results.json
    python -m hrt.perf.bench.markdown_table build/results.json
    python -m hrt.perf.bench.markdown_table build/results.json --why      # the lines, for every row that hrt does not win
"""

import argparse
import sys
from collections.abc import Sequence
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from hrt.errors import HrtError, InputError
from hrt.perf.bench.explain_rank import OURS, best_rows, rank
from hrt.perf.measuring.results import NOISY, OK, Results, Row, disagreement, merged, read

NONE = "-"


def table(results: Results) -> str:
    """One line per workload and error."""
    batches = sorted({r.batch for r in results.rows})
    head = ["network", "error", "bytes of dense / hrt", *(f"batch {b}: best dense / hrt" for b in batches)]
    lines = [_line(head), "|" + "---|" * len(head)]
    for (workload, target), rows in groupby(_sorted(results.rows), key=lambda r: (r.workload, r.target)):
        groups = {b: list(g) for b, g in groupby(rows, key=lambda r: r.batch)}
        times = [_time(groups[b]) if b in groups else NONE for b in batches]
        lines.append(_line([workload, _exactly(target), _bytes(next(iter(groups.values()))), *times]))
    return "\n".join(lines)


def reasons(results: Results) -> list[str]:
    """Why, for every row that hrt does not win, and workloads of which nothing, or nothing of hrt, was measured."""
    lines = [f"{w['workload']}, {w['target']:g}, batch {w['batch']}: {w['line']}" for w in results.facts.get("why", [])]
    for workload in dict.fromkeys(r.workload for r in results.rows):
        rows = [r for r in results.rows if r.workload == workload]
        if not any(r.status in (OK, NOISY) for r in rows):
            lines.append(f"{workload}: not measured: {next((r.note for r in rows if r.note), rows[0].status)}")
        elif not any(r.method == OURS for r in rows):
            lines.append(f"{workload}: measured without hrt, which is not among the methods of this result")
    return lines


def one_of(paths: Sequence[Path]) -> tuple[Results, list[Results]]:
    """All files as one result, and each. Raises InputError for a file that is none of `python -m hrt.perf`, or files of
    different machines or numbers of threads, whose times cannot be ranked with each other.
    """
    parts = [read(path) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if "realtime" in part.facts:
            raise InputError(
                f"{path} holds requests by the clock, which have no errors to rank at. Expected a file of "
                "`python -m hrt.perf --json`; `python -m hrt.perf.bench.html_report` draws this one."
            )
    if differing := disagreement(parts):
        raise InputError(f"The files differ in {differing}. Expected files of one machine; summarize each by itself.")
    return merged(parts), parts


def _exactly(target: float) -> str:
    """As people write it, with every digit that is there: 1e-3, 1.4e-3."""
    return f"{Decimal(repr(target)).normalize():e}"


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
    """Print. Returns 0, or 2 for files that `one_of` refuses, said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.bench.markdown_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", type=Path, help="what `python -m hrt.perf --json` wrote; several add up")
    parser.add_argument("--why", action="store_true", help="print why hrt does not win where it does not")
    args = parser.parse_args(arguments)
    try:
        results, parts = one_of(args.results)
    except HrtError as error:
        print(f"hrt.perf.bench.markdown_table: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    why = [line for part in parts for line in reasons(part)]
    print("\n".join(f"- {line}" for line in why) if args.why else table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
