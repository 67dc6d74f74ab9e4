"""`python -m hrt.perf.studies.cpu` and the bursts it times with: answers first, losses shown, ratios with intervals."""

import json

import numpy as np
import pytest
import torch

import hrt
from hrt.perf.measuring import bursts as measure
from hrt.perf.measuring.bursts import Latency, bursts
from hrt.perf.networks.operators import log_kernel, operator_network
from hrt.perf.studies import cpu


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE_S", 0.0)


class TestBursts:
    def test_every_call_is_made_as_often_in_every_round(self, at_once):
        made: list[str] = []
        calls = {name: (lambda name=name: made.append(name)) for name in "abc"}
        found = bursts(calls, rounds=4, calls_each=5, warmup=2)
        assert {name: made.count(name) for name in "abc"} == dict.fromkeys("abc", 4 * 7)
        assert all(
            len(latency.medians) == 4 and latency.p05_us <= latency.p50_us <= latency.p95_us
            for latency in found.values()
        )
        orders = {tuple(made[k : k + 21 : 7]) for k in range(0, len(made), 21)}
        assert len(orders) > 1, "the order changes from round to round"

    def test_medians_by_a_clock_that_is_known(self, at_once):
        now = [0]

        def takes(us: int):
            def call() -> None:
                now[0] += us * 1000

            return call

        calls = {"fast": takes(10), "slow": takes(12)}
        found = bursts(calls, rounds=3, calls_each=4, clock=lambda: now[0])
        assert (found["fast"].p50_us, found["slow"].p50_us) == (10, 12)
        assert found["slow"].ratio_interval(found["fast"]) == pytest.approx((1.2, 1.2))

    def test_the_interval_covers_the_ratio_as_often_as_it_says(self):
        rng, inside = np.random.default_rng(0), 0
        for seed in range(200):
            a, b = (tuple(rng.lognormal(np.log(centre), 0.2, 21)) for centre in (30.0, 20.0))
            low, high = Latency(0, 0, 0, a).ratio_interval(Latency(0, 0, 0, b), draws=400, seed=seed)
            inside += low <= 1.5 <= high
        assert inside >= 180, inside


class TestTheTable:
    def test_checks_times_and_writes(self, at_once, tmp_path, capsys, monkeypatch):
        before = torch.get_num_threads()
        arguments = [
            "cpu",
            "--case",
            "log",
            "--size",
            "128",
            "--batch",
            "1",
            "20",
            "--rounds",
            "2",
            "--threads",
            "1",
            "--json",
        ]
        monkeypatch.setattr("sys.argv", [*arguments, str(tmp_path / "out" / "cpu.json")])
        try:
            assert cpu.main() == 0
        finally:
            torch.set_num_threads(before)
        found = json.loads((tmp_path / "out" / "cpu.json").read_text())
        assert found["threads"] == 1 and found["versions"]["onnxruntime"]
        rows = {(r["batch"], r["method"]): r for r in found["rows"]}
        assert {b for b, _ in rows} == {1, 20} and {"torch", "ONNX Runtime", "hrt"} <= {m for _, m in rows}
        for (batch, method), r in rows.items():
            limit = 1e-3 if method.startswith("hrt") else 1e-5
            assert r["note"] or r["error"] <= limit, (batch, method)
            dense = [m for m in cpu.DENSE if (batch, m) in rows and not rows[batch, m]["note"]]
            assert rows[batch, min(dense, key=lambda m: rows[batch, m]["p50_us"])]["ratio"] == 1
            assert r["note"] or r["low"] <= r["ratio"] <= r["high"]
        assert "128" in (tmp_path / "out" / "cpu.json").read_text() and "best dense / this" in capsys.readouterr().out

    def test_an_answer_outside_the_tolerance_is_a_failure(self, at_once, monkeypatch):
        net = operator_network(log_kernel(64))
        wrong = hrt.compress(operator_network(2 * log_kernel(64)), tol=1e-3, progress=False)
        x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
        rows = cpu.measure("log", net, wrong, x, [2], 1, 1)
        assert all(r.error > 0.5 for r in rows if r.method.startswith("hrt"))
        monkeypatch.setattr(cpu, "measure", lambda *_: rows)
        monkeypatch.setattr(cpu, "operator", lambda *_: (net, x, wrong))
        monkeypatch.setattr("sys.argv", ["cpu", "--case", "log", "--threads", str(torch.get_num_threads())])
        assert cpu.main() == 1
