"""Calibration inputs: boxes and data sets as rows, and their three-way split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrt.calibration.datasets import rows_of
from hrt.capture.calls import Given
from hrt.errors import InputError
from hrt.program.program import Kind
from hrt.support.arrays import as_tensor
from hrt.support.structures import flattened

BOX_SAMPLES = 16384
OFTEN = 4  # times as often as the median row: such a row is no accident
BOX_NUMBERS = 1 << 26  # float64 that a sample of boxes takes at most: half a gigabyte


@dataclass(frozen=True)
class Box:
    """Inputs anywhere in low <= x <= high, sampled by a scrambled Sobol sequence.

    A network of several inputs takes a tuple of boxes. Sobol sequences end at 21,201 features; those beyond are sampled
    by a Latin hypercube. More than 4,096 features in all are sampled at fewer than 16,384 points.

    Args:
        low: the least value of each input feature.
        high: the largest value of each.

    Raises:
        InputError: bounds that are not finite, of unequal length, or in the wrong order.

    Example:
        >>> Box([-1, 0], [1, 1]).width
        2
    """

    low: Sequence[float] | np.ndarray
    high: Sequence[float] | np.ndarray

    def __post_init__(self) -> None:
        low, high = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (self.low, self.high))
        if low.ndim != 1 or low.shape != high.shape or not low.size:
            raise InputError(f"Box: found bounds of shapes {low.shape} and {high.shape}. Expected two equal lists.")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise InputError("Box: expected finite bounds with low <= high for every feature.")
        object.__setattr__(self, "low", tuple(low.tolist()))
        object.__setattr__(self, "high", tuple(high.tolist()))

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.low)


# What a user may hand in: rows (rows, *shape) of one input, a box, a data set, or a tuple of rows or boxes for several;
# a dictionary by name, a dataclass, or any of them in each other, as the network takes them.
Inputs = (
    Tensor
    | np.ndarray
    | Box
    | Dataset
    | DataLoader
    | Sequence[Tensor | np.ndarray | Box]
    | Sequence[Sequence[float]]
    | Sequence[Any]
    | Mapping[str, Any]
)


def sample_boxes(boxes: Sequence[Box], count: int, seed: int) -> tuple[Tensor, ...]:
    """Up to `count` points per box, float64 (count, width), from one sequence over all features together: Sobol's,
    and a Latin hypercube for the features beyond its last.
    """
    width = sum(b.width for b in boxes)
    if width * count > BOX_NUMBERS:
        count = 1 << ((BOX_NUMBERS // width).bit_length() - 1)  # powers of two fill a box evenly
    sobol = min(width, torch.quasirandom.SobolEngine.MAXDIM)
    unit = torch.quasirandom.SobolEngine(sobol, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    if width > sobol:
        random = np.random.default_rng(seed)
        strata = random.permuted(np.tile(np.arange(count), (width - sobol, 1)), axis=1).T
        unit = torch.cat([unit, torch.from_numpy((strata + random.random(strata.shape)) / count)], dim=1)
    out = []
    for part, box in zip(unit.split([b.width for b in boxes], dim=1), boxes, strict=True):
        low, high = torch.tensor(box.low, dtype=torch.float64), torch.tensor(box.high, dtype=torch.float64)
        out.append(low + (high - low) * part)
    return tuple(out)


def given_inputs(inputs: Inputs, seed: int = 0, *, count: int = BOX_SAMPLES) -> Given:
    """User inputs as rows, with all that is known of them. Of a data set's pairs, the first. Raises InputError."""
    source = rows_of(inputs, seed) if isinstance(inputs, (Dataset, DataLoader)) else inputs
    parts, structure = flattened(source, (Box,), opened=True)
    boxes = [p for p in parts if isinstance(p, Box)]
    if boxes and len(boxes) < len(parts):
        raise InputError("Found boxes beside arrays. Expected one kind for all inputs.")
    if boxes:
        sampled = sample_boxes(boxes, count, seed)
        kinds: list[Kind] = ["float" for _ in boxes]
        return Given(sampled, structure, tuple(kinds), (False,) * len(boxes))
    tensors = [as_tensor(p, "calibration input", masks=True) for p in parts]
    rows = as_rows(tensors, "calibration input", masks=True)
    floats = tuple(x.cpu().to(torch.float64) for x in rows)
    given_kinds: tuple[Kind, ...] = tuple(_kind(x) for x in tensors)
    return Given(floats, structure, given_kinds, tuple(x.ndim == 1 for x in tensors))


