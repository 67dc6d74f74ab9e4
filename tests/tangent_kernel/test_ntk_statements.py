"""What is true of the kernel's drift, and a counter-example to every statement that needs more than the paper says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.tangent_kernel.kernel_drift import drift
from hrt.tangent_kernel.ntk import compare_ntk, ntk
from hrt.tangent_kernel.ntk_statements import (
    fit_power_law,
    ntk_definite,
    ntk_definite_exact,
    ntk_drift,
    ntk_eigenspaces,
    ntk_eigenvalues,
    ntk_statements,
)

ONE = torch.ones(1, 1, dtype=torch.float64)
TOLS = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5]


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).double()


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer.double()


class TestFit:
    def test_recovers_a_power_law(self):
        law = fit_power_law(TOLS, [3 * t**1.5 for t in TOLS])
        assert law.exponent == pytest.approx(1.5) and law.factor == pytest.approx(3) and law.points == 5
        assert law.low == pytest.approx(1.5) and law.high == pytest.approx(1.5)
        assert law.worst == pytest.approx(3 * 0.1**0.5)

    def test_interval_covers_the_exponent_of_scattered_drifts(self):
        """95 % intervals of 200 draws: between 180 and 199 hold the true exponent but for one chance in 10^3."""
        g = torch.Generator().manual_seed(0)
        inside = 0
        for _ in range(200):
            scatter = torch.exp(0.3 * torch.randn(5, generator=g, dtype=torch.float64)).tolist()
            law = fit_power_law(TOLS, [t * s for t, s in zip(TOLS, scatter, strict=True)])
            inside += law.low <= 1 <= law.high
        assert 180 <= inside <= 199

    def test_no_drift_at_all_is_left_out(self):
        assert fit_power_law(TOLS, [*TOLS[:4], 0.0]).points == 4

    @pytest.mark.parametrize(
        ("tols", "drifts"),
        [
            *((TOLS, drifts) for drifts in ([0.0] * 5, [1.0] * 4, [math.nan] * 5)),
            *((tols, [1.0] * len(tols)) for tols in ([1e-1, 1e-2], [0.0, 1.0, 2.0], [1e-2] * 3)),
        ],
    )
    def test_refused(self, tols, drifts):
        with pytest.raises(InputError):
            fit_power_law(tols, drifts)


class TestDriftOverTolerance:
    def test_verdicts(self):
        scatter = [1.0, 1.1, 0.9, 1.05, 1.0]
        for exponent, word in ((1.0, "holds"), (2.0, "holds"), (0.5, "violated")):
            drifts = [s * t**exponent for s, t in zip(scatter, TOLS, strict=True)]
            assert ntk_drift(fit_power_law(TOLS, drifts)).verdict == word
        found = ntk_drift(fit_power_law(TOLS, [1.0, 1e-3, 1.0, 1e-3, 1.0]))
        assert found.verdict == "vacuous" and "C = " in found.remark

    def test_holds_for_a_smooth_network_and_perturbed_weights(self):
        g, drifts = torch.Generator().manual_seed(0), []
        weights = [torch.randn(m, n, generator=g, dtype=torch.float64) for m, n in ((9, 2), (9, 9), (1, 9))]
        errors = [torch.randn(w.shape, generator=g, dtype=torch.float64) for w in weights]
        x = torch.randn(8, 2, generator=g, dtype=torch.float64)

        def net(tol: float) -> nn.Sequential:
            a, b, c = (linear(w + tol * w.norm() / e.norm() * e) for w, e in zip(weights, errors, strict=True))
            return network(a, nn.Tanh(), b, nn.Tanh(), c)

        for tol in TOLS:
            drifts.append(compare_ntk(net(0.0), net(tol), x).relative)
        law = fit_power_law(TOLS[1:], drifts[1:])
        assert ntk_drift(law).verdict == "holds" and law.exponent == pytest.approx(1, abs=0.1)

    @pytest.mark.parametrize("tol", TOLS)
    def test_counter_example_relu_jumps(self, tol):
        """x = 1, z = x - (1 - tol/2): a bias changed by tol switches the only unit off, and with it the kernel."""
        biases = (torch.tensor([-1 + change]) for change in (tol / 2, -tol / 2))
        on, off = (network(linear(ONE, bias), nn.ReLU(), linear(ONE)) for bias in biases)
        assert compare_ntk(on, off, ONE).relative == pytest.approx(1)

    @pytest.mark.parametrize("factor", [10.0, 1e3, 1e5])
    def test_counter_example_no_constant_serves_all_networks(self, factor):
        """f = tanh(s (x + b)) at x = 1, b = -1 - 1/s, where tanh bends: b off by tol moves its argument by s tol."""
        tol = 1e-6
        biases = (torch.tensor([-1.0 - 1 / factor + d]) for d in (0.0, tol))
        steep = [network(linear(ONE, bias), linear(factor * ONE), nn.Tanh(), linear(ONE)) for bias in biases]
        assert compare_ntk(*steep, ONE).relative / tol > 0.5 * factor

    @pytest.mark.parametrize("factor", [2.0, 100.0])
    def test_counter_example_equal_outputs_with_other_kernels(self, factor):
        """f = a b x has the kernel (a^2 + b^2) x x': a c and b / c give the same output and another kernel. A tolerance
        of the output bounds no drift.
        """
        x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
        before, after = network(linear(ONE), linear(ONE)), network(linear(factor * ONE), linear(ONE / factor))
        assert torch.allclose(before(x), after(x))
        assert compare_ntk(before, after, x).relative == pytest.approx((factor**2 + factor**-2) / 2 - 1)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 8), size=st.floats(0, 2), leading=st.integers(1, 4))
def test_theorems_are_never_violated(seed, n, size, leading):
    g = torch.Generator().manual_seed(seed)
    j, e = (torch.randn(n, 2 * n, generator=g, dtype=torch.float64) for _ in range(2))
    d = drift(j @ j.T, (j + size * e) @ (j + size * e).T, leading)
    for found in (ntk_eigenvalues(d), ntk_definite_exact(d), ntk_eigenspaces(d)):
        assert found.verdict in ("holds", "vacuous"), found
        assert found.bound is None or found.measured <= found.bound * (1 + 1e-9) + 1e-7


def test_parts_of_a_weight_add_up_in_the_kernel():
    """W = [W_1 W_2]: the kernel is the sum of what the blocks contribute, on the same points, and no block matrix."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, *parts = (ntk(nn.Linear(p.shape[1], 2, bias=False).double(), p) for p in (x, x[:, :1], x[:, 1:]))
    assert whole.shape == (10, 10) and torch.allclose(whole, parts[0] + parts[1], rtol=1e-12, atol=1e-12)


