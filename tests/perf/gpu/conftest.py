"""A pack in small: networks and layers under the names of the real ones, and no compiled kernel."""

import json
import zipfile
from dataclasses import asdict

import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.perf.gpu import fill_pack
from hrt.perf.gpu.pack import FORMAT, KERNELS, MANIFEST, MODELS, Manifest, Pack, digest_of, source_digest
from hrt.perf.networks.integral_kernels import layer

from helpers import random_hmatrix


def _write_manifest(folder, **changes):
    """The manifest of what lies in `folder`."""
    files = {
        p.relative_to(folder).as_posix(): (p.stat().st_size, digest_of(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MANIFEST
    }
    facts = {"format": FORMAT, "commit": "c" * 40, "sources": source_digest(), "arch": "sm_90", "compiler": "0" * 64}
    facts |= {"versions": {"triton": "3.6.0", "python": "3.12.3"}, "variants": 1, "seconds": 1.0, "files": files}
    (folder / MANIFEST).write_text(json.dumps(asdict(Manifest(**{**facts, **changes}))))


@pytest.fixture
def write_manifest():
    """Write the manifest of what lies in a folder, with changes."""
    return _write_manifest


@pytest.fixture(scope="session")
def small_pack(tmp_path_factory) -> Pack:
    folder = tmp_path_factory.mktemp("pack")
    models = folder / MODELS
    models.mkdir()
    torch.manual_seed(0)
    for name, inputs, tol in (("burgers-1e-2", 2, 1e-2), ("burgers-1e-3", 2, 1e-3), ("card", 3, 1e-2)):
        net = torch.nn.Sequential(torch.nn.Linear(inputs, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
        x = torch.rand(300, inputs, generator=torch.Generator().manual_seed(1)) * 2 - 1
        certificate = hrt.Certificate(tol, "output", (), context={"precision": "tf32x3"})
        fill_pack.save_network(models, name, net, hrt.CompressedModel(capture(net, [x[:2]]), certificate, "cuda"), x)
    h = random_hmatrix(0, 64, 64, storages=(torch.bfloat16,))
    fill_pack.save_layer(models, "log-4096", layer(h), 1e-2)
    children = {name: f"/elsewhere/KEY/{name}" for name in ("step_kernel.json", "step_kernel.cubin", "step_kernel.ptx")}
    with zipfile.ZipFile(folder / KERNELS, "w") as kernels:
        kernels.writestr("KEY/step_kernel.json", "{}")
        kernels.writestr("KEY/step_kernel.cubin", b"code")
        kernels.writestr("KEY/__grp__step_kernel.json", json.dumps({"child_paths": children}))
    _write_manifest(folder)
    return Pack.open(folder)
