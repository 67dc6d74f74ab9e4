"""Open-loop arrivals: requests that are due at fixed moments, whether or not the one before has been answered.

A load that asks, waits for the answer and asks again never sees what a stall does to those who come meanwhile
("coordinated omission"). Here request k is due at start + k / rate, its latency counts from then, and one that begins
late because an earlier one is still running carries that wait in its own figure.
"""

import base64
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hrt.errors import BackendError, InputError

NS = 1_000_000_000
SPIN_NS = 200_000  # before an arrival: the clock is asked again and again, because a sleep may end this much late
GRACE_S = 1.0  # after the last arrival of a slice, for those still waiting; after that they count as never served
MAX_RATE = 100_000.0  # arrivals a second; beyond that a loop in Python is the bottleneck
HIGHEST_NS, DIGITS = 3600 * NS, 3  # of the histogram
UNSERVED = -1  # in place of a time


@dataclass(frozen=True)
class Clock:
    """How time is told and passed. now_ns: nanoseconds that never go back.  sleep: seconds.  spin_ns: how long before
    an arrival sleeping ends and asking the clock begins; 0 only sleeps.
    """

    now_ns: Callable[[], int] = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep
    spin_ns: int = SPIN_NS

    def wait_until(self, due: int) -> None:
        """Sleep, then spin, until `due` (ns); nothing where that is past."""
        left = due - self.now_ns()
        if left > self.spin_ns:
            self.sleep((left - self.spin_ns) / NS)
        while self.now_ns() < due:
            pass


@dataclass(frozen=True, eq=False)
class Slice:
    """Requests of one stretch, int64 arrays (count,) in nanoseconds. due: when each should have begun.  begun, done:
    when it did, and when its answer was there; UNSERVED where the stretch ended first.  closed: when it ended.
    failed: answered with an error, bool.  period: between arrivals.
    """

    due: np.ndarray
    begun: np.ndarray
    done: np.ndarray
    closed: int
    period: float
    failed: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    @property
    def answered(self) -> np.ndarray:
        """Which requests have a right to a latency of their own, bool (count,)."""
        failed = self.failed if len(self.failed) else np.zeros(len(self.due), bool)
        return (self.done != UNSERVED) & ~failed

    @property
    def latency(self) -> np.ndarray:
        """From the moment a request was due to its answer, ns (count,). Those never served count what they had waited
        when the stretch ended: less than the truth, but not nothing.
        """
        return np.where(self.done == UNSERVED, self.closed, self.done) - self.due

    @property
    def queue(self) -> int:
        """The most requests that were due and unanswered at once; 1 where every answer comes before the next is due."""
        done = np.sort(self.done[self.done != UNSERVED])
        before = np.searchsorted(self.due, done, side="right") - np.arange(len(done))
        left = int(np.searchsorted(self.due, self.closed, side="right")) - len(done)
        return max(int(before.max(initial=0)), left)

    @property
    def jitter(self) -> np.ndarray:
        """How late those began that no earlier request held up, ns: the clock and the machine, not the queue."""
        ended = np.where(self.done == UNSERVED, self.closed, self.done)
        busy_until = np.concatenate(([np.iinfo(np.int64).min], np.maximum.accumulate(ended)[:-1]))
        free = (busy_until <= self.due) & (self.begun != UNSERVED)
        return (self.begun - self.due)[free]


def schedule(rate: float, count: int, start: int) -> np.ndarray:
    """When `count` requests at `rate` a second are due, int64 ns, the first at `start`. Raises InputError."""
    if not 0 < rate <= MAX_RATE:
        raise InputError(f"Found a rate of {rate:g} requests a second. Expected more than 0 and at most {MAX_RATE:g}.")
    if count < 1:
        raise InputError(f"Found {count} requests. Expected at least one: a longer time, or a higher rate.")
    return start + np.rint(np.arange(count) * (NS / rate)).astype(np.int64)


