"""`compress(..., outside="carry")`: ops that the op table has no row for, kept dense as ONNX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrt
from hrt.capture.calls import Call
from hrt.capture.network import captured_network
from hrt.cli.main import main
from hrt.export.c.native_session import NativeSession
from hrt.program.program import carried_nbytes
from hrt.schedule.choose_layout import choose_schedule
from hrt.schedule.roofline import CHIPS

CARRY = Call(carries=True)
TOL = 2e-2


class Head(nn.Module):
    """Orders the features of a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(x, -1)[0]


class Ordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.order, self.last = nn.Linear(6, 32), Head(), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.order(torch.tanh(self.first(x)))))


class Places(nn.Module):
    """Whole numbers and values that are carried, both read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        values, places = torch.sort(h, 1, descending=True)
        return self.last(values * torch.gather(torch.tanh(h), 1, places))


class Sampled(nn.Module):
    """Reads a grid of parameters between its points, cubically."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.last = nn.Parameter(torch.randn(1, 4, 8, 8)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.grid.expand(x.shape[0], -1, -1, -1)
        at = F.grid_sample(grid, x[:, None, None, :2], align_corners=True, mode="bicubic", padding_mode="border")
        return self.last(at[:, :, 0, 0])


class Behind(nn.Module):
    """The batch is the second dimension of what is carried."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sort(self.first(x).T, 0)[0].T)


class Curved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(self.first(x))


class Mixing(nn.Module):
    """Orders the samples of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(self.first(x), 0)[0]


def rows(count: int = 400) -> Tensor:
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(3)) * 2 - 1


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


OTHERS = (pytest.param(kind, marks=pytest.mark.slow) for kind in (Places, Sampled, Behind))


@pytest.mark.parametrize("kind", [Ordered, *OTHERS])
def test_what_it_computes_is_what_the_network_computes(kind: type[nn.Module]) -> None:
    net, x = made(kind), rows(16)
    program = captured_network(net, (x,), CARRY).program
    assert carried_nbytes(program)
    (got,) = program.run([x])
    torch.testing.assert_close(got.float(), net(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, hrt.CompressedModel, Path]:
    net, path = made(Ordered), tmp_path_factory.mktemp("carried") / "net.hrt"
    model = hrt.compress(net, inputs=rows(), tol=TOL, outside="carry", progress=False)
    model.save(path)
    return net, model, path


def test_the_bound_is_of_the_whole_network(ordered) -> None:
    net, model, path = ordered
    fresh = torch.rand(500, 6) * 2 - 1
    reference = net(fresh).detach()
    assert set(model.certificate.runtimes) == {"torch", "onnxruntime"}
    for backend in ("torch", "onnxruntime", "auto"):
        again = hrt.load(path, backend=backend)
        assert float((again.predict(fresh) - reference).norm() / reference.norm()) <= TOL
        assert again.predict(fresh[:0]).shape == (0, 2)
    assert model.compression_ratio > 1.2
    assert "nothing is known of the derivatives of sort (order)" in model.certificate.context["no_ntk_drift"]


def test_the_report_names_its_share(ordered, capsys) -> None:
    _, model, path = ordered
    (nbytes,) = carried_nbytes(model.program).values()
    share = f"sort (order), {nbytes:,} bytes, {100 * nbytes / model.nbytes:.3g} % of what is stored"
    assert share in " ".join(model.report().split())
    main(["info", str(path)])
    assert share in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_the_graph_holds_its_nodes(ordered, tmp_path: Path) -> None:
    _, model, _ = ordered
    x = rows(7)
    for opset in (18, 23):
        hrt.export_onnx(model, tmp_path / "net.onnx", opset=opset)
        assert "TopK" in {n.op_type for n in onnx.load(tmp_path / "net.onnx").graph.node}
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, model.predict(x).numpy(), rtol=1e-4, atol=1e-5)


