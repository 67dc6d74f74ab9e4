"""Turns of arrivals as figures: quantiles, misses, verdicts, and the histogram that is drawn."""

import json
from dataclasses import replace

import numpy as np
import pytest
from fake_time import FakeTime, busy

from hrt.errors import InputError
from hrt.perf.measuring.results import FAILED
from hrt.perf.realtime.command import results
from hrt.perf.realtime.latencies import decoded, run_lengths, summarise
from hrt.perf.realtime.open_loop import NS, UNSERVED, Options, Slice, schedule, serve

MS = 1_000_000


class TestFigures:
    def slice(self, latency, failed=None):
        due = schedule(1000, len(latency), 1000)
        done = due + np.array(latency, np.int64)
        return Slice(due, due.copy(), done, int(done.max()), NS / 1000, np.array(failed or [False] * len(latency)))

    def test_failures_are_misses_and_no_latencies(self):
        f = summarise("x", [self.slice([100, 100, 100, 9 * MS], [False, False, True, True])])
        assert (f.failed, f.missed, f.served) == (2, 2, 2) and f.max_us == pytest.approx(0.1)

    def test_where_everything_failed_there_is_a_reason_and_no_quantile(self):
        f = summarise("x", [self.slice([1, 1], [True, True])], note="no route")
        assert "no route" in f.verdict and f.p50_us is f.max_us is None and f.missed == 2
        json.dumps(vars(f), allow_nan=False)

    def test_of_nothing_are_refused(self):
        with pytest.raises(InputError, match="nothing to report"):
            summarise("x", [])

    def test_a_deadline_of_its_own(self):
        assert summarise("x", [self.slice([100, 3 * MS])], deadline_us=4000).missed == 0

    def test_slices_are_pooled(self):
        f = summarise("x", [self.slice([100] * 10), self.slice([5 * MS] * 10)])
        assert f.offered == 20 and f.missed == 10 and f.medians_us == (0.1, 5000.0)

    def test_quantiles_agree_with_the_requests_to_three_digits(self):
        latency = np.random.default_rng(0).lognormal(12, 1, 20_000).astype(np.int64)
        f = summarise("x", [self.slice(latency)])
        points = decoded(f.histogram)
        for q, found in points:  # a bin is 1 / 1000 wide, and the requests' ranks are whole
            assert np.quantile(latency, q, method="lower") / 1e3 * 0.998 <= found
            assert found <= np.quantile(latency, q, method="higher") / 1e3
        assert points == sorted(points) and f.p999_us < points[-1][1] <= f.max_us

    @pytest.mark.parametrize("count", [1, 50, 199, 200, 1999, 2000])
    def test_quantiles_need_requests_enough_and_stay_below_the_maximum(self, count):
        f = summarise("x", [self.slice([123_457_123] * count)])  # which three digits do not hold
        assert (f.p99_us is not None) == (count >= 200) and (f.p999_us is not None) == (count >= 2000)
        assert (f.call_p999_us is None) == (f.p999_us is None) and f.max_us == 123_457.123
        assert all(v is None or v <= f.max_us for v in (f.p50_us, f.p95_us, f.p99_us, f.p999_us))
        assert max(us for _, us in decoded(f.histogram)) <= f.max_us
        assert json.loads(json.dumps(vars(f), allow_nan=False))["p999_us"] == f.p999_us

    def test_a_verdict_names_no_figure_that_is_not_known(self):
        due = schedule(1000, 10, 0)
        begun = due + 50 * MS  # behind one another from the first on, but for calls of 10 us
        s = Slice(due, begun, np.where(np.arange(10) < 9, begun + 10_000, UNSERVED), int(begun[-1]), NS / 1000)
        f = replace(summarise("x", [s]), jitter_max_us=None)
        assert "held them up" in f.verdict and "once" not in f.verdict and "-" not in f.verdict

    def test_where_nothing_was_served_the_verdict_says_so(self):
        time = FakeTime()
        s = serve(busy(time, 3.0), 1000, 20, clock=time.clock(0), lead=5)  # the lead alone takes longer than the turn
        f = summarise("hrt", [s])
        assert f.served == 0 and f.verdict.startswith("NOTHING SERVED of 20 requests") and "nan" not in f.verdict
        (row,) = results("net", Options(), [f]).rows
        assert row.status == FAILED and row.p50_us is None and "NOTHING SERVED" in row.note

    @pytest.mark.parametrize("text", ["", "x", "HISTFAAAAA", "é", "AAAA" * 100])
    def test_a_histogram_that_is_none(self, text):
        with pytest.raises(InputError, match="histogram"):
            decoded(text)

    @pytest.mark.parametrize("bad, runs", [("", []), ("0", []), ("1", [1]), ("0110111", [2, 3]), ("111", [3])])
    def test_runs_of_misses(self, bad, runs):
        assert run_lengths(np.array([c == "1" for c in bad], bool)) == runs
