"""Statements of arXiv 2409.07028 that are false as written, or need what they do not say: a counter-example to each."""

import math
from itertools import pairwise

import pytest
import torch

import hrt
from hrt.perf.networks.operators import log_kernel


def diagonal(*values):
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def kappa(m):
    s = torch.linalg.svdvals(m)
    return float(s[0] / s[-1])


def blocks(m, p):
    """The blocks of m after p refinements, a grid of 2^p x 2^p."""
    return [b for rows in m.tensor_split(2**p) for b in rows.tensor_split(2**p, dim=1)]


def refined_error(m, p, rank):
    """||m - H||_F where every block of the grid is its best approximation of this rank."""
    return math.sqrt(sum(float((torch.linalg.svdvals(b)[rank:] ** 2).sum()) for b in blocks(m, p)))


class TestTheorem1:
    def test_a_the_sum_of_blocks_holds_and_is_loose(self):
        e = torch.ones(64, 64, dtype=torch.float64)
        parts = [float(b.norm()) for b in blocks(e, 3)]
        assert float(e.norm()) <= sum(parts)
        assert sum(parts) == pytest.approx(math.sqrt(len(parts)) * float(e.norm())), "loose by the root of their number"
        assert math.sqrt(sum(p * p for p in parts)) == pytest.approx(float(e.norm())), "squares add up exactly"

    def test_b_needs_that_h_stays(self):
        """The proof bounds ||H - H'|| by tau, beside ||A - H|| <= tau: together they give 2 tau + delta."""
        a, tau, delta = diagonal(1.0), 0.1, 0.01
        h, changed = diagonal(1.0 + tau), diagonal(1.0 - delta)
        after = diagonal(1.0 + 2 * tau)
        assert float((a - h).norm()) <= tau * (1 + 1e-12) and float((h - after).norm()) <= tau * (1 + 1e-12)
        assert float((changed - after).norm()) == pytest.approx(2 * tau + delta) and 2 * tau + delta > tau + delta
        assert float((changed - h).norm()) <= (tau + delta) * (1 + 1e-12), "holds for H itself"

    def test_c_is_false(self):
        a, h = diagonal(1.0, 1.0), diagonal(1.1, 0.9)
        e, least = float(torch.linalg.matrix_norm(a - h, 2)), 1.0
        assert kappa(h) > kappa(a) * (1 + e / (least - e)), "1.222 against 1.111"
        assert kappa(h) <= (1.0 + e) / (least - e) * (1 + 1e-12), "what Weyl's inequality gives"

    def test_d_has_no_constant(self):
        """(kappa(H') - kappa(H)) / eps grows as 1 / sigma_min^2: one constant serves no two matrices."""
        constants = []
        for least in (1e-1, 1e-2, 1e-3):
            eps = least / 100
            constants.append((kappa(diagonal(1.0, least - eps)) - kappa(diagonal(1.0, least))) / eps)
        assert constants[1] > 90 * constants[0] and constants[2] > 90 * constants[1]

    def test_e_is_false(self):
        h, after = diagonal(1.0, 1.0), diagonal(1.0, 0.9)
        assert kappa(after) > kappa(h) * (1 + 0.1), "1.111 against 1.100"

    def test_f_says_nothing_of_training(self):
        """Weights that are stored exactly have tau = 0, and so tau T = 0, whatever their network's error is."""
        w, x = diagonal(1.0, 1.0), torch.ones(3, 2, dtype=torch.float64)
        h = hrt.compress_matrix(w, tol=1e-3)
        assert torch.equal(h.to_dense(), w)
        assert float((x @ h.to_dense().T - 2 * x).norm()) > 1


def test_the_error_need_not_halve_with_every_refinement():
    """8 x 8 of an identity in zeros, at rank 4: the same error until blocks are smaller than 8."""
    m = torch.zeros(256, 256, dtype=torch.float64)
    m[:8, :8] = torch.eye(8)
    errors = [refined_error(m, p, 4) for p in range(7)]
    assert errors[:6] == pytest.approx([2.0] * 6) and errors[6] == 0
    assert errors[5] > 4 * errors[0] / 2**5


def test_it_halves_and_more_for_a_kernel_at_a_rank_that_resolves_it():
    m = torch.as_tensor(log_kernel(256))
    errors = [refined_error(m, p, 4) for p in range(5)]
    assert all(b < a for a, b in pairwise(errors))


def test_theorem_3_is_true_to_first_order_only():
    for tau in (0.1, 0.01):
        bound, exact = 1 + tau, kappa(diagonal(1.0, 1.0 - tau))
        assert bound < exact <= bound * (1 + 2 * tau**2)


def test_an_ill_conditioned_matrix_may_become_singular():
    """Algorithm 1 and hrt drop what is below the tolerance, and with it the least singular values."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    w = u * 10 ** (-6 * torch.linspace(0, 1, 64, dtype=torch.float64) ** (1 / 3)) @ v
    assert kappa(w) == pytest.approx(1e6, rel=1e-3)
    for h in (hrt.compress_matrix(w, tol=1e-3), hrt.adaptive_partition(w, 1e-3, min_leaf=8)):
        dense = h.to_dense()
        assert float((w - dense).norm() / w.norm()) <= 1e-3 and kappa(dense) > 1e6 * kappa(w)
