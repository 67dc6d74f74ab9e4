"""Spectra, effective ranks and angles of kernels against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.tangent_kernel.kernel_drift import Spectrum, drift


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def rotated(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


class TestSpectrum:
    @pytest.mark.parametrize(
        "values, effective, trace",
        [
            ((2, 2, 2, 2), 4, 4),
            ((0, 3, 0), 1, 1),
            ((3, 1), math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), 4 / 3),
        ],
    )
    def test_ranks_by_both_definitions(self, values, effective, trace):
        s = Spectrum.of(diagonal(*values))
        assert (s.effective_rank, s.trace_rank) == pytest.approx((effective, trace))
        assert (s.largest, s.least) == (max(values), min(values)) and s.is_positive_definite == (min(values) > 0)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_rounding_covers_the_kernel_of_dependent_points(self, dtype):
        """A Gram matrix of rank 5 on 40 points: 35 eigenvalues are 0, whatever is computed."""
        j = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
        j = j @ torch.randn(5, 3000, generator=torch.Generator().manual_seed(1)).to(dtype)
        s = Spectrum.of(j @ j.T)
        assert not s.is_positive_definite and float(s.values[5:].abs().max()) < s.rounding
        assert float(s.values[4]) > s.rounding

    @pytest.mark.parametrize("kernel", [torch.zeros(2, 3), torch.zeros(0, 0), torch.zeros(3), diagonal(math.nan, 1)])
    def test_what_is_no_kernel_is_refused(self, kernel):
        with pytest.raises(InputError, match="kernel"):
            Spectrum.of(kernel)


class TestDrift:
    def test_norms_and_angles(self):
        a, turn = diagonal(4, 2, 1), rotated(0.3)
        b = turn @ a @ turn.T
        d = drift(a, b, leading=1)
        assert d.cosines == pytest.approx((math.cos(0.3),)) and d.gap == pytest.approx(2)
        assert d.relative == pytest.approx(float((a - b).norm() / a.norm()))
        assert d.spectral == pytest.approx(float(torch.linalg.matrix_norm(a - b, 2)))
        assert d.frobenius == pytest.approx(float((a - b).norm()))
        assert torch.allclose(d.before.values, d.after.values)

    def test_a_span_that_is_turned_in_itself_is_the_same_span(self):
        a, turn = diagonal(4, 2, 1), rotated(0.3)
        assert drift(a, turn @ a @ turn.T, leading=2).cosines == pytest.approx((1.0, 1.0))

    def test_no_more_eigenvectors_than_there_are(self):
        d = drift(diagonal(2, 1), diagonal(2, 1), leading=5)
        assert len(d.cosines) == 2 and d.gap == math.inf and d.relative == 0

    @pytest.mark.parametrize(
        "before, after, leading, words",
        [
            (diagonal(1, 2), diagonal(1, 2, 3), 1, "shapes"),
            (diagonal(0, 0), diagonal(1, 2), 1, "zero"),
            *((diagonal(1, 2), diagonal(1, 2), leading, "leading") for leading in (0, 1.5)),
        ],
    )
    def test_refused(self, before, after, leading, words):
        with pytest.raises(InputError, match=words):
            drift(before, after, leading)
