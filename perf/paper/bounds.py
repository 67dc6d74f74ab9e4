"""The verdicts of `python -m hrt.perf.paper bounds`, counted: what is violated is listed, always."""

import math
from collections import Counter
from collections.abc import Callable, Iterator

from rich.table import Table

from hrt.certificate.certificate import HOLDS, VACUOUS, VIOLATED
from hrt.perf.paper.output import Rows, table

VERDICTS = (HOLDS, VIOLATED, VACUOUS)


def counted(rows: Rows, *keys: str) -> Rows:
    """How often each verdict came, by the figures called `keys`, in the order they came."""
    counts: dict[tuple[str, ...], Counter[str]] = {}
    for row in rows:
        counts.setdefault(tuple(row[k] for k in keys), Counter())[row["verdict"]] += 1
    return [dict(zip(keys, group, strict=True)) | {v: n[v] for v in VERDICTS} for group, n in counts.items()]


def summary(rows: Rows) -> Table:
    """Statement by verdict."""

    def column(name: str) -> Callable[[dict], str]:
        return lambda row: str(row[name])

    columns = {"on": column("source"), "statement": column("statement"), **{v: column(v) for v in VERDICTS}}
    title = "W and H = compressed W, E = W - H; kernels of whole networks"
    return table(title, counted(rows, "source", "statement"), columns)


def violations(rows: Rows) -> Iterator[str]:
    """Every violation in one line: how often by kind, and the worst one in figures."""
    groups: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        if row["verdict"] == VIOLATED:
            groups.setdefault((row["statement"], row["source"], row["kind"]), []).append(row)
    for (statement, source, kind), group in groups.items():
        worst = max(group, key=lambda r: (r["measured"] or math.inf) / (r["bound"] or math.nan))
        measured = "infinite" if worst["measured"] is None else f"{worst['measured']:.6g}"
        where = f"{kind} {worst['of']}".strip()
        yield (
            f"violated {len(group)}x: {statement} on {source} {kind}; worst: {measured} > {worst['bound']:.6g} "
            f"({where}, {worst['shape'][0]} x {worst['shape'][1]}, tol {worst['tol']:g})"
        )
