"""Tables of results, made once and shown three ways: on a terminal, in Markdown, on the page. Losses and failures stand
as plain as wins. Made from `Results` alone, so that a file of results shows the same as the run that wrote it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from itertools import groupby

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from hrt.perf.bench.ranking import OURS, REFERENCE, Cost, best_rows, latency, nbytes, standing, usable
from hrt.perf.measuring.bursts import slack
from hrt.perf.measuring.results import MEASURED, NOISY, OK, UNREACHABLE, Results, Row

NONE = "-"
SUMMARY_DIGITS = 6  # so that rounding once more, to two or three, gives what the full result gives
NAMED = ("torch", "onnxruntime", "openvino")  # versions that a page names
STYLES = {"hrt": "bold", "unmeasured": "dim", "worse": "bold red"}  # of a row, on a terminal


@dataclass(frozen=True)
class Cell:
    """One entry. style: "won", "lost" or "even", as the page colours it.  remark: what the page says beside it."""

    text: str
    style: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Table:
    """Cells by row. words: columns of words, which stand to the left; figures stand to the right.  styles: a key of
    STYLES or "" for every row.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()
    title: str = ""

    @staticmethod
    def of(columns: Sequence[str], rows: Sequence[Sequence[str | Cell]], **more: object) -> "Table":
        """A table whose cells may be plain text."""
        cells = (tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
        return Table(tuple(columns), tuple(cells), **more)  # type: ignore[arg-type]

    def styled(self) -> list[tuple[str, tuple[Cell, ...]]]:
        """Rows with their styles."""
        return list(zip(self.styles or ("",) * len(self.rows), self.rows, strict=True))

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(title=self.title or None, title_justify="left", pad_edge=False)
        for name in self.columns:
            left = name in self.words
            table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=not left)
        for style, row in self.styled():
            table.add_row(*(Text(c.text) for c in row), style=STYLES.get(style))
        return table

    def markdown(self) -> str:
        """For the README."""
        lines = [self.columns, *([c.text for c in row] for row in self.rows)]
        head, *body = ["| " + " | ".join(cells) + " |" for cells in lines]
        return "\n".join([head, "|" + "---|" * len(self.columns), *body])


def figure(value: float | None, form: str = ",.1f") -> str:
    """A figure as it stands in a table; a dash where there is none."""
    return NONE if value is None or value != value else format(value, form)


def beside_dense(r: Row) -> Cell:
    """How many times faster than the best dense form a row is, in figures and in words."""
    ratio, low, high = r.ratio_vs_best_dense, r.ratio_low, r.ratio_high
    if ratio is None or low is None or high is None:
        return Cell(NONE)
    even = low <= 1 <= high or 1 / slack(r.noise) <= ratio <= slack(r.noise)
    word = "no verdict" if r.status != OK else "no difference" if even else "faster" if ratio > 1 else "slower"
    style = {"faster": "won", "slower": "lost"}.get(word, "even")
    return Cell(f"{ratio:.2f}x ({low:.2f} to {high:.2f})", style, word)


COLUMNS: Mapping[str, Callable[[Row], str | Cell]] = {
    "method": lambda r: r.method,
    "backend": lambda r: r.backend,
    "batch": lambda r: str(r.batch),
    "target": lambda r: f"{r.target:g}",
    "error": lambda r: figure(r.error, ".1e"),
    "bytes": lambda r: figure(r.nbytes, ","),
    "made in s": lambda r: figure(r.made_s, ",.2f"),
    "p50 us": lambda r: figure(r.p50_us),
    "p95": lambda r: figure(r.p95_us),
    "p99": lambda r: figure(r.p99_us),
    "p99.9": lambda r: figure(r.p999_us),
    "cold": lambda r: figure(r.cold_us),
    "best dense / this": beside_dense,
    "what": lambda r: r.note if r.status == OK else f"{r.status}: {r.note}",
}


def rows_table(rows: Sequence[Row], leave_out: Sequence[str] = (), title: str = "") -> Table:
    """Every row in the order given, in all columns but some."""
    columns = [name for name in COLUMNS if name not in leave_out]
    cells = [[COLUMNS[name](r) for name in columns] for r in rows]
    styles = tuple("unmeasured" if r.p50_us is None else "hrt" if r.method == OURS else "" for r in rows)
    return Table.of(columns, cells, words=("method", "backend", "what"), styles=styles, title=title)


def shown(rows: Sequence[Row], every: bool = False) -> list[Row]:
    """Rows of one group by rising time: all, or of every method the fastest execution; of executions that all fail one
    says enough.
    """
    best = best_rows(rows, latency)
    last = {r.method: r for r in rows}
    chosen = rows if every else [r for r in rows if (best.get(r.method) or last[r.method]) is r]
    return sorted(chosen, key=lambda r: (r.p50_us is None, r.p50_us or 0.0))