def serve(
    call: Callable[[int], object],
    rate: float,
    count: int,
    *,
    clock: Clock | None = None,
    lead: int = 0,
    grace: float = GRACE_S,
) -> Slice:
    """Call `call(k)` for `count` requests at `rate` a second, one at a time, each as soon as it is due and those before
    it are done. lead: arrivals before, which do not count.  grace: seconds after the last arrival in which those that
    wait are still served.
    """
    clock = clock or Clock()
    now, wait = clock.now_ns, clock.wait_until
    due = schedule(rate, lead + count, now() + clock.spin_ns + 1000)
    end = int(due[-1]) + round(grace * NS)
    begun, done = [UNSERVED] * len(due), [UNSERVED] * len(due)  # no arrays: indexing those takes longer than the loop
    for k, moment in enumerate(due.tolist()):
        wait(moment)
        start = now()
        if start > end:
            break
        call(k - lead)
        done[k] = now()
        begun[k] = start
    closed = now()
    found = (np.array(v, np.int64)[lead:] for v in (begun, done))
    return Slice(due[lead:], *found, closed, NS / rate)


@dataclass(frozen=True)
class Collections:
    """What Python's garbage collector did meanwhile."""

    count: int = 0
    longest_us: float = 0.0


class CollectorWatch:
    """Counts and times garbage collections between enter and exit; `off` keeps the collector from running at all."""

    def __init__(self, off: bool = False) -> None:
        self.off, self.count, self.longest, self._began = off, 0, 0, 0

    def __enter__(self) -> "CollectorWatch":
        self._enabled = gc.isenabled()
        gc.collect()
        if self.off:
            gc.disable()
        gc.callbacks.append(self._seen)
        return self

    def __exit__(self, *_: object) -> None:
        gc.callbacks.remove(self._seen)
        if self._enabled:
            gc.enable()

    def _seen(self, phase: str, _: Any) -> None:
        if phase == "start":
            self._began = time.perf_counter_ns()
        else:
            self.count += 1
            self.longest = max(self.longest, time.perf_counter_ns() - self._began)

    @property
    def found(self) -> Collections:
        """What was seen so far."""
        return Collections(self.count, self.longest / 1e3)


@dataclass(frozen=True)
class Figures:
    """How punctual one subject was. offered: requests that were due.  served: with an answer.  failed: with an error.
    rate, achieved: asked for and answered, a second.  p50_us to max_us: microseconds from when a request was due to its
    answer, those never served included.  call_p50_us, call_p999_us: of the call alone, which is what a load that waits
    for every answer would report.  jitter_*: how late requests began that nothing held up.  missed: later than
    `deadline_us`, failed or never served.  spells: unbroken runs of misses; longest_spell: requests in the longest.
    queue: the most that were due and unanswered at once.  histogram: HdrHistogram's V2 encoding, nanoseconds.
    """

    subject: str
    rate: float
    deadline_us: float
    offered: int
    served: int
    failed: int
    achieved: float
    missed: int
    p50_us: float
    p95_us: float
    p99_us: float
    p999_us: float
    max_us: float
    call_p50_us: float
    call_p999_us: float
    jitter_p50_us: float
    jitter_p999_us: float
    jitter_max_us: float
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
        """Whether requests were answered as fast as they came. Where not, the wait grows as long as the load lasts, and
        quantiles say more about the length of the run than about the subject.
        """
        return self.served + self.failed == self.offered and self.achieved >= 0.99 * self.rate

    @property
    def verdict(self) -> str:
        """One line on whether the rate was sustained."""
        if self.failed == self.offered:
            return f"every request failed: {self.note}"
        if self.sustained:
            return f"sustained {self.rate:,.0f} a second"
        return f"NOT SUSTAINED: offered {self.rate:,.0f} a second, achieved {self.achieved:,.0f}; the wait grew"


