"""What the harness's tests share: a registry of one small workload, one network in every kind of file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bench_cases import low_rank_net, small

import hrt
from hrt.perf.methods import catalogue, quantizers
from hrt.perf.methods.runtimes import in_torch
from hrt.perf.networks import registry


@pytest.fixture
def cheap(monkeypatch):
    """torch.compile is asked by one test alone. Threads stay as they were."""
    before = torch.get_num_threads()
    for module in (catalogue, quantizers):
        monkeypatch.setattr(module, "compiled", lambda net, dtype=torch.float32: in_torch(net, dtype, "torch again"))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def registered(monkeypatch):
    """The registry with the small workload alone."""
    entry = registry.Entry("small", lambda name, entry, size: small())
    monkeypatch.setattr(registry, "REGISTRY", {"small": entry})
    return entry


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """One network as .pt2, .onnx and .hrt, and rows for it."""
    folder, net = tmp_path_factory.mktemp("files"), low_rank_net()
    x = torch.rand(300, 3, generator=torch.Generator().manual_seed(5))
    np.save(folder / "x.npy", x.numpy())
    batch = {0: torch.export.Dim("batch")}
    torch.export.save(torch.export.export(net, (x[:3],), dynamic_shapes=(batch,)), folder / "net.pt2")
    model = hrt.compress(net, inputs=x, tol=1e-2, progress=False)
    model.save(folder / "net.hrt")
    hrt.export_onnx(model, folder / "net.onnx", check=False)
    return folder