def overview(results: Results) -> Table:
    """One line per workload and error: how much smaller and faster than the best dense form hrt is, its place among
    the methods that keep the error, and who is first where it is not.
    """
    batches = sorted({r.batch for r in results.rows})
    lines, wide = [], {b: f"batch {b}: best dense / hrt" for b in batches}
    for (workload, target), groups in groupby(results.groups(), key=lambda g: g[0].group[:2]):
        by_batch = {rows[0].batch: rows for rows in groups}
        times = [_times_faster(by_batch[b]) if b in by_batch else Cell(NONE) for b in batches]
        lines.append([workload, _exactly(target), _times_smaller(next(iter(by_batch.values()))), *times])
    return Table.of(["network", "error", "bytes of dense / hrt", *wide.values()], lines, words=("network",))


def _exactly(target: float) -> str:
    """As people write it, with every digit that is there: 1e-3, 1.4e-3."""
    return f"{Decimal(repr(target)).normalize():e}"


def _times_smaller(rows: Sequence[Row]) -> Cell:
    dense = next((r.nbytes for r in rows if r.method == REFERENCE and r.nbytes), None)
    ours = best_rows(rows, nbytes).get(OURS)
    if ours is None or not ours.nbytes or not dense:
        return Cell(NONE)
    return _placed(f"{dense / ours.nbytes:.1f}x", rows, nbytes, ("smaller", "larger"))


def _times_faster(rows: Sequence[Row]) -> Cell:
    ours = best_rows(rows, latency).get(OURS)
    if ours is None:
        return Cell(NONE)
    if ours.status == NOISY or ours.ratio_vs_best_dense is None:
        return Cell(f"{figure(ours.p50_us)} us, too noisy to compare", "even")
    ratio = f"{ours.ratio_vs_best_dense:.2f}x ({ours.ratio_low:.2f} to {ours.ratio_high:.2f})"
    return _placed(ratio, rows, latency, ("faster", "slower"))


def _placed(figures: str, rows: Sequence[Row], cost: Cost, words: tuple[str, str]) -> Cell:
    """Figures, place, and who is first; the remark compares with the best of the others."""
    s = standing(rows, cost)
    first = f", first: {s.best.method}" if s.best is not None and s.place != 1 else ""
    remark = "no other method" if s.ratio is None else "no difference from the next" if s.even else ""
    if s.ratio is not None and not s.even:
        times, word = (s.ratio, words[0]) if s.ratio >= 1 else (1 / s.ratio, words[1])
        remark = f"{times:.2f}x {word} than the best other"
    return Cell(f"{figures}, {s.text}{first}", "even" if s.even else "won" if s.won else "lost", remark)


def methods(results: Results) -> Table:
    """One line per workload, error and method, the smallest first: bytes, error, and the median call of its fastest
    execution at every batch size; or why it keeps the error in none.
    """
    batches = sorted({r.batch for r in results.rows})
    lines: list[list[str | Cell]] = []
    for (workload, target), groups in groupby(results.groups(), key=lambda g: g[0].group[:2]):
        by_batch = {rows[0].batch: rows for rows in groups}
        first = next(iter(by_batch.values()))
        small = best_rows(first, nbytes)
        fast = {b: best_rows(rows, latency) for b, rows in by_batch.items()}
        dense = next((r.nbytes for r in first if r.method == REFERENCE and r.nbytes), None)
        for method, row in sorted(small.items(), key=lambda pair: pair[1].nbytes or 0):
            times = [fast[b][method].p50_us if method in fast.get(b, {}) else None for b in batches]
            smaller = NONE if dense is None or not row.nbytes else f"{dense / row.nbytes:.1f}x"
            cells = [figure(row.nbytes, ","), smaller, figure(row.error, ".1e"), *map(figure, times)]
            lines.append([workload, _exactly(target), method, *cells])
        absent = {r.method: UNREACHABLE if r.status in MEASURED else r.status for r in first if r.method not in small}
        for m, s in absent.items():
            lines.append([workload, _exactly(target), m, s, *[NONE] * (2 + len(batches))])
    columns = ("network", "error asked", "method", "bytes", "smaller", "error", *(f"batch {b}, us" for b in batches))
    return Table.of(columns, lines, words=("network", "method"))


