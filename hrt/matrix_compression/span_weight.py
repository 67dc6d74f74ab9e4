"""The weight of errors over one span of rows or columns, and everything that is factored from it, once."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

SMALLEST_MEAN = 1e-250
DAMPING = 1e-4  # relative to the mean eigenvalue of S; directions that no input excites must not absorb errors
SINGULAR = 1e-13  # likewise, for `SpanWeight.solve`


@dataclass(frozen=True, eq=False)
class SpanWeight:
    """A second moment or sensitivity S (n, n), semidefinite float64, or those of several spans of one length,
    (..., n, n). The factors are those of the functions below.
    """

    moment: Tensor

    @cached_property
    def factor(self) -> Tensor:
        """Lower L with L L^T = S (regularised at rounding level)."""
        return cholesky_psd(self.moment)

    @cached_property
    def inverse_factor(self) -> Tensor:
        """R (..., n, n), as `inverse_factor` has it."""
        return inverse_factor(self.moment)

    @cached_property
    def compensated(self) -> Tensor:
        """d (..., n), as `compensated_weights` has it."""
        return compensated_weights(self.moment, self.inverse_factor)

    @cached_property
    def _solver(self) -> Tensor:
        mean = self.moment.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(torch.float64).tiny)
        eye = torch.eye(self.moment.shape[-1], dtype=torch.float64)
        return cholesky_psd(self.moment + SINGULAR * mean[..., None, None] * eye)

    def solve(self, right_hand_side: Tensor) -> Tensor:
        """S^-1 B for an S that may be singular, regularised at rounding level."""
        return torch.cholesky_solve(right_hand_side, self._solver)


def cholesky_psd(c: Tensor) -> Tensor:
    """Cholesky factors of semidefinite (..., n, n), each with the smallest diagonal shift that makes it succeed."""
    tiny = torch.finfo(torch.float64).tiny
    scale = c.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(tiny) if c.numel() else c.new_ones(c.shape[:-2])
    eye = torch.eye(c.shape[-1], dtype=c.dtype)
    shift = torch.full_like(scale, 1e-14)
    while True:
        factor, info = torch.linalg.cholesky_ex(c + (shift * scale)[..., None, None] * eye)
        failed = (info != 0) | ~torch.isfinite(factor).flatten(-2).all(-1)
        if not bool(failed.any()):
            return factor
        shift = torch.where(failed, 10 * shift, shift)


def inverse_factor(moment: Tensor) -> Tensor:
    """R (..., n, n), upper, with R^T R the inverse of the damped S over its mean eigenvalue."""
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype)
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    # Moments of very few rows may be zero or, by rounding, slightly indefinite.
    usable = mean > SMALLEST_MEAN
    damped = torch.where(usable, moment / torch.where(usable, mean, 1.0) + DAMPING * eye, eye)
    return cholesky_psd(torch.cholesky_inverse(cholesky_psd(damped))).mT


def compensated_weights(moment: Tensor, factor: Tensor | None = None) -> Tensor:
    """d (..., n): compensated rounding errors e raise tr(E S E^T) by sum_j d_j e_j^2, d_j = mean(S) / R_jj^2."""
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    if not moment.shape[-1]:
        return diagonal
    factor = inverse_factor(moment) if factor is None else factor
    return diagonal.mean(-1, keepdim=True) / factor.diagonal(dim1=-2, dim2=-1) ** 2
