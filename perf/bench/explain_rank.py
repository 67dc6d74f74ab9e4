"""hrt's rank among the methods that keep an error, and where it is not first, why: from what was measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from hrt.perf.measuring.bursts import Comparison, Latency, compared, slack
from hrt.perf.measuring.results import OK, Row, slowness
from hrt.perf.methods.matched_error import Offer

OURS = "hrt"


@dataclass(frozen=True, eq=False)
class Contender:
    """A row that keeps its error, with what stands behind it."""

    row: Row
    offer: Offer
    latency: Latency
    comparison: Comparison | None = None


@dataclass(frozen=True)
class Rank:
    """hrt's place (1 is best; equal bytes, and times that noise does not tell apart, share one) among `of` methods, who
    has the least, and how many others share the place.
    """

    place: int
    of: int
    first: str
    shared: int = 0

    @property
    def text(self) -> str:
        """Such as "2 of 5"."""
        beside = f", with {self.shared} others" if self.shared > 1 else ", with another" if self.shared else ""
        return f"{self.place} of {self.of}{beside}"


def best_rows(rows: Sequence[Row]) -> dict[str, Row]:
    """The fastest execution of every method among rows that keep the error and were timed."""
    best: dict[str, Row] = {}
    time = slowness(rows)
    for r in rows:
        if r.p50_us is None or r.error is None or not r.error <= r.target:
            continue
        if r.method not in best or time(r) < time(best[r.method]):
            best[r.method] = r
    return best


def rank(rows: Sequence[Row], by: str, ours: str = OURS) -> Rank | None:
    """hrt's rank in "nbytes" or "p50_us" (time, see `slowness`) among the best executions of all methods (other
    settings of hrt aside); None where it is not among them.
    """
    best = {m: r for m, r in best_rows(rows).items() if m == ours or not m.startswith(OURS)}
    if ours not in best:
        return None
    time = slowness(rows)
    values = {m: time(r) if by == "p50_us" else getattr(r, by) for m, r in best.items()}
    first = min(values, key=lambda m: (values[m], m != ours))
    factor, own = slack(best[ours].noise) if by == "p50_us" else 1.0, values[ours]
    ahead = sum(v * factor < own for v in values.values())
    shared = sum(v * factor >= own and own * factor >= v for m, v in values.items() if m != ours)
    return Rank(1 + ahead, len(values), first, shared)


def why(contenders: Sequence[Contender], dense_nbytes: int, empty: Latency | None, noise: float = 0.0) -> str:
    """One line for a group that hrt does not win in bytes or in latency; empty where it wins both or is not there."""
    rows = [c.row for c in contenders]
    by_bytes, by_time = rank(rows, "nbytes"), rank(rows, "p50_us")
    if by_bytes is None or by_time is None:
        return "hrt has no row that keeps the error" if rows else ""
    found = {(c.row.method, c.row.backend): c for c in contenders}
    best = {m: found[m, r.backend] for m, r in best_rows(rows).items()}
    said = []
    if by_bytes.place > 1:
        said.append(_bytes(best[OURS], best[by_bytes.first], dense_nbytes))
    if by_time.place > 1:
        said.append(_time(best[OURS], best[by_time.first], empty, noise))
    return "; ".join(said)


def _bytes(ours: Contender, first: Contender, dense_nbytes: int) -> str:
    have, least, facts = ours.offer.nbytes, first.offer.nbytes, ours.offer.facts
    line = f"bytes: {first.row.method} needs {least:,}, hrt {have:,} ({have / least:.2f} times)"
    weights = dense_nbytes / 4
    bits = f"{8 * least / weights:.1f} bits a weight against hrt's {8 * have / weights:.1f}"
    if have >= 0.98 * dense_nbytes:
        return f"{line}: hrt leaves {facts.get('dense', 0)} of {facts.get('layers', 0)} layers as they are"
    if first.row.family in ("quantized", "dense", "pruned"):
        return f"{line}: {bits}; {first.offer.note or 'every weight in 16 bits'}"
    return f"{line}: {first.offer.note}; hrt has {facts.get('leaves', 0)} leaves"


def _time(ours: Contender, first: Contender, empty: Latency | None, noise: float) -> str:
    a, b = ours.latency.p50_us, first.latency.p50_us
    who = f"{first.row.method} ({first.row.backend})"
    comparison = compared(ours.latency, first.latency, noise)
    if comparison.verdict in ("no difference", "too noisy"):
        return f"time: {who} {b:,.1f} us, hrt {a:,.1f} us: {comparison.verdict} (noise {noise:.0%})"
    line = f"time: {who} {b:,.1f} us, hrt {a:,.1f} us"
    facts, work, less = ours.offer.facts, ours.offer.work, first.offer.work
    nodes, fewer = facts.get("nodes"), first.offer.facts.get("nodes")
    parts = []
    if empty is not None and empty.p50_us > 0.5 * b:
        parts.append(f"a call that computes nothing takes {empty.p50_us:.1f} us already")
    if work >= 0.95 * less:
        dense = facts.get("multiplied", 0) + facts.get("dense", 0)
        parts.append(f"hrt saves no arithmetic ({work:,} multiply-adds a row against {less:,}")
        parts[-1] += f", {dense} of {facts.get('layers', 0)} layers run as dense products)"
    elif nodes and fewer and nodes > fewer:
        parts.append(f"hrt does {work / less:.0%} of the multiply-adds but in {nodes} nodes against {fewer}")
    else:
        parts.append(f"hrt does {work / less:.0%} of the multiply-adds, in products that run further from the peak")
    near, nearer = ours.row.roofline_fraction, first.row.roofline_fraction
    if near and nearer and nearer > 1.2 * near and work >= 0.95 * less:
        parts.append(f"at {near:.0%} of what this machine multiplies at best, against {nearer:.0%}")
    if first.offer.arithmetic != ours.offer.arithmetic:
        parts.append(f"{first.row.method} multiplies in {first.offer.arithmetic}")
    return f"{line}: {'; '.join(parts)}"


def is_won(rows: Sequence[Row]) -> bool:
    """Whether hrt is first in bytes and in latency among rows that may be compared."""
    ranks = [rank([r for r in rows if r.status == OK], by) for by in ("nbytes", "p50_us")]
    return all(r is not None and r.place == 1 for r in ranks)
