"""Timing that can be compared: candidates interleaved in random order, medians with spread."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Microseconds of one call: median, and the quantiles at 5 % and 95 %."""

    p50_us: float
    p05_us: float
    p95_us: float


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int = 40, warmup: int = 3, seed: int = 0
) -> dict[str, Latency]:
    """Time every call `repeats` times, all of them in a new random order each round, so that a machine whose speed
    drifts treats them alike. Compare ratios within one result, not absolute times between two.
    """
    order = list(calls)
    shuffle = random.Random(seed).shuffle
    for call in calls.values():
        for _ in range(warmup):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            start = time.perf_counter_ns()
            calls[name]()
            times[name].append((time.perf_counter_ns() - start) / 1e3)
    return {name: _summary(sorted(values)) for name, values in times.items()}


def _summary(values: list[float]) -> Latency:
    def at(q: float) -> float:
        return values[min(len(values) - 1, round(q * (len(values) - 1)))]

    return Latency(at(0.5), at(0.05), at(0.95))
