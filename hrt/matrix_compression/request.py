"""What is asked of one matrix, and the matrix it is asked of, each checked once where it is made."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import LEAF_OVERHEAD
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.checks import (
    as_matrix,
    as_second_moment,
    check_tol,
    check_whole,
    largest_entry,
    storages_of,
)

ORDERINGS = ("auto", "natural", "coordinates", "gram")


@dataclass(frozen=True, eq=False)
class MatrixRequest:
    """A relative error and what may be done to keep it; the fields are the arguments of `hrt.compress_matrix`.

    target: prices a leaf's time beside its bytes (see `block_choices.LEAF_OVERHEAD`).  partition: an H-matrix whose
    orderings and blocks stay, truncated and stored as the tolerance allows.
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
            raise InputError(f"Found ordering {self.ordering!r}. Expected one of {', '.join(ORDERINGS)}.")
        if self.min_leaf is not None:
            object.__setattr__(self, "min_leaf", check_whole(self.min_leaf, "min_leaf", 1))
        check_target(self.target)


@dataclass(frozen=True, eq=False)
class Problem:
    """A checked matrix (m, n) on the CPU, the second moment (n, n) of its inputs or None, and what is asked of it.

    norm2: its squared norm, in the norm of the moment.  largest: its largest magnitude.
    """

    matrix: Tensor
    moment: Tensor | None
    request: MatrixRequest
    norm2: float
    largest: float

    @staticmethod
    def of(w: Any, request: MatrixRequest) -> "Problem":
        """Raises InputError for what is no finite matrix, and for a second moment that does not fit."""
        matrix = as_matrix(w)
        moment = as_second_moment(request.second_moment, matrix.shape[1])
        return Problem(matrix, moment, request, BlockSource(matrix, moment).norm2(), largest_entry(matrix))

    @property
    def allowed2(self) -> float:
        """The squared error that may remain."""
        return self.request.tol**2 * self.norm2


def check_target(target: str) -> str:
    """One of the names that price a leaf's time. Raises InputError."""
    if target not in LEAF_OVERHEAD:
        raise InputError(f"Found target {target!r}. Expected one of {', '.join(LEAF_OVERHEAD)}.")
    return target