def summarise(
    subject: str,
    slices: Sequence[Slice],
    *,
    deadline_us: float | None = None,
    collections: Collections | None = None,
    note: str = "",
) -> Figures:
    """All slices of a subject as figures. deadline_us: the period by default. Raises InputError without a request,
    BackendError where the histogram's library is missing.
    """
    if not slices or not sum(len(s.due) for s in slices):
        raise InputError(f"{subject}: no request was made, so that there is nothing to report.")
    period, seen = slices[0].period, collections or Collections()
    deadline = period if deadline_us is None else deadline_us * 1e3
    late = [(s.latency > deadline) | ~s.answered for s in slices]
    runs = [n for bad in late for n in run_lengths(bad)]
    timed = [s.latency[s.answered | (s.done == UNSERVED)] for s in slices]
    latency = np.concatenate(timed)
    histogram = record(latency)
    calls = np.concatenate([(s.done - s.begun)[s.answered] for s in slices])
    jitter = np.concatenate([s.jitter for s in slices])
    spans = [max(float(s.done.max()) - float(s.due[0]), len(s.due) * period) for s in slices]
    served = sum(int(s.answered.sum()) for s in slices)
    p50, p95, p99, p999 = (_at(histogram, q) if len(latency) else float("nan") for q in (50, 95, 99, 99.9))
    return Figures(
        subject=subject,
        rate=NS / period,
        deadline_us=deadline / 1e3,
        offered=sum(len(s.due) for s in slices),
        served=served,
        failed=sum(int(s.failed.sum()) for s in slices),
        achieved=served / (sum(spans) / NS),
        missed=sum(int(bad.sum()) for bad in late),
        p50_us=p50,
        p95_us=p95,
        p99_us=p99,
        p999_us=p999,
        max_us=_quantile(latency, 1.0),
        call_p50_us=_quantile(calls, 0.5),
        call_p999_us=_quantile(calls, 0.999),
        jitter_p50_us=_quantile(jitter, 0.5),
        jitter_p999_us=_quantile(jitter, 0.999),
        jitter_max_us=_quantile(jitter, 1.0),
        queue=max(s.queue for s in slices),
        spells=len(runs),
        longest_spell=max(runs, default=0),
        medians_us=tuple(float(np.median(v)) / 1e3 for v in timed if len(v)),
        collections=seen.count,
        longest_collection_us=seen.longest_us,
        histogram=histogram.encode().decode("ascii"),
        note=note,
    )


def run_lengths(bad: np.ndarray) -> list[int]:
    """Lengths of the unbroken runs of True in `bad` (count,)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], bad.astype(np.int8), [0]))))
    return (edges[1::2] - edges[::2]).tolist()


def record(latency: np.ndarray) -> Any:
    """An HdrHistogram of latencies in nanoseconds, three digits. Raises BackendError where the library is missing."""
    histogram = _library()(1, HIGHEST_NS, DIGITS)
    for value, count in zip(*np.unique(np.clip(latency, 1, HIGHEST_NS), return_counts=True), strict=True):
        histogram.record_value(int(value), int(count))
    return histogram


def decoded(histogram: str) -> list[tuple[float, float]]:
    """Points (quantile below 1, microseconds) of an encoded histogram, for drawing. Raises InputError for any other
    text, BackendError where the library is missing.
    """
    library = _library()
    try:
        base64.b64decode(histogram, validate=True)
        found = library.decode(histogram)
        steps = 1 - np.logspace(0, -np.log10(max(10, found.get_total_count())), 200)
        return [(float(q), found.get_value_at_percentile(100 * q) / 1e3) for q in steps]
    except Exception as error:  # the library's, struct's and zlib's; a text that somebody else wrote
        raise InputError(f"Found a histogram that cannot be decoded: {error}. Measure again.") from error


def _library() -> Any:
    try:
        from hdrh.histogram import HdrHistogram
    except ImportError as error:
        raise BackendError("HdrHistogram is not installed. Install it: pip install hdrhistogram.") from error
    return HdrHistogram


def _at(histogram: Any, percent: float) -> float:
    return histogram.get_value_at_percentile(percent) / 1e3


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, q)) / 1e3 if len(values) else float("nan")
