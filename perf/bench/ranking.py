"""What the rows of a result say: hrt's place, why it is not first, Pareto fronts. Nothing is timed or
drawn here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from hrt.perf.measuring.bursts import Latency, compared, slack
from hrt.perf.measuring.results import MEASURED, OK, Row, slowness
from hrt.perf.methods.matched_error import Offer

OURS, REFERENCE = "hrt", "dense float32"
SAVES_NOTHING = 0.95  # of the other's arithmetic, from which on less arithmetic explains no time
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
    return row.status in MEASURED and row.error is not None and (cost(row) or 0.0) > 0


def front(rows: Iterable[Row], cost: Cost) -> list[Row]:
    """The rows that no other undercuts in both error and cost, by falling error. Of equals the first one stays."""
    best: list[Row] = []
    for row in sorted((r for r in rows if usable(r, cost)), key=lambda r: (cost(r), r.error)):
        if not best or (row.error or 0.0) < (best[-1].error or 0.0):
            best.append(row)
    return best


def best_rows(rows: Sequence[Row], cost: Cost) -> dict[str, Row]:
    """The execution of least cost of every method, among rows that keep the error."""
    holding = [r for r in rows if usable(r, cost) and (r.error or 0.0) <= r.target]
    value = value_of(rows, cost)
    return {m: min((r for r in holding if r.method == m), key=value) for m in dict.fromkeys(r.method for r in holding)}


def value_of(rows: Sequence[Row], cost: Cost) -> Callable[[Row], float]:
    """What orders `rows` by `cost`."""
    return slowness(rows) if cost is latency else lambda row: float(cost(row) or 0.0)


@dataclass(frozen=True)
class Standing:
    """hrt beside all others on one workload at one target and batch size.

    place: 1 is best, None where hrt has no such row.  of: methods that reach the target.  best: the best row of all.
    ours: the best of hrt's rows.  ratio: the best other method's cost over hrt's, above 1 hrt is better; None where
    either is missing.  shared: how many others have the same place, by equal bytes or times that noise does not tell
    apart.  noisy: times of either were too noisy for a verdict.  even: noise does not tell hrt and that other apart.
    """

    place: int | None
    of: int
    best: Row | None
    ours: Row | None
    ratio: float | None
    shared: int
    noisy: bool
    even: bool

    @property
    def won(self) -> bool:
        """Whether nothing is better than hrt, beyond noise."""
        return self.place == 1 and not self.noisy

    @property
    def text(self) -> str:
        """Such as "2 of 5, with another"."""
        beside = f", with {self.shared} others" if self.shared > 1 else ", with another" if self.shared else ""
        return f"{self.place} of {self.of}{beside}"


def standing(rows: Sequence[Row], cost: Cost) -> Standing:
    """hrt's place among `rows`, all of one workload, target and batch size. A method counts once, by its best backend;
    other settings of hrt do not count where "hrt" itself is there.
    """
    plain = any(r.method == OURS for r in rows)
    rivals = [r for r in best_rows(rows, cost).values() if not (plain and r.family == OURS and r.method != OURS)]
    value = value_of(rows, cost)
    ranked = sorted(rivals, key=lambda r: (value(r), r.family != OURS))
    best = ranked[0] if ranked else None
    ours = next((r for r in ranked if r.family == OURS), None)
    rival = next((r for r in ranked if r.family != OURS), None)
    noisy = cost is latency and any(r is not None and r.status != OK for r in (ours, rival))
    if ours is None:
        return Standing(None, len(ranked), best, None, None, 0, noisy, False)
    least, factor = value(ours), slack(ours.noise) if cost is latency else 1.0
    place = 1 + sum(value(r) * factor < least for r in ranked)
    shared = sum(r is not ours and 1 / factor <= value(r) / least <= factor for r in ranked)
    ratio = value(rival) / least if rival is not None else None
    even = ratio is not None and factor > 1 and 1 / factor <= ratio <= factor
    return Standing(place, len(ranked), best, ours, ratio, shared, noisy, even)


@dataclass(frozen=True, eq=False)
class Contender:
    """A row that keeps its error, with what stands behind it."""

    row: Row
    offer: Offer
    latency: Latency


def why(contenders: Sequence[Contender], dense_nbytes: int, empty: Latency | None, noise: float = 0.0) -> str:
    """One line for a group that hrt does not win in bytes or in latency; empty where it wins both or is not there.

    dense_nbytes: of the network in float32.  empty: of a call that computes nothing.
    """
    if not contenders:
        return ""
    rows, behind = [c.row for c in contenders], {c.row.key: c for c in contenders}
    size, time = standing(rows, nbytes), standing(rows, latency)
    if size.ours is None or time.ours is None or size.best is None or time.best is None:
        return "hrt has no row that keeps the error"
    lines = []
    if size.place != 1:
        lines.append(_why_larger(behind[size.ours.key], behind[size.best.key], dense_nbytes))
    if time.place != 1:
        lines.append(_why_slower(behind[time.ours.key], behind[time.best.key], empty, noise))
    return "; ".join(lines)


def _why_larger(ours: Contender, first: Contender, dense_nbytes: int) -> str:
    have, least, facts = ours.offer.nbytes, first.offer.nbytes, ours.offer.facts
    line = f"bytes: {first.row.method} needs {least:,}, hrt {have:,} ({have / least:.2f} times)"
    if have >= 0.98 * dense_nbytes:
        return f"{line}: hrt leaves {facts.get('stored dense', 0)} of {facts.get('layers', 0)} layers as they are"
    if first.row.family in ("quantized", "dense", "pruned"):
        bits, our_bits = (32 * n / dense_nbytes for n in (least, have))
        note = first.offer.note or "every weight in 16 bits"
        return f"{line}: {bits:.1f} bits a weight against hrt's {our_bits:.1f}; {note}"
    return f"{line}: {first.offer.note}; hrt has {facts.get('leaves', 0)} leaves"


def _why_slower(ours: Contender, first: Contender, empty: Latency | None, noise: float) -> str:
    a, b = ours.latency.p50_us, first.latency.p50_us
    line = f"time: {first.row.method} ({first.row.backend}) {b:,.1f} us, hrt {a:,.1f} us"
    verdict = compared(ours.latency, first.latency, noise).verdict
    if verdict in ("no difference", "too noisy"):
        return f"{line}: {verdict} (noise {noise:.0%})"
    facts, work, less = ours.offer.facts, ours.offer.work, first.offer.work
    nodes, fewer = facts.get("nodes"), first.offer.facts.get("nodes")
    parts = []
    if empty is not None and empty.p50_us > 0.5 * b:
        parts.append(f"a call that computes nothing takes {empty.p50_us:.1f} us already")
    if work >= SAVES_NOTHING * less:
        layers = f"{facts.get('run dense', 0)} of {facts.get('layers', 0)} layers run as dense products"
        parts.append(f"hrt saves no arithmetic ({work:,} multiply-adds a row against {less:,}, {layers})")
    else:
        many = nodes and fewer and nodes > fewer
        how = f"but in {nodes} nodes against {fewer}" if many else "in products that run further from the peak"
        parts.append(f"hrt does {work / less:.0%} of the multiply-adds, {how}")
    if first.offer.arithmetic != ours.offer.arithmetic:
        parts.append(f"{first.row.method} multiplies in {first.offer.arithmetic}")
    return f"{line}: {'; '.join(parts)}"
