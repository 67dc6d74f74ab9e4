"""Weights made smaller by what the paper compares: global SVD, its Algorithm 1 (with shares of one tolerance: the whole
error is what is compared here), and hrt's partition.
"""

from collections.abc import Callable, Mapping

from torch import Tensor

import hrt
from hrt.calibration.moments import evaluate
from hrt.hmatrix.hmatrix import relative_difference
from hrt.perf.methods.matched_error import loosest
from hrt.perf.methods.svd import Problem, svd_nbytes, truncated

SVD, ALGORITHM, FLOAT32, AUTO = "global SVD", "Algorithm 1", "hrt, float32 only", "hrt, any storage"
LEAST = 8  # side of a block of a PINN's weights
Stored = tuple[int, dict[str, Tensor]]  # bytes of the network, what takes its constants' places


def _cut(w: Tensor, t: float) -> tuple[int, Tensor]:
    u, vt = truncated(w, t)
    return svd_nbytes(w.shape, len(vt)), u @ vt


def _dense(h: hrt.HMatrix) -> tuple[int, Tensor]:
    return h.nbytes, h.to_dense()


# (m, n) weight, relative Frobenius tolerance -> bytes, what is stored
MAKERS: Mapping[str, Callable[[Tensor, float], tuple[int, Tensor]]] = {
    SVD: _cut,
    ALGORITHM: lambda w, t: _dense(hrt.adaptive_partition(w, t, min_leaf=LEAST)),
    AUTO: lambda w, t: _dense(hrt.compress_matrix(w, tol=t, storage="auto")),
}


def at_weights(problem: Problem, method: str, tol: float) -> Stored:
    """Every weight by itself within `tol`, relative Frobenius norm."""
    made = {name: MAKERS[method](w, tol) for name, w in problem.weights.items()}
    nbytes = problem.rest_nbytes + sum(n for n, _ in made.values())
    return nbytes, {name: w for name, (_, w) in made.items()}


def at_output(problem: Problem, method: str, tol: float) -> Stored:
    """One tolerance for all weights, the loosest (bisected) that leaves the output on fresh points within `tol`."""
    best = loosest(
        lambda t: at_weights(problem, method, t), lambda s: network_error(problem, s[1]) <= tol, -8.0, 0.0, steps=12
    )
    if best is None:
        raise ValueError(f"{method} cannot reach {tol:g}")
    return best


def network_error(problem: Problem, weights: Mapping[str, Tensor]) -> float:
    """Output error on the fresh points with `weights` in place, float64."""
    return relative_difference(evaluate(problem.program.with_constants(weights), problem.fresh), problem.reference)