def reasons(results: Results) -> list[str]:
    """Why, for every row that hrt does not win, and workloads of which nothing, or nothing of hrt, was measured."""
    lines = [f"{w.workload}, {w.target:g}, batch {w.batch}: {w.line}" for w in results.known.why]
    for workload in dict.fromkeys(r.workload for r in results.rows):
        rows = [r for r in results.rows if r.workload == workload]
        if not any(r.status in (OK, NOISY) for r in rows):
            lines.append(f"{workload}: not measured: {next((r.note for r in rows if r.note), rows[0].status)}")
        elif not any(r.method == OURS for r in rows):
            lines.append(f"{workload}: measured without hrt, which is not among the methods of this result")
    return lines


def verdict(results: Results, rows: Sequence[Row]) -> list[str]:
    """hrt's places in one line, and why in another where it is not first in both."""
    small, fast = standing(rows, nbytes), standing(rows, latency)
    if small.best is None or fast.best is None or not small.place or not fast.place:
        notes = [r.note for r in rows if r.method == OURS]
        return [f"hrt: no row that keeps the error{f': {notes[0]}' if notes[0] else ''}"] if notes else []
    in_time = "latency: the machine was too noisy to rank"
    if not fast.noisy:
        in_time = f"number {fast.text} in latency (first: {fast.best.method})"
    lines = [f"hrt is number {small.text} in bytes (first: {small.best.method}), {in_time}"]
    return lines + [f"why: {w.line}" for w in results.known.why if (w.workload, w.target, w.batch) == rows[0].group]


def show(results: Results, console: Console, every: bool = False) -> None:
    """Print all groups of rows. every: all executions of a method, not the fastest one alone."""
    for (workload, target), groups in groupby(results.groups(), key=lambda g: g[0].group[:2]):
        console.print(Text(f"\n{workload}, error {target:g}: {results.known.about.get(workload, '')}", style="bold"))
        for rows in groups:
            table = rows_table(shown(rows, every), ("batch", "target", "p99.9"), title=f"batch {rows[0].batch}")
            console.print(table.rich())
            for line in verdict(results, rows):
                console.print(Text(line))
    for line in closing(results):
        console.print(Text(line))


def closing(results: Results) -> list[str]:
    """What holds for all rows: how noisy it was, how long it took, whether it was cut short."""
    facts, known = results.facts, results.known
    lines = [f"{name}: the same call differs from itself by {v:.1%}" for name, v in known.noise.items()]
    if known.machine:
        load = f"{known.machine.get('load_average')} before and {facts.get('load_average_after')} after"
        lines.append(
            f"{facts.get('threads')} threads of {known.machine.get('processor')}, load average {load}; "
            f"{facts.get('seconds', 0):.0f} s; commit {facts.get('commit')}"
        )
    if facts.get("interrupted"):
        lines.append("INTERRUPTED: these are the rows up to there")
    return lines


def provenance(results: Results) -> str:
    """Command, commit, machine and versions in one paragraph of a page, then what the networks are."""
    facts, known = results.facts, results.known
    versions = ", ".join(f"{name} {v}" for name, v in facts.get("versions", {}).items() if name in NAMED)
    noise = f"; one call differs from itself by up to {max(known.noise.values()):.0%}" if known.noise else ""
    took = f"{facts['seconds'] / 60:.0f} minutes" if "seconds" in facts else ""
    took = took if took and not facts.get("interrupted") else f"{took} (ended early)".lstrip()
    head = (
        f"`python -m hrt.perf {' '.join(map(str, facts.get('command', ())))}` on {str(facts.get('date', ''))[:10]}: "
        f"{took}, {facts.get('threads')} threads of "
        f"{known.machine.get('processor')}, load average {known.machine.get('load_average')} before, "
        f"commit {str(facts.get('commit'))[:7]}; {versions}{noise}."
    )
    return "\n".join([head, "", *(f"- {name}: {about}" for name, about in known.about.items())]).rstrip()


def summary(results: Results) -> Results:
    """What is worth tracking of a result: of every method its fastest execution, or why there is none (once, at the
    smallest batch size), and noisy ones, which decide how a group is ranked. `overview` and `reasons` say the same.
    """
    smallest = {(r.workload, r.target): r.batch for rows in reversed(results.groups()) for r in rows}
    groups = [(group, shown(group)) for group in results.groups()]
    rows = [r for group, best in groups for r in (*best, *(r for r in group if r.status == NOISY and r not in best))]
    worth = [r for r in rows if usable(r, latency) or r.batch == smallest[r.workload, r.target]]
    facts = {k: v for k, v in results.facts.items() if k != "spent"}
    return Results(tuple(map(_rounded, worth)), facts)


def _rounded(row: Row) -> Row:
    figures = {k: v for k, v in asdict(row).items() if isinstance(v, float) and k != "target" and math.isfinite(v)}
    return replace(row, **{k: float(f"{v:.{SUMMARY_DIGITS}g}") for k, v in figures.items()})
