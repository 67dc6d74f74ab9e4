"""Timing that can be compared: candidates in bursts, in random order, medians with spread."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

# In which threads that spin for work go to sleep. ONNX Runtime's spin for 30 to 100 ms after a call: with shorter
# pauses the next candidate found a core taken (Burgers PINN, 1024 rows, two threads: 306 us instead of 171).
PAUSE_S = 0.1


@dataclass(frozen=True)
class Latency:
    """Microseconds of one call: median, and the quantiles at 5 % and 95 %. medians: of each round, in order."""

    p50_us: float
    p05_us: float
    p95_us: float
    medians: tuple[float, ...] = ()

    def ratio_interval(self, other: "Latency", *, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of this median over the other's, resampling rounds; they were timed together."""
        rng = np.random.default_rng(seed)
        ours, theirs = np.array(self.medians), np.array(other.medians)
        pick = rng.integers(0, len(ours), (draws, len(ours)))
        ratios = np.median(ours[pick], axis=1) / np.median(theirs[pick], axis=1)
        low, high = np.quantile(ratios, (0.025, 0.975))
        return float(low), float(high)


def bursts(
    calls: Mapping[str, Callable[[], object]], *, rounds: int = 20, calls_each: int = 10, warmup: int = 3, seed: int = 0
) -> dict[str, Latency]:
    """Time every call in short bursts, all of them in a new random order each round, each after a pause and a few calls
    that do not count: as in a loop that asks again and again, undisturbed by the threads of another library. A machine
    whose speed drifts treats them alike: compare ratios within one result, not absolute times between two.
    """
    order, shuffle = list(calls), random.Random(seed).shuffle
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            call, found = calls[name], []
            time.sleep(PAUSE_S)
            for _ in range(warmup):
                call()
            for _ in range(calls_each):
                start = time.perf_counter_ns()
                call()
                found.append((time.perf_counter_ns() - start) / 1e3)
            times[name].append(found)
    return {
        name: _summary(sorted(t for found in v for t in found), tuple(float(np.median(found)) for found in v))
        for name, v in times.items()
    }


def _summary(values: list[float], medians: tuple[float, ...] = ()) -> Latency:
    def at(q: float) -> float:
        return values[min(len(values) - 1, round(q * (len(values) - 1)))]

    return Latency(at(0.5), at(0.05), at(0.95), medians)
