"""The kernel against explicit Jacobians in float64, in blocks and at once; memory counted; bad input refused."""

from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

import hrt
from hrt.calibration.samples import Split, as_samples, distinct
from hrt.capture.torch_export import capture
from hrt.errors import InputError
from hrt.program.dense_view import DenseView
from hrt.program.program import Program
from hrt.tangent_kernel.ntk import LEAST_WORK, MOST_ROWS, affordable_drift, compare_ntk, kernel_work, ntk

from forked import forked
from helpers import hierarchical


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def points(rows: int, width: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def second_derivative(u, x: Tensor) -> Tensor:
    """u_00 + u^2 by forward differentiation."""
    e = torch.zeros_like(x) + torch.eye(x.shape[1], dtype=x.dtype)[0]
    return jvp(lambda p: jvp(u, (p,), (e,))[1], (x,), (e,))[1] + u(x) ** 2


def by_hand(net: nn.Module, x: Tensor, residual=None) -> Tensor:
    """J J^T with one backward pass per point and component; derivatives of the residual by autograd, twice."""
    net = net.double()
    rows = []
    for row in x:
        p = row[None].clone().requires_grad_()
        y = net(p)
        if residual:
            (first,) = torch.autograd.grad(y.sum(), p, create_graph=True)
            (second,) = torch.autograd.grad(first[:, 0].sum(), p, create_graph=True)
            y = second[:, :1] + y**2
        for v in y.flatten():
            grads = torch.autograd.grad(v, list(net.parameters()), retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([g.flatten() for g in grads]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def with_weights(net: nn.Module, program: Program) -> nn.Module:
    """`net` in float64 with the constants of `program`, written out."""
    net.double().load_state_dict(DenseView(program).constants)
    return net


def close(a: Tensor, b: Tensor, eps: float = 2.3e-16) -> bool:
    """Equal but for sums of some hundred products in other orders, relative to the largest entry."""
    return a.shape == b.shape and float((a - b).abs().max()) <= 1000 * eps * float(b.abs().max())


@pytest.mark.parametrize("outputs, residual", [(1, None), (3, None), (1, second_derivative)])
def test_kernel_is_that_of_explicit_gradients(outputs, residual):
    net, x = mlp(2, 7, 5, outputs), points(6)
    kernel = ntk(net, x, residual=residual)
    assert kernel.dtype == torch.float64 and torch.equal(kernel, kernel.T)
    assert close(kernel, by_hand(net, x, residual=residual))


@pytest.mark.parametrize("residual", [None, second_derivative])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_program_has_the_kernel_of_its_module(outputs, residual):
    net, x = mlp(2, 7, 5, outputs), points(5)
    assert close(ntk(capture(net, [x]), x, residual=residual), ntk(net, x, residual=residual))


def test_parameters_of_hierarchical_weights_are_the_dense_ones():
    net, x = mlp(3, 12, 9, 1), points(4, 3)
    program = hierarchical(capture(net, [x]), seed=2)
    assert close(ntk(program, x), by_hand(with_weights(mlp(3, 12, 9, 1), program), x))


def test_float32_on_request():
    net, x = mlp(2, 7, 5, 1), points(5)
    found = ntk(net, x, dtype=torch.float32)
    assert found.dtype == torch.float32 and close(found.double(), ntk(net, x), eps=1.2e-7)
    assert next(net.parameters()).dtype == torch.float32, "the network itself is not changed"


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 3), nn.Linear(4, 3)

        def forward(self, x, y):
            return torch.tanh(self.a(x)), self.b(y).sum(1)

    net, x = Two(), (points(3, 2), points(3, 4))
    assert ntk(net, x).shape == (12, 12) and close(ntk(net, x), ntk(capture(net, x), x))
    assert ntk(net, x, residual=lambda u, p, q: u(p, q)[1]).shape == (3, 3)


def test_training_mode_and_gradients_are_as_they_were():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    net[1].eval()
    assert torch.equal(ntk(net, points(3)), ntk(net, points(3))), "evaluation mode: no dropout"
    assert net.training and net[0].training and not net[1].training and net[0].weight.grad is None
    with torch.no_grad():
        assert ntk(net, points(3)).shape == (3, 3)


class TestMemory:
    net, x = mlp(2, 40, 40, 2), points(7)

    def needed(self, **options) -> int:
        with pytest.raises(InputError, match="at least") as error:
            ntk(self.net, self.x, memory=0, **options)
        return int(str(error.value).split("at least ")[1].split(":")[0].replace(",", ""))

    @pytest.mark.parametrize("residual", [None, second_derivative])
    def test_blocks_give_the_kernel_of_all_points(self, residual):
        whole = ntk(self.net, self.x, residual=residual)
        least = self.needed(residual=residual)
        for memory in (least, least + 400_000, 3 * least):
            assert close(ntk(self.net, self.x, residual=residual, memory=memory), whole)

    def test_too_little_for_one_block_is_refused_and_the_size_that_does_is_named(self):
        least = self.needed()
        with pytest.raises(InputError, match=f"{least:,}"):
            ntk(self.net, self.x, memory=least - 1)
        assert self.needed(dtype=torch.float32) * 2 == least
        with pytest.raises(InputError, match="memory = nan"):
            ntk(self.net, self.x, memory=float("nan"))

    @pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell the peak")
    @pytest.mark.parametrize("residual", [None, second_derivative])
    def test_stays_within_its_memory(self, residual):
        """What a process of its own holds at most: large layers, so that activations are small."""
        memory = 400_000_000

        def own_peak_bytes() -> int:
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))

        def grown() -> str:
            ntk(mlp(2, 50, 50, 1), points(2), residual=residual)
            net, before = mlp(2, 1000, 1000, 1).double(), own_peak_bytes()
            ntk(net, points(14), residual=residual, memory=memory)
            return str(own_peak_bytes() - before)

        text, _ = forked(grown)
        assert 0.1 * memory < int(text) <= memory + 40e6, "40 MB for the allocator and for code loaded on first use"


