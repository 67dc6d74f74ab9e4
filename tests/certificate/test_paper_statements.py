"""The paper's statements: what holds, what is vacuous, and where the one about condition numbers is wrong."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hrt.certificate.paper_statements import (
    Spectra,
    box_statement,
    condition,
    condition_exact,
    global_frobenius,
    leaf_frobenius,
    product,
    singular_values,
)


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def spectra(w: Tensor, h: Tensor) -> Spectra:
    found = Spectra.of(w, h)
    assert found is not None
    return found


def random_pair(seed: int, m: int, n: int, size: float) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    w, e = (torch.randn(m, n, generator=g, dtype=torch.float64) for _ in range(2))
    return w, w + size * e


class TestFrobenius:
    def test_within_and_beyond_the_tolerance(self):
        w, z = diagonal(3, 4), diagonal(0, 0)
        assert global_frobenius(w, diagonal(3, 3.9), 0.1).verdict == "holds"
        found = global_frobenius(w, diagonal(3, 3.0), 0.1)
        assert (found.verdict, found.bound, found.measured) == ("violated", pytest.approx(0.5), 1.0)
        assert global_frobenius(w, z, 1.0).verdict == "vacuous", "a tolerance of one says nothing"
        assert global_frobenius(z, z, 1e-3).verdict == leaf_frobenius(z, z, [0.0]).verdict == "holds"

    def test_blocks_add_up_exactly(self):
        w, h = random_pair(0, 6, 6, 1e-2)
        parts = [float((w - h)[:, :2].norm()), float((w - h)[:, 2:].norm())]
        found = leaf_frobenius(w, h, parts)
        assert found.verdict == "holds" and found.bound == pytest.approx(found.measured, rel=1e-12)
        assert leaf_frobenius(w, h, parts[:1]).verdict == "violated"


@given(seed=st.integers(0, 10**6), m=st.integers(1, 9), n=st.integers(1, 9), size=st.floats(0, 2))
def test_theorems_are_never_violated(seed, m, n, size):
    """Weyl's inequality, the norm's definition, and the condition number that follows from Weyl's inequality."""
    w, h = random_pair(seed, m, n, size)
    s = spectra(w, h)
    second = torch.eye(n, dtype=torch.float64) + torch.ones(n, n, dtype=torch.float64)
    for found in (singular_values(s), product(s, w - h, None), product(s, w - h, second), condition_exact(s)):
        assert found.verdict in ("holds", "vacuous"), found
        assert found.bound is None or found.measured is None or found.measured <= found.bound * (1 + 1e-9) + 1e-12


def test_a_perturbation_as_large_as_the_matrix_says_nothing():
    s = spectra(diagonal(1, 1), diagonal(0, 0))
    assert singular_values(s).verdict == product(s, diagonal(1, 1), None).verdict == "vacuous"


def test_product_over_inputs_is_what_they_feel():
    """Inputs along the second axis only: E acts on the first, and nothing is felt."""
    s, e = spectra(diagonal(2, 2), diagonal(1, 2)), diagonal(1, 0)
    assert product(s, e, None).measured == 1
    assert product(s, e, diagonal(0, 3)).measured == 0
    assert product(s, e, diagonal(3, 3)).measured == pytest.approx(math.sqrt(0.5))


class TestCondition:
    def test_of_a_small_perturbation_holds(self):
        found = condition(spectra(diagonal(4, 1), diagonal(4.01, 1)))
        assert found.verdict == "holds"
        assert found.bound == pytest.approx(4 * 1.01) and found.measured == pytest.approx(4.01, rel=1e-12)

    def test_the_papers_bound_fails_to_second_order_and_weyls_does_not(self):
        s = spectra(diagonal(1, 1), diagonal(1, 0.9))
        paper, exact = condition(s), condition_exact(s)
        assert paper.verdict == "violated" and paper.bound == pytest.approx(1.1)
        assert paper.measured == exact.measured == pytest.approx(1 / 0.9)
        assert exact.verdict == "holds" and exact.bound == pytest.approx(1.1 / 0.9)

    @pytest.mark.parametrize("h", [diagonal(1, 0), diagonal(1, 0.05)])
    def test_is_vacuous_where_h_may_be_singular(self, h):
        for found in (f(spectra(diagonal(1, 0.1), diagonal(1, -0.0))) for f in (condition, condition_exact)):
            assert found.verdict == "vacuous" and found.measured is None and "may be singular" in found.remark
        assert condition(spectra(diagonal(1, 0.02), h)).verdict == "vacuous"

    def test_of_a_singular_w_is_infinite(self):
        for f in (condition, condition_exact):
            found = f(spectra(diagonal(1, 0), diagonal(1, 0.5)))
            assert found.verdict == "vacuous" and found.bound is None and "W is singular" in found.remark

    def test_ranks_are_counted_beyond_rounding(self):
        u = torch.randn(30, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        s = spectra(torch.eye(30, dtype=torch.float64), u @ u.T)
        assert s.rank(s.h) == 4 and math.isinf(s.condition(s.h)) and s.condition(s.w) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (513, 513), (2, 4097)])
def test_no_spectra_of_empty_or_large_matrices(shape):
    z = torch.zeros(shape, dtype=torch.float64)
    assert Spectra.of(z, z) is None


def test_box():
    rms, z = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = box_statement([0.3, 0.4], torch.tensor([0.1, 0.1]).double(), rms)
    assert (found.verdict, found.bound) == ("holds", pytest.approx(0.5)) and "1.00e-01" in found.remark
    assert box_statement([3.0, 4.0], rms / 10, rms).verdict == "vacuous", "from the outputs' own size on"
    assert [box_statement([size], z, z).verdict for size in (0.0, 1.0)] == ["holds", "vacuous"]
