"""Two factors per weight, in the weight's own norm or in the norm that the data sees.

Plain: the truncated SVD of W. Weighted: the best rank-r map for inputs of second moment C = L L^T is U_r U_r^T W with
U_r the leading left singular vectors of W L, since ||(W - H) L||_F^2 = E ||(W - H) x||^2 (principal components of the
outputs; SVD-LLM, arXiv 2403.07378, truncates in this norm).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