class TestRefused:
    net = mlp(2, 5, 1)

    @pytest.mark.parametrize(
        ("x", "words"),
        [
            (torch.zeros(0, 2), "no rows"),
            (np.zeros((0, 2)), "no rows"),
            (torch.tensor([[0.0, float("nan")]]), "NaN"),
            (torch.tensor([[0.0, float("inf")]]), "infinite"),
            (torch.zeros(()), "rows, features"),
            (torch.zeros(3, 2, dtype=torch.complex64), "real"),
            ("points", "point array of <U6"),
            (torch.zeros(3, 5), "fails on the first point"),
        ],
    )
    def test_points(self, x, words):
        with pytest.raises(InputError, match=words):
            ntk(self.net, x)

    @pytest.mark.parametrize(
        ("residual", "words"),
        [
            (lambda u, x: x.sum(1), "does not depend"),
            (lambda u, x: u(x).detach(), "does not depend"),
            (lambda u, x: mlp(2, 5, 1).double()(x).detach() + x[:, :1], "does not depend"),
            (lambda u, x: u(x).sum(), r"Expected a tensor \(rows"),
            (lambda u, x: (u(x),), "tuple for one point"),
            (lambda u, x: u(x)[:, :0], "at least one component"),
            (lambda u, x: {}["absent"], "KeyError"),
            (lambda u, x: u(x) / 0.0, "NaN or infinite"),
        ],
    )
    def test_residuals(self, residual, words):
        for net in (self.net, capture(self.net, [points(3)])):
            with pytest.raises(InputError, match=words):
                ntk(net, points(3), residual=residual)

    def test_networks_and_types(self):
        for words, net in (("Found a str", "net"), ("no parameters", nn.Tanh())):
            with pytest.raises(InputError, match=words):
                ntk(net, points(3))
        with pytest.raises(InputError, match="float16"):
            ntk(self.net, points(3), dtype=torch.float16)
        with pytest.raises(InputError, match="Expected the same network"):
            compare_ntk(self.net, mlp(2, 6, 1), points(3))


class TestCompare:
    def test_with_itself_there_is_no_drift(self):
        d = compare_ntk(mlp(2, 8, 1), mlp(2, 8, 1), points(7))
        assert d.relative == d.spectral == 0 and d.cosines == pytest.approx([1.0] * 5)

    @pytest.mark.parametrize("residual", [None, second_derivative])
    def test_of_a_compressed_model_is_that_of_its_written_out_weights(self, residual):
        net, x = mlp(2, 24, 24, 1), points(9)
        model = hrt.compress(net, tol=3e-2, target="bytes", progress=False)
        d = compare_ntk(net, model, x, residual=residual)
        kernels = [by_hand(n, x, residual) for n in (net, with_weights(mlp(2, 24, 24, 1), model.program))]
        assert d.relative == pytest.approx(float((kernels[0] - kernels[1]).norm() / kernels[0].norm()), rel=1e-9)
        assert 0 < d.relative < 1


class TestCertificate:
    def test_the_drift_is_measured_at_compression_and_reported(self):
        net, x = mlp(2, 24, 24, 1), points(400)
        model = hrt.compress(net, inputs=x, tol=1e-2, target="bytes", progress=False)
        c = model.certificate
        held_out = Split.make(distinct(as_samples(x, 0)), 0).held_out
        expected = compare_ntk(net, model, tuple(v[:32] for v in held_out)).relative
        assert c.context["ntk_points"] == 32 and c.measured["ntk_drift"] == pytest.approx(expected, rel=1e-9)
        assert "neural tangent kernel drifts" in model.report(verbose=True)

    def test_what_is_too_large_is_left_out_and_says_why(self, monkeypatch):
        monkeypatch.setattr(import_module("hrt.tangent_kernel.ntk"), "MEMORY", 100_000)
        c = hrt.compress(mlp(2, 24, 24, 1), inputs=points(400), tol=1e-2, progress=False).certificate
        assert "ntk_drift" not in c.measured and "fewer than 8" in c.context["no_ntk_drift"]

    @pytest.mark.parametrize("outputs", [1, 64, 200])
    def test_its_work_is_bounded_beforehand(self, outputs):
        programs = [capture(nn.Linear(3, outputs), [torch.rand(2, 3)]) for _ in range(2)]
        rows = (torch.rand(500, 3, generator=torch.Generator().manual_seed(0)),)
        before, after = map(DenseView, programs)
        drift, count, why = affordable_drift(before, after, rows)
        work = kernel_work(MOST_ROWS * outputs, 4 * outputs)
        if work <= LEAST_WORK:
            assert count == MOST_ROWS
        else:
            assert count < MOST_ROWS and kernel_work(count * outputs, 4 * outputs) <= LEAST_WORK
        if count:
            assert drift == pytest.approx(compare_ntk(*programs, (rows[0][:count],)).relative, rel=1e-9)
        else:
            assert drift is None and "fewer than 8" in why

    def test_a_network_without_a_kernel_says_so(self):
        net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False))
        with torch.no_grad():
            net[0].bias.fill_(-100.0)
        program = capture(net, [points(3)])
        drift, rows, why = affordable_drift(DenseView(program), DenseView(program), (points(9),))
        assert drift is None and rows == 0 and "kernel is zero" in why
