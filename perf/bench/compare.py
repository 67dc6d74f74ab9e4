"""Did it get slower? Two results, or two commits measured in turns, row by row.

Every row that both sides have gets the ratio of its medians, after over before (above 1: slower), and a bootstrap
interval. A row of hrt's has regressed where

- its whole interval lies above 1 + threshold. Many rows are asked at once, so that intervals are widened until the
  chance of any false alarm among all of them is 5 %;
- and above what dense rows moved by. No commit of hrt's changes those: their median is the machine's own drift, which
  is divided out, and as far as the interval of any of them stays off 1, no row of hrt's is blamed;
- or its bytes grew by more than the threshold;
- or it was measured before and now is not: it fails, misses its error, lacks a library, or is gone.

Methods that are not hrt's are compared and shown, and not judged. Two runs of one file each say nothing of how runs
differ; several runs of each side do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from hrt.errors import InputError
from hrt.perf.bench.tables import Table, figure
from hrt.perf.measuring.ratio_intervals import DRAWS, Runs, between_runs, interval, median
from hrt.perf.measuring.results import MEASURED, NOISY, OK, Results, Row, disagreement

THRESHOLD, ALARMS = 0.05, 0.05  # slower than this is a regression; chance of one false alarm among all rows
FEWEST = 5  # rounds of a row below which an interval means nothing
TOO_NOISY = 0.25  # where dense rows wander farther than this, nothing is judged
FINE, REGRESSED, UNJUDGED = 0, 1, 3  # exit statuses
Key = tuple[str, str, int, str, float]
Side = dict[Key, tuple[Row, list[Sequence[float]]]]  # rows by key, with the rounds of every run


@dataclass(frozen=True)
class Change:
    """One row of both sides. ratio: median microseconds after over before, drift divided out; low, high: its interval.
    nbytes_ratio: bytes after over before. None: not known.  regressed: see the module; why: what is wrong with it.
    judged: whether its times were; None where nobody asked (a method of others, or not measured on both sides).
    """

    before: Row
    after: Row
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    nbytes_ratio: float | None = None
    regressed: bool = False
    why: str = ""
    judged: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """changes: rows that both sides have.  only_before, only_after: those of one side.  drift: of the machine, after
    over before.  noise: how far the interval of a dense row stays off it at most, relative; 0 where all hold it.
    lost: of only_before, what was measured and is asked for.  elsewhere: what the sides' machines differ in.
    """

    changes: tuple[Change, ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]
    drift: float
    noise: float
    threshold: float
    lost: tuple[Row, ...] = ()
    elsewhere: str = ""

    @property
    def status(self) -> int:
        """Exit status: 1 on a regression, 3 where none was seen but too little was judged, else 0."""
        if self.regressions or self.lost:
            return REGRESSED
        missed = any(c.judged is False and NOISY not in (c.before.status, c.after.status) for c in self.changes)
        return UNJUDGED if missed or not self.count(True) else FINE

    def count(self, judged: bool) -> int:
        """Rows whose times were judged, or should have been and were not."""
        return sum(c.judged is judged for c in self.changes)

    @property
    def regressions(self) -> list[Change]:
        """What got worse."""
        return [c for c in self.changes if c.regressed]

    @property
    def noisy(self) -> bool:
        """Whether times cannot be judged on this machine."""
        return self.noise > TOO_NOISY


@dataclass(frozen=True)
class _Rule:
    """limit: an interval above it is slower; infinite where times cannot be judged.  asked: rows to judge."""

    limit: float
    threshold: float
    asked: frozenset[Key]

    def change(self, a: Row, b: Row, times: tuple[float, float, float] | None) -> Change:
        """What became of one row."""
        asked = a.key in self.asked
        grown = b.nbytes / a.nbytes if a.nbytes and b.nbytes and a.status == b.status == OK else None
        ratio, low, high = times or (None, None, None)
        faults = []
        if asked and b.status not in MEASURED:
            faults.append(f"was measured, now: {b.status}{': ' + b.note if b.note else ''}")
        if asked and low is not None and low > self.limit:
            faults.append("slower")
        if asked and grown is not None and grown > 1 + self.threshold:
            faults.append("larger")
        remark = "; ".join(faults)
        if not faults and a.status != b.status:
            remark = f"{a.status}, then {b.status}"
        elif not faults and times is None and a.status == OK:
            remark = f"fewer than {FEWEST} rounds: not compared"
        judged = times is not None and self.limit < math.inf if asked and b.status in MEASURED else None
        return Change(a, b, ratio, low, high, grown, bool(faults), remark, judged)


def compare(
    before: Sequence[Results],
    after: Sequence[Results],
    *,
    threshold: float = THRESHOLD,
    judge_all: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Runs of one side beside runs of the other. judge_all: rows of every method are judged, and no drift is taken from
    dense ones. Raises InputError where no row is on both sides, or for a threshold that is no finite number from 0 on.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"Found threshold {threshold:g}. Expected a finite number, 0 or more.")
    old, new = _by_key(before), _by_key(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise InputError(
            f"The two sides share no row ({len(old)} before, {len(new)} after). Expected results of the "
            "same workloads, methods, batch sizes and targets."
        )
    asked = {k for k, (row, _) in old.items() if row.status in MEASURED and (judge_all or row.family == "hrt")}
    timed = {k: (old[k][1], new[k][1]) for k in shared if _usable(old[k][1]) and _usable(new[k][1])}
    controls = [] if judge_all else [k for k in timed if old[k][0].family == "dense"]
    drift = float(np.median([median(timed[k][1]) / median(timed[k][0]) for k in controls])) if controls else 1.0
    level = ALARMS / max(1, len(asked & timed.keys()))
    times = _intervals(timed, level, drift, draws, np.random.default_rng(seed))
    noise = max((max(times[k][1], 1 / times[k][2], 1.0) - 1 for k in controls), default=0.0)
    elsewhere = disagreement([*before, *after])
    fit = noise <= TOO_NOISY and not elsewhere
    rule = _Rule(1 + max(threshold, noise) if fit else math.inf, threshold, frozenset(asked))
    changes = tuple(rule.change(old[k][0], new[k][0], times.get(k)) for k in shared)
    only = tuple(old[k][0] for k in old if k not in new), tuple(new[k][0] for k in new if k not in old)
    lost = tuple(r for r in only[0] if r.key in asked)
    return Comparison(changes, *only, drift, noise, threshold, lost, elsewhere)


def _intervals(
    timed: dict[Key, tuple[Runs, Runs]], level: float, drift: float, draws: int, rng: np.random.Generator
) -> dict[Key, tuple[float, float, float]]:
    """Ratio, low and high of every row, drift divided out; how runs differ is pooled over all rows."""
    pooled = [between_runs(sides) for sides in timed.values()]
    between = (sum(v * d for v, d in pooled) / max(1, sum(d for _, d in pooled))) ** 0.5
    times = {}
    for key, (was, now) in timed.items():
        low, high = interval(was, now, level, between=between, draws=draws, rng=rng)
        times[key] = (median(now) / median(was) / drift, low / drift, high / drift)
    return times


def _usable(runs: Runs) -> bool:
    return bool(runs) and all(len(r) >= FEWEST for r in runs)


def _by_key(runs: Sequence[Results]) -> Side:
    """Rows by what makes them comparable, with the rounds of every run that has them. Of several runs the row that was
    not measured counts, where there is one: a failure is not averaged away.
    """
    side: Side = {}
    for results in runs:
        for number, row in enumerate(results.rows):
            known, rounds = side.get(row.key, (row, []))
            values = [v for v in results.samples.get(number, ()) if np.isfinite(v) and v > 0]
            worse = known if known.status not in MEASURED or row.status == OK else row
            side[row.key] = worse, [*rounds, values]
    return side


def table(found: Comparison) -> Table:
    """Rows of both sides, regressions first, then what became slowest."""
    changes = sorted(found.changes, key=lambda c: (not c.regressed, -(c.ratio or 0.0)))
    rows = []
    for c in changes:
        r, around = c.before, "" if c.low is None or c.high is None else f"{c.low:.3f} to {c.high:.3f}"
        names = (r.workload, r.method, str(r.batch), r.backend, f"{r.target:g}")
        rows.append((*names, figure(c.ratio, ".3f"), around, figure(c.nbytes_ratio, ".3f"), c.why))
    return Table.of(
        ("workload", "method", "batch", "backend", "target", "time", "interval", "bytes", "remark"),
        rows,
        words=("workload", "method", "backend", "remark"),
        styles=tuple("worse" if c.regressed else "" for c in changes),
        title="after over before: above 1 is slower, or larger",
    )


def show(found: Comparison, console: Console) -> None:
    """The table, then what stands on one side only, then the verdict."""
    console.print(table(found).rich())
    for side, rows in (("before", found.only_before), ("after", found.only_after)):
        for r in rows:
            lost = " (lost: it was measured)" if r in found.lost else ""
            named = f"{r.workload}, {r.method}, batch {r.batch}, {r.backend}, {r.target:g}"
            console.print(f"only {side}: {named}{lost}", markup=False)
    if any(c.before.family == "dense" for c in found.changes):
        console.print(f"Dense rows: drift {found.drift:.3f} (divided out), beyond their intervals {found.noise:.1%}.")
    if found.noisy:
        console.print(
            f"TOO NOISY to judge times: dense rows, which no commit changes, wander by more than {TOO_NOISY:.0%}. "
            "Measure again on a quiet machine."
        )
    if found.elsewhere:
        console.print(f"Times are not judged: the sides differ in {found.elsewhere}.", markup=False)
    console.print(_verdict(found))


def _verdict(found: Comparison) -> str:
    worse, judged, missed = len(found.regressions) + len(found.lost), found.count(True), found.count(False)
    left = f" Times of {missed} row(s) not judged." if missed else ""
    if worse:
        return f"{worse} regression(s).{left}"
    if judged:
        return f"No regression beyond {max(found.threshold, found.noise):.1%} among {judged} rows.{left}"
    return left.strip() or "not judged: no row that is asked for was measured on both sides."
