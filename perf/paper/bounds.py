"""`python -m hrt.perf.paper.bounds`: every checkable statement of the paper, on random and on trained matrices.

    python -m hrt.perf.paper.bounds                      # some minutes
    python -m hrt.perf.paper.bounds --json bounds.json   # and the same as figures, with every violation

200 random matrices of seven kinds, and every layer of the networks that are here: the Burgers PINN, the PINNs of
`hrt.perf.networks.pinns`, the DeepONet, NeuralFoil and QLKNN (left out, and said so, where their packages are not installed).
Each is compressed in the Frobenius norm at every tolerance, layers in the norm of their inputs, too. Of whole PINNs the
bound over their box and the statements on neural tangent kernels are checked. Counts of holds, violated and vacuous:
what is violated is listed, always.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from hrt.certificate.certificate import HOLDS, VACUOUS, VIOLATED
from hrt.errors import HrtError
from hrt.perf.measuring.provenance import commit, versions
from hrt.perf.measuring.results import check_results
from hrt.perf.paper.bounds_cases import TOLS, Rows, network_rows, random_rows, subjects, trained_rows
from hrt.support.atomic_files import replacing

VERDICTS = (HOLDS, VIOLATED, VACUOUS)


def counts(rows: Rows) -> dict[tuple[str, str], Counter[str]]:
    """How often each verdict was found, by source and statement in the order they came."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for r in rows:
        found.setdefault((r["source"], r["statement"]), Counter())[r["verdict"]] += 1
    return found


def by_kind(rows: Rows) -> Rows:
    """The same by source, kind and statement, as rows."""
    found: dict[tuple[str, str, str], Counter[str]] = {}
    for r in rows:
        found.setdefault((r["source"], r["kind"], r["statement"]), Counter())[r["verdict"]] += 1
    names = ("source", "kind", "statement")
    return [dict(zip(names, k, strict=True)) | {v: n[v] for v in VERDICTS} for k, n in found.items()]


def summary(rows: Rows) -> Table:
    """Statement by verdict."""
    table = Table(title="W and H = compressed W, E = W - H; kernels of whole networks")
    for name in ("on", "statement", *VERDICTS):
        table.add_column(name, justify="right" if name in VERDICTS else "left")
    for (source, statement), found in counts(rows).items():
        table.add_row(source, statement, *(str(found[v]) for v in VERDICTS))
    return table


def violations(rows: Rows) -> list[str]:
    """Every violation in one line: how often by kind, and the worst one in figures."""
    lines: dict[tuple[str, str, str], Rows] = {}
    for r in rows:
        if r["verdict"] == VIOLATED:
            lines.setdefault((r["statement"], r["source"], r["kind"]), []).append(r)
    said = []
    for (statement, source, kind), some in lines.items():
        worst = max(some, key=lambda r: (r["measured"] or math.inf) / (r["bound"] or math.nan))
        measured = "infinite" if worst["measured"] is None else f"{worst['measured']:.6g}"
        where = f"{kind} {worst['of']}".strip()
        said.append(
            f"violated {len(some)}x: {statement} on {source} {kind}; worst: {measured} > {worst['bound']:.6g} "
            f"({where}, {worst['shape'][0]} x {worst['shape'][1]}, tol {worst['tol']:g})"
        )
    return said


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and every violation. Returns 0 whatever is violated, or 2 for a mistake, said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.paper.bounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=200, help="random matrices (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the random matrices (default 0)")
    parser.add_argument("--random-only", action="store_true", help="no networks")
    parser.add_argument("--json", type=Path, help="file for counts by kind, and every violation")
    args = parser.parse_args(arguments)
    console = Console(width=118)
    try:
        if args.json:
            check_results(args.json)
        rows, missing = random_rows(args.count, args.seed), []
        if not args.random_only:
            found, missing = subjects()
            for subject in track(found, "networks", console=Console(stderr=True), transient=True):
                rows += trained_rows(subject)
                if "PINN" in subject.name:
                    rows += network_rows(subject)
        if args.json:
            facts = {"commit": commit(), "versions": versions(), "seed": args.seed, "missing": missing}
            with replacing(args.json) as file:
                kept = {
                    "facts": facts,
                    "counts": by_kind(rows),
                    "violated": [r for r in rows if r["verdict"] == VIOLATED],
                }
                file.write((json.dumps(kept, indent=1) + "\n").encode())
    except HrtError as error:
        print(f"hrt.perf.paper.bounds: {error}", file=sys.stderr)
        return 2
    console.print(summary(rows))
    matrices = {(r["source"], r["kind"], r["of"]) for r in rows if r["source"] != "network"}
    trained = sum(source == "trained" for source, _, _ in matrices)
    console.print(f"{len(matrices) - trained} random matrices, {trained} trained ones, tolerances {TOLS}")
    for line in [*violations(rows), *(f"left out: {m}" for m in missing)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
