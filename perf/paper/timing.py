"""The timing behind `python -m hrt.perf.paper.command`: dense, global SVD and hrt on this CPU, answers measured too."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.perf.measuring.bursts import bursts
from hrt.perf.methods.svd import truncated
from hrt.perf.networks.operators import operator_network, smooth_inputs
from hrt.perf.paper.data import PINN, Rows, Subject, relative, svd_tolerance


def speed(s: Subject) -> Rows:
    """Microseconds of one call, dense and SVD in ONNX Runtime and torch, and hrt, both networks at 1e-3."""
    matrix = operator_network(s.matrix.numpy())
    smooth = smooth_inputs(s.setting.size, max(s.setting.batches), seed=7).astype(np.float32)
    points = np.random.default_rng(3).uniform([-1, 0], [1, 1], (max(s.setting.batches), 2)).astype(np.float32)
    operator = hrt.compress(matrix, tol=1e-3, progress=False)
    rank = factored(capture(matrix, [torch.from_numpy(smooth[:2])]), 1e-3)
    pinn = hrt.compress(s.net, inputs=s.calibration, tol=1e-3, progress=False)
    cut = factored(s.problem.program, svd_tolerance(s, 1e-3))
    return _timed(s, PINN, s.net, pinn, cut, points) + _timed(s, s.operator, matrix, operator, rank, smooth)


def _timed(s: Subject, case: str, net: nn.Module, model: hrt.CompressedModel, cut: nn.Module, x: np.ndarray) -> Rows:
    from hrt.export.onnx.check import open_runtime
    from hrt.export.onnx.exporter import graph_of

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "net.hrt")
        served = hrt.load(Path(folder) / "net.hrt")
    threads = torch.get_num_threads()
    sessions = {
        name: open_runtime(graph_of(capture(n, [torch.from_numpy(x[:2])])), threads)
        for name, n in (("dense, ONNX Runtime", net), ("SVD, ONNX Runtime", cut))
    }
    rows: Rows = []
    for batch in s.setting.batches:
        some = np.ascontiguousarray(x[:batch])
        tensor = torch.from_numpy(some)
        calls: dict[str, Callable[[], Any]] = {"dense, torch": lambda t=tensor: net(t)}
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: some}
            calls[name] = lambda r=session, f=feed: r.run(None, f)[0]
        calls["hrt"] = lambda a=some: served.predict(a)
        with torch.no_grad():
            answer = net(tensor.float()).double()
            errors = {k: relative(torch.as_tensor(np.asarray(c())).double(), answer) for k, c in calls.items()}
            times = bursts(calls, rounds=s.setting.rounds)
        best = min((times[k] for k in times if k.startswith("dense")), key=lambda t: t.p50_us)
        for name, found in times.items():
            low, high = best.ratio_interval(found)
            row = {"case": case, "method": name, "batch": batch, "error": errors[name], "p50_us": found.p50_us}
            rows.append(row | {"p95_us": found.p95_us, "ratio": best.ratio(found), "low": low, "high": high})
    return rows


def factored(program: Any, t: float) -> nn.Module:
    """The network (a chain of linear layers and tanh) with two factors in place of every weight that they shorten."""
    modules: list[nn.Module] = []
    for node in program.nodes:
        if node.op != "linear":
            modules.append(nn.Tanh())
            continue
        w = program.constants[node.inputs[1]]
        u, vt = truncated(w, t)
        parts = [vt, u] if len(vt) * sum(w.shape) < w.numel() else [w]
        for k, part in enumerate(parts):
            last = k == len(parts) - 1 and len(node.inputs) == 3
            layer = nn.Linear(part.shape[1], part.shape[0], bias=last)
            layer.weight.data.copy_(part)
            if last:
                layer.bias.data.copy_(program.constants[node.inputs[2]])
            modules.append(layer)
    return nn.Sequential(*modules).eval()
