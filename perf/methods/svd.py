"""Two factors per weight, in the weight's own norm or in the norm that the data sees.

Plain: the truncated SVD of W. Weighted: the best rank-r map for inputs of second moment C = L L^T is U_r U_r^T W with
U_r the leading left singular vectors of W L, since ||(W - H) L||_F^2 = E ||(W - H) x||^2 (principal components of the
outputs; SVD-LLM, arXiv 2403.07378, truncates in this norm).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrt.calibration.moments import evaluate
from hrt.calibration.output_error import output_error
from hrt.capture.torch_export import capture
from hrt.perf.methods.matched_error import loosest
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


def truncated(matrix: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Factors (m, r) and (r, n), float64, of the least rank whose relative Frobenius error is at most `tol`."""
    u, vt, tail2 = svd_factors(matrix.double())
    rank = int((tail2 > tol**2 * tail2[:1]).sum())
    return u[:, :rank], vt[:rank]


def weights_of(program: Program) -> dict[str, Tensor]:
    """The matrices by name, but for those that are compressed."""
    return {k: w for k in program.weights if isinstance(w := program.constants[k], Tensor)}


def nbytes_of(program: Program) -> int:
    """Of all stored constants in float32."""
    return sum(4 * math.prod(c.shape) for c in program.stored_constants.values())


def svd_nbytes(shape: Sequence[int], rank: int) -> int:
    """Float32 bytes of the two factors."""
    return 4 * rank * (shape[0] + shape[1])


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


@dataclass(frozen=True, eq=False)
class Problem:
    """A network and fresh rows to measure it on. reference: the outputs on `fresh`, float64 (rows, features)."""

    program: Program
    fresh: tuple[Tensor, ...]
    reference: Tensor

    @staticmethod
    def make(net: nn.Module | Program, fresh: Tensor) -> "Problem":
        """Capture `net`, which takes one input (batch, features)."""
        program = net if isinstance(net, Program) else capture(net, [fresh[:2]])
        return Problem(program, (fresh,), evaluate(program, [fresh]))

    @property
    def weights(self) -> dict[str, Tensor]:
        """The float64 weight matrices by name."""
        return weights_of(self.program)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the float32 network."""
        return nbytes_of(self.program)

    @property
    def rest_nbytes(self) -> int:
        """Bytes of the biases and other constants, float32."""
        return self.dense_nbytes - sum(4 * w.numel() for w in self.weights.values())


def svd_at_output_error(program: Program, inputs: Sequence[Tensor], tol: float) -> tuple[int, float, dict[str, int]]:
    """Truncate every weight at one common Frobenius tolerance, the loosest (bisected) whose output error on `inputs` is
    at most `tol`. Returns (bytes with biases, output error, rank by weight). Bytes may exceed dense: that is the point.
    """
    problem = Problem(program, tuple(inputs), evaluate(program, inputs))

    def make(t: float) -> tuple[int, float, dict[str, int]]:
        cut = {k: truncated(w, t) for k, w in problem.weights.items()}
        outputs = evaluate(program.with_constants({k: u @ vt for k, (u, vt) in cut.items()}), inputs)
        ranks = {k: len(vt) for k, (_, vt) in cut.items()}
        nbytes = problem.rest_nbytes + sum(svd_nbytes(problem.weights[k].shape, r) for k, r in ranks.items())
        return nbytes, output_error(problem.reference, outputs).value, ranks

    best = loosest(make, lambda candidate: candidate[1] <= tol, -8.0, 0.0, steps=17)
    if best is None:
        raise ValueError(f"SVD cannot reach {tol:g} at any rank")
    return best
