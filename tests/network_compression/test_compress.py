"""compress: the output's error holds on inputs that were never seen, or says why it cannot."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.hmatrix.hmatrix import relative_difference
from hrt.perf.networks.burgers import load_burgers

from zoo import ZOO

NAMES = list(enumerate(sorted(ZOO)))


def mlp(*widths: int, seed: int = 0, activation=nn.Tanh) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def unseen_error(net, model, x) -> float:
    x = x if isinstance(x, tuple) else (x,)
    with torch.no_grad():
        outputs = net(*x), model.predict(x if len(x) > 1 else x[0])
    expected, actual = (
        torch.cat([t.double().flatten() for t in (y if isinstance(y, (tuple, list)) else (y,))]) for y in outputs
    )
    return relative_difference(actual, expected)


@pytest.fixture(scope="module")
def burgers():
    net = load_burgers()
    g = torch.Generator().manual_seed(5)
    x = torch.rand(4_000, 2, generator=g) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    return net, hrt.compress(net, inputs=x, tol=1e-3, progress=False)


def test_burgers_pinn_holds_where_it_was_never_seen_and_is_six_times_smaller(burgers):
    net, model = burgers
    g = torch.Generator().manual_seed(99)
    unseen = torch.rand(40_000, 2, generator=g) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
    assert unseen_error(net, model, unseen) <= 1e-3
    assert model.compression_ratio >= 6
    assert model.dense_nbytes == 4 * sum(p.numel() for p in net.parameters())


def test_certificate_keeps_kinds_of_figures_apart(burgers):
    _, model = burgers
    c = model.certificate
    assert c.kind == "output" and c.brief() == c
    assert 0 < c.measured["runtime_error"] <= c.estimated["output_error_upper_99"] <= 1e-3
    assert c.guaranteed == {}, "nothing was proven for every input, so nothing may stand here"
    assert len(c.layers) == 5
    assert sum(r.dense_nbytes for r in c.layers) <= model.dense_nbytes
    assert all(r.reason for r in c.layers)


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
@pytest.mark.parametrize(
    "net",
    [mlp(3, 48, 48, 1), mlp(5, 40, 30, 7, activation=nn.SiLU), mlp(2, 32, 32, 32, 2, activation=nn.ReLU, seed=1)],
    ids=["tanh", "silu", "relu"],
)
def test_error_holds_on_unseen_inputs(net, tol):
    width = net[0].in_features
    g = torch.Generator().manual_seed(3)
    model = hrt.compress(net, inputs=torch.randn(3000, width, generator=g), tol=tol, progress=False)
    assert unseen_error(net, model, torch.randn(20_000, width, generator=g)) <= tol
    assert model.nbytes <= model.dense_nbytes


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_few_calibration_rows_do_not_break_the_bound(rows):
    """With few rows the confidence limit is wide, so that the result must be all the more careful; two or three cannot
    be verified at all and leave the network as it is."""
    net = mlp(6, 48, 48, 3, seed=2)
    g = torch.Generator().manual_seed(rows)
    model = hrt.compress(net, inputs=torch.randn(rows, 6, generator=g), tol=1e-2, progress=False)
    assert model.nbytes <= model.dense_nbytes
    assert unseen_error(net, model, torch.randn(5000, 6, generator=g)) <= 1e-2
    assert any("calibration rows" in r for r in model.certificate.context["remarks"])


def test_repeated_rows_do_not_verify_themselves():
    """Fifty rows, each a hundred times, are fifty rows: the bound has to hold on others."""
    net, g = mlp(4, 32, 32, 2, seed=3), torch.Generator().manual_seed(0)
    model = hrt.compress(net, inputs=torch.randn(50, 4, generator=g).repeat(100, 1), tol=1e-2, progress=False)
    assert unseen_error(net, model, torch.randn(5000, 4, generator=g)) <= 1e-2
    assert any("repeat" in r for r in model.certificate.context["remarks"])
    rows = model.certificate.context["held_out_rows"]
    assert model.certificate.estimated["unseen_probability_99"] == pytest.approx(1 - 0.01 ** (1 / rows))
    assert "not covered" in model.report()


@pytest.mark.parametrize("scale", [1e-30, 1e12])
def test_outputs_of_any_size(scale):
    net, g = mlp(3, 24, 2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net[-1].parameters():
            p.mul_(scale)
    model = hrt.compress(net, inputs=torch.randn(1000, 3, generator=g), tol=1e-2, progress=False)
    assert unseen_error(net, model, torch.randn(3000, 3, generator=g)) <= 1e-2
    assert model.nbytes <= model.dense_nbytes


def test_constant_inputs_give_a_sane_result_that_says_so():
    net = mlp(4, 32, 32, 2)
    x = torch.ones(200, 4)
    model = hrt.compress(net, inputs=x, tol=1e-3, progress=False)
    assert unseen_error(net, model, x) <= 1e-3
    assert any("constant" in r for r in model.certificate.context["remarks"])


def test_without_inputs_every_weight_is_within_tolerance():
    net = mlp(3, 100, 90, 2)
    with torch.no_grad():
        net[2].weight.copy_(torch.outer(torch.randn(90), torch.randn(100)) + 1e-5 * torch.randn(90, 100))
    for storage in ("auto", "float32", "float16", "bfloat16"):
        model = hrt.compress(net, tol=1e-2, storage=storage, progress=False)
        for name, value in model.program.constants.items():
            if name in model.program.weights:
                w = net.get_parameter(name).detach().double()
                assert float((w - value.to_dense()).norm() / w.norm()) <= 1e-2
        assert model.certificate.kind == "layers"
        assert model.certificate.guaranteed
        assert model.certificate.measured == {}
        assert (
            len(model.program.constants["2.weight"].leaves) == 1
            and model.program.constants["2.weight"].leaves[0].rank == 1
        )
        assert model.nbytes <= model.dense_nbytes


def test_network_is_left_as_it_was():
    net = mlp(3, 20, 2).train()
    net[1].register_forward_hook(lambda *a: None)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    hrt.compress(net, inputs=torch.randn(100, 3), tol=1e-2, progress=False)
    assert net.training and all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("name", [n if k % 4 == 0 else pytest.param(n, marks=pytest.mark.slow) for k, n in NAMES])
def test_every_network_that_can_be_captured_keeps_its_bound(name):
    entry = ZOO[name]
    net = entry.build()
    x = entry.inputs(600)
    model = hrt.compress(net, inputs=x, tol=2e-2, progress=False)
    assert model.nbytes <= model.dense_nbytes
    fresh = entry.inputs(601)
    assert unseen_error(lambda *x: capture(net, fresh).run(x), model, fresh) <= 2e-2


class Log(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return torch.log(self.layer(x))


class Noisy(Log):
    def forward(self, x):
        return self.layer(x) + torch.randn_like(x)


def with_weight(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    net = mlp(2, 4, 1).to(dtype)
    with torch.no_grad():
        net[2].weight[0, 1] = value
    return net


X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("net", "options", "error", "words"),
    [
        *(
            (None, {"tol": tol}, hrt.ToleranceError, "tol")
            for tol in (0, -1, 1.01, 2, 1e300, math.nan, math.inf, "loose")
        ),
        *((None, {"seed": seed}, hrt.InputError, "seed") for seed in (-1, 2**70, "a", True)),
        (None, {"target": "tpu"}, hrt.InputError, "target"),
        (None, {"storage": "int3"}, hrt.InputError, "storage"),
        (None, {"derivatives": ["d0"]}, hrt.InputError, "Expected inputs too: without them only"),
        *((None, {"executor": wrong}, hrt.InputError, "executor") for wrong in (object(), 4, ThreadPoolExecutor)),
        (None, {"inputs": np.ma.masked_less(np.ones((9, 2)), 2)}, hrt.InputError, "masked"),
        (None, {"inputs": "abc"}, hrt.InputError, "Expected a tensor or array of real numbers"),
        (None, {"inputs": torch.ones(3, 2, device="meta")}, hrt.InputError, "meta"),
        (None, {"inputs": torch.ones(10, 3)}, hrt.InputError, "expects 2 features"),
        (None, {"inputs": X, "tol": 1e-9}, hrt.ToleranceError, "float32"),
        (lambda: mlp(2, 4, 1).to("meta"), {"inputs": X}, hrt.InputError, "meta"),
        (lambda: with_weight(math.nan), {}, hrt.InputError, r"2\.weight"),
        (lambda: with_weight(math.inf), {"inputs": X}, hrt.InputError, r"2\.weight"),
        (lambda: with_weight(1e200, torch.float64), {"inputs": X}, hrt.InputError, "float32"),
        (Log, {"inputs": X}, hrt.InputError, "NaN or infinite"),
        (Noisy, {"inputs": X}, hrt.CaptureError, "randn_like"),
    ],
)
def test_what_cannot_be_had_is_refused(net, options, error, words):
    with pytest.raises(error, match=words):
        hrt.compress(net() if net else mlp(2, 64, 1), progress=False, **options)


def test_empty_layers_and_networks_without_weights():
    empty = nn.Sequential(nn.Linear(3, 0), nn.Tanh(), nn.Linear(0, 2))
    model = hrt.compress(empty, inputs=torch.randn(50, 3), tol=1e-3, progress=False)
    x = torch.randn(4, 3)
    torch.testing.assert_close(model.predict(x), empty(x).detach())
    plain = hrt.compress(nn.Tanh(), inputs=torch.randn(50, 3), tol=1e-3, progress=False)
    torch.testing.assert_close(plain.predict(x), torch.tanh(x))
    assert plain.nbytes == 0


def test_a_weight_that_is_also_used_otherwise_stays_as_it_is():
    class Reuse(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.outer(torch.randn(40), torch.randn(30)))
            self.last = nn.Linear(40, 40)

        def forward(self, x):
            h = torch.tanh(nn.functional.linear(x, self.weight))
            return self.last(h) + (x[:, None, :] * self.weight).sum(-1)

    net, x = Reuse(), torch.randn(500, 30)
    for inputs in (None, x):
        model = hrt.compress(net, inputs=inputs, tol=1e-2, progress=False)
        assert isinstance(model.program.constants["weight"], torch.Tensor)
        assert unseen_error(net, model, torch.randn(400, 30)) <= 2e-2


def test_zero_network():
    net = mlp(3, 16, 2)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    model = hrt.compress(net, inputs=torch.randn(50, 3), tol=1e-3, progress=False)
    assert torch.equal(model.predict(torch.randn(4, 3)), torch.zeros(4, 2))


@pytest.mark.parametrize(("dtype", "tol"), [(torch.float64, 1e-2), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_networks_of_other_dtypes_are_met_as_they_answer(dtype, tol):
    net = mlp(3, 32, 32, 1).to(dtype)
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    model = hrt.compress(net, inputs=x, tol=tol, progress=False)
    fresh = torch.randn(2000, 3)
    with torch.no_grad():
        reference = net(fresh.to(dtype)).double()
    assert float((model.predict(fresh) - reference).norm() / reference.norm()) <= tol
