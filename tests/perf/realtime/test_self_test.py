"""The self-test: a stall is found where there is one, never where there is none, and not judged in a storm."""

import numpy as np
import pytest
from fake_time import FakeTime

from hrt.perf.realtime import self_test as stall
from hrt.perf.realtime.command import main
from hrt.perf.realtime.open_loop import Slice, serve

MS = 1_000_000


class TestStall:
    @pytest.mark.parametrize("rate, count", [(100, 1), (1000, 5), (10_000, 50)])
    def test_is_found_on_an_injected_clock(self, rate, count):
        seen = stall.injected(rate, clock=FakeTime().clock(1000), seconds=0.5)
        assert seen.verdict == stall.DETECTED and len(seen.expected_us) == count and seen.by_chance == 0
        assert seen.figures.max_us == pytest.approx(5000, rel=0.01)
        assert seen.seen_us == pytest.approx(seen.expected_us, abs=5)

    def test_is_missed_by_a_load_that_waits_for_every_answer(self):
        s, control = self.run(FakeTime(), 0.005), self.run(FakeTime(), 0.0)
        closed = Slice(s.due, s.begun, s.due + (s.done - s.begun), s.closed, s.period)  # from when a call began
        assert stall.judged(closed, 50, 0.005, control).verdict == stall.NOT_DETECTED
        assert stall.judged(s, 50, 0.005, control).verdict == stall.DETECTED

    def run(self, time, seconds, at=50):
        call = stall.stalled(lambda k: None, at, seconds, time.sleep) if seconds else lambda k: None
        return serve(call, 1000, 200, clock=time.clock())

    @staticmethod
    def later(s, nanoseconds):
        """`s` on a machine that begins each request so much later; calls take as long as they did."""
        return Slice(s.due, s.begun + nanoseconds, s.done + nanoseconds, s.closed + int(np.max(nanoseconds)), s.period)

    @pytest.mark.parametrize("disturbed", ["both", "control", "stretch"])
    @pytest.mark.parametrize("seconds", [0.0, 0.005])
    def test_that_the_machine_hides_is_not_judged(self, disturbed, seconds):
        s, control = self.run(FakeTime(), seconds), self.run(FakeTime(), 0.0)
        s = self.later(s, 0 if disturbed == "control" else 30 * MS)
        control = self.later(control, 0 if disturbed == "stretch" else 30 * MS)
        assert stall.judged(s, 50, 0.005, control).verdict == stall.TOO_DISTURBED

    def test_stands_out_from_what_is_late_by_less(self):
        s, control = (self.later(self.run(FakeTime(), seconds), 4 * MS) for seconds in (0.005, 0.0))
        assert stall.judged(s, 50, 0.005, control).verdict == stall.DETECTED
        assert stall.judged(control, 50, 0.005, control).verdict == stall.NOT_DETECTED

    def test_is_never_found_where_none_was_injected(self):
        calm, generator, verdicts = self.run(FakeTime(), 0.0), np.random.default_rng(0), set()
        for _ in range(300):
            held = np.zeros((2, 200), np.int64)  # machines that stand still now and then, just before request 50, too
            for row in held:
                for at in (*generator.integers(0, 200, generator.integers(0, 4)), *generator.choice([50, 199], 1)):
                    row[at:] = np.maximum(row[at:], generator.integers(0, 40 * MS) - MS * np.arange(200 - at))
            s, control = (self.later(calm, row) for row in held)
            verdicts.add(stall.judged(s, 50, 0.005, control).verdict)
        assert verdicts == {stall.NOT_DETECTED, stall.TOO_DISTURBED}

    def test_is_found_for_real(self, capsys):
        status, printed = stall.self_test(500), capsys.readouterr().out
        if status == 3:
            pytest.skip(printed.splitlines()[-1])
        assert status == 0 and printed.splitlines()[-1] == "DETECTED"

    def test_the_status_is_the_verdict(self, monkeypatch, capsys):
        def late(*args, **kwargs):
            return self.later(serve(*args, **kwargs), 30 * MS)

        monkeypatch.setattr(stall, "serve", late)
        assert main(["--self-test", "--rate", "500"]) == 3 and "TOO DISTURBED" in capsys.readouterr().out
        monkeypatch.setattr(stall, "serve", serve)
        monkeypatch.setattr(stall, "stalled", lambda call, *_: call)
        assert main(["--self-test", "--rate", "500"]) in (1, 3)
        assert capsys.readouterr().out.splitlines()[-1] != "DETECTED"
