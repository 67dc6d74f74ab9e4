"""A checkpoint of DeepXDE, compressed without DeepXDE.

What you learn: a checkpoint holds weights alone, so hrt needs two things: the file, and a function that makes the
network as it was made for training (`build` below). Nothing in the file is run as code.

It takes half a minute; `--quick` takes seconds and hardly trains. Where DeepXDE is installed, DeepXDE trains and
writes the checkpoint; else this script writes one with the same names and says so. It prints the command that
compresses, its answer, and the error on new points. It writes heat-500.pt (heat-20.pt) and heat.hrt.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
from itertools import pairwise

import numpy as np
import torch
from torch import nn

import hrt

STEPS, TOL, LOW, HIGH = 20 if "--quick" in sys.argv else 500, 1e-3, [-1, 0], [1, 1]  # of x and t


class FNN(nn.Module):  # as DeepXDE's FNN([2, 64, 64, 1], "tanh", ...): its layers are linears.0 and so on
    def __init__(self, widths):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = torch.tanh(linear(x))
        return self.linears[-1](x)


def build():
    return FNN([2, 64, 64, 1])


def solution(x):  # of the heat equation u_t = u_xx / pi^2
    return np.exp(-x[:, 1:]) * np.sin(np.pi * x[:, :1])


def write_checkpoint(path):
    if importlib.util.find_spec("deepxde"):
        os.environ.setdefault("DDE_BACKEND", "pytorch")
        import deepxde as dde

        data = dde.data.Function(dde.geometry.Rectangle(LOW, HIGH), solution, 1000, 100)
        model = dde.Model(data, dde.nn.FNN([2, 64, 64, 1], "tanh", "Glorot normal"))
        model.compile("adam", lr=3e-3)
        model.train(iterations=STEPS, display_every=STEPS)
        model.save(path.removesuffix(f"-{STEPS}.pt"))
        return f"written by DeepXDE {dde.__version__}"
    net, x = build(), np.random.default_rng(0).uniform(LOW, HIGH, (1000, 2))
    x, y = torch.from_numpy(x).float(), torch.from_numpy(solution(x)).float()
    adam = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(STEPS):
        adam.zero_grad()
        (net(x) - y).square().mean().backward()
        adam.step()
    torch.save({"model_state_dict": net.state_dict(), "optimizer_state_dict": adam.state_dict()}, path)
    return "written by this script as DeepXDE writes it: DeepXDE is not installed"


if __name__ == "__main__":
    checkpoint = f"heat-{STEPS}.pt"
    print(f"{checkpoint}: {write_checkpoint(checkpoint)}", flush=True)
    command = ["compress", f"{__file__}:build", "--weights", checkpoint, "--tol", str(TOL), "-o", "heat.hrt", "--force"]
    command += ["--box", "-1,0 : 1,1"]
    print("hrt", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "hrt.cli", *command], check=True)
    net, model = build(), hrt.load("heat.hrt")
    net.load_state_dict(torch.load(checkpoint, weights_only=True)["model_state_dict"])
    x = torch.rand(5000, 2) * (torch.tensor(HIGH) - torch.tensor(LOW)) + torch.tensor(LOW)
    error = (model.predict(x) - net(x)).norm() / net(x).norm()
    print(f"error on {len(x)} new points: {error:.1e}, asked for {TOL:g}")
