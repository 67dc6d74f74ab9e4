"""What the rows of a result say: Pareto fronts, hrt's rank, break-even lines. No drawing, no timing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from hrt.perf.measuring.bursts import slack
from hrt.perf.measuring.results import FAMILIES, NOISY, OK, Row, slowness

OURS, DENSE = "hrt", "dense"
Cost = Callable[[Row], float | None]


def nbytes(row: Row) -> float | None:
    """What a row costs in memory."""
    return row.nbytes


def latency(row: Row) -> float | None:
    """What a row costs in time: microseconds, median."""
    return row.p50_us


def usable(row: Row, cost: Cost) -> bool:
    """Whether a row can be drawn and ranked by `cost`: measured, and at an error that was measured too. A noisy row is
    one whose figures are there and whose comparison is not.
    """
    value = cost(row)
    return row.status in (OK, NOISY) and row.error is not None and value is not None and value > 0


def front(rows: Iterable[Row], cost: Cost) -> list[Row]:
    """The rows that no other undercuts in both error and cost, by falling error. Of equals the first one stays."""
    known = [(cost(r) or 0.0, r.error or 0.0, k, r) for k, r in enumerate(rows) if usable(r, cost)]
    found: list[Row] = []
    least = float("inf")
    for _, error, _, row in sorted(known, key=lambda t: t[:3]):
        if error < least:
            found.append(row)
            least = error
    return found


@dataclass(frozen=True)
class Standing:
    """hrt beside all others on one workload at one target and batch size.

    rank: 1 is best, None where hrt has no such row.  of: methods that reach the target.  best: the best method of all.
    ours: the best of hrt's rows.  ratio: the best other method's cost over hrt's, above 1 hrt is better; None where
    either is missing.  noisy: times of either were too noisy for a verdict.  even: noise does not tell the two apart.
    """

    workload: str
    target: float
    batch: int
    rank: int | None
    of: int
    best: Row | None
    ours: Row | None
    ratio: float | None
    noisy: bool = False
    even: bool = False

    @property
    def won(self) -> bool:
        """Whether nothing is better than hrt, beyond noise."""
        return self.rank == 1 and not self.noisy


def standing(rows: Sequence[Row], cost: Cost) -> Standing:
    """hrt's place among `rows`, all of one workload, target and batch size. Methods of equal cost, and times that noise
    does not tell apart, share the better rank; a method counts once, by its best backend; other settings of hrt do not
    count where "hrt" itself is there.
    """
    best_of: dict[str, Row] = {}
    value = slowness(rows) if cost is latency else partial(_of, cost)
    plain = any(r.method == OURS for r in rows)
    for row in rows:
        if plain and row.family == OURS and row.method != OURS:
            continue
        if usable(row, cost) and (row.error or 0.0) <= row.target:
            other = best_of.get(row.method)
            if other is None or value(row) < value(other):
                best_of[row.method] = row
    ranked = sorted(best_of.values(), key=value)
    ours = next((r for r in ranked if r.family == OURS), None)
    rival = next((r for r in ranked if r.family != OURS), None)
    factor = slack(ours.noise) if ours is not None and cost is latency else 1.0
    rank = None if ours is None else 1 + sum(value(r) * factor < value(ours) for r in ranked)
    ratio = None if ours is None or rival is None else value(rival) / value(ours)
    first = rows[0]
    best = ranked[0] if ranked else None
    noisy = cost is latency and any(r is not None and r.status == NOISY for r in (ours, rival))
    even = ratio is not None and factor > 1 and 1 / factor <= ratio <= factor
    return Standing(first.workload, first.target, first.batch, rank, len(ranked), best, ours, ratio, noisy, even)


def standings(rows: Sequence[Row], cost: Cost) -> list[Standing]:
    """One per workload, target and batch size that has a row of hrt's, in the order of the rows."""
    groups: dict[tuple[str, float, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.workload, row.target, row.batch), []).append(row)
    return [standing(g, cost) for g in groups.values() if any(r.family == OURS for r in g)]


def break_even(rows: Sequence[Row], target: float) -> dict[str, list[Row]]:
    """For every family but dense its fastest row at each batch size (rows of one workload), by rising batch: where such
    a line crosses 1, the method begins or ceases to pay.
    """
    lines: dict[str, list[Row]] = {}
    for family in FAMILIES:
        known = [r for r in rows if r.family == family and r.target == target and _compared(r)]
        best = {b: max((r for r in known if r.batch == b), key=_ratio) for b in sorted({r.batch for r in known})}
        if family != DENSE and best:
            lines[family] = list(best.values())
    return lines


def _compared(row: Row) -> bool:
    return row.status == OK and row.ratio_vs_best_dense is not None and row.ratio_vs_best_dense > 0


def _ratio(row: Row) -> float:
    return row.ratio_vs_best_dense or 0.0


def _of(cost: Cost, row: Row) -> float:
    return float(cost(row) or 0.0)
