"""The GPU harness where there is no GPU: it says so, and on Triton's interpreter all of it runs but the clock."""

import json
import os
import subprocess
import sys

import pytest
import torch

from hrt.perf.bench import gpu_layers as gpu
from hrt.perf.measuring import gpu_timing as device
from hrt.perf.measuring.provenance import commit, versions

ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_nothing_is_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hrt.perf.bench.gpu_layers", "--out", str(tmp_path / "x")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
    )
    assert done.returncode == 2 and not (tmp_path / "x").exists()
    assert done.stderr == "hrt.perf.bench.gpu_layers: torch sees no CUDA device here. Nothing was measured.\n"


def test_every_row_is_checked_and_kept(tmp_path, monkeypatch, capsys):
    """One small layer in both precisions and the PINN, at two batch sizes; times of the interpreter say nothing."""
    monkeypatch.setattr(gpu, "REPEATS", 1)
    small = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    monkeypatch.setattr(gpu, "load_burgers", lambda: small)
    monkeypatch.setattr(gpu, "copies_for", lambda *_: 2)
    out = tmp_path / "results"
    assert gpu.main(["--size", "64", "--kernel", "log", "--batch", "1", "16", "--out", str(out)]) == 0
    document = json.loads((out / "gpu-64.json").read_text())
    rows = document["rows"]
    layers = [r for r in rows if r["workload"] == "log"]
    assert {(r["precision"], r["batch"], r["method"]) for r in layers} == {
        (p, b, m) for p in ("bf16", "tf32") for b in (1, 16) for m in ("hrt", "dense linear")
    }
    assert {r["method"] for r in rows if r["workload"] == "burgers"} >= {"hrt step", "hrt network", "dense linear"}
    for r in rows:
        assert r["p05_us"] <= r["p50_us"] <= r["p95_us"] and r["floor_us"] > 0
        assert r["roofline_fraction"] == pytest.approx(r["floor_us"] / r["p50_us"])
    for r in layers:
        if r["method"] == "hrt":
            assert 0 < r["error"] < (2e-2 if r["precision"] == "bf16" else 2e-3)
        else:
            assert r["ratio_vs_best_dense"] == 1.0
    assert document["commit"] == commit() and document["versions"] == versions()
    assert "interpreter" in document["gpu"]["name"], "no figure of this file may be taken for a GPU's"
    assert "best dense" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--batch", "100"], ["--size", "0"], ["--out", "/proc/none"]])
def test_arguments_that_make_no_sense(wrong, tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), *wrong]) == 2
    assert capsys.readouterr().err.startswith("hrt.perf.bench.gpu_layers: ")


def test_a_wrong_answer_stops_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "REPEATS", 1)
    monkeypatch.setattr(gpu, "burgers", lambda *_: None)
    monkeypatch.setattr(gpu, "error_of", lambda *_: 0.5)
    assert gpu.main(["--size", "64", "--kernel", "log", "--batch", "1", "--out", str(tmp_path)]) == 1
    assert "error 5.00e-01. Expected at most 2.48e-02" in capsys.readouterr().err


def test_time_runs_out_before_a_new_layer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "burgers", lambda *_: None)
    monkeypatch.setattr(gpu, "one_layer", lambda *_: pytest.fail("begun too late"))
    assert gpu.main(["--size", "64", "--kernel", "log", "--minutes", "0", "--out", str(tmp_path)]) == 0
    assert "left out, 0 minutes are over" in capsys.readouterr().out


def test_weights_and_inputs_rotate_beyond_the_cache():
    bench = device.Bench()
    assert gpu.copies_for(bench.cache_bytes, bench) == 2
    assert gpu.copies_for(10 * bench.cache_bytes, bench) == 1
    assert gpu.copies_for(1, bench) == 256


def test_calls_are_interleaved():
    seen = []
    bench = device.Bench()
    times = bench.seconds({name: lambda name=name: seen.append(name) for name in "abc"}, 20)
    assert len(seen) == 3 * 21 and all(low <= mid <= high for mid, low, high in times.values())
    rounds = ["".join(seen[k : k + 3]) for k in range(3, len(seen), 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds) and len(set(rounds)) > 1