class TestDefiniteness:
    def test_holds_for_small_differences(self):
        d = drift(diagonal(3, 2, 1), diagonal(3, 2, 0.9))
        assert ntk_definite(d).verdict == ntk_definite_exact(d).verdict == "holds"

    def test_counter_example_definiteness_is_lost(self):
        """f = v W x at v = 0 has the kernel (W x) (W x'): definite at two points for W = I, singular for H = e e^T, of
        low rank as compressed layers are.
        """
        eye, e = torch.eye(2, dtype=torch.float64), torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        x, zero = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
        before, after = (network(linear(w), linear(zero)) for w in (eye, e @ e.T))
        d = compare_ntk(before, after, x)
        assert d.before.is_positive_definite
        assert ntk_definite(d).verdict == "violated" and ntk_definite_exact(d).verdict == "vacuous"

    def test_of_a_singular_kernel_nothing_is_said(self):
        d = drift(diagonal(1, 0), diagonal(1, 0.5))
        assert ntk_definite(d).verdict == ntk_definite_exact(d).verdict == "vacuous"


class TestEigen:
    def test_a_difference_as_large_as_the_kernel_says_nothing(self):
        assert ntk_eigenvalues(drift(diagonal(1, 1), diagonal(0, 3))).verdict == "vacuous"

    @pytest.mark.parametrize("tol", [1e-2, 1e-6])
    def test_counter_example_eigenspaces_swap_without_a_gap(self, tol):
        """diag(1 + tol, 1) and diag(1, 1 + tol): a drift of tol turns the leading eigenvector by 90 degrees."""
        d = drift(diagonal(1 + tol, 1), diagonal(1, 1 + tol), leading=1)
        assert d.relative == pytest.approx(tol, rel=2 * tol) and d.cosines == pytest.approx((0.0,))
        assert ntk_eigenspaces(d).verdict == "vacuous"

    def test_the_whole_space_has_no_gap(self):
        found = ntk_eigenspaces(drift(diagonal(2, 1), diagonal(2, 1), leading=2))
        assert found.verdict == "vacuous" and "no gap" in found.remark

    def test_holds_with_a_gap(self):
        after = torch.tensor([[9, 0.1, 0], [0.1, 1, 0], [0, 0, 0.5]])
        assert [s.verdict for s in ntk_statements(drift(diagonal(9, 1, 0.5), after, leading=1))] == ["holds"] * 4
