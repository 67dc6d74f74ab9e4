"""Part of a one-off study."""

from collections.abc import Callable

import torch
from torch import Tensor

from hrt.perf.methods.svd import Factors, svd_factors
from hrt.perf.studies.baselines import Form, Forms, Problem, Result, smallest_bisected


def truncated(w: Tensor, factors: Factors, tol: float, dtype: torch.dtype) -> Form:
    """The least rank whose relative error is at most `tol`, factors in `dtype`; dense where that is no larger."""
    u, vt, tail2 = factors
    rank = int((tail2 > tol**2 * tail2[0]).sum())
    a, b = balanced(u[:, :rank], vt[:rank])
    a, b = a.to(dtype), b.to(dtype)
    nbytes = rank * sum(w.shape) * a.element_size()
    return Form.dense(w) if nbytes >= 4 * w.numel() else Form(nbytes, a.double() @ b.double())


def balanced(u: Tensor, vt: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with columns and rows of equal norms, so that narrow types hold both."""
    scale = vt.norm(dim=1).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return u * scale, vt / scale[:, None]


def _smallest(problem: Problem, tol: float, weighted: bool, dtype: torch.dtype) -> Result | None:
    weights = problem.weights
    factors = {k: svd_factors(w, problem.moments[k] if weighted else None) for k, w in weights.items()}

    def family(t: float) -> Forms:
        return {name: truncated(w, factors[name], t, dtype) for name, w in weights.items()}

    return smallest_bisected(problem, family, tol)


def global_svd(problem: Problem, tol: float) -> Result | None:
    """One relative Frobenius tolerance for all weights, float32 factors."""
    return _smallest(problem, tol, False, torch.float32)


def weighted_svd(problem: Problem, tol: float) -> Result | None:
    """One relative tolerance in the inputs' norm for all weights, float32 factors."""
    return _smallest(problem, tol, True, torch.float32)


def weighted_svd_float16(problem: Problem, tol: float) -> Result | None:
    """The same with float16 factors: the obvious combination of two baselines."""
    return _smallest(problem, tol, True, torch.float16)


METHODS: dict[str, Callable[[Problem, float], Result | None]] = {
    "global SVD": global_svd,
    "data-weighted SVD": weighted_svd,
    "data-weighted SVD, float16": weighted_svd_float16,
}
