"""A compressed network on an inference server: NVIDIA Triton, or any of the Open Inference Protocol.

What you learn: hrt writes the folder that Triton serves, with derivatives as further outputs, and a client asks for all
of them in one request over HTTP.

It takes half a minute; `--quick` takes seconds and hardly trains. A server that answers at TRITON_URL (by default
http://127.0.0.1:8000) is asked. Else ONNX Runtime runs the file that Triton would serve, and the script says how to
start the server. It prints the files, and the error of u, u_x and u_t on new points. It writes models/.
"""

import json
import os
import sys
import urllib.request

import numpy as np
import onnxruntime
import torch
from torch import nn

import hrt

STEPS, TOL, NAMES = (20 if "--quick" in sys.argv else 1000), 1e-3, ["d0", "d1"]
MODEL = os.environ.get("TRITON_URL", "http://127.0.0.1:8000") + "/v2/models/wave"


def is_ready():
    try:
        return urllib.request.urlopen(f"{MODEL}/ready", timeout=2).status == 200
    except OSError:
        return False


def ask_server(name, rows):
    tensor = {"name": name, "shape": rows.shape, "datatype": "FP32", "data": rows.ravel().tolist()}
    request = urllib.request.Request(f"{MODEL}/infer", json.dumps({"inputs": [tensor]}).encode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [np.reshape(o["data"], o["shape"]) for o in json.load(answer)["outputs"]]


def wave(p):
    """A wave (rows, 1) at x and t in [0, 1], (rows, 2)."""
    x, t = p.split(1, 1)
    return torch.sin(2 * torch.pi * (x - t)) * torch.exp(-t)


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
adam = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(STEPS):
    p = torch.rand(500, 2)
    adam.zero_grad()
    (net(p) - wave(p)).square().mean().backward()
    adam.step()

model = hrt.compress(net, inputs=hrt.Box([0, 0], [1, 1]), tol=TOL, derivatives=NAMES)
folder = hrt.export_repository(model, "models", name="wave", derivatives=NAMES)
print("files:", *sorted(str(path) for path in folder.rglob("*") if path.is_file()))
session, new = onnxruntime.InferenceSession(folder / "1/model.onnx"), torch.rand(500, 2, requires_grad=True)
name, rows = session.get_inputs()[0].name, new.detach().numpy()
if is_ready():
    print(f"answered by the server at {MODEL}")
    answers = ask_server(name, rows)
else:
    print("answered by ONNX Runtime: no server is ready. Start one here and run this again:")
    print("  tritonserver --model-repository models")
    answers = session.run(None, {name: rows})
u = net(new)
u_x, u_t = torch.autograd.grad(u.sum(), new)[0].split(1, 1)
for name, y, exact in zip(["u", "u_x", "u_t"], answers, [u, u_x, u_t], strict=True):
    error = (torch.tensor(y) - exact).norm() / exact.norm()
    print(f"error of {name}: {error:.1e}, asked for {TOL:g}")
