"""Norms: guaranteed ones hold, estimated ones keep their stated confidence."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrt.certificate.intervals import Interval, gamma
from hrt.certificate.norms import Matrix, Weight, estimate_spectral_norm, length, product_rounding, spectral_limit
from hrt.hmatrix.hmatrix import HMatrix

from helpers import MIXED, random_hmatrix


def with_values(m: int, n: int, values, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    k = min(m, n)
    u, v = (torch.linalg.qr(torch.randn(s, k, generator=g, dtype=torch.float64))[0] for s in (m, n))
    return u * torch.as_tensor(values, dtype=torch.float64) @ v.T


@given(st.lists(st.floats(-1e100, 1e100) | st.sampled_from([0.0, 1e-200, 5e-324]), min_size=1, max_size=8))
def test_length_is_an_upper_bound_and_zero_only_for_zeros(v):
    found = Fraction(float(length(torch.tensor([v], dtype=torch.float64), len(v))))
    total = sum(Fraction(x) ** 2 for x in v)
    assert found**2 >= total and (found == 0) == (total == 0)


@pytest.mark.parametrize("shape", [(30, 40), (600, 700), (1, 5), (5, 1)])
def test_spectral_limit_is_above_and_close_where_it_can_be(shape):
    k = min(shape)
    values = torch.linspace(3, 1, k, dtype=torch.float64)
    limit = spectral_limit(with_values(*shape, values))
    assert limit >= 3
    assert limit <= (3 * (1 + 1e-11) if k <= 512 else float(values.norm()) * (1 + 2 * gamma(math.prod(shape))))


@pytest.mark.parametrize("shape", [(3, 3), (0, 3), (3, 0)])
def test_of_nothing(shape):
    zeros = torch.zeros(shape, dtype=torch.float64)
    e = estimate_spectral_norm(zeros)
    assert spectral_limit(zeros) == e.lower == e.upper == 0


class TestEstimate:
    @pytest.mark.parametrize("spectrum", ["flat", "decaying", "near ties"])
    def test_encloses_on_every_seed(self, spectrum):
        n = 200
        values = {
            "flat": torch.ones(n),
            "decaying": 2.0 ** -torch.arange(n, dtype=torch.float64),
            "near ties": torch.linspace(1, 0.999, n),
        }[spectrum]
        a = with_values(n, n + 20, values)
        for seed in range(100):
            e = estimate_spectral_norm(a, seed=seed)
            assert e.lower <= 1 + 1e-12 and e.upper * (1 + 1e-12) >= 1 and e.upper <= 1.06 * e.lower

    def test_stated_limit_is_the_formula(self):
        a = torch.randn(400, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        e = estimate_spectral_norm(a)
        eps = (math.log(1.648 * math.sqrt(300) / 1e-6) / 59) ** 2
        assert e.upper == pytest.approx(e.lower / math.sqrt(1 - eps))
        true = float(torch.linalg.matrix_norm(a, 2))
        assert 0.99 * true <= e.lower <= true * (1 + 1e-12) and true <= e.upper

    def test_of_few_directions_is_exact(self):
        a = torch.outer(torch.arange(1.0, 50), torch.ones(70)).double()
        e, true = estimate_spectral_norm(a), float(torch.linalg.matrix_norm(a, 2))
        assert e.lower == pytest.approx(true, rel=1e-12) and true <= e.upper <= true * (1 + 1e-5)


class TestEnclosures:
    @given(seed=st.integers(0, 10**6))
    def test_storage_rounding_covers_the_exact_product(self, seed):
        h = random_hmatrix(seed, 6, 5, storages=MIXED, ordered=False)
        loose, dense = product_rounding(h), h.to_dense()
        total = [[Fraction(0)] * 5 for _ in range(6)]
        for leaf in h.leaves:
            first, *rest = ([[Fraction(v) for v in row] for row in t.tolist()] for t in leaf.decoded(torch.float64))
            for i, j in itertools.product(range(leaf.rows), range(leaf.cols)):
                terms = (first[i][k] * rest[0][k][j] for k in range(leaf.rank)) if rest else [first[i][j]]
                total[leaf.row + i][leaf.col + j] += sum(terms, Fraction(0))
        for i in range(6):
            off2 = sum((total[i][j] - Fraction(dense[i, j].item())) ** 2 for j in range(5))
            assert off2 <= Fraction(loose[i].item()) ** 2

    def test_products_enclose_all_points(self):
        g = torch.Generator().manual_seed(0)
        a = torch.randn(7, 5, generator=g, dtype=torch.float64)
        lo = torch.randn(20, 5, generator=g, dtype=torch.float64)
        hi = lo + torch.rand(20, 5, generator=g, dtype=torch.float64)
        y = Matrix.make(a).times(Interval(lo, hi))
        for _ in range(200):
            x = lo + (hi - lo) * torch.rand(20, 5, generator=g, dtype=torch.float64).round()
            assert bool((y.lo <= x @ a.T).all() and (x @ a.T <= y.hi).all())

    def test_error_of_a_weight_that_did_not_change_is_zero(self):
        w = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
        found = Weight.make(w.double(), w.double(), HMatrix.from_dense(w))
        x = Interval(torch.full((3, 4), -1.0).double(), torch.ones(3, 4).double())
        assert found.error.norm == 0 and not found.error.times(x).magnitude.any()
