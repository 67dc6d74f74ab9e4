"""The baseline everybody tries first: one truncated SVD per weight matrix."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.moments import evaluate
from hrt.calibration.output_error import output_error
from hrt.program.program import Program


def truncated(matrix: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """The SVD truncation of least rank whose relative Frobenius error is at most `tol`, as (m, r) and (r, n) factors
    in float64.
    """
    u, s, vt = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    tail2 = (s**2).flip(0).cumsum(0).flip(0)
    rank = int((tail2 > tol**2 * tail2[0]).sum()) if len(s) else 0
    return u[:, :rank] * s[:rank], vt[:rank]


def svd_nbytes(shape: Sequence[int], rank: int) -> int:
    """Float32 bytes of the two factors."""
    return 4 * rank * (shape[0] + shape[1])


def svd_at_output_error(program: Program, inputs: Sequence[Tensor], tol: float) -> tuple[int, float, dict[str, Any]]:
    """Truncate every weight at one common Frobenius tolerance, the loosest (bisected) whose output error on `inputs` is
    at most `tol`. Returns (bytes with biases, output error, rank by weight). Bytes may exceed dense: that is the point.
    """
    reference = evaluate(program, inputs)
    weights = {k: v for k, v in program.constants.items() if k in program.weights and isinstance(v, Tensor)}
    rest = sum(4 * v.numel() for k, v in program.constants.items() if k not in weights and isinstance(v, Tensor))
    low, high = -8.0, 0.0  # log10 of the Frobenius tolerance
    best: tuple[int, float, dict[str, Any]] | None = None
    for _ in range(18):
        middle = (low + high) / 2 if best else low
        cut = {k: truncated(v, 10.0**middle) for k, v in weights.items()}
        outputs = evaluate(program.with_constants({k: u @ vt for k, (u, vt) in cut.items()}), inputs)
        error = output_error(reference, outputs).value
        nbytes = rest + sum(svd_nbytes(weights[k].shape, len(vt)) for k, (_, vt) in cut.items())
        if error <= tol:
            best, low = (nbytes, error, {k: len(vt) for k, (_, vt) in cut.items()}), middle
        elif best is None:
            break
        else:
            high = middle
    if best is None:
        raise ValueError(f"SVD cannot reach {tol:g} at any rank")
    return best
