"""Real-time mode: what a stall does to those who come meanwhile, on injected clocks; short runs of the real thing."""

import asyncio
import gc
import json
import math
import sys
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import hrt
from hrt.errors import BackendError, InputError
from hrt.export.onnx.exporter import to_onnx
from hrt.export.servers.open_inference import HEADER, Signature, Tensor, read_request, write_response
from hrt.perf.measuring.gc_watch import CollectorWatch
from hrt.perf.measuring.results import FAILED, FAMILIES, read
from hrt.perf.realtime import command as realtime
from hrt.perf.realtime import self_test as stall
from hrt.perf.realtime import server as realtime_server
from hrt.perf.realtime.command import Options, interleaved, main, measure
from hrt.perf.realtime.latencies import decoded, run_lengths, summarise
from hrt.perf.realtime.open_loop import NS, UNSERVED, Clock, Slice, schedule, serve
from hrt.perf.realtime.server_load import Question, Server
from hrt.perf.realtime.subjects import questions

from helpers import answering

MS = 1_000_000


class FakeTime:
    """A clock that moves when it is asked (10 ns) and when somebody sleeps (by `late` seconds too long)."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late, self.slept = 0, late, 0

    def tell(self) -> int:
        self.now += 10
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += 1
        self.now += round((seconds + self.late) * NS)

    def clock(self, spin_ns: int = 200_000) -> Clock:
        return Clock(self.tell, self.sleep, spin_ns)


def busy(time: FakeTime, seconds: float, at: dict[int, float] | None = None):
    def call(k: int) -> None:
        time.now += round((at or {}).get(k, seconds) * NS)

    return call


class TestArrivals:
    def test_are_due_by_the_clock_whatever_the_rate(self):
        due = schedule(3.0, 3001, 7)
        assert due[0] == 7 and due[-1] == 7 + 1000 * NS and set(np.diff(due)) == {333333333, 333333334}

    @pytest.mark.parametrize("rate, count", [(0, 1), (-1, 1), (float("nan"), 1), (1e9, 1), (1, 0)])
    def test_that_make_no_sense_are_refused(self, rate, count):
        with pytest.raises(InputError, match="Expected"):
            schedule(rate, count, 0)

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
        (row,) = realtime.results("net", Options(), [f]).rows
        assert row.status == FAILED and row.p50_us is None and "NOTHING SERVED" in row.note

    @pytest.mark.parametrize("text", ["", "x", "HISTFAAAAA", "é", "AAAA" * 100])
    def test_a_histogram_that_is_none(self, text):
        with pytest.raises(InputError, match="histogram"):
            decoded(text)

    def test_a_missing_library_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
        with pytest.raises(BackendError, match="pip install hdrhistogram"):
            summarise("x", [self.slice([1])])

    @pytest.mark.parametrize("bad, runs", [("", []), ("0", []), ("1", [1]), ("0110111", [2, 3]), ("111", [3])])
    def test_runs_of_misses(self, bad, runs):
        assert run_lengths(np.array([c == "1" for c in bad], bool)) == runs


class TestStall:
    @pytest.mark.parametrize("rate, count", [(100, 1), (1000, 5), (10_000, 50)])
    def test_is_found_on_an_injected_clock(self, rate, count):
        found = stall.injected(rate, clock=FakeTime().clock(1000), seconds=0.5)
        assert found.verdict == stall.DETECTED and len(found.expected_us) == count and found.by_chance == 0
        assert found.figures.max_us == pytest.approx(5000, rel=0.01)
        assert found.seen_us == pytest.approx(found.expected_us, abs=5)

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
        status, said = stall.self_test(500), capsys.readouterr().out
        if status == 3:
            pytest.skip(said.splitlines()[-1])
        assert status == 0 and said.splitlines()[-1] == "DETECTED"

    def test_the_status_is_the_verdict(self, monkeypatch, capsys):
        def late(*args, **kwargs):
            return self.later(serve(*args, **kwargs), 30 * MS)

        monkeypatch.setattr(stall, "serve", late)
        assert main(["--self-test", "--rate", "500"]) == 3 and "TOO DISTURBED" in capsys.readouterr().out
        monkeypatch.setattr(stall, "serve", serve)
        monkeypatch.setattr(stall, "stalled", lambda call, *_: call)
        assert main(["--self-test", "--rate", "500"]) in (1, 3)
        assert capsys.readouterr().out.splitlines()[-1] != "DETECTED"


def test_collections_are_counted_and_can_be_kept_off():
    assert gc.isenabled()
    with CollectorWatch() as seen:
        gc.collect()
    assert seen.found.count == 1 and seen.found.longest_us > 0
    with CollectorWatch(off=True):
        assert not gc.isenabled()
    assert gc.isenabled() and not any(getattr(c, "__self__", None) is seen for c in gc.callbacks)


def test_subjects_take_turns_under_the_same_arrivals():
    time = FakeTime()
    names = ["a", "b", "c"]
    turns = list(
        interleaved(
            {n: busy(time, 1e-5) for n in names},
            Options(rate=100, seconds=3.5),
            time.clock(),
            {n: CollectorWatch() for n in names},
        )
    )
    assert [sorted(n for n, _ in turns[k : k + 3]) for k in range(0, len(turns), 3)] == [names] * (len(turns) // 3)
    assert {n: sum(len(s.due) for m, s in turns if m == n) for n in names} == dict.fromkeys(names, 350)
    assert len({tuple(n for n, _ in turns[k : k + 3]) for k in range(0, len(turns), 3)}) > 1


@pytest.mark.parametrize(
    "bad",
    [
        {"seconds": 0},
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


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 24), torch.nn.Tanh(), torch.nn.Linear(24, 2)).eval()
    path = tmp_path_factory.mktemp("realtime") / "net.hrt"
    hrt.compress(net, tol=1e-2, progress=False).save(path)
    return path


class TestCommand:
    def test_measures_and_writes_what_the_harness_reads(self, artifact, tmp_path, capsys):
        out = tmp_path / "figures.json"
        assert main([str(artifact), "--rate", "200", "--seconds", "0.3", "--json", str(out)]) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in ("hrt", "dense, ONNX Runtime", "dense, torch eager", "empty call"))
        found = read(out)
        assert {r.family for r in found.rows} <= set(FAMILIES) and len(found.rows) == 3
        assert all(r.calls == 60 and r.workload == "net, open loop at 200/s" for r in found.rows)
        assert len(found.samples) == 3 and len(found.facts["realtime"]) == 4
        assert all(decoded(f["histogram"]) for f in found.facts["realtime"])

    def test_takes_the_network_that_the_file_came_from(self, artifact, tmp_path, capsys):
        hrt.export_onnx(artifact, tmp_path / "net.onnx")
        assert main([str(artifact), "--net", str(tmp_path / "net.onnx"), "--rate", "100", "--seconds", "0.1"]) == 0
        assert "dense, torch eager" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments, said",
        [
            ([], "Found no network"),
            (["missing.hrt"], "missing.hrt"),
            (["{net}", "--rate", "0"], "rate of 0"),
            (["{net}", "--seconds", "-1"], "seconds"),
            (["{net}", "--inputs", "missing.npy"], "missing.npy"),
            (["{net}", "--net", "torch.nn:Identity", "--seconds", "0.1"], "Expected"),
            (["{net}", "--http", "127.0.0.1:9"], "No server answers at 127.0.0.1:9 (http)"),
            *(
                (["{net}", f"--{k}", v], f"{a} of {v}")
                for k, a in (("rate", "rate"), ("deadline-us", "deadline"), ("spin-us", "spin"))
                for v in ("nan", "inf")
            ),
            (["--self-test", "--rate", "nan"], "rate of nan"),
            (["--self-test", "--rate", "1e-9"], "Expected at least one request"),
            (["--self-test", "--spin-us", "inf"], "spin of inf"),
            *(
                (["{net}", f"--{k}", a], "Expected HOST:PORT")
                for k in ("http", "grpc")
                for a in ("http://x:y/z", "x:y", "", "x", "x:0", "x:65536", "x:80/z", "[x]:1")
            ),
            (["{net}", "--grpc", "127.0.0.1:9"], "No server answers at 127.0.0.1:9 (grpc)"),
        ],
    )
    def test_a_mistake_is_one_line_and_status_2(self, artifact, arguments, said, capsys):
        assert main([a.format(net=artifact) for a in arguments]) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and error.count("\n") == 1

    @pytest.mark.parametrize("name", ["", "net.hrt/figures.json", "/proc/figures.json"])
    def test_figures_that_cannot_be_written_are_refused_before_measuring(
        self, artifact, name, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(realtime, "measure", lambda *_, **__: pytest.fail("measured"))
        (tmp_path / "net.hrt").write_bytes(b"")
        assert main([str(artifact), "--json", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "folder" in error or "cannot be written" in error

    @pytest.mark.parametrize("arguments", [["{net}"], ["--self-test"]])
    def test_a_missing_library_is_said_before_measuring(self, artifact, arguments, monkeypatch, capsys):
        monkeypatch.setattr(realtime, "measure", lambda *_, **__: pytest.fail("measured"))
        monkeypatch.setattr(stall, "serve", lambda *_, **__: pytest.fail("measured"))
        monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
        assert main([a.format(net=artifact) for a in arguments]) == 2
        assert "pip install hdrhistogram" in capsys.readouterr().err

    def test_ctrl_c_keeps_the_turns_until_then(self, artifact, monkeypatch, capsys):
        calls = {"n": 0}

        def stopped(_):
            calls["n"] += 1
            if calls["n"] > 150:
                raise KeyboardInterrupt

        monkeypatch.setattr(realtime, "in_process", lambda *_: {"hrt": stopped})
        found = measure(artifact, Options(rate=100, seconds=5))
        assert 1 <= len(found) <= 2 and all(f.offered % 100 == 0 and f.served for f in found)
        assert "interrupted" in capsys.readouterr().err

    def test_a_disturbed_machine_is_said_so(self):
        time = FakeTime()
        bad = summarise("empty call", [serve(busy(time, 1e-6, {3: 0.05}), 1000, 100, clock=time.clock())])
        assert any("TOO DISTURBED" in line for line in realtime.remarks([bad]))

    def test_rows_from_a_file_in_turn(self, artifact):
        program = hrt.load(artifact, backend="torch").program
        found = questions(program, 2, np.arange(18.0).reshape(3, 6))
        assert found[1][0].shape == (2, 6) and found[1][0][0, 0] == 12 and found[1][0][1, 0] == 0
        with pytest.raises(InputError):
            questions(program, 1, np.zeros((3, 5)))

    @pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e300])
    def test_rows_that_are_not_finite_are_refused(self, artifact, bad, tmp_path, capsys):
        rows = np.zeros((5, 6))
        rows[3, 2] = bad
        np.save(tmp_path / "rows.npy", rows)
        assert main([str(artifact), "--inputs", str(tmp_path / "rows.npy"), "--seconds", "0.1"]) == 2
        assert "1 of 5 rows" in capsys.readouterr().err


@contextmanager
def served(model, *, live=True, ready="m", wrong=False):
    graph = to_onnx(model).graph
    sides = (
        tuple(Tensor(v.name, tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:])) for v in side)
        for side in (graph.input, graph.output)
    )
    known = Signature(*sides)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, headers, text):
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(text))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self):
            good = live if self.path.endswith("/live") else f"/{ready}/" in self.path
            self.answer(200 if good else 400, {}, b"")

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = read_request(body, self.headers.get(HEADER), known)
            y = model.predict(request.inputs)
            outputs = [v * (1.5 if wrong else 1) for v in (y if isinstance(y, tuple) else (y,))]
            text, headers = write_response("m", request, outputs, known)
            self.answer(200, headers, text)

    with answering(Handler) as address:
        yield address


class TestServer:
    def test_is_asked_by_the_clock(self, artifact, capsys, tmp_path):
        out = tmp_path / "served.json"
        with served(hrt.load(artifact, backend="torch")) as address:
            arguments = [str(artifact), "--http", address, "--name", "m", "--rate", "50", "--seconds", "0.4"]
            assert main([*arguments, "--json", str(out)]) == 0
        assert "server, http" in capsys.readouterr().out
        (row,) = read(out).rows
        assert row.calls == 20 and row.p50_us and read(out).facts["realtime"][0]["failed"] == 0

    @pytest.mark.parametrize(
        "state, said",
        [({"live": False}, "not live"), ({"ready": "other"}, "no model 'm'"), ({"wrong": True}, "otherwise")],
    )
    def test_that_is_not_as_expected_is_said_so(self, artifact, state, said, capsys):
        with served(hrt.load(artifact, backend="torch"), **state) as address:
            assert main([str(artifact), "--http", address, "--name", "m", "--seconds", "0.1"]) == 2
        assert said in capsys.readouterr().err

    @pytest.mark.parametrize("error, agrees", [(1e-7, True), (1e-4, False)])
    def test_one_row_near_zero_is_judged_by_the_outputs_at_large(self, error, agrees):
        expected = [np.full((1, 1), value, np.float32) for value in (1.0, -0.5, 1e-4)]
        asked = [Question({}, {"y": y}) for y in expected]

        async def ask(k):
            return SimpleNamespace(as_numpy=lambda name: expected[k] + np.float32(error))

        server = Server("127.0.0.1:1", "http", "m")
        if agrees:
            asyncio.run(realtime_server._agree(ask, server, asked))
            return
        with pytest.raises(BackendError, match="otherwise than predict"):
            asyncio.run(realtime_server._agree(ask, server, asked))

    def test_requests_do_not_wait_for_one_another(self):
        done = []

        async def ask(k):
            if k == 3:
                while 19 not in done:  # a request that comes long after it
                    await asyncio.sleep(0.001)
            done.append(k)
            if k == 5:
                raise ConnectionError("gone")

        errors: list[str] = []
        s = asyncio.run(realtime_server.serve(ask, 200, 20, errors=errors))
        assert done[-1] == 3 and s.begun[19] < s.done[3] and s.answered.sum() == 19
        assert s.failed.nonzero()[0].tolist() == [5] and errors == ["ConnectionError: gone"]
        assert s.queue >= 2

    def test_requests_without_an_answer_count_what_they_waited(self):
        async def ask(k):
            await asyncio.sleep(60 if k == 0 else 0)

        s = asyncio.run(realtime_server.serve(ask, 200, 10, grace=0.1))
        assert s.done[0] == UNSERVED and s.latency[0] > 0.1 * NS and s.answered.sum() == 9
        assert json.loads(json.dumps(summarise("x", [s]).missed)) >= 1
