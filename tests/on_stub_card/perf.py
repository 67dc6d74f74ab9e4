"""Measurements where there is a card: graphs, clocks, compiled competitors, provenance. Run on the stub card by
`tests/runtime/test_on_stub_card.py`.
"""

import os

import pytest
import torch
from torch._dynamo.utils import counters

from hrt.errors import HrtError
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.request import MatrixRequest
from hrt.perf.gpu import layers
from hrt.perf.gpu.ground import stored_in
from hrt.perf.gpu.layers import Layer, Limits, Report
from hrt.perf.measuring import gpu_timing, provenance
from hrt.perf.networks.integral_kernels import KERNELS, layer
from hrt.runtime.capturing import REPLAYS

from models import small_network_for_a_card
from stub_cuda import CARD, ENQUEUE, GRAPH_LAUNCH, POOL

DEVICE = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def card(monkeypatch):
    monkeypatch.setattr(layers, "REPEATS", 2)
    monkeypatch.setattr(Report, "copies_for", lambda *_: 2)
    CARD.seconds, CARD.refused, CARD.answers = {}, {}, True
    CARD.captures.clear()
    yield CARD
    assert not CARD.lost and not CARD.capturing


def report(limits=None):
    written = []
    return Report(written.append, gpu_timing.Bench(), layers.stand_in(), limits or Limits()), written


def test_times_are_the_devices_for_every_candidate(card):
    """A launch costs the host more than most graphs take: it is in nobody's time, and no other is either."""
    bench = gpu_timing.Bench()
    assert bench.on_gpu and bench.device.type == "cuda" and bench.cache_bytes == 50 << 20
    x = torch.zeros(3, device=DEVICE)
    card.seconds = {"add_": 2e-6, "mul_": 3e-6}
    calls = {"hrt": bench.captured(lambda: x.add_(1)), "dense": bench.captured(lambda: x.mul_(2))}
    assert card.captures and min(card.captures) > POOL
    times = bench.seconds(calls, 5)
    assert times["hrt"] == pytest.approx((2e-6,) * 3, rel=0.02) and times["dense"] == pytest.approx(
        (3e-6,) * 3, rel=0.02
    )
    replays = card.ops["add_"]
    bench.seconds(calls, 1)
    assert REPLAYS >= 20 and card.ops["add_"] == replays, "replays are no launches"
    card.seconds["add_"] = 1e-2
    host = card.host
    assert bench.seconds(calls, 3)["hrt"][0] == pytest.approx(1e-2, rel=0.01)
    assert card.host - host < 0.1, "long ones are not timed twenty times"
    assert ENQUEUE > 2e-6 and GRAPH_LAUNCH > 3e-6
    bench.release()


def test_what_the_host_does_is_timed_to_the_answer(card):
    bench, waits = gpu_timing.Bench(), []
    x = torch.zeros(3, device=DEVICE)
    plain = torch.cuda.synchronize
    try:
        torch.cuda.synchronize = lambda device=None: waits.append(1) or plain(device)
        times = bench.seconds({"end to end": lambda: x.add_(1)}, 4, on_host=["end to end"])
    finally:
        torch.cuda.synchronize = plain
    assert len(waits) == 8 and times["end to end"][0] > 0


def test_dense_is_compiled_at_every_point():
    """After eight shapes in a process torch would run eager, and say nothing."""
    (run, _), before = report(), counters["stats"]["unique_graphs"]
    sizes = [16 * k for k in range(1, 12)]
    for size in sizes:
        calls, count = layers.dense_calls((size, 32), 2, "tf32", run)
        assert set(calls) == {"dense linear", "dense compiled"} and count == 2
        compiled = calls["dense compiled"]()
        assert all(y.shape == (2, size) and y.device == DEVICE for y in compiled)
    assert counters["stats"]["unique_graphs"] == before + len(sizes)


def test_what_was_not_compiled_is_not_timed(subject, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    with pytest.raises(HrtError, match=r"nothing compiled for operands of \(3,\)"):
        gpu_timing.compiled(torch.sin)(torch.zeros(3))
    run, written = report()
    assert layers.one_layer(run, "log-64", subject, [1]) == []
    assert [r["method"] for r in written[-1]["rows"]] == ["hrt", "dense linear"]
    (left,) = written[-1]["left_out"]
    assert left["remark"].startswith(
        "dense compiled: HrtError: Found nothing compiled for operands of (1, 64), (64, 64)"
    )


@pytest.fixture(scope="module")
def subject():
    matrix, _ = KERNELS["log"].build(64)
    request = MatrixRequest(tol=1e-2, storage="bfloat16", min_leaf=16, target="cuda")
    h = stored_in(compress_for(matrix, request), torch.bfloat16)
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    return Layer(layer(h), "bf16", (x, h.apply(x.double())))


def test_a_layer_beside_dense(subject):
    run, written = report()
    assert layers.one_layer(run, "log-64", subject, [1, 16]) == []
    rows = written[-1]["rows"]
    methods = ("hrt", "dense linear", "dense compiled")
    assert [(r["batch"], r["method"]) for r in rows] == [(b, m) for b in (1, 16) for m in methods]
    assert all(r["p50_us"] > 0 for r in rows) and not written[-1]["left_out"]


def test_a_network_beside_dense():
    model, x, y = small_network_for_a_card()
    run, written = report()
    assert layers.network(run, "small", model, (x, y), [4]) == []
    methods = {r["method"] for r in written[-1]["rows"]}
    assert methods == {"hrt step", "hrt network", layers.END_TO_END, "dense linear", "dense compiled"}


def test_the_cards_rates(card, monkeypatch):
    monkeypatch.setattr(layers, "COPIED", 1 << 12)
    monkeypatch.setattr(layers, "SIDE", 64)
    card.seconds = {"copy_": 1e-6, "mm": 2e-6}
    chip = layers.measured_chip(gpu_timing.Bench())
    assert (chip.name, chip.arch, chip.sm_count) == ("Stub sm_90", "sm_90", 132)
    assert chip.copy_bytes_per_s == pytest.approx((2 << 12) / 1e-6, rel=0.02)
    assert chip.matmul_flops["bf16"] == pytest.approx(2 * 64**3 / 2e-6, rel=0.02)


def test_what_nvidia_smi_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    silent = provenance.gpu()
    assert silent["name"] == "Stub sm_90" and silent["multiprocessors"] == 132
    assert silent["clocks"] == "nvidia-smi did not answer"
    answer = tmp_path / "nvidia-smi"
    answer.write_text("#!/bin/sh\necho '575.57, 1980 MHz, 2619 MHz, 1980 MHz, 700.00 W, 34'\n")
    answer.chmod(0o755)
    facts = provenance.gpu()
    assert (
        facts["driver_version"] == "575.57" and facts["power.limit"] == "700.00 W" and facts["temperature.gpu"] == "34"
    )
    answer.write_text(f"#!/bin/sh\nexit {os.EX_UNAVAILABLE}\n")
    assert provenance.gpu() == silent
