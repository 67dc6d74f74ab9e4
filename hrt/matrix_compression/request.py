"""What is asked of one matrix, and the matrix it is asked of, each checked once where it is made.

Every refusal says what was given, what was expected and what to do.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from hrt.errors import InputError, ToleranceError, shown
from hrt.hmatrix.hmatrix import STORAGE, HMatrix
from hrt.matrix_compression.block_choices import LEAF_OVERHEAD
from hrt.matrix_compression.block_source import STRIP, BlockSource
from hrt.support.arrays import as_tensor

WORKING_COPIES = 2.5  # of the matrix (measured for 16384 x 16384: a float32 copy in order, spectra of all blocks)
PLAIN_RANGE = 2.0**-18, 2.0**14  # of the largest entry; numbers outside are brought near 1 by a power of two first
# Of the largest entry: beyond it numbers of that type, or scales, would vanish or overflow as they are stored.
USABLE_RANGE = {"float16": PLAIN_RANGE, "int8": (2.0**-80, 2.0**120)}
FULL_FLOAT16 = 2.0**-13  # likewise: below it float16's smallest numbers lose digits, which may cost more than it saves
ORDERINGS = ("auto", "natural", "coordinates", "gram")


@dataclass(frozen=True, eq=False)
class MatrixRequest:
    """The arguments of `hrt.compress_matrix`, a target that prices a leaf's time, and a partition that stays or None.

    Raises ToleranceError and InputError for what no matrix can be given.
    """

    tol: float = 1e-3
    second_moment: Any = None
    row_points: Any = None
    column_points: Any = None
    ordering: str = "auto"
    storage: str = "float32"
    min_leaf: int | None = None
    seed: int = 0
    target: str = "bytes"
    partition: HMatrix | None = None
    storages: tuple[str, ...] = field(init=False)  # that `storage` stands for, most exact first

    def __post_init__(self) -> None:
        object.__setattr__(self, "tol", check_tol(self.tol))
        object.__setattr__(self, "seed", check_whole(self.seed, "seed", 0))
        object.__setattr__(self, "storages", storages_of(self.storage))
        if self.ordering not in ORDERINGS:
            raise InputError(f"Found ordering {shown(self.ordering)}. Expected one of {', '.join(ORDERINGS)}.")
        if self.min_leaf is not None:
            object.__setattr__(self, "min_leaf", check_whole(self.min_leaf, "min_leaf", 1))
        check_target(self.target)


@dataclass(frozen=True, eq=False)
class Problem:
    """A checked matrix (m, n), its inputs' second moment or None, its squared norm by that, its largest magnitude.

    near, exponent: matrix = near * 2^exponent. All planning sees `near`, so that no scale changes a choice.
    """

    matrix: Tensor
    moment: Tensor | None
    request: MatrixRequest
    norm2: float
    largest: float
    near: Tensor
    exponent: int

    @staticmethod
    def of(w: Any, request: MatrixRequest) -> "Problem":
        """Raises InputError for what is no finite matrix, and for a second moment that does not fit."""
        matrix = as_matrix(w)
        moment = as_second_moment(request.second_moment, matrix.shape[1])
        if moment is not None and (mean := float(moment.diagonal().abs().mean())) > 0:
            moment = times_power(moment, -math.frexp(mean)[1])
        largest = largest_entry(matrix)
        is_plain = not largest or PLAIN_RANGE[0] < largest < PLAIN_RANGE[1]
        exponent = 0 if is_plain else math.frexp(largest)[1]
        near = matrix if is_plain else times_power(matrix, -exponent)
        return Problem(matrix, moment, request, BlockSource(matrix, moment).norm2(), largest, near, exponent)

    @property
    def allowed2(self) -> float:
        """The squared error that may remain."""
        return self.request.tol**2 * self.norm2

    @property
    def near_allowed2(self) -> float:
        """The same of `near`."""
        return math.ldexp(self.allowed2, -2 * self.exponent)


def check_target(target: str) -> str:
    """One of the names that price a leaf's time. Raises InputError."""
    if target not in LEAF_OVERHEAD:
        raise InputError(f"Found target {shown(target)}. Expected one of {', '.join(LEAF_OVERHEAD)}.")
    return target


