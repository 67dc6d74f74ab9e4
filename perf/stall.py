"""The self-test of real-time mode: a call that stalls once for a known time, and what the figures must say of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hrt.perf.arrivals import Clock, Slice, serve
from hrt.perf.punctuality import Figures, summarise

STALL_S, SECONDS = 0.005, 2.0


@dataclass(frozen=True)
class Found:
    """What became of a stall. expected_us: the least latency of the stalled request and of those due meanwhile, by
    arithmetic.  seen_us: what was measured of the same requests.  figures: of the whole run.
    """

    expected_us: np.ndarray
    seen_us: np.ndarray
    figures: Figures

    @property
    def detected(self) -> bool:
        """Whether every request that was due during the stall carries its share of it."""
        return len(self.seen_us) == len(self.expected_us) and bool((self.seen_us >= self.expected_us).all())


def stalled(
    call: Callable[[int], object], at: int, seconds: float = STALL_S, sleep: Callable[[float], None] = time.sleep
) -> Callable[[int], object]:
    """`call`, but request `at` takes `seconds` longer."""

    def slow(k: int) -> object:
        if k == at:
            sleep(seconds)
        return call(k)

    return slow


def injected(rate: float, *, stall_s: float = STALL_S, seconds: float = SECONDS, clock: Clock | None = None) -> Found:
    """An empty call at `rate`, stalled once in the middle for `stall_s` by the clock's own sleep."""
    clock = clock or Clock()
    count = max(2, round(rate * seconds))
    at = count // 2
    call = stalled(lambda k: None, at, stall_s, clock.sleep)
    return judged(serve(call, rate, count, clock=clock, lead=min(count, 50)), at, stall_s)


def judged(stretch: Slice, at: int, stall_s: float) -> Found:
    """What `stretch` shows of a stall of `stall_s` in request `at`: those due j periods into it wait j periods less."""
    waits = stall_s * 1e6 - (stretch.due[at:] - stretch.due[at]) / 1e3
    expected = waits[waits > 0]
    seen = stretch.latency[at : at + len(expected)] / 1e3
    return Found(expected, seen, summarise("stalled empty call", [stretch]))


def self_test(rate: float, *, spin_us: float = 200.0) -> int:
    """Run it for real and print. Returns 0 where the stall was found, 1 where not."""
    found = injected(rate, clock=Clock(spin_ns=round(spin_us * 1e3)))
    f = found.figures
    shown = ", ".join(f"{v / 1e3:.2f}" for v in found.seen_us[:12])
    print(f"injected one stall of {1e3 * STALL_S:g} ms at {rate:g} requests a second for {SECONDS:g} s")
    print(f"requests due meanwhile: {len(found.expected_us)}, with latencies of {shown} ms")
    print(
        f"all {f.offered:,} requests: p50 {f.p50_us:,.0f} us, p99.9 {f.p999_us:,.0f} us, max {f.max_us:,.0f} us; "
        f"missed {f.missed}; longest queue {f.queue}"
    )
    print(f"a load that waits for every answer would have seen 1 slow call of {f.offered:,}")
    print("DETECTED" if found.detected else "NOT DETECTED: do not trust this harness here")
    return 0 if found.detected else 1
