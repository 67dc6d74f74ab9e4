"""Layer records: of every weight matrix what it became, how far it is off in every norm, and why."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hrt.calibration.moments import Moments
from hrt.certificate.certificate import LayerRecord, Statement
from hrt.certificate.norms import Estimate, estimate_spectral_norm, length, product_rounding
from hrt.certificate.paper_statements import Spectra, finite, global_frobenius, leaf_frobenius, spectral_statements
from hrt.hmatrix.hmatrix import STORAGE_NAME, HMatrix, Place, relative, squared_norm
from hrt.program.dense_view import DenseView


def layer_records(
    original: DenseView, compressed: DenseView, moments: Mapping[str, Moments], tol: float
) -> tuple[LayerRecord, ...]:
    """One record per weight. moments: what it sees; where they are missing, `tol` was asked of the Frobenius norm."""
    records = []
    for name in original.program.weights:
        constant, second = compressed.program.constants[name], moments[name].second if name in moments else None
        h = HMatrix.from_dense(constant) if isinstance(constant, Tensor) else constant
        records.append(layer_record(name, original.constants[name], (h, compressed.constants[name]), second, tol))
    return tuple(records)


def layer_record(
    name: str, w: Tensor, compressed: tuple[HMatrix, Tensor], second: Tensor | None, tol: float
) -> LayerRecord:
    """The record of W (m, n) float64. compressed: H, and H written out in float64.  second: E[x x^T] of its inputs."""
    h, dense = compressed
    e = w - dense
    frobenius, spectra = squared_norm(e, None), Spectra.of(w, dense)
    limits = [] if spectra is None else [spectra.error * (1 + 2 * spectra.rounding)]
    limits.append(float(length(e, e.numel())[0]))
    limit = min(limits) + float(length(product_rounding(h), h.shape[0])[0])
    estimates = (Estimate(0.0, 0.0),) * 2 if spectra else (estimate_spectral_norm(e), estimate_spectral_norm(w))
    below = float(spectra.w[0]) * (1 - 2 * spectra.rounding) if spectra else estimates[1].lower * (1 - 1e-9)
    return LayerRecord(
        name=name,
        shape=(w.shape[0], w.shape[1]),
        structure=describe(h),
        nbytes=h.nbytes,
        dense_nbytes=4 * w.numel(),
        frobenius=relative(frobenius, squared_norm(w, None)),
        weighted=None if second is None else relative(squared_norm(e, second), squared_norm(w, second)),
        spectral_estimate=None if spectra else _quotient(estimates[0].lower, estimates[1].lower),
        reason=reason(h, tol, second is not None),
        spectral=_quotient(spectra.error, float(spectra.w[0])) if spectra else None,
        spectral_upper=None if spectra else _quotient(estimates[0].upper, below),
        spectral_bound=finite(_quotient(limit, below)),
        condition=finite(spectra.condition(spectra.w)) if spectra else None,
        condition_compressed=finite(spectra.condition(spectra.h)) if spectra else None,
        condition_note=condition_note(spectra, w),
        statements=statements(w, h, dense, spectra, second, tol),
    )


def statements(
    w: Tensor, h: HMatrix, dense: Tensor, spectra: Spectra | None, second: Tensor | None, tol: float
) -> tuple[Statement, ...]:
    """What the paper says of W and H; of its spectra only where they were computed."""
    first = global_frobenius(w, dense, tol) if second is None else leaf_frobenius(w, dense, block_errors(w, h))
    return (first, *(spectral_statements(spectra, w - dense, second) if spectra else ()))


def block_errors(w: Tensor, h: HMatrix) -> list[float]:
    """||W_b - H_b||_F of every block b of `h`; leaves over the same block are added."""
    ordered = w if h.row_order is None else w[h.row_order.long()]
    ordered = ordered if h.col_order is None else ordered[:, h.col_order.long()]
    return [
        float((ordered[r : r + m, c : c + n] - sum((e.to_dense() for e in leaves), torch.zeros(()))).norm())
        for (r, m, c, n), leaves in h.blocks().items()
    ]


def condition_note(spectra: Spectra | None, w: Tensor) -> str:
    """In words, where a condition number is infinite or was not computed."""
    if spectra is None:
        return f"not computed for {w.shape[0]} x {w.shape[1]}"
    parts = [
        f"{name} is rank-deficient ({spectra.rank(values)} of {len(values)}): its condition number is infinite"
        for name, values in (("W", spectra.w), ("H", spectra.h))
        if not math.isfinite(spectra.condition(values))
    ]
    return "; ".join(parts)


def _quotient(a: float, b: float) -> float:
    return a / b if b > 0 else 0.0 if a == 0 else math.inf


def describe(h: HMatrix) -> str:
    """A layer's structure in a few words."""
    kinds = "+".join(sorted({STORAGE_NAME[leaf.dtype] for leaf in h.leaves})) or "empty"
    if h.is_dense:
        return f"dense {kinds}"
    ranks = list(block_ranks(h).values())
    dense = sum(leaf.is_dense for leaf in h.leaves)
    if len(ranks) == 1 and not dense:
        return f"rank {ranks[0]} {kinds}"
    what = f"H {len(ranks) + dense} blocks, {dense} dense"
    return f"{what}, ranks {min(ranks)}-{max(ranks)} {kinds}" if ranks else f"{what} {kinds}"


def block_ranks(h: HMatrix) -> dict[Place, int]:
    """The rank of every low-rank block: several leaves over one block are directions of different storage types."""
    return {place: sum(e.rank for e in leaves) for place, leaves in h.blocks().items() if not leaves[0].is_dense}


def reason(h: HMatrix, tol: float, weighted: bool) -> str:
    """Why this structure and no other."""
    norm = "the output's error" if weighted else "the Frobenius norm"
    if h.is_dense and all(leaf.dtype == torch.float32 for leaf in h.leaves):
        return f"no smaller form stays within tol {tol:g} in {norm}"
    if h.is_dense:
        return "low rank does not pay; narrower storage does"
    if len(block_ranks(h)) == 1 and not any(leaf.is_dense for leaf in h.leaves):
        return f"globally low-rank in {norm}"
    return f"blocks are low-rank in {norm}, the whole is not"
