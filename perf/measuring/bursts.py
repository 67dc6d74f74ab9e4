"""Timing that can be compared: candidates in bursts, in random order, medians with spread, and no verdict where noise
allows none.
"""

import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

# Threads that spin for work take a core from the next candidate (Burgers PINN, 1024 rows, two threads: 306 us in place
# of 171); ONNX Runtime's do so for 30 to 100 ms after a call. At most this long is waited until they sleep.
PAUSE_S = 0.1
STEP_S, ASLEEP = 0.005, 0.2  # of such a wait; a process that uses less than this share of a core is asleep
COLD_ROUNDS = 5
LONG_S = 0.1  # of warming up, and of a burst that has not yet had its calls
TAIL_CALLS = {0.99: 200, 0.999: 2000}  # calls below which such a quantile is no measurement
TOO_NOISY = 1.5  # upper over lower end of a ratio's interval, where 1 lies inside: it says nothing
CLEAR = 0.02  # a difference of less than 2 % is none, however narrow its interval: layout of memory alone moves so much
DRAWS = 2000  # of the bootstrap

Call = Callable[[], object]


@dataclass(frozen=True)
class Latency:
    """Microseconds of one call: quantiles; medians of each round, in order; how many calls counted; median of cold
    calls. None: not asked, or too few calls to know.
    """

    p50_us: float
    p05_us: float
    p95_us: float
    medians: tuple[float, ...] = ()
    p99_us: float | None = None
    p999_us: float | None = None
    calls: int = 0
    cold_us: float | None = None

    def ratio(self, other: "Latency") -> tuple[float, float, float]:
        """How many times slower this call is, and the 95 % interval of that (bootstrap over rounds): the median over
        rounds of this round's median over the other's. In rounds that something else on the machine slowed down, both
        were slow (6 us became 10 in one round of four), so that the quotient of two medians would move where this does
        not. As many rounds as both have.
        """
        rounds = min(len(self.medians), len(other.medians))
        logs = np.log(self.medians[:rounds]) - np.log(other.medians[:rounds])
        pick = np.random.default_rng(0).integers(0, rounds, (DRAWS, rounds))
        low, high = np.quantile(np.median(logs[pick], axis=1), (0.025, 0.975))
        return float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high))


@dataclass(frozen=True)
class Comparison:
    """How many times slower one call is than another, its 95 % interval, and a verdict: "slower", "faster", "no
    difference", or "too noisy" where the interval holds 1 and is too wide to say that there is none.
    """

    ratio: float
    low: float
    high: float
    verdict: str


def compared(one: Latency, other: Latency, noise: float = 0.0) -> Comparison:
    """`one` over `other`. A difference that does not clear `noise` (see `noise_of`) is none, whatever its interval."""
    ratio, low, high = one.ratio(other)
    if low <= 1 <= high and high / low > TOO_NOISY:
        verdict = "too noisy"
    elif low <= 1 <= high or abs(math.log(ratio)) <= math.log(slack(noise)):
        verdict = "no difference"
    else:
        verdict = "slower" if ratio > 1 else "faster"
    return Comparison(ratio, low, high, verdict)


def slack(noise: float | None) -> float:
    """The factor between two times up to which they do not differ, given `noise_of` one call."""
    return 1 + max(CLEAR, noise or 0.0)


def noise_of(one: Latency, again: Latency) -> float:
    """By how much, relative, two timings of one and the same call seem to differ: the far end of the interval."""
    _, low, high = one.ratio(again)
    return max(high, 1 / low) - 1


def settle() -> None:
    """Sleep until the threads of this process sleep, too, PAUSE_S at most."""
    until = time.perf_counter() + PAUSE_S
    while time.perf_counter() < until:
        used, start = time.process_time(), time.perf_counter()
        time.sleep(STEP_S)
        if time.process_time() - used < ASLEEP * (time.perf_counter() - start):
            return


def bursts(
    calls: Mapping[str, Call],
    *,
    rounds: int = 20,
    calls_each: int = 10,
    warmup: int = 3,
    seed: int = 0,
    burst_s: float = 0.0,
    clock: Callable[[], int] = time.perf_counter_ns,
    pause: Callable[[], None] = settle,
    on_round: Callable[[int], None] = lambda k: None,
    drop: Callable[[int, Mapping[str, Sequence[float]]], Collection[str]] = lambda k, medians: (),
) -> dict[str, Latency]:
    """Time every call in short bursts, all of them in a new random order each round, each after `settle` and some
    calls that do not count: as in a loop that asks again and again, undisturbed by the threads of another library. A
    machine whose speed drifts treats them alike: compare ratios within one result, not absolute times between two.

    calls_each: in a burst, or as many more as fit `burst_s` seconds, or fewer, at least two, where they take LONG_S.
    clock: nanoseconds.  drop: given a round's number and the medians so far, names that are not timed any further.
    """

    def enough(count: int, nanoseconds: int) -> bool:
        if count < min(2, calls_each):
            return False
        return nanoseconds >= 1e9 * (burst_s if count >= calls_each else max(burst_s, LONG_S))

    def burst(call: Call) -> list[float]:
        begun = clock()
        for _ in range(warmup):
            call()
            if clock() - begun > 1e9 * LONG_S:
                break
        microseconds: list[float] = []
        begun = stop = clock()
        while not enough(len(microseconds), stop - begun):
            start = clock()
            call()
            stop = clock()
            microseconds.append((stop - start) / 1e3)
        return microseconds

    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[str, list[float]] = {name: [] for name in calls}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds):
        shuffle(order)
        for name in order:
            pause()
            microseconds = burst(calls[name])
            times[name] += microseconds
            medians[name].append(float(np.median(microseconds)))
        on_round(k + 1)
        dropped = set(drop(k + 1, medians))
        order = [name for name in order if name not in dropped]
    return {name: _summary(values, tuple(medians[name])) for name, values in times.items()}


def cold(
    calls: Mapping[str, Call], sweep: Call, rounds: int = COLD_ROUNDS, pause: Callable[[], None] = settle, **more: Any
) -> dict[str, float]:
    """Microseconds of single calls by name, medians over rounds, each after `settle` and `sweep`, which fills caches
    with something else: what a caller sees who does other work between two questions. more: see `bursts`.
    """

    def swept() -> None:
        pause()
        sweep()

    single = bursts(calls, rounds=rounds, calls_each=1, warmup=0, pause=swept, **more)
    return {name: float(np.median(latency.medians)) for name, latency in single.items()}


def sweeping(nbytes: int) -> Call:
    """A call that reads and writes `nbytes` of memory."""
    block = np.zeros(max(1, nbytes // 8))
    return lambda: np.add(block, 1.0, out=block)


def rotating(calls: Sequence[Call]) -> Call:
    """One call that does them in turn: the same work on other inputs, so that no answer waits in a cache."""
    turns = cycle(calls)
    return lambda: next(turns)()


def _summary(microseconds: Sequence[float], medians: tuple[float, ...]) -> Latency:
    p50, p05, p95, *tails = map(float, np.quantile(microseconds, (0.5, 0.05, 0.95, *TAIL_CALLS), method="nearest"))
    count = len(microseconds)
    p99, p999 = (v if count >= least else None for v, least in zip(tails, TAIL_CALLS.values(), strict=True))
    return Latency(p50, p05, p95, medians, p99, p999, count)
