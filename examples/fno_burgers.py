"""A Fourier neural operator of Burgers' equation, compressed and run by ONNX Runtime.

What you learn: hrt captures spectral layers (FFTs, complex weights) as they are, and writes them in standard operators
of ONNX, so that ONNX Runtime, a server or a browser runs them.

It takes a minute on one core; `--quick` takes seconds and hardly trains. It prints how well the operator was
learned, the size, and the compressed one's error in ONNX Runtime on new initial states. It writes fno.onnx and fno.png.
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
from torch import nn

import hrt

STEPS, SAMPLES = (5, 300) if "--quick" in sys.argv else (600, 1500)
POINTS, MODES, WIDTH, TOL, NU = 64, 12, 24, 1e-2, 0.02


def solve(u, end=0.5, steps=200):
    """u(., end) of periodic u(., 0) (count, POINTS, 1): Fourier in space, Heun's steps with the diffusion exact."""
    k, h = 2 * np.pi * np.arange(POINTS // 2 + 1)[:, None], end / steps
    decay, keep = np.exp(-NU * k**2 * h), k < 2 * np.pi * POINTS / 3
    slope = lambda v: -0.5j * k * keep * np.fft.rfft(np.fft.irfft(v * keep, axis=1) ** 2, axis=1)  # noqa: E731
    v = np.fft.rfft(u, axis=1)
    for _ in range(steps):
        first = slope(v)
        v = decay * (v + h / 2 * first) + h / 2 * slope(decay * (v + h * first))
    return np.fft.irfft(v, axis=1)


def states(count, seed):
    """Smooth random initial states (count, POINTS, 1)."""
    k, rng = np.arange(POINTS // 2 + 1), np.random.default_rng(seed)
    spectrum = rng.standard_normal((2, count, len(k))) * np.where(k > 0, 25 / ((2 * np.pi * k) ** 2 + 25), 0)
    return np.fft.irfft(POINTS / 2 * (spectrum[0] + 1j * spectrum[1]))[..., None]


class SpectralLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, MODES, dtype=torch.cfloat) / WIDTH)
        self.skip = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):  # (batch, points, channels)
        modes = torch.einsum("bki,iok->bko", torch.fft.rfft(x, dim=1)[:, :MODES], self.weight)
        return torch.fft.irfft(modes, n=POINTS, dim=1) + self.skip(x)


torch.manual_seed(0)
layers = [m for _ in range(4) for m in (SpectralLayer(), nn.GELU())]
net, a = nn.Sequential(nn.Linear(1, WIDTH), *layers, nn.Linear(WIDTH, 1)), states(SAMPLES, seed=0)
rows, targets = torch.from_numpy(a).float(), torch.from_numpy(solve(a)).float()
optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
for _ in range(STEPS):
    batch = torch.randint(SAMPLES, (64,))
    optimizer.zero_grad()
    (net(rows[batch]) - targets[batch]).square().mean().backward()
    optimizer.step()
    schedule.step()
relative = lambda y, exact: np.linalg.norm(y - exact) / np.linalg.norm(exact)  # noqa: E731
new = states(200, seed=1).astype(np.float32)
dense = net(torch.from_numpy(new)).detach().numpy()
print(f"the dense operator is {relative(dense, solve(new)):.1e} off the solver")

model = hrt.compress(net, inputs=rows, tol=TOL)
hrt.export_onnx(model, "fno.onnx")
print(f"{model.nbytes:,} bytes, {model.compression_ratio:.1f} times smaller than dense float32")
session = onnxruntime.InferenceSession("fno.onnx")
(y,) = session.run(None, {session.get_inputs()[0].name: new})
print(f"error in ONNX Runtime: {relative(y, dense):.1e}, asked for {TOL:g}")
plt.plot(np.hstack([new[0], solve(new)[0], y[0]]))
plt.legend(["initial state", "solver", "compressed operator"])
plt.savefig("fno.png")
