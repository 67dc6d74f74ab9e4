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
differ; --commits measures every side several times, alternating, and counts how its runs differ.

Exit status 0: judged, and no regression; 1: a regression; 2: a mistake; 3: no regression seen, but not judged: no row
was, or not all that should have been (fewer than 5 rounds, a wandering machine, another processor or number of
threads). Rows that their file already calls too noisy may be left out beside others that were judged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from hrt.errors import InputError
from hrt.perf.bench.tables import Table, figure
from hrt.perf.measuring.results import MEASURED, NOISY, OK, Results, Row, disagreement

THRESHOLD, ALARMS = 0.05, 0.05  # slower than this is a regression; chance of one false alarm among all rows
FEWEST = 5  # rounds of a row below which an interval means nothing
TOO_NOISY = 0.25  # where dense rows wander farther than this, nothing is judged
DRAWS = 2000  # of the bootstrap
PRIOR = 8  # degrees of freedom that the spread of all rows' runs is worth beside that of one row's
FINE, REGRESSED, UNJUDGED = 0, 1, 3  # exit statuses
Key = tuple[str, str, int, str, float]
Runs = Sequence[Sequence[float]]  # microseconds: rounds of every run
Side = dict[Key, tuple[Row, Runs]]


@dataclass(frozen=True)
class Change:
    """One row of both sides. ratio: median microseconds after over before, drift divided out; low, high: its interval.
    nbytes_ratio: bytes after over before. None: not known.  regressed: see the module; why: what is wrong with it.
    judged: whether its times were; None where nobody asked (a method of others, or not measured on both sides).
    """

    before: Row
    after: Row
    ratio: float | None
    low: float | None
    high: float | None
    nbytes_ratio: float | None
    regressed: bool
    why: str
    judged: bool | None


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
    lost: tuple[Row, ...]
    elsewhere: str

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


def compare(
    before: Sequence[Results],
    after: Sequence[Results],
    *,
    threshold: float = THRESHOLD,
    judge_all: bool = False,
    draws: int = DRAWS,
) -> Comparison:
    """Runs of one side beside runs of the other. judge_all: rows of every method are judged, and no drift is taken from
    dense ones. Raises InputError where no row is on both sides.
    """
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
    pooled = [between_runs(sides) for sides in timed.values()]  # how runs differ, over all rows
    between2 = sum(v * d for v, d in pooled) / max(1, sum(d for _, d in pooled))
    rng = np.random.default_rng(0)
    times = {k: interval(*sides, level, between2, draws, rng) / drift for k, sides in timed.items()}
    noise = max((max(times[k][1], 1 / times[k][2], 1.0) - 1 for k in controls), default=0.0)
    elsewhere = disagreement([*before, *after])
    limit = 1 + max(threshold, noise) if noise <= TOO_NOISY and not elsewhere else math.inf
    changes = tuple(
        _change(old[k][0], new[k][0], times.get(k), (limit, 1 + threshold) if k in asked else None) for k in shared
    )
    only = tuple(old[k][0] for k in old if k not in new), tuple(new[k][0] for k in new if k not in old)
    lost = tuple(r for r in only[0] if r.key in asked)
    return Comparison(changes, *only, drift, noise, threshold, lost, elsewhere)


def _change(a: Row, b: Row, times: np.ndarray | None, limits: tuple[float, float] | None) -> Change:
    """What became of one row. limits: of its interval (infinite where times cannot be judged) and of its bytes, above
    which it has regressed; None where nobody asks.
    """
    grown = b.nbytes / a.nbytes if a.nbytes and b.nbytes and a.status == b.status == OK else None
    ratio, low, high = (None, None, None) if times is None else map(float, times)
    faults, judged = [], None
    if limits is not None and b.status not in MEASURED:
        faults.append(f"was measured, now: {b.status}{': ' + b.note if b.note else ''}")
    elif limits is not None:
        judged = low is not None and limits[0] < math.inf
        faults += ["slower"] if low is not None and low > limits[0] else []
        faults += ["larger"] if grown is not None and grown > limits[1] else []
    remark = "; ".join(faults)
    if not faults and a.status != b.status:
        remark = f"{a.status}, then {b.status}"
    elif not faults and times is None and a.status == OK:
        remark = f"fewer than {FEWEST} rounds: not compared"
    return Change(a, b, ratio, low, high, grown, bool(faults), remark, judged)


