"""How punctual requests were: turns of open-loop arrivals as figures, with an HdrHistogram of their latencies."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrt.errors import BackendError, InputError
from hrt.perf.measuring.bursts import TAIL_CALLS
from hrt.perf.measuring.gc_watch import Collections
from hrt.perf.realtime.open_loop import NS, UNSERVED, Slice

HIGHEST_NS, DIGITS = 3600 * NS, 3  # of the histogram


@dataclass(frozen=True)
class Figures:
    """How punctual one subject was. p50_us to max_us: microseconds from when a request was due to its answer, those
    never served included.  call_*: of the call alone.  jitter_*: how late requests began that nothing held up.  None:
    of too few requests to know.  missed: later than `deadline_us`, failed or never served.  spells: unbroken runs of
    misses.  queue: the most that were due and unanswered at once.  histogram: HdrHistogram's V2 encoding, nanoseconds.
    """

    subject: str
    rate: float
    deadline_us: float
    offered: int
    served: int
    failed: int
    achieved: float
    missed: int
    p50_us: float | None
    p95_us: float | None
    p99_us: float | None
    p999_us: float | None
    max_us: float | None
    call_p50_us: float | None
    call_p999_us: float | None
    jitter_p50_us: float | None
    jitter_p999_us: float | None
    jitter_max_us: float | None
    queue: int
    spells: int
    longest_spell: int
    medians_us: tuple[float, ...]
    collections: int = 0
    longest_collection_us: float = 0.0
    histogram: str = ""
    note: str = ""

    @property
    def sustained(self) -> bool:
        """Whether requests were answered as fast as they came; else quantiles tell the length of the run."""
        return self.served + self.failed == self.offered and self.achieved >= 0.99 * self.rate

    @property
    def verdict(self) -> str:
        """One line on whether the rate was sustained, and if not, whether the calls or the machine are to blame."""
        if self.failed == self.offered:
            return f"every request failed: {self.note}"
        if not self.served:
            return f"NOTHING SERVED of {self.offered:,} requests at {self.rate:,.0f} a second; ask for a lower rate"
        if self.sustained:
            return f"sustained {self.rate:,.0f} a second"
        slow = self.call_p50_us is not None and self.call_p50_us * self.rate >= 0.99e6
        once = "" if self.jitter_max_us is None else f", once for {shown(self.jitter_max_us)} us"
        reason = (
            f"a call takes {shown(self.call_p50_us)} us, so that the wait grew as long as the load lasted"
            if slow
            else f"calls are short enough, but the machine held them up{once}"
        )
        return f"NOT SUSTAINED: offered {self.rate:,.0f} a second, achieved {self.achieved:,.0f}; {reason}"


def summarise(
    subject: str,
    slices: Sequence[Slice],
    *,
    deadline_us: float | None = None,
    collections: Collections | None = None,
    note: str = "",
) -> Figures:
    """All slices of a subject as figures. deadline_us: the period by default."""
    if not slices or not sum(len(s.due) for s in slices):
        raise InputError(f"{subject}: no request was made, so that there is nothing to report.")
    period, seen = slices[0].period, collections or Collections()
    deadline = period if deadline_us is None else deadline_us * 1e3
    late = [(s.latency > deadline) | ~s.answered for s in slices]
    runs = [n for bad in late for n in run_lengths(bad)]
    timed = [s.latency[s.answered | (s.done == UNSERVED)] for s in slices]
    latency = np.concatenate(timed)
    calls = np.concatenate([(s.done - s.begun)[s.answered] for s in slices])
    jitter = np.concatenate([s.jitter for s in slices])
    spans = [max(float(s.done.max()) - float(s.due[0]), len(s.due) * period) for s in slices]
    served = sum(int(s.answered.sum()) for s in slices)
    return Figures(
        subject=subject,
        rate=NS / period,
        deadline_us=deadline / 1e3,
        offered=sum(len(s.due) for s in slices),
        served=served,
        failed=sum(int(s.failed.sum()) for s in slices),
        achieved=served / (sum(spans) / NS),
        missed=sum(int(bad.sum()) for bad in late),
        **_quantiles(latency, p50_us=0.5, p95_us=0.95, p99_us=0.99, p999_us=0.999, max_us=1.0),
        **_quantiles(calls, call_p50_us=0.5, call_p999_us=0.999),
        **_quantiles(jitter, jitter_p50_us=0.5, jitter_p999_us=0.999, jitter_max_us=1.0),
        queue=max(s.queue for s in slices),
        spells=len(runs),
        longest_spell=max(runs, default=0),
        medians_us=tuple(float(np.median(v)) / 1e3 for v in timed if len(v)),
        collections=seen.count,
        longest_collection_us=seen.longest_us,
        histogram=record(latency).encode().decode("ascii"),
        note=note,
    )


def run_lengths(bad: np.ndarray) -> list[int]:
    """Lengths of the unbroken runs of True in `bad` (count,)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], bad.astype(np.int8), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


def record(latency: np.ndarray) -> Any:
    """An HdrHistogram of latencies in nanoseconds, three digits."""
    histogram = histogram_library()(1, HIGHEST_NS, DIGITS)
    for value, count in zip(*np.unique(np.clip(latency, 1, HIGHEST_NS), return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    return histogram


def decoded(histogram: str) -> list[tuple[float, float]]:
    """Points (quantile below 1, microseconds) of an encoded histogram, for drawing."""
    library = histogram_library()
    try:
        base64.b64decode(histogram, validate=True)
        decoded = library.decode(histogram)
        steps = 1 - np.logspace(0, -np.log10(max(10, decoded.get_total_count())), 200)
        values = (decoded.get_value_at_percentile(100 * q) for q in steps)  # the upper end of a bin
        return [(float(q), decoded.get_lowest_equivalent_value(v) / 1e3) for q, v in zip(steps, values, strict=True)]
    except Exception as error:  # the library's, struct's and zlib's; a text that somebody else wrote
        raise InputError(f"Found a histogram that cannot be decoded: {error}. Measure again.") from error


def histogram_library() -> Any:
    """HdrHistogram's class. Raises BackendError where it is not installed."""
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError as error:
        raise BackendError("HdrHistogram is not installed. Install it: pip install hdrhistogram.") from error
    return HdrHistogram


def shown(value: float | None) -> str:
    """Microseconds as tables have them; "-" for what is not known."""
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _quantiles(values: np.ndarray, **shares: float) -> dict[str, Any]:
    """Of the values (ns) themselves, in microseconds, because the histogram rounds up. None where they are too few."""
    enough = {name: len(values) >= TAIL_CALLS.get(q, 1) for name, q in shares.items()}
    return {name: float(np.quantile(values, q)) / 1e3 if enough[name] else None for name, q in shares.items()}
