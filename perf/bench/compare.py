"""`python -m hrt.perf.bench.compare`: did it get slower? Two results, or two commits measured in turns.

    python -m hrt.perf.bench.compare before.json after.json
    python -m hrt.perf.bench.compare --commits HEAD~1 HEAD --repeats 3 -- --quick --workload burgers

Every row that both sides have gets the ratio of its medians, after over before (above 1: slower), and a bootstrap
interval; what stands behind `--` goes to `python -m hrt.perf`. Exit status 0: judged, and no regression; 1: a
regression; 2: a mistake; 3: no regression seen, but not judged: no row was, or not all that should have been (fewer
than 5 rounds, a wandering machine, another processor or number of threads). Rows that their file already calls too
noisy may be left out beside others that were judged; the last line counts them. A row has regressed where

- its whole interval lies above 1 + threshold (--threshold, default 0.05). Many rows are asked at once, so that
  intervals are widened until the chance of any false alarm among all of them is 5 %;
- and above what dense rows moved by. No commit of hrt's changes those: their median is the machine's own drift, which
  is divided out, and as far as the interval of any of them stays off 1, no row of hrt's is blamed;
- or its bytes grew by more than the threshold;
- or it was measured before and now is not: it fails, misses its error, lacks a library, or is gone.

Methods that are not hrt's are compared and shown, and not judged. Two runs of one file each say nothing of how runs
differ; --commits measures every side several times, alternating, and counts how its runs differ.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hrt.errors import HrtError, InputError
from hrt.perf.measuring.ratio_intervals import DRAWS, Runs, between_runs, interval, median
from hrt.perf.measuring.results import NOISY, OK, Results, Row, disagreement, read

THRESHOLD, ALARMS = 0.05, 0.05  # slower than this is a regression; chance of one false alarm among all rows
FEWEST = 5  # rounds of a row below which an interval means nothing
TOO_NOISY = 0.25  # where dense rows wander farther than this, nothing is judged
MEASURED = (OK, NOISY)  # rows that have times
Key = tuple[str, str, int, str, float]


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
            return 1
        missed = any(c.judged is False and NOISY not in (c.before.status, c.after.status) for c in self.changes)
        return 3 if missed or not self.count(True) else 0

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print. Returns the exit status, see the module; 2 for a mistake, said on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    args = _parser().parse_args(given[:cut])
    try:
        if not 0 < args.threshold < math.inf or args.repeats < 1:
            raise InputError(
                f"Found threshold {args.threshold:g}, repeats {args.repeats}. Expected a positive finite "
                "number, and 1 or more."
            )
        if args.commits and args.files:
            raise InputError("Found --commits and files. Expected one of them.")
        if args.commits:
            from hrt.perf.bench.git_revisions import measured

            before, after = measured(args.commits[0], args.commits[1], given[cut + 1 :], args.repeats, args.keep)
        elif len(args.files) == 2:
            before, after = ([read(path)] for path in args.files)
        else:
            raise InputError(f"Found {len(args.files)} files. Expected two results, or --commits REV1 REV2.")
        found = compare(before, after, threshold=args.threshold, judge_all=args.all)
    except HrtError as error:
        print(f"hrt.perf.bench.compare: {error}", file=sys.stderr)
        return 2
    show(found, Console(width=150))
    return found.status


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
    timed = [k for k in shared if all(_usable(runs) for _, runs in (old[k], new[k]))]
    asked = {k for k, (row, _) in old.items() if row.status in MEASURED and (judge_all or row.family == "hrt")}
    judged = [k for k in timed if k in asked]
    controls = [] if judge_all else [k for k in timed if old[k][0].family == "dense"]
    moved = np.array([median(new[k][1]) / median(old[k][1]) for k in controls])
    drift = float(np.median(moved)) if len(moved) else 1.0
    pooled = [between_runs([old[k][1], new[k][1]]) for k in timed]
    between = (sum(v * d for v, d in pooled) / max(1, sum(d for _, d in pooled))) ** 0.5
    rng, level = np.random.default_rng(seed), ALARMS / max(1, len(judged))
    times: dict[Key, tuple[float, float, float]] = {}
    for key in timed:
        was, now = old[key][1], new[key][1]
        low, high = interval(was, now, level, between=between, draws=draws, rng=rng)
        times[key] = (median(now) / median(was) / drift, low / drift, high / drift)
    noise = max((max(times[k][1], 1 / times[k][2], 1.0) - 1 for k in controls), default=0.0)
    limit = 1 + max(threshold, noise)
    elsewhere = disagreement([*before, *after])
    fit = noise <= TOO_NOISY and not elsewhere
    changes = tuple(
        _change(old[k][0], new[k][0], times.get(k), limit if fit else math.inf, threshold, k in asked) for k in shared
    )
    alone = tuple(old[k][0] for k in old if k not in new), tuple(new[k][0] for k in new if k not in old)
    lost = tuple(r for r in alone[0] if r.key in asked)
    return Comparison(changes, *alone, drift, noise, threshold, lost, elsewhere)


def _change(
    a: Row, b: Row, times: tuple[float, float, float] | None, limit: float, threshold: float, asked: bool
) -> Change:
    """limit: an interval above it is slower; infinite where times cannot be judged.  asked: whether to judge it."""
    grown = b.nbytes / a.nbytes if a.nbytes and b.nbytes and a.status == b.status == OK else None
    ratio, low, high = times or (None, None, None)
    bad = []
    if asked and b.status not in MEASURED:
        bad.append(f"was measured, now: {b.status}{': ' + b.note if b.note else ''}")
    if asked and low is not None and low > limit:
        bad.append("slower")
    if asked and grown is not None and grown > 1 + threshold:
        bad.append("larger")
    remark = "; ".join(bad)
    if not bad and a.status != b.status:
        remark = f"{a.status}, then {b.status}"
    elif not bad and times is None and a.status == OK:
        remark = f"fewer than {FEWEST} rounds: not compared"
    judged = times is not None and limit < math.inf if asked and b.status in MEASURED else None
    return Change(a, b, ratio, low, high, grown, bool(bad), remark, judged)


def _usable(runs: Runs) -> bool:
    return bool(runs) and all(len(r) >= FEWEST for r in runs)


def _by_key(runs: Sequence[Results]) -> dict[Key, tuple[Row, list[Sequence[float]]]]:
    """Rows by what makes them comparable, with the rounds of every run that has them. Of several runs the row that was
    not measured counts, where there is one: a failure is not averaged away.
    """
    found: dict[Key, tuple[Row, list[Sequence[float]]]] = {}
    for results in runs:
        for number, row in enumerate(results.rows):
            known, rounds = found.get(row.key, (row, []))
            values = [v for v in results.samples.get(number, ()) if np.isfinite(v) and v > 0]
            worse = known if known.status not in MEASURED or row.status == OK else row
            found[row.key] = worse, [*rounds, values]
    return found


def show(found: Comparison, console: Console) -> None:
    """The table, regressions first, then what stands on one side only, then the verdict."""
    table = Table(title="after over before: above 1 is slower, or larger")
    for column in ("workload", "method", "batch", "backend", "target", "time", "interval", "bytes", ""):
        table.add_column(column, justify="left" if column in ("workload", "method", "backend", "") else "right")
    for c in sorted(found.changes, key=lambda c: (not c.regressed, -(c.ratio or 0.0))):
        r = c.before
        time = "" if c.ratio is None else f"{c.ratio:.3f}"
        around = "" if c.low is None or c.high is None else f"{c.low:.3f} to {c.high:.3f}"
        size = "" if c.nbytes_ratio is None else f"{c.nbytes_ratio:.3f}"
        names = (_plain(r.workload), _plain(r.method), str(r.batch), _plain(r.backend), f"{r.target:g}")
        table.add_row(*names, time, around, size, _plain(c.why), style="bold red" if c.regressed else None)
    console.print(table)
    sides: Mapping[str, Sequence[Row]] = {"before": found.only_before, "after": found.only_after}
    for side, rows in sides.items():
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
    said = f"No regression beyond {max(found.threshold, found.noise):.1%} among {judged} rows." if judged else ""
    if not judged and not missed:
        left = "not judged: no row that is asked for was measured on both sides."
    return f"{said}{left}".strip()


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.bench.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="JSON", help="two results: before, after")
    parser.add_argument("--commits", nargs=2, metavar=("REV1", "REV2"), help="measure two commits of this repository")
    parser.add_argument("--repeats", type=int, default=3, help="with --commits: runs of each, in turns (default 3)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="with --commits: leave the results here")
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="slower by less is let pass (default 0.05)")
    parser.add_argument("--all", action="store_true", help="judge every method; dense rows are then no control")
    return parser


if __name__ == "__main__":
    sys.exit(main())
