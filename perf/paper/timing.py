"""The timing behind `python -m hrt.perf.paper figures`: dense, global SVD and hrt on this CPU, answers measured too."""

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
from hrt.perf.networks.as_torch_module import factored
from hrt.perf.networks.operators import operator_network, smooth_inputs
from hrt.perf.paper.data import PINN, Subject, relative, svd_tolerance
from hrt.perf.paper.output import Rows
from hrt.program.program import Program


def speed(s: Subject) -> Rows:
    """Microseconds of one call, dense and SVD in ONNX Runtime and torch, and hrt, both networks at 1e-3."""
    matrix, most = operator_network(s.matrix.numpy()), max(s.setting.batches)
    smooth = smooth_inputs(s.setting.size, most, seed=7).astype(np.float32)
    points = np.random.default_rng(3).uniform([-1, 0], [1, 1], (most, 2)).astype(np.float32)
    operator = hrt.compress(matrix, tol=1e-3, progress=False)
    pinn = hrt.compress(s.net, inputs=s.calibration, tol=1e-3, progress=False)
    return [
        *({"case": PINN} | row for row in _timed(s, s.net, pinn, svd_tolerance(s, 1e-3), points)),
        *({"case": s.operator} | row for row in _timed(s, matrix, operator, 1e-3, smooth)),
    ]


def _timed(s: Subject, net: nn.Module, model: hrt.CompressedModel, t: float, x: np.ndarray) -> Rows:
    """t: Frobenius tolerance of the SVD."""
    from hrt.export.onnx.check import open_runtime
    from hrt.export.onnx.exporter import graph_of

    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "net.hrt")
        served = hrt.load(Path(folder) / "net.hrt")
    program = capture(net, [torch.from_numpy(x[:2])])
    programs = {"dense, ONNX Runtime": program, "SVD, ONNX Runtime": shortened(program, t)}
    sessions = {name: open_runtime(graph_of(p), torch.get_num_threads()) for name, p in programs.items()}
    rows: Rows = []
    for batch in s.setting.batches:
        array = np.ascontiguousarray(x[:batch])
        tensor = torch.from_numpy(array)
        calls: dict[str, Callable[[], Any]] = {"dense, torch": lambda t=tensor: net(t)}
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: array}
            calls[name] = lambda r=session, f=feed: r.run(None, f)[0]
        calls["hrt"] = lambda a=array: served.predict(a)
        with torch.no_grad():
            answer = net(tensor).double()
            errors = {k: relative(torch.as_tensor(np.asarray(c())).double(), answer) for k, c in calls.items()}
            times = bursts(calls, rounds=s.setting.rounds)
        best = min((times[k] for k in times if k.startswith("dense")), key=lambda t: t.p50_us)
        for name, time in times.items():
            low, high = best.ratio_interval(time)
            row = {"method": name, "batch": batch, "error": errors[name], "p50_us": time.p50_us}
            rows.append(row | {"p95_us": time.p95_us, "ratio": best.ratio(time), "low": low, "high": high})
    return rows


def shortened(program: Program, t: float) -> Program:
    """The network with two factors in place of every weight that they shorten."""
    cut = {k: truncated(w, t) for k, w in program.constants.items() if k in program.weights}
    return factored(
        program,
        {k: (u, vt) for k, (u, vt) in cut.items() if len(vt) * (len(u) + vt.shape[1]) < len(u) * vt.shape[1]},
    )
