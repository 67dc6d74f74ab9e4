"""Rounding that knows the data: every column's rounding error is compensated by the columns still to come.

The column-by-column scheme is that of optimal brain quantization and GPTQ (Frantar et al., arXiv 2210.17323): rounding
column j of M by e_j raises tr(E S E^T) least if the later columns move by e_j R_j,j: / R_jj, with R the upper Cholesky
factor of S^-1. It works for any mixture of storage types; float types gain little, int8 a factor of two to five.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import STORAGE
from hrt.matrix_compression.block_source import cholesky_psd

INT8_LEVELS = 127
SMALLEST_MEAN = 1e-250
DAMPING = 1e-4  # relative to the mean eigenvalue of S; directions that no input excites must not absorb errors


@dataclass(frozen=True, eq=False)
class Rounded:
    """Numbers in their storage type and, for int8, a scale per row (or per column): value = number * scale."""

    numbers: Tensor
    scale: Tensor | None

    def decoded(self, dim: int) -> Tensor:
        """float64 values (..., m, n); the scale runs along dimension `dim` of the last two (-2 or -1)."""
        values = self.numbers.to(torch.float64)
        if self.scale is None:
            return values
        return values * self.scale.to(torch.float64).unsqueeze(-3 - dim)


def round_rows(matrix: Tensor, storage: str, moment: Tensor | None) -> Rounded:
    """Round `matrix` (..., m, n), one scale per row for int8, small in tr(E S E^T); moment: S (..., n, n) or 1."""
    if storage != "int8":
        step = _to_float(storage)
        values = matrix if moment is None else _compensate(matrix, moment, lambda column, j: step(column))
        return Rounded(values.to(STORAGE[storage]).contiguous(), None)
    scale = int8_scale(matrix.abs().amax(-1) if matrix.shape[-1] else matrix.new_zeros(matrix.shape[:-1]))
    wide = scale.to(torch.float64)

    def nearest(column: Tensor, j: int) -> Tensor:
        return (column / wide).round().clamp(-INT8_LEVELS, INT8_LEVELS) * wide

    values = matrix if moment is None else _compensate(matrix, moment, nearest)
    numbers = (values / wide[..., None]).round().clamp(-INT8_LEVELS, INT8_LEVELS).to(torch.int8)
    return Rounded(numbers.contiguous(), scale)


def round_columns(
    matrix: Tensor, storages: list[str], moment: Tensor, partner: Tensor, left: Tensor | None = None
) -> list[Rounded]:
    """Round column j of `matrix` (..., m, r) to `storages[j]`, small in tr(G E S E^T) with S = `moment` (..., r, r).

    partner: (..., r) float64 scales of the rows that meet the columns; an int8 direction stores the product of both.
    left: G (..., m, m). With it a column's errors are compensated by its later entries, else by later columns, so that
    the exact types should come first. Returns one Rounded per run of equal types.
    """
    scales = torch.ones_like(partner)
    is_int8 = torch.tensor([s == "int8" for s in storages])
    if left is not None:
        wide = int8_scale(matrix.abs().amax(-2) * partner).to(torch.float64) / partner
        scales = torch.where(is_int8, wide, scales)
    steps = [_to_float(s) if s != "int8" else None for s in storages]

    def column_rounded(column: Tensor, j: int) -> Tensor:
        step = steps[j]
        if step is not None:
            return step(column)
        other = partner[..., j]
        scales[..., j] = int8_scale(column.abs().amax(-1) * other).to(torch.float64) / other
        scale = scales[..., j, None]
        return (column / scale).round().clamp(-INT8_LEVELS, INT8_LEVELS) * scale

    def row_rounded(row: Tensor, i: int) -> Tensor:
        out = (row / scales).round().clamp(-INT8_LEVELS, INT8_LEVELS) * scales
        for storage in set(storages) - {"int8"}:
            of_type = torch.tensor([s == storage for s in storages])
            out = torch.where(of_type, _to_float(storage)(row), out)
        return out

    if left is None:
        values = _compensate(matrix, moment, column_rounded)
    else:
        values = _compensate(matrix.mT, left, row_rounded).mT
    out, start = [], 0
    for end in range(1, len(storages) + 1):
        if end < len(storages) and storages[end] == storages[start]:
            continue
        part, storage = values[..., start:end], storages[start]
        if storage == "int8":
            scale = scales[..., start:end]
            both = (scale * partner[..., start:end]).to(torch.bfloat16)
            out.append(Rounded((part / scale[..., None, :]).round().to(torch.int8).contiguous(), both))
        else:
            out.append(Rounded(part.to(STORAGE[storage]).contiguous(), None))
        start = end
    return out


def int8_scale(largest: Tensor) -> Tensor:
    """The least bfloat16 step, about, whose 127 multiples, exact in float32, reach `largest`; 1 for zeros."""
    scale = (largest * ((1 + 2.0**-8) / INT8_LEVELS)).to(torch.bfloat16)
    return torch.where((scale > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))


def _to_float(storage: str):
    return lambda column: column.to(STORAGE[storage]).to(torch.float64)


def _compensate(matrix: Tensor, moment: Tensor, rounded) -> Tensor:
    """The rounded columns as float64 values, by the recursion of the module's docstring."""
    count = matrix.shape[-1]
    if not count or not matrix.shape[-2]:
        return matrix
    factor = _inverse_factor(moment)
    work, out = matrix.clone(), torch.empty_like(matrix)
    for j in range(count):
        out[..., j] = rounded(work[..., j], j)
        error = (work[..., j] - out[..., j]) / factor[..., j, j, None]
        work[..., j + 1 :] -= error[..., None] * factor[..., None, j, j + 1 :]
    return out


def _inverse_factor(moment: Tensor) -> Tensor:
    """R (..., n, n), upper, with R^T R the inverse of the damped S over its mean eigenvalue."""
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype)
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    # Moments of very few rows may be zero or, by rounding, slightly indefinite.
    usable = mean > SMALLEST_MEAN
    damped = torch.where(usable, moment / torch.where(usable, mean, 1.0) + DAMPING * eye, eye)
    return cholesky_psd(torch.cholesky_inverse(cholesky_psd(damped))).mT


def compensated_weights(moment: Tensor) -> Tensor:
    """d (n,): compensated rounding errors e raise tr(E S E^T) by sum_j d_j e_j^2, d_j = mean(S) / R_jj^2."""
    if not moment.shape[-1]:
        return moment.diagonal(dim1=-2, dim2=-1)
    return moment.diagonal(dim1=-2, dim2=-1).mean(-1) / _inverse_factor(moment).diagonal(dim1=-2, dim2=-1) ** 2
