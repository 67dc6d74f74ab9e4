"""`python -m hrt.perf.compare`: did it get slower? Two results, or two commits measured in turns.

    python -m hrt.perf.compare before.json after.json
    python -m hrt.perf.compare --commits HEAD~1 HEAD --repeats 3 -- --quick --workload burgers

Every row that both sides have gets the ratio of its medians, after over before (above 1: slower), and a bootstrap
interval; what stands behind `--` goes to `python -m hrt.perf`. Exit status 1 on a regression, 0 without one, 2 for a
mistake. A row has regressed where

- its whole interval lies above 1 + threshold (--threshold, default 0.05). Many rows are asked at once, so that
  intervals are widened until the chance of any false alarm among all of them is 5 %;
- and above what dense rows moved by. No commit of hrt's changes those: their median is the machine's own drift, which
  is divided out, and as far as the interval of any of them stays off 1, no row of hrt's is blamed;
- or its bytes grew by more than the threshold, or it was measured before and now fails.

Methods that are not hrt's are compared and shown, and not judged. Two runs of one file each say nothing of how runs
differ; --commits measures every side several times, alternating, and counts how its runs differ.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hrt.errors import HrtError, InputError
from hrt.perf.rows import MISSING, NOISY, OK, Results, Row, read

THRESHOLD, ALARMS = 0.05, 0.05  # slower than this is a regression; chance of one false alarm among all rows
DRAWS = 2000
PRIOR = 8  # degrees of freedom that the spread of all rows' runs is worth beside that of one row's
FEWEST = 5  # rounds of a row below which an interval means nothing
TOO_NOISY = 0.25  # where dense rows wander farther than this, nothing is judged
Key = tuple[str, str, int, str, float]
Runs = Sequence[Sequence[float]]  # microseconds: rounds of every run


@dataclass(frozen=True)
class Change:
    """One row of both sides. ratio: median microseconds after over before, drift divided out; low, high: its interval.
    nbytes_ratio: bytes after over before. None: not known.  regressed: see the module; why: what is wrong with it.
    """

    before: Row
    after: Row
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    nbytes_ratio: float | None = None
    regressed: bool = False
    why: str = ""


@dataclass(frozen=True)
class Comparison:
    """changes: rows that both sides have.  only_before, only_after: those of one side.  drift: of the machine, after
    over before.  noise: how far the interval of a dense row stays off it at most, relative; 0 where all hold it.
    """

    changes: tuple[Change, ...]
    only_before: tuple[Row, ...]
    only_after: tuple[Row, ...]
    drift: float
    noise: float
    threshold: float

    @property
    def regressions(self) -> list[Change]:
        """What got worse."""
        return [c for c in self.changes if c.regressed]

    @property
    def noisy(self) -> bool:
        """Whether times cannot be judged on this machine."""
        return self.noise > TOO_NOISY


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print. Returns 1 on a regression, 0 without one, 2 for a mistake, said on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    args = _parser().parse_args(given[:cut])
    try:
        if args.threshold < 0 or args.repeats < 1:
            raise InputError(f"Found threshold {args.threshold:g}, repeats {args.repeats}. Expected 0 and 1 or more.")
        if args.commits and args.files:
            raise InputError("Found --commits and files. Expected one of them.")
        if args.commits:
            from hrt.perf.revisions import measured

            before, after = measured(args.commits[0], args.commits[1], given[cut + 1 :], args.repeats, args.keep)
        elif len(args.files) == 2:
            before, after = ([read(path)] for path in args.files)
        else:
            raise InputError(f"Found {len(args.files)} files. Expected two results, or --commits REV1 REV2.")
        found = compare(before, after, threshold=args.threshold, judge_all=args.all)
    except HrtError as error:
        print(f"hrt.perf.compare: {error}", file=sys.stderr)
        return 2
    show(found, Console(width=150))
    return 1 if found.regressions else 0


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
    dense ones. Raises InputError where no row is on both sides.
    """
    old, new = _by_key(before), _by_key(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise InputError(
            f"The two sides share no row ({len(old)} before, {len(new)} after). Expected results of the "
            "same workloads, methods, batch sizes and targets."
        )
    timed = [k for k in shared if all(_usable(runs) for _, runs in (old[k], new[k]))]
    judged = [k for k in timed if judge_all or old[k][0].family == "hrt"]
    controls = [] if judge_all else [k for k in timed if old[k][0].family == "dense"]
    moved = np.array([_median(new[k][1]) / _median(old[k][1]) for k in controls])
    drift = float(np.median(moved)) if len(moved) else 1.0
    pooled = [_between([old[k][1], new[k][1]]) for k in timed]
    between = (sum(v * d for v, d in pooled) / max(1, sum(d for _, d in pooled))) ** 0.5
    rng, level = np.random.default_rng(seed), ALARMS / max(1, len(judged))
    times: dict[Key, tuple[float, float, float]] = {}
    for key in timed:
        was, now = old[key][1], new[key][1]
        low, high = interval(was, now, level, between=between, draws=draws, rng=rng)
        times[key] = (_median(now) / _median(was) / drift, low / drift, high / drift)
    noise = max((max(times[k][1], 1 / times[k][2], 1.0) - 1 for k in controls), default=0.0)
    limit = 1 + max(threshold, noise)
    changes = []
    for key in shared:
        asked = key in judged and noise <= TOO_NOISY
        changes.append(_change(old[key][0], new[key][0], times.get(key), limit, threshold, asked))
    alone = tuple(old[k][0] for k in old if k not in new), tuple(new[k][0] for k in new if k not in old)
    return Comparison(tuple(changes), *alone, drift, noise, threshold)


def interval(
    was: Runs, now: Runs, level: float, *, between: float = 0.0, draws: int = DRAWS, rng: np.random.Generator
) -> tuple[float, float]:
    """Interval of the ratio of medians, now over was, that misses the truth with chance `level`.

    The spread of the logarithm is that of the bootstrap (rounds drawn again within every run), and on top of it how
    runs differ: this row's runs, moderated by `between`, what runs of all rows differ by. So few draws cannot say how
    likely the unlikely is: Student's t does, with as many degrees of freedom as there were rounds or runs.
    """
    from scipy.special import stdtrit

    logs = np.log(_resampled(now, draws, rng)) - np.log(_resampled(was, draws, rng))
    spread2, freedom = float(logs.var(ddof=1)), min(len(r) for r in (*was, *now)) - 1
    own2, own_freedom = _between([was, now])
    if own_freedom:
        freedom = own_freedom + PRIOR
        moderated2 = (own_freedom * own2 + PRIOR * between**2) / freedom
        spread2 += moderated2 * (1 / len(was) + 1 / len(now))
    centre = float(np.log(_median(now)) - np.log(_median(was)))
    half = float(stdtrit(freedom, 1 - level / 2)) * spread2**0.5
    return float(np.exp(centre - half)), float(np.exp(centre + half))


def _between(sides: Sequence[Runs]) -> tuple[float, int]:
    """Variance of log medians between runs of one side, pooled, and its degrees of freedom; 0, 0 for single runs."""
    logs = [np.log([np.median(r) for r in runs]) for runs in sides]
    freedom = sum(len(v) - 1 for v in logs)
    return (sum(float(((v - v.mean()) ** 2).sum()) for v in logs) / freedom if freedom else 0.0), freedom


def _resampled(runs: Runs, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Medians (draws,): in every run rounds are drawn again; the median of the runs' medians."""
    medians = [np.median(np.asarray(r)[rng.integers(0, len(r), (draws, len(r)))], axis=1) for r in runs]
    return np.median(np.array(medians), axis=0)


def _change(
    a: Row, b: Row, times: tuple[float, float, float] | None, limit: float, threshold: float, judged: bool
) -> Change:
    grown = b.nbytes / a.nbytes if a.nbytes and b.nbytes and a.status == b.status == OK else None
    ratio, low, high = times or (None, None, None)
    why = ""
    if a.status == OK and b.status not in (OK, MISSING, NOISY) and a.family == "hrt":
        why = f"was measured, now: {b.status}{': ' + b.note if b.note else ''}"
    elif judged and low is not None and low > limit:
        why = "slower"
    if grown is not None and grown > 1 + threshold and a.family == "hrt":
        why = f"{why}; larger" if why else "larger"
    remark = why
    if not why and a.status != b.status:
        remark = f"{a.status}, then {b.status}"
    elif not why and times is None and a.status == OK:
        remark = f"fewer than {FEWEST} rounds: not compared"
    return Change(a, b, ratio, low, high, grown, bool(why), remark)


def _by_key(runs: Sequence[Results]) -> dict[Key, tuple[Row, list[Sequence[float]]]]:
    """Rows by what makes them comparable, with the rounds of every run that has them. Of several runs the row that was
    not measured counts, where there is one: a failure is not averaged away.
    """
    found: dict[Key, tuple[Row, list[Sequence[float]]]] = {}
    for results in runs:
        for number, row in enumerate(results.rows):
            known, rounds = found.get(row.key, (row, []))
            values = [v for v in results.samples.get(number, ()) if np.isfinite(v) and v > 0]
            found[row.key] = (known if known.status != OK else row, [*rounds, values])
    return found


def _usable(runs: Runs) -> bool:
    return bool(runs) and all(len(r) >= FEWEST for r in runs)


def _median(runs: Runs) -> float:
    return float(np.median([np.median(r) for r in runs]))


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
            console.print(
                f"only {side}: {r.workload}, {r.method}, batch {r.batch}, {r.backend}, {r.target:g}", markup=False
            )
    if any(c.before.family == "dense" for c in found.changes):
        console.print(f"Dense rows: drift {found.drift:.3f} (divided out), beyond their intervals {found.noise:.1%}.")
    if found.noisy:
        console.print(
            f"TOO NOISY to judge times: dense rows, which no commit changes, wander by more than {TOO_NOISY:.0%}. "
            "Measure again on a quiet machine."
        )
    count = len(found.regressions)
    limit = max(found.threshold, found.noise)
    console.print(
        f"{count} regression(s)." if count else f"No regression beyond {limit:.1%} among {len(found.changes)} rows."
    )


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hrt.perf.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
