"""Norms of matrices: guaranteed from above, estimated with a stated confidence, and the matrix-vector enclosure."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hrt.certificate.intervals import TINY, UNIT, Interval, around, gamma, up, where
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.program import Constant

EXACT_SIDE = 512  # smallest side up to which singular values are computed
MAX_SIDE = 4096  # largest side of a matrix whose singular values are computed
FAINT = 1e-149  # what a 2-norm may lose where squares underflow
STEPS = 30  # of Lanczos' method: the upper limit then exceeds the lower one by 5 % for n = 4096
FAILURE = 1e-6  # probability with which a spectral norm exceeds its estimated upper limit


def length(v: Tensor, size: int) -> Tensor:
    """An upper bound of the 2-norm of every sample of v, `size` entries each: (samples,); 0 only where all are."""
    if not size:
        return torch.zeros(1, dtype=torch.float64)
    flat = v.reshape(-1, size)
    return flat.norm(dim=1) * (1 + gamma(size + 8)) + where(flat.any(1), FAINT)


def has_exact_spectrum(a: Tensor) -> bool:
    """Whether the singular values of `a` are worth computing."""
    return 0 < min(a.shape) <= EXACT_SIDE and max(a.shape) <= MAX_SIDE


def svd_rounding(a: Tensor) -> float:
    """Computed singular values err by at most this times the largest: p(m, n) u (LAPACK Users' Guide, 1999, section
    4.9), with p = 10 max(m, n) + 100 for the modestly growing function that the Guide leaves open.
    """
    return (10 * max(a.shape) + 100) * UNIT


def spectral_limit(a: Tensor) -> float:
    """Guaranteed ||A||_2 <= ...: the largest computed singular value and its rounding, or the Frobenius norm."""
    limit = float(length(a, a.numel())[0])
    if has_exact_spectrum(a) and math.isfinite(limit):
        top = float(torch.linalg.svdvals(a)[0])
        limit = min(limit, top * (1 + 2 * svd_rounding(a)) + FAINT * (limit > 0))
    return limit


@dataclass(frozen=True)
class Estimate:
    """||A||_2 is at least `lower` (to rounding) and at most `upper`, but for a probability of FAILURE."""

    lower: float
    upper: float


def estimate_spectral_norm(a: Tensor, steps: int = STEPS, seed: int = 0) -> Estimate:
    """Lanczos' method on A^T A from a random start, with full reorthogonalisation.

    After k steps the largest Ritz value t of an n x n positive semidefinite B misses lambda_1 by more than eps lambda_1
    with probability at most 1.648 sqrt(n) exp(-(2k - 1) sqrt(eps)) over starts uniform on the sphere (Kuczynski and
    Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992, theorem 4.2). Hence ||A||_2 <= sqrt(t / (1 - eps)) with
    eps = (ln(1.648 sqrt(n) / FAILURE) / (2k - 1))^2, and the Frobenius norm where eps >= 1 or where that is smaller.
    """
    a = a.T if a.shape[0] < a.shape[1] else a
    n, frobenius = a.shape[1], float(length(a, a.numel())[0])
    if frobenius == 0 or not math.isfinite(frobenius):
        return Estimate(frobenius, frobenius)
    v = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    basis = torch.zeros(min(steps, n), n, dtype=torch.float64)
    images = torch.zeros(len(basis), a.shape[0], dtype=torch.float64)
    done = 0
    for k in range(len(basis)):
        for _ in range(2):  # "twice is enough" (Giraud, Langou and Rozloznik, Comput. Math. Appl. 50, 2005)
            v = v - basis[:k].T @ (basis[:k] @ v)
        size = float(v.norm())
        if size <= 1e-14 * frobenius and k:
            break  # an invariant subspace: it holds the largest eigenvalue with probability 1
        basis[k] = v / size
        images[k] = a @ basis[k] / frobenius
        v, done = a.T @ images[k], k + 1
    lower = frobenius * float(torch.linalg.svdvals(images[:done])[0])
    if done < min(steps, n) or done == n:
        return Estimate(lower, min(frobenius, lower * (1 + 1e-6)))
    eps = (math.log(1.648 * math.sqrt(n) / FAILURE) / (2 * done - 1)) ** 2
    return Estimate(lower, min(frobenius, lower / math.sqrt(1 - eps)) if eps < 1 else frobenius)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix near `value`. rows: upper bounds of the 2-norms of its rows.  loose: the same of what the entries may be
    off by.  norm: an upper bound of the spectral norm, `loose` included.
    """

    value: Tensor
    rows: Tensor
    loose: Tensor
    norm: float

    @staticmethod
    def make(value: Tensor, loose: Tensor | None = None) -> "Matrix":
        """With its norms; `loose` None: exactly `value`."""
        rows = length(value, value.shape[1]).expand(value.shape[0])
        loose = torch.zeros_like(rows) if loose is None else loose
        norm = spectral_limit(value) + float(length(loose, loose.numel())[0])
        return Matrix(value, rows + loose, loose, norm * (1 + 4 * UNIT))

    def times(self, x: Interval) -> Interval:
        """The product with vectors along the last axis of x."""
        n = self.value.shape[1]
        c, r = x.centred()
        size = length(c.abs() + r, n).reshape(*c.shape[:-1], 1) if n else c.new_zeros(*c.shape[:-1], 1)
        slack = (gamma(4 * n + 32) * self.rows + self.loose) * size
        slack = slack + where((size > 0) & (self.rows > 0), TINY)
        return around(c @ self.value.T, up(r @ self.value.abs().T + slack))


@dataclass(frozen=True, eq=False)
class Weight:
    """W, H and E = W - H."""

    original: Matrix
    compressed: Matrix
    error: Matrix

    @staticmethod
    def make(w: Tensor, h: Tensor, compressed: Constant) -> "Weight":
        """Of W and H in float64, H and E with what multiplying out the factors of `compressed` may be off by."""
        loose = product_rounding(compressed)
        return Weight(Matrix.make(w), Matrix.make(h, loose), Matrix.make(w - h, loose))


def product_rounding(c: Constant) -> Tensor:
    """(m,) upper bounds of the 2-norms of the rows of what `to_dense` rounds: gamma |U| |V^T|, 0 without products."""
    if isinstance(c, Tensor) or all(leaf.is_dense for leaf in c.leaves):
        return torch.zeros(c.shape[0], dtype=torch.float64)
    leaves = []
    for leaf in c.leaves:
        parts = [t.abs() for t in leaf.decoded(torch.float64)]
        names = ("dense",) if leaf.is_dense else ("u", "vt")
        leaves.append(replace(leaf, scale=None, **dict(zip(names, parts, strict=True))))
    sizes = HMatrix(c.shape, tuple(leaves), c.row_order, c.col_order).to_dense()
    terms = max(leaf.rank for leaf in c.leaves) + len(c.leaves) + 8
    return length(sizes, c.shape[1]).expand(c.shape[0]) * gamma(2 * terms)
