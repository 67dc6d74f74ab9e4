"""Two factors per weight, in the weight's own norm or in the norm that the data sees.

Plain: the truncated SVD of W. Weighted: the best rank-r map for inputs of second moment C = L L^T is U_r U_r^T W with
U_r the leading left singular vectors of W L, since ||(W - H) L||_F^2 = E ||(W - H) x||^2 (principal components of the
outputs; SVD-LLM, arXiv 2403.07378, truncates in this norm).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.perf.studies.baselines import Form, Forms, Problem, Result, smallest_bisected
from hrt.program.program import Program

Factors = tuple[Tensor, Tensor, Tensor]  # u (m, k), vt (k, n), squared tails (k,): what is lost from rank r on


def svd_factors(w: Tensor, c: Tensor | None = None) -> Factors:
    """All factors of `w`, best first, in the Frobenius norm or that of the second moment `c`."""
    if c is None:
        u, s, vt = torch.linalg.svd(w, full_matrices=False)
        return u, s[:, None] * vt, tails(s)
    values, vectors = torch.linalg.eigh(c)
    u, s, _ = torch.linalg.svd(w @ (vectors * values.clamp_min(0).sqrt()), full_matrices=False)
    return u, u.T @ w, tails(s)


def tails(s: Tensor) -> Tensor:
    """Sum of s_k^2 over k >= r, for every r."""
    return s.square().flip(0).cumsum(0).flip(0)


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


def second_moments(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """E[x x^T] of the inputs of every weight of `program`, float64; tied weights pool their uses."""
    sums: dict[str, list[Any]] = {}

    def observe(node: Any, arguments: tuple[Any, ...]) -> None:
        if node.op == "linear":
            x = arguments[0].flatten(0, -2)
            old = sums.get(node.inputs[1], [0, 0])
            sums[node.inputs[1]] = [old[0] + x.T @ x, old[1] + len(x)]

    with torch.no_grad():
        program.run(inputs, observe=observe)
    return {name: total / rows for name, (total, rows) in sums.items()}
