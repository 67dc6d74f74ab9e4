"""ONNX in, ONNX out: a surrogate with outputs of different units, each held to the bound.

What you learn: hrt reads an ONNX file whoever wrote it, holds every output column to `tol` (`per_output=True`), and
writes ONNX again. The surrogate is of a cantilever beam (Wu and others, 1990): stress in psi, about 1e4, beside
displacement in inches, about 1. Without `per_output` the small column would hide behind the large one.

It takes half a minute; `--quick` takes seconds and hardly trains. It prints how well the surrogate was learned, the
sizes of the files, and each output's error in ONNX Runtime on new beams. It writes beam.onnx and beam-small.onnx.
"""

import sys
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime
import torch
from onnx import numpy_helper
from torch import nn

import hrt

STEPS, TOL = (20 if "--quick" in sys.argv else 2000), 1e-3
LOW = np.float32([2, 2, 2.6e7, 500, 300])  # width and height (in), modulus (psi), two loads (lb)
HIGH = np.float32([4, 4, 3.2e7, 1500, 900])
GRAPH = """<ir_version: 9, opset_import: ["": 19]>
surrogate (float[rows, 5] beam) => (float[rows, 2] stress_and_displacement) {
    moved = Sub(beam, low)
    scaled = Div(moved, range)
    first = Gemm <transB = 1> (scaled, w0, b0)
    a = Tanh(first)
    second = Gemm <transB = 1> (a, w2, b2)
    b = Tanh(second)
    last = Gemm <transB = 1> (b, w4, b4)
    spread_out = Mul(last, spread)
    stress_and_displacement = Add(spread_out, mean)
}"""


def draw(count, seed):
    return np.random.default_rng(seed).uniform(LOW, HIGH, (count, 5)).astype(np.float32)


def beam(p):
    """The formulas: beams (rows, 5) to stress and displacement (rows, 2)."""
    w, t, modulus, y, x = p.T
    displacement = 4e6 / (modulus * w * t) * np.hypot(y / t**2, x / w**2)
    return np.stack([600 * (y / (w * t**2) + x / (w**2 * t)), displacement], 1)


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2))
p = draw(4000, seed=0)
mean, spread = beam(p).mean(0), beam(p).std(0)
x, y = torch.from_numpy((p - LOW) / (HIGH - LOW)), torch.from_numpy((beam(p) - mean) / spread)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(STEPS):
    optimizer.zero_grad()
    (net(x) - y).square().mean().backward()
    optimizer.step()

proto = onnx.parser.parse_model(GRAPH)
state = {name: v.numpy() for name, v in net.state_dict().items()}  # 0.weight, 0.bias, 2.weight, ...
numbers = {f"{kind[0]}{layer}": v for name, v in state.items() for layer, kind in [name.split(".")]}
numbers |= {"low": LOW, "range": HIGH - LOW, "spread": spread, "mean": mean}
proto.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in numbers.items())
onnx.save(proto, "beam.onnx")

model = hrt.compress("beam.onnx", inputs=p, tol=TOL, per_output=True)
hrt.export_onnx(model, "beam-small.onnx")
print(" -> ".join(f"{f}: {Path(f).stat().st_size:,} bytes" for f in ("beam.onnx", "beam-small.onnx")))
new = draw(5000, seed=1)
run = {f: onnxruntime.InferenceSession(f).run(None, {"beam": new})[0] for f in ("beam.onnx", "beam-small.onnx")}
for k, name in enumerate(["stress", "displacement"]):
    exact, dense, small = (v[:, k].astype(float) for v in (beam(new), *run.values()))
    error, learned = (np.linalg.norm(v) / np.linalg.norm(dense) for v in (small - dense, dense - exact))
    print(f"{name}: error {error:.1e}, asked for {TOL:g}; the surrogate itself is {learned:.1e} off the formula")