def interval(was: Runs, now: Runs, level: float, between2: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The ratio of medians, now over was, and an interval of it that misses the truth with chance `level`.

    The spread of the logarithm is that of the bootstrap (rounds drawn again within every run), and on top of it how
    runs differ: this row's runs, moderated by `between2`, the variance between runs of all rows. So few draws cannot
    say how likely the unlikely is: Student's t does, with as many degrees of freedom as there were rounds or runs.
    """
    from scipy.special import stdtrit

    logs = np.log(_resampled(now, draws, rng)) - np.log(_resampled(was, draws, rng))
    spread2, freedom = float(logs.var(ddof=1)), min(len(r) for r in (*was, *now)) - 1
    variance, runs_freedom = between_runs([was, now])
    if runs_freedom:
        freedom = runs_freedom + PRIOR
        spread2 += (runs_freedom * variance + PRIOR * between2) / freedom * (1 / len(was) + 1 / len(now))
    half = float(stdtrit(freedom, 1 - level / 2)) * spread2**0.5
    return np.exp(np.log(median(now)) - np.log(median(was)) + np.array([0.0, -half, half]))


def between_runs(sides: Sequence[Runs]) -> tuple[float, int]:
    """Variance of log medians between runs of one side, pooled, and its degrees of freedom; 0, 0 for single runs."""
    logs = [np.log([np.median(r) for r in runs]) for runs in sides]
    freedom = sum(len(v) - 1 for v in logs)
    return (sum(float(((v - v.mean()) ** 2).sum()) for v in logs) / freedom if freedom else 0.0), freedom


def _resampled(runs: Runs, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Medians (draws,): in every run rounds are drawn again; the median of the runs' medians."""
    medians = [np.median(np.asarray(r)[rng.integers(0, len(r), (draws, len(r)))], axis=1) for r in runs]
    return np.median(np.array(medians), axis=0)


def median(runs: Runs) -> float:
    """Of the runs' medians."""
    return float(np.median([np.median(r) for r in runs]))


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


def table(comparison: Comparison) -> Table:
    """Rows of both sides, regressions first, then what became slowest."""
    changes = sorted(comparison.changes, key=lambda c: (not c.regressed, -(c.ratio or 0.0)))
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


def show(comparison: Comparison, console: Console) -> None:
    """The table, then what stands on one side only, then the verdict."""
    console.print(table(comparison).rich())
    for side, rows in (("before", comparison.only_before), ("after", comparison.only_after)):
        for r in rows:
            lost = " (lost: it was measured)" if r in comparison.lost else ""
            named = f"{r.workload}, {r.method}, batch {r.batch}, {r.backend}, {r.target:g}"
            console.print(f"only {side}: {named}{lost}", markup=False)
    if any(c.before.family == "dense" for c in comparison.changes):
        console.print(
            f"Dense rows: drift {comparison.drift:.3f} (divided out), beyond their intervals {comparison.noise:.1%}."
        )
    if comparison.noisy:
        console.print(
            f"TOO NOISY to judge times: dense rows, which no commit changes, wander by more than {TOO_NOISY:.0%}. "
            "Measure again on a quiet machine."
        )
    if comparison.elsewhere:
        console.print(f"Times are not judged: the sides differ in {comparison.elsewhere}.", markup=False)
    console.print(_verdict(comparison))


def _verdict(comparison: Comparison) -> str:
    worse, judged, missed = (
        len(comparison.regressions) + len(comparison.lost),
        comparison.count(True),
        comparison.count(False),
    )
    left = f" Times of {missed} row(s) not judged." if missed else ""
    if worse:
        return f"{worse} regression(s).{left}"
    if judged:
        return f"No regression beyond {max(comparison.threshold, comparison.noise):.1%} among {judged} rows.{left}"
    return left.strip() or "not judged: no row that is asked for was measured on both sides."
