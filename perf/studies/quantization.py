"""Narrow numbers: casts to 16 bits, and int8 with one scale per output channel, rounded plainly or with compensation.

    W = diag(s) Q,   Q in {-127 .. 127},   s_i = max_j |W_ij| / 127

Compensated rounding is OBQ (Frantar, Singh and Alistarh, NeurIPS 2022, arXiv 2208.11580) in the fixed order of GPTQ
(Frantar et al., ICLR 2023, arXiv 2210.17323): the error of every rounded column is pushed onto the columns that are
still to come, so that tr(E C E^T), C = E[x x^T], grows least.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hrt.perf.studies.baselines import Form, Forms, Problem, Result, smallest_widened

LARGEST = 127
DAMPINGS = (1e-2, 1e-4, 1e-6)  # of C, relative to its mean diagonal; GPTQ uses 1e-2


class Quantized(NamedTuple):
    """Whole numbers `q` (m, n) int8 and scales `s` (m, 1)."""

    q: Tensor
    s: Tensor

    @property
    def form(self) -> Form:
        """One byte per number and a float32 scale per row."""
        return Form(self.q.numel() + 4 * len(self.s), self.s.double() * self.q.double())


def scales(w: Tensor) -> Tensor:
    """Absmax scale of every row (m, 1), as the float32 that is stored, widened to float64."""
    s = (w.abs().amax(dim=1, keepdim=True) / LARGEST).float().double()
    return torch.where(s > 0, s, torch.ones_like(s))


def rounded(w: Tensor) -> Quantized:
    """Every entry to its nearest int8."""
    s = scales(w)
    return Quantized((w / s).round().clamp(-LARGEST, LARGEST).to(torch.int8), s)


def compensated(w: Tensor, c: Tensor, damping: float = 1e-4, sort: bool = True) -> Quantized:
    """Round column by column, each after it has been corrected for the errors of those before it.

    With C = M M^T, M upper triangular, the error E of the rows has tr(E C E^T) = ||E M||_F^2 and

        (E M)_j = E_j M_jj + sum_{k < j} E_k M_kj

    vanishes before rounding for the target W_j + sum_{k < j} E_k M_kj / M_jj. That is GPTQ's recursion without its
    inverse (its factor of C^-1 is the inverse of M). sort: largest diagonal of C first, GPTQ's `act_order`.
    """
    n = w.shape[1]
    shift = damping * float(c.diagonal().mean()) or 1.0
    order = c.diagonal().argsort(descending=True) if sort else torch.arange(n)
    wide = (c + shift * torch.eye(n, dtype=c.dtype))[order][:, order]
    m = torch.linalg.cholesky(wide.flip(0, 1)).flip(0, 1)  # a lower factor read backwards is an upper one
    s, ordered = scales(w), w[:, order]
    q, e = torch.zeros_like(ordered), torch.zeros_like(ordered)
    for j in range(n):
        target = ordered[:, j] + e[:, :j] @ m[:j, j] / m[j, j]
        q[:, j] = (target / s[:, 0]).round().clamp(-LARGEST, LARGEST)
        e[:, j] = ordered[:, j] - s[:, 0] * q[:, j]
    out = torch.empty_like(q).index_copy_(1, order, q)
    return Quantized(out.to(torch.int8), s)


def cast(w: Tensor, dtype: torch.dtype) -> Form:
    """Every entry to the nearest number of a narrower type; beyond its range that is infinite."""
    narrow = w.to(dtype)
    return Form(narrow.numel() * narrow.element_size(), narrow.double())


def int8_absmax(problem: Problem, tol: float) -> Result | None:
    """Int8 rounded to nearest; weights that it would spoil in float16 or float32."""
    return smallest_widened(problem, [_each(problem, lambda w: rounded(w).form), _casts(problem, torch.float16)], tol)


def int8_compensated(problem: Problem, tol: float) -> Result | None:
    """Int8 with compensation, in the damping and order whose int8 network has the least error; weights that it would
    spoil in float16 or float32.
    """
    best = min(compensated_forms(problem), key=lambda forms: problem.measure(forms).error)
    return smallest_widened(problem, [best, _casts(problem, torch.float16)], tol)


def compensated_forms(problem: Problem) -> list[Forms]:
    """The weights under every damping, sorted and not."""
    settings = [(damping, sort) for damping in DAMPINGS for sort in (True, False)]
    return [
        {name: compensated(w, problem.moments[name], *setting).form for name, w in problem.weights.items()}
        for setting in settings
    ]


def float16(problem: Problem, tol: float) -> Result | None:
    """Weights in float16, those that it would spoil in float32."""
    return smallest_widened(problem, [_casts(problem, torch.float16)], tol)


def bfloat16(problem: Problem, tol: float) -> Result | None:
    """Weights in bfloat16, those that it would spoil in float32."""
    return smallest_widened(problem, [_casts(problem, torch.bfloat16)], tol)


def _casts(problem: Problem, dtype: torch.dtype) -> Forms:
    return _each(problem, lambda w: cast(w, dtype))


def _each(problem: Problem, approximate: Callable[[Tensor], Form]) -> Forms:
    return {name: approximate(w) for name, w in problem.weights.items()}