def as_samples(inputs: Inputs, seed: int = 0, *, count: int = BOX_SAMPLES) -> tuple[Tensor, ...]:
    """The rows of `given_inputs`: float64 (rows, *shape), on the CPU; numbers (rows,) become one feature."""
    return given_inputs(inputs, seed, count=count).rows


def _kind(x: Tensor) -> Kind:
    return "bool" if x.dtype == torch.bool else "float" if x.is_floating_point() else "int"


def as_rows(parts: Sequence[Any], what: str, *, masks: bool = False) -> tuple[Tensor, ...]:
    """One array per input as tensors (rows, *shape), finite and of equally many rows. masks: truth values are numbers,
    too. Raises InputError.
    """
    tensors = [as_tensor(p, what, masks=masks) for p in parts]
    tensors = [x[:, None] if x.ndim == 1 else x for x in tensors]
    if not tensors or any(x.ndim < 2 for x in tensors):
        shapes = [tuple(x.shape) for x in tensors]
        raise InputError(f"Found {what}s of shapes {shapes}. Expected (rows, features), one array per input.")
    rows = {int(x.shape[0]) for x in tensors}
    if len(rows) > 1:
        raise InputError(
            f"Found {what}s of different numbers of rows: {sorted(rows)}. Expected one number; what all samples share "
            "(a mesh, edge_index) is no input, but a buffer of the network."
        )
    if rows == {0}:
        raise InputError(f"Found a {what} that has no rows. Expected at least one sample.")
    for k, x in enumerate(tensors):
        flat = x.flatten(1)
        bad = torch.nonzero(~torch.isfinite(flat.to(torch.float32)))  # networks are served in float32
        if len(bad):
            row, column = bad[0].tolist()
            raise InputError(
                f"Found {len(bad):,} numbers in {what} {k} that are NaN, infinite or beyond float32, the first "
                f"({flat[row, column]}) in row {row}, column {column}, counted from 0. Expected finite numbers: leave "
                "such rows out."
            )
    return tuple(tensors)


def distinct(samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The samples without repeated rows, which on both sides of the split would be verified by themselves.

    A row that comes much more often than the others is a value that the inputs' distribution has (rain of 0, a valve
    that is shut): new inputs will have it as often, and so it stays, on both sides.
    """
    flat = torch.cat([x.reshape(len(x), -1) for x in samples], dim=1)
    if not flat.shape[1]:
        return samples
    _, first, place, counts = np.unique(
        flat.numpy(), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    keep = (counts > OFTEN * np.median(counts))[place.reshape(-1)]
    keep[first] = True
    return samples if keep.all() else tuple(x[torch.from_numpy(keep)] for x in samples)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows, disjoint where there are enough, for moments, for the choice of a candidate, for the certificate."""

    calibration: tuple[Tensor, ...]
    search: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]

    @staticmethod
    def make(samples: tuple[Tensor, ...], seed: int) -> "Split":
        """A seeded half for calibration, a quarter each for the others; these coincide for under four rows."""
        rows = samples[0].shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        half = rows // 2
        cut = half + (rows - half) // 2 if rows >= 4 else half
        parts = (order[:half] if half else order, order[half:cut] if cut > half else order[half:], order[cut:])
        return Split(*(tuple(x[part] for x in samples) for part in parts))


def as_boxes(inputs: Inputs) -> tuple[Box, ...] | None:
    """The boxes that a user's inputs are, one per network input; None where they are anything else."""
    if isinstance(inputs, (Dataset, DataLoader)):
        return None
    parts, _ = flattened(inputs, (Box,))
    boxes = tuple(p for p in parts if isinstance(p, Box))
    return boxes if boxes and len(boxes) == len(parts) else None
