"""The self-test of real-time mode: a call that stalls once for a known time, and what the figures must say of it,
beside the same call without a stall on the same machine.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hrt.perf.realtime.latencies import Figures, shown, summarise
from hrt.perf.realtime.open_loop import Clock, Slice, serve

STALL_S, SECONDS = 0.005, 2.0
BY_CHANCE = 0.05  # share of requests without a stall that may look stalled; above it "detected" says nothing
DETECTED, NOT_DETECTED, TOO_DISTURBED = "DETECTED", "NOT DETECTED", "TOO DISTURBED to judge"
STATUS = {DETECTED: 0, NOT_DETECTED: 1, TOO_DISTURBED: 3}  # of the command; 2 is a mistake of whoever asks


@dataclass(frozen=True)
class Stall:
    """What became of a stall. expected_us: the least latency of the stalled request and of those due meanwhile.
    seen_us: what was measured of them.  call_us: how long the stalled call took.  by_chance: share of the other
    requests, in this run or in the one without a stall, that were as late.  figures: of the whole run.
    """

    expected_us: np.ndarray
    seen_us: np.ndarray
    call_us: float
    stall_us: float
    by_chance: float
    figures: Figures

    @property
    def verdict(self) -> str:
        """DETECTED: every request that was due during the stall carries its share of it, and the call lasted as long.
        TOO_DISTURBED: requests are so late anyway that a stall would not stand out.
        """
        if self.by_chance > BY_CHANCE:
            return TOO_DISTURBED
        all_seen = len(self.seen_us) == len(self.expected_us) and bool((self.seen_us >= self.expected_us).all())
        return DETECTED if all_seen and self.call_us >= self.stall_us else NOT_DETECTED


def stalled(
    call: Callable[[int], object], at: int, seconds: float = STALL_S, sleep: Callable[[float], None] = time.sleep
) -> Callable[[int], object]:
    """`call`, but request `at` takes `seconds` longer."""

    def slow(k: int) -> object:
        if k == at:
            sleep(seconds)
        return call(k)

    return slow


def injected(rate: float, *, stall_s: float = STALL_S, seconds: float = SECONDS, clock: Clock | None = None) -> Stall:
    """An empty call at `rate`, as it is, then stalled once in the middle for `stall_s` by the clock's own sleep."""
    clock = clock or Clock()
    count = max(2, round(rate * seconds))
    at = count // 2
    calls = (lambda k: None, stalled(lambda k: None, at, stall_s, clock.sleep))
    control, stretch = (serve(call, rate, count, clock=clock, lead=min(count, 50)) for call in calls)
    return judged(stretch, at, stall_s, control)


def judged(stretch: Slice, at: int, stall_s: float, control: Slice) -> Stall:
    """What `stretch` shows of a stall of `stall_s` in request `at`: those due j periods into it wait j periods less.
    control: the same without a stall.
    """
    waits = stall_s * 1e6 - (stretch.due[at:] - stretch.due[at]) / 1e3
    expected = waits[waits > 0]
    behind = slice(at, at + len(expected))
    # One after the other: whoever waits a whole stall has all who come meanwhile wait their share, too.
    late = (s >= stall_s * 1e9 for s in (control.latency, np.delete(stretch.latency, behind)))
    return Stall(
        expected_us=expected,
        seen_us=stretch.latency[behind] / 1e3,
        call_us=float(stretch.done[at] - stretch.begun[at]) / 1e3,
        stall_us=stall_s * 1e6,
        by_chance=max(float(v.mean()) if len(v) else 0.0 for v in late),
        figures=summarise("stalled empty call", [stretch]),
    )


def self_test(rate: float, *, spin_us: float = 200.0) -> int:
    """Run it for real and print. Returns the verdict's STATUS."""
    stall = injected(rate, clock=Clock(spin_ns=round(spin_us * 1e3)))
    f = stall.figures
    seen = ", ".join(f"{v / 1e3:.2f}" for v in stall.seen_us[:12])
    print(f"injected one stall of {1e3 * STALL_S:g} ms at {rate:g} requests a second for {SECONDS:g} s")
    print(f"requests due meanwhile: {len(stall.expected_us)}, with latencies of {seen} ms")
    print(f"as late without a stall: {stall.by_chance:.1%} of the requests, at most {BY_CHANCE:.0%} may be")
    print(
        f"all {f.offered:,} requests: p50 {shown(f.p50_us)} us, p99.9 {shown(f.p999_us)} us, max {shown(f.max_us)} us; "
        f"missed {f.missed}; longest queue {f.queue}"
    )
    print(f"a load that waits for every answer would have seen 1 slow call of {f.offered:,}")
    advice = {NOT_DETECTED: ": do not trust this harness here"}
    advice[TOO_DISTURBED] = ": others use these cores, or the rate is too high for this loop; test again"
    print(stall.verdict + advice.get(stall.verdict, ""))
    return STATUS[stall.verdict]
