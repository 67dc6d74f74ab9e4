"""Arrivals by the clock, on injected clocks: what a stall does to those who come meanwhile."""

import math

import numpy as np
import pytest
from fake_time import FakeTime, busy

from hrt.errors import InputError
from hrt.perf.realtime.latencies import summarise
from hrt.perf.realtime.open_loop import NS, UNSERVED, Options, schedule, serve

MS = 1_000_000


class TestArrivals:
    def test_are_due_by_the_clock_whatever_the_rate(self):
        due = schedule(3.0, 3001, 7)
        assert due[0] == 7 and due[-1] == 7 + 1000 * NS and set(np.diff(due)) == {333333333, 333333334}

    def test_of_a_call_that_is_quick_enough(self):
        time = FakeTime()
        s = serve(busy(time, 0.0003), 1000, 100, clock=time.clock())
        f = summarise("x", [s])
        assert (f.missed, f.queue, f.offered, f.served, f.spells) == (0, 1, 100, 100, 0)
        assert f.p50_us == pytest.approx(300, rel=0.01) and f.max_us < 302 and f.jitter_max_us < 1
        assert f.sustained and f.achieved == pytest.approx(1000, rel=0.02)
        assert time.slept == 100

    def test_a_stall_is_in_the_figures_of_all_who_were_due_meanwhile(self):
        time = FakeTime()
        s = serve(busy(time, 1e-5, {50: 0.005}), 1000, 100, clock=time.clock())
        f = summarise("x", [s])
        late = s.latency[50:56] / MS
        assert late == pytest.approx([5, 4.01, 3.02, 2.03, 1.04, 0.05], abs=0.003)
        assert (f.missed, f.spells, f.longest_spell, f.queue) == (5, 1, 5, 6)
        assert (
            f.p95_us > 50 > f.p50_us and np.percentile(s.latency, 99) > 4 * MS
        )  # 5 of 100 requests are late, where the calls alone know of one
        assert np.sum((s.done - s.begun) > MS) == 1
        assert len(s.jitter) == 95 and f.jitter_max_us < 1  # waiting behind a stall is not jitter

    def test_a_rate_that_cannot_be_sustained_is_said_so(self):
        time = FakeTime()
        s = serve(busy(time, 0.002), 1000, 2000, clock=time.clock(), grace=0.5)
        f = summarise("x", [s])
        assert not f.sustained and f.served == pytest.approx(1250, abs=3) and f.offered == 2000
        assert f.achieved == pytest.approx(500, rel=0.01)
        assert f.missed == 2000 and f.queue > 700
        unserved = s.done == UNSERVED
        assert (s.latency[unserved] > 0.49 * NS).all() and f.max_us > 1.2e6
        assert "NOT SUSTAINED" in f.verdict and "achieved 500" in f.verdict and "2,000 us" in f.verdict

    def test_a_machine_that_stands_still_is_not_blamed_on_the_call(self):
        time = FakeTime(late=0.003)
        f = summarise("x", [serve(busy(time, 1e-5), 1000, 200, clock=time.clock(), grace=0.0)])
        assert f.jitter_max_us > 2500 and f.call_p50_us < 11

    @pytest.mark.parametrize("spin_ns, lateness", [(200_000, 0), (0, 100)])
    def test_spinning_takes_up_what_sleep_adds(self, spin_ns, lateness):
        time = FakeTime(late=1e-4)
        f = summarise("x", [serve(busy(time, 1e-5), 1000, 100, clock=time.clock(spin_ns))])
        assert f.jitter_p50_us == pytest.approx(lateness, abs=1)

    def test_arrivals_that_lead_in_do_not_count(self):
        time, seen = FakeTime(), []
        s = serve(seen.append, 1000, 10, clock=time.clock(), lead=5)
        assert seen == list(range(-5, 10)) and len(s.due) == len(s.done) == 10


@pytest.mark.parametrize(
    "bad",
    [
        {"seconds": 0},
        {"rate": 1e9},
        {"seconds": 1e9},
        {"batch": 0},
        {"threads": 0},
        *({k: v} for k in ("rate", "seconds", "deadline_us", "spin_us") for v in (-1, math.nan, math.inf)),
        {"rate": 0.1, "seconds": 5},
        {"spin_us": 1e12},
        {"deadline_us": 0},
    ],
)
def test_options_that_make_no_sense(bad):
    with pytest.raises(InputError, match="Expected"):
        Options(**bad)


def test_turns_give_every_subject_the_same_requests_in_changing_order():
    names = ["a", "b", "c"]
    turns = list(Options(rate=100, seconds=3.5).turns(names))
    rounds = [tuple(n for n, _ in turns[k : k + 3]) for k in range(0, len(turns), 3)]
    assert [sorted(r) for r in rounds] == [names] * len(rounds) and len(set(rounds)) > 1
    assert {n: sum(count for m, count in turns if m == n) for n in names} == dict.fromkeys(names, 350)