def as_matrix(w: Any, what: str = "matrix") -> Tensor:
    """`w` as a finite (m, n) tensor on the CPU: float32 where it is, else float64, without a copy if possible."""
    shape = getattr(w, "shape", ())
    if len(shape) == 2:
        name = str(getattr(w, "dtype", "")).rpartition(".")[2]  # of torch's and numpy's types alike
        check_memory(shape[0], shape[1], getattr(torch, name or "float64", torch.float64))
    w = as_tensor(w, what).cpu()
    if w.ndim != 2:
        raise InputError(f"Expected a real {what} (rows, columns). Found {w.dtype} of shape {tuple(w.shape)}.")
    w = w if w.dtype == torch.float32 else w.to(torch.float64)
    if not math.isfinite(largest_entry(w)):  # NaN where one entry is
        bad = sum(int((~torch.isfinite(part)).sum()) for part in w.split(STRIP))
        raise InputError(f"Found {bad} NaN or infinite entries in a {what} {tuple(w.shape)}. Expected finite numbers.")
    return w


def largest_entry(matrix: Tensor) -> float:
    """The largest magnitude of a matrix, 0 of an empty one, without a copy."""
    return max(abs(float(v)) for v in torch.aminmax(matrix)) if matrix.numel() else 0.0


def times_power(values: Tensor, exponent: int) -> Tensor:
    """values * 2^exponent, exact but for what leaves the range of their type; in two steps, each within float32's."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)


def usable_storages(storages: tuple[str, ...], largest: float) -> tuple[str, ...]:
    """Those of `storages` that hold a matrix with this largest entry, or float32."""
    everything = 0.0, math.inf
    within = (s for s in storages if not largest or (r := USABLE_RANGE.get(s, everything))[0] <= largest <= r[1])
    return tuple(within) or ("float32",)


def check_memory(m: int, n: int, dtype: torch.dtype) -> None:
    """Raise InputError where compressing an (m, n) matrix of `dtype` cannot fit into memory."""
    item = 4 if dtype == torch.float32 else 8
    needed = int((WORKING_COPIES + (dtype not in (torch.float32, torch.float64))) * m * n * item)
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"Compressing a {m} x {n} matrix takes about {needed / 2**30:,.1f} GiB beside it; {free / 2**30:,.1f} GiB "
            "are free. Nothing was allocated. Compress panels of its rows one by one, or use more memory."
        )


def as_second_moment(c: Any, n: int) -> Tensor | None:
    """A symmetric positive semidefinite (n, n) float64 second moment, or None. Raises InputError."""
    if c is None:
        return None
    c = as_matrix(c, "second moment").to(torch.float64)
    if tuple(c.shape) != (n, n):
        raise InputError(f"Expected a second moment of shape {(n, n)}. Found {tuple(c.shape)}.")
    scale = float(c.abs().max()) if n else 0.0
    if scale and (skew := float((c - c.T).abs().max())) > 1e-8 * scale:
        raise InputError(f"Found a second moment that is not symmetric, by {skew:.3g}. Expected x.T @ x / rows.")
    c = (c + c.T) / 2
    if scale and (lowest := float(torch.linalg.eigvalsh(c)[0])) < -1e-8 * scale * n:
        raise InputError(f"The second moment has an eigenvalue {lowest:.3g}. Expected positive semidefinite.")
    return c


NOTHING_LEFT = 1.0  # the relative error of zero in the place of everything: no larger tolerance says more
LARGEST_TOL = 1e6  # of a network that is trained towards something else than its original; its square stays a number


def check_tol(tol: Any, largest: float = NOTHING_LEFT) -> float:
    """A usable tolerance. Raises ToleranceError for anything but a number above 0 and up to `largest`."""
    try:
        value = math.nan if isinstance(tol, (str, bytes, bool)) else float(tol)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value <= largest:
        raise ToleranceError(
            f"Found tol = {shown(tol)}. Expected a positive number up to {largest:g}, such as 1e-3: a relative error. "
            "Zero in the place of everything has 1."
        )
    return value


def check_whole(value: Any, what: str, low: int, high: int = 2**63 - 1) -> int:
    """A whole number from `low` to `high`. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise InputError(f"Found {what} {shown(value)}. Expected a whole number from {low} to {high}.")
    return int(value)


def storages_of(storage: str) -> tuple[str, ...]:
    """The storage types that a `storage` argument allows. Raises InputError."""
    if storage == "auto":
        return ("float32", "float16", "bfloat16", "int8")  # most exact first
    if not isinstance(storage, str) or storage not in STORAGE:
        raise InputError(f"Found storage {shown(storage)}. Expected one of auto, {', '.join(STORAGE)}.")
    return (storage,)
