"""Calibration inputs: boxes and data sets as rows, and their three-way split."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrt.errors import InputError

BOX_SAMPLES = 16384


@dataclass(frozen=True)
class Box:
    """Inputs anywhere in low <= x <= high, sampled by a scrambled Sobol sequence.

    A network of several inputs takes a tuple of boxes.

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


# What a user may hand in: rows (rows, *shape) of one input, a box, a data set, or a tuple of rows or boxes for several.
Inputs = Tensor | np.ndarray | Box | Dataset | Sequence[Tensor | np.ndarray | Box] | Sequence[Sequence[float]]


def sample_boxes(boxes: Sequence[Box], count: int, seed: int) -> tuple[Tensor, ...]:
    """`count` points per box, float64 (count, width), from one Sobol sequence over all features together."""
    engine = torch.quasirandom.SobolEngine(sum(b.width for b in boxes), scramble=True, seed=seed)
    unit = engine.draw(count, dtype=torch.float64)
    out = []
    for part, box in zip(unit.split([b.width for b in boxes], dim=1), boxes, strict=True):
        low, high = torch.tensor(box.low, dtype=torch.float64), torch.tensor(box.high, dtype=torch.float64)
        out.append(low + (high - low) * part)
    return tuple(out)


def as_samples(inputs: Inputs, seed: int = 0, *, count: int = BOX_SAMPLES) -> tuple[Tensor, ...]:
    """User inputs as float64 (rows, *shape) per network input; of a dataset's tuples, the first. Raises InputError."""
    parts: Sequence[Any]
    if isinstance(inputs, DataLoader):
        raise InputError("Found a DataLoader. Expected its dataset (loader.dataset), or the inputs as one tensor.")
    if isinstance(inputs, Dataset):
        items = [inputs[k] for k in range(len(inputs))]  # type: ignore[arg-type]
        first = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
        parts = [torch.stack([torch.as_tensor(np.asarray(x)) for x in first])] if first else [torch.zeros(0, 1)]
    else:
        parts = inputs if isinstance(inputs, (tuple, list)) and not _is_numbers(inputs) else [inputs]
    boxes = [p for p in parts if isinstance(p, Box)]
    if boxes and len(boxes) < len(parts):
        raise InputError("Found boxes beside arrays. Expected one kind for all inputs.")
    if boxes:
        return sample_boxes(boxes, count, seed)
    out = tuple(_as_rows(p) for p in parts)
    rows = {int(x.shape[0]) for x in out}
    if len(rows) > 1:
        raise InputError(f"Calibration inputs have different numbers of rows: {sorted(rows)}. Expected one.")
    if rows == {0}:
        raise InputError("The calibration inputs have no rows. Pass at least one sample, or inputs=None.")
    return out


def _is_numbers(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and isinstance(inputs, list) and not isinstance(inputs[0], (Box, Tensor, np.ndarray))


def _as_rows(x: Any) -> Tensor:
    if isinstance(x, Tensor) and x.device.type == "meta":
        raise InputError("Calibration inputs: found a tensor on the meta device, which holds no numbers.")
    if not isinstance(x, Tensor) and np.asarray(x).dtype.kind not in "fiub":
        raise InputError(f"Calibration inputs: found {type(x).__name__} of {np.asarray(x).dtype}. Expected numbers.")
    t = x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if t.ndim < 2 or t.is_complex() or t.dtype == torch.bool:
        raise InputError(f"Calibration inputs: found {t.dtype} of shape {tuple(t.shape)}. Expected (rows, features).")
    t = t.to(torch.float64)
    bad = ~torch.isfinite(t).flatten(1).all(1)
    if bool(bad.any()):
        where = torch.nonzero(bad).flatten()[:5].tolist()
        raise InputError(f"Calibration inputs: {int(bad.sum())} rows hold NaN or infinity (rows {where} ...).")
    return t


def distinct(samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The samples without repeated rows, which on both sides of the split would be verified by themselves."""
    flat = torch.cat([x.flatten(1) for x in samples], dim=1)
    if not flat.shape[1]:
        return samples
    _, first = np.unique(flat.numpy(), axis=0, return_index=True)
    keep = torch.from_numpy(np.sort(first))
    return samples if len(keep) == len(flat) else tuple(x[keep] for x in samples)


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
    parts = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    boxes = tuple(p for p in parts if isinstance(p, Box))
    return boxes if boxes and len(boxes) == len(parts) else None
