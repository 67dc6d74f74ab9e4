"""Open-loop arrivals: requests that are due at fixed moments, whether or not the one before has been answered.

A load that waits for every answer never sees what a stall does to those who come meanwhile ("coordinated omission").
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np

from hrt.errors import InputError

NS = 1_000_000_000
SPIN_NS = 200_000  # before an arrival: the clock is asked again and again, because a sleep may end this much late
GRACE_S = 1.0  # after the last arrival of a slice, for those still waiting; after that they count as never served
MAX_RATE = 100_000.0  # arrivals a second; beyond that a loop in Python is the bottleneck
MAX_SPIN_US = 1e6  # the first request waits so long
SLICE_S, LEAD_S = 1.0, 0.05  # of a turn; of the arrivals before it that do not count
UNSERVED = -1  # in place of a time


@dataclass(frozen=True)
class Clock:
    """How time is told and passed. spin_ns: how long before an arrival sleeping ends and asking the clock begins."""

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
        """Which requests have an answer, bool (count,)."""
        failed = self.failed if len(self.failed) else np.zeros(len(self.due), bool)
        return (self.done != UNSERVED) & ~failed

    @property
    def latency(self) -> np.ndarray:
        """From when a request was due to its answer, or to the end of the stretch, ns (count,)."""
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


@dataclass(frozen=True)
class Options:
    """How requests come. deadline_us: None for the period.  gc: whether Python's collector may run."""

    rate: float = 1000.0
    seconds: float = 60.0
    deadline_us: float | None = None
    batch: int = 1
    spin_us: float = SPIN_NS / 1e3
    gc: bool = True
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        deadline, requests = self.deadline_us, self.rate * self.seconds
        for name, value, good, expected in (
            ("a rate", self.rate, 0 < self.rate <= MAX_RATE, f"more than 0 and at most {MAX_RATE:g} a second"),
            ("seconds", self.seconds, 0 < self.seconds <= 86_400, "more than 0 and at most a day"),
            ("a total", requests, requests >= 1, "at least one request"),
            ("a deadline", deadline, deadline is None or 0 < deadline < math.inf, "more than 0 us, and finite"),
            ("a spin", self.spin_us, 0 <= self.spin_us <= MAX_SPIN_US, f"0 to {MAX_SPIN_US:,.0f} us"),
            ("a batch", self.batch, self.batch >= 1, "at least one row"),
            ("threads", self.threads, self.threads >= 1, "at least one"),
        ):
            if not good:
                raise InputError(f"Found {name} of {value:g}. Expected {expected}.")

    @property
    def lead(self) -> int:
        """Arrivals before a turn that do not count."""
        return max(1, round(LEAD_S * self.rate))

    def turns(self, subjects: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Turns of about a second, every subject once a round, in a new random order each, and its requests."""
        order, shuffle = list(subjects), Random(self.seed).shuffle
        total = max(1, round(self.rate * self.seconds))
        rounds = max(1, min(total, round(self.seconds / SLICE_S)))
        for k in range(rounds):
            shuffle(order)
            for name in order:
                yield name, total // rounds + (k < total % rounds)


def schedule(rate: float, count: int, start: int) -> np.ndarray:
    """When `count` requests at `rate` a second are due, int64 ns, the first at `start`."""
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
    it are done. lead: arrivals before, which do not count.  grace: seconds after the last arrival for those that wait.
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
    return Slice(due[lead:], np.array(begun, np.int64)[lead:], np.array(done, np.int64)[lead:], closed, NS / rate)