def test_who_cannot_run_it_says_so(ordered, tmp_path: Path) -> None:
    net, model, _ = ordered
    with pytest.raises(hrt.ExportError, match=r"sort.*cannot be written in C"):
        hrt.export_c(model, tmp_path / "net.c")
    with pytest.raises(hrt.DerivativeError, match="a derivative of sort"):
        model.predict(rows(3), derivatives=["d0"])
    with pytest.raises(hrt.BackendError, match=r"sort.*cannot be written in C"):
        NativeSession(model.program)
    with pytest.raises(hrt.DerivativeError, match="a derivative of sort"):
        hrt.ntk(model, rows(3))
    with pytest.raises(hrt.InputError, match=r"sort \(order\)"):
        hrt.compress(net, inputs=rows(), target="cuda", outside="carry", progress=False)
    with pytest.raises(hrt.BackendError, match=r"ONNX Runtime on the CPU alone runs sort \(order\)"):
        choose_schedule(model.program, "tf32x3", CHIPS["h100"])


@pytest.mark.slow
def test_an_opset_that_has_other_operators_is_refused(tmp_path: Path) -> None:
    model = hrt.compress(made(Sampled), tol=1e-1, inputs=rows(64), outside="carry", progress=False)
    with pytest.raises(hrt.ExportError, match=r"grid_sampler.*of opset 20"):
        hrt.export_onnx(model, tmp_path / "net.onnx", opset=18)
    assert not (tmp_path / "net.onnx").exists()


def test_the_default_says_what_could_be_carried() -> None:
    with pytest.raises(hrt.CaptureError, match=r'Op sort in order.*outside="carry"\) keeps sort \(order\) dense'):
        hrt.compress(made(Ordered), inputs=rows(), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "message"), [(Curved, "special_bessel_j0.*either: torch.onnx"), (Mixing, "Op sort")])
def test_what_cannot_be_carried_is_refused(kind: type[nn.Module], message: str) -> None:
    with pytest.raises(hrt.CaptureError) as refusal:
        captured_network(made(kind), (rows(16),))
    assert "outside=" not in str(refusal.value)
    with pytest.raises(hrt.CaptureError, match=message):
        captured_network(made(kind), (rows(16),), CARRY)


def test_other_words_are_refused() -> None:
    with pytest.raises(hrt.InputError, match="Expected 'refuse' or 'carry'"):
        hrt.compress(made(Ordered), outside="dense", progress=False)


@pytest.mark.slow
def test_what_the_table_says_is_not_carried() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    plain, carrying = (captured_network(net, (rows(16),), call).program for call in (Call(), CARRY))
    assert [n.op for n in plain.nodes] == [n.op for n in carrying.nodes]


ANSWER = """
import sys, numpy, hrt
for backend in ("torch", "onnxruntime"):
    y = hrt.load(sys.argv[1], backend=backend).predict(numpy.load(sys.argv[2]))
    numpy.save(f"{sys.argv[3]}/{backend}.npy", y)
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(ordered, tmp_path: Path) -> None:
    _, _, path = ordered
    x = rows(33).numpy()
    np.save(tmp_path / "x.npy", x)
    arguments = [str(path), str(tmp_path / "x.npy"), str(tmp_path)]
    subprocess.run([sys.executable, "-c", ANSWER, *arguments], check=True)
    for backend in ("torch", "onnxruntime"):
        there = np.load(tmp_path / f"{backend}.npy")
        assert there.tobytes() == hrt.load(path, backend=backend).predict(x).tobytes()


@pytest.mark.slow
def test_on_the_command_line(tmp_path: Path, capsys) -> None:
    source = Path(__file__).read_text().partition("def rows")[0]
    (tmp_path / "nets.py").write_text(source)
    np.save(tmp_path / "x.npy", rows().numpy())
    out = tmp_path / "net.hrt"
    words = ["compress", f"{tmp_path / 'nets.py'}:Ordered", "-i", str(tmp_path / "x.npy"), "-o", str(out)]
    words += ["--tol", "0.02"]
    assert main(words) == 2
    assert 'outside="carry"' in capsys.readouterr().err
    assert main([*words, "--outside", "carry"]) == 0
    assert "carried outside the op table, dense: sort (order)" in " ".join(capsys.readouterr().out.split())
