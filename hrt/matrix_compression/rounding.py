"""Rounding that knows the data: every column's rounding error is compensated by the columns still to come.

The column-by-column scheme is that of optimal brain quantization and GPTQ (Frantar et al., arXiv 2210.17323): rounding
column j of M by e_j raises tr(E S E^T) least if the later columns move by e_j R_j,j: / R_jj, with R the upper Cholesky
factor of S^-1. It works for any mixture of storage types; float types gain little, int8 a factor of two to five.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import STORAGE
from hrt.matrix_compression.span_weight import SpanWeight, inverse_factor

INT8_LEVELS = 127
PANEL = 64  # columns; what they do to all later ones is one product
Moment = Tensor | SpanWeight
Round = Callable[[np.ndarray, int], np.ndarray]  # column j (..., m), and j, to its rounded values


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


def round_rows(matrix: Tensor, storage: str, moment: Moment | None) -> Rounded:
    """Round `matrix` (..., m, n), one scale per row for int8, small in tr(E S E^T); moment: S (..., n, n) or 1."""
    if storage != "int8":
        step = FLOATS[storage]
        values = matrix if moment is None else _compensate(matrix, moment, lambda column, j: step(column))
        return Rounded(values.to(STORAGE[storage]).contiguous(), None)
    scale = int8_scale(matrix.abs().amax(-1) if matrix.shape[-1] else matrix.new_zeros(matrix.shape[:-1]))
    wide = scale.to(torch.float64)
    steps = wide.numpy()
    values = matrix if moment is None else _compensate(matrix, moment, lambda column, j: _to_int8(column, steps))
    numbers = (values / wide[..., None]).round().clamp(-INT8_LEVELS, INT8_LEVELS).to(torch.int8)
    return Rounded(numbers.contiguous(), scale)


def round_columns(
    matrix: Tensor, storages: list[str], moment: Tensor, partner: Tensor, left: Moment | None = None
) -> list[Rounded]:
    """Round column j of `matrix` (..., m, r) to `storages[j]`, small in tr(G E S E^T) with S = `moment` (..., r, r).

    partner: (..., r) float64 scales of the rows that meet the columns; an int8 direction stores the product of both.
    left: G (..., m, m). With it a column's errors are compensated by its later entries, else by later columns, so that
    the exact types should come first. Returns one Rounded per run of equal types.
    """
    scales = torch.ones_like(partner)
    cuts = [k for k in range(len(storages) + 1) if k in (0, len(storages)) or storages[k] != storages[k - 1]]
    runs = [(storages[i], i, j) for i, j in pairwise(cuts)]
    if left is not None:
        is_int8 = torch.tensor([s == "int8" for s in storages])
        wide = int8_scale(matrix.abs().amax(-2) * partner).to(torch.float64) / partner
        scales = torch.where(is_int8, wide, scales)
    steps = scales.numpy()

    def column_rounded(column: np.ndarray, j: int) -> np.ndarray:
        if storages[j] != "int8":
            return FLOATS[storages[j]](column)
        largest = torch.as_tensor(np.abs(column).max(-1))
        scales[..., j] = int8_scale(largest * partner[..., j]).to(torch.float64) / partner[..., j]
        return _to_int8(column, steps[..., j, None])

    def row_rounded(row: np.ndarray, i: int) -> np.ndarray:
        parts = [
            _to_int8(row[..., i:j], steps[..., i:j]) if s == "int8" else FLOATS[s](row[..., i:j]) for s, i, j in runs
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    if left is None:
        values = _compensate(matrix, moment, column_rounded)
    else:
        values = _compensate(matrix.mT, left, row_rounded).mT
    out = []
    for storage, start, end in runs:
        part = values[..., start:end]
        if storage == "int8":
            scale = scales[..., start:end]
            both = (scale * partner[..., start:end]).to(torch.bfloat16)
            out.append(Rounded((part / scale[..., None, :]).round().to(torch.int8).contiguous(), both))
        else:
            out.append(Rounded(part.to(STORAGE[storage]).contiguous(), None))
    return out


def int8_scale(largest: Tensor) -> Tensor:
    """The least bfloat16 step, about, whose 127 multiples, exact in float32, reach `largest`; 1 for zeros."""
    scale = (largest * ((1 + 2.0**-8) / INT8_LEVELS)).to(torch.bfloat16)
    return torch.where((scale > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))


def _to_float32(column: np.ndarray) -> np.ndarray:
    return column.astype(np.float32).astype(np.float64)


def _to_float16(column: np.ndarray) -> np.ndarray:
    return column.astype(np.float32).astype(np.float16).astype(np.float64)  # by way of float32, as torch does


def _to_bfloat16(column: np.ndarray) -> np.ndarray:
    bits = column.astype(np.float32).view(np.uint32)
    bits += 0x7FFF + ((bits >> 16) & 1)  # to the nearest, ties to even
    bits &= 0xFFFF0000
    return bits.view(np.float32).astype(np.float64)


def _to_int8(column: np.ndarray, scale: np.ndarray) -> np.ndarray:
    steps = np.rint(column / scale)
    return np.maximum(np.minimum(steps, INT8_LEVELS), -INT8_LEVELS) * scale


FLOATS = {"float32": _to_float32, "float16": _to_float16, "bfloat16": _to_bfloat16}


def _compensate(matrix: Tensor, moment: Moment, rounded: Round) -> Tensor:
    """The rounded columns as float64 values, by the recursion of the module's docstring. In numpy, whose calls on a
    column take a third of the time; products of panels in torch, on as many threads as it may use.
    """
    count = matrix.shape[-1]
    if not count or not matrix.shape[-2]:
        return matrix
    factor = moment.inverse_factor if isinstance(moment, SpanWeight) else inverse_factor(moment)
    rows = factor.contiguous().numpy()
    work = matrix.mT.clone(memory_format=torch.contiguous_format)
    out, lost = torch.empty_like(work), torch.empty_like(work)
    columns, values, errors = work.numpy(), out.numpy(), lost.numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is given another type afterwards
        for start in range(0, count, PANEL):
            end = min(start + PANEL, count)
            for j in range(start, end):
                column = columns[..., j, :]
                values[..., j, :] = rounded(column, j)
                error = errors[..., j, :]
                error[...] = (column - values[..., j, :]) / rows[..., j, j, None]
                columns[..., j + 1 : end, :] -= rows[..., j, j + 1 : end, None] * error[..., None, :]
            work[..., end:, :] -= factor[..., start:end, end:].mT @ lost[..., start:end, :]
    return out.mT
