"""`hrt.compress_matrix`: one matrix in, the smallest hierarchical matrix found that keeps the promised error out."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.cluster import coordinate_order, default_min_leaf, gram_order
from hrt.errors import InputError, ToleranceError
from hrt.hmatrix import STORAGE, HMatrix, Leaf, relative, squared_norm
from hrt.options import ITEM
from hrt.partition import Planner
from hrt.rounding import round_rows
from hrt.spectra import BlockSource

FLOAT16_RANGE = 2.0**-18, 2.0**14  # of the largest entry; outside it bfloat16 serves in its place
SMALLEST_FLOAT32 = 2.0**-149
ORDERINGS = ("auto", "natural", "coordinates", "gram")


def compress_matrix(
    w: Any,
    *,
    tol: float = 1e-3,
    second_moment: Any = None,
    row_points: Any = None,
    column_points: Any = None,
    ordering: str = "auto",
    storage: str = "float32",
    min_leaf: int | None = None,
    seed: int = 0,
) -> HMatrix:
    """Compress `w` (m, n) so that ||W - H||_F <= tol ||W||_F, measured on the stored numbers.

    second_moment: (n, n) symmetric positive semidefinite C = E[x x^T] of the inputs; the bound is then
        sqrt(tr(E C E^T)) <= tol sqrt(tr(W C W^T)), the relative error of y = W x in the mean square.
    row_points, column_points: coordinates (m, d) and (n, d) of the unknowns, for a k-d ordering.
    ordering: "auto" (natural, the points, and Gram angles are tried; the smallest wins), "natural", "coordinates",
        "gram".
    storage: "float32", "float16", "bfloat16", "int8", or "auto" (per group of directions, under the same bound).
    min_leaf: smallest block side; by default from the shape.

    The result never takes more bytes than dense float32: where no compression pays it is one dense leaf.
    Raises InputError (not a matrix, NaN or infinite entries, a second moment that does not fit) and ToleranceError
    (tol not positive, or below what the storage can hold).
    """
    return compress_for(
        w,
        tol=tol,
        second_moment=second_moment,
        row_points=row_points,
        column_points=column_points,
        ordering=ordering,
        storage=storage,
        min_leaf=min_leaf,
        seed=seed,
        target="bytes",
    )


def compress_for(
    w: Any,
    *,
    tol: float,
    second_moment: Any = None,
    row_points: Any = None,
    column_points: Any = None,
    ordering: str = "auto",
    storage: str = "float32",
    min_leaf: int | None = None,
    seed: int = 0,
    target: str,
) -> HMatrix:
    """`compress_matrix` for a target, which prices a leaf's time beside its bytes (see `partition.LEAF_OVERHEAD`)."""
    matrix = as_matrix(w)
    c = as_second_moment(second_moment, matrix.shape[1])
    check_tol(tol)
    storages = storages_of(storage)
    if ordering not in ORDERINGS:
        raise InputError(f"Found ordering {ordering!r}. Expected one of {', '.join(ORDERINGS)}.")
    m, n = matrix.shape
    fallback = _dense_within(matrix, c, tol, storages)
    if not m * n or float(matrix.abs().max()) == 0:
        return min(fallback, _zero(m, n), key=lambda h: h.nbytes) if m * n else fallback
    if len(storages) > 1 and not FLOAT16_RANGE[0] < float(matrix.abs().max()) < FLOAT16_RANGE[1]:
        storages = tuple(s for s in storages if s != "float16")  # its factors would be subnormal or overflow
    leaf = min_leaf or default_min_leaf(m, n)
    if leaf < 1:
        raise InputError(f"Found min_leaf {leaf}. Expected at least 1.")
    found = [fallback]
    for rows, cols in orderings(matrix, c, ordering, row_points, column_points):
        h = compress_ordered(matrix, c, tol, rows, cols, storages=storages, min_leaf=leaf, seed=seed, target=target)
        if h is not None:
            found.append(h)
    return min(found, key=lambda h: h.nbytes)


def compress_ordered(
    matrix: Tensor,
    c: Tensor | None,
    tol: float,
    rows: Tensor | None,
    cols: Tensor | None,
    *,
    storages: tuple[str, ...],
    min_leaf: int,
    seed: int,
    target: str,
) -> HMatrix | None:
    """Compress in one given ordering; None where no partition meets `tol` with these storages."""
    allowed2 = tol**2 * squared_norm(matrix, c)
    source = BlockSource(permute(matrix, rows, cols), None if c is None else permute(c, cols, cols), None, seed)
    planner = Planner(source, min_leaf=min_leaf, storages=storages, target=target, budget2=allowed2)
    budget2, low, high, best = allowed2, 0.0, math.inf, None
    # Predicted and measured error differ where column blocks see correlated inputs, and by the rounding of storage:
    # a few secant steps on the budget, each checked on the stored numbers.
    for _ in range(12):
        plan = planner.solve_budget(budget2)
        h = planner.build(plan, rows, cols)
        measured2 = squared_norm(matrix - h.to_dense(), c)
        if measured2 <= allowed2:
            low = budget2
            if best is None or h.nbytes < best.nbytes:
                best = h
            if measured2 >= 0.95 * allowed2 or c is None:
                break
        else:
            high = budget2
        step = budget2 * min(4.0, max(0.25, 0.98 * allowed2 / max(measured2, 1e-300)))
        budget2 = step if low < step < high else (low + min(high, 8 * budget2)) / 2
        if high < math.inf and high - low < 0.02 * high:
            break
    return best


def orderings(
    matrix: Tensor, c: Tensor | None, ordering: str, row_points: Any, column_points: Any
) -> list[tuple[Tensor | None, Tensor | None]]:
    """The (row order, column order) pairs that `ordering` stands for; None is the natural order."""
    m, n = matrix.shape
    points = [_as_points(row_points, m, "row_points"), _as_points(column_points, n, "column_points")]
    if ordering == "coordinates" and points == [None, None]:
        raise InputError('ordering="coordinates" needs row_points or column_points.')
    pairs: list[tuple[Tensor | None, Tensor | None]] = []
    if ordering in ("auto", "natural"):
        pairs.append((None, None))
    if ordering in ("auto", "coordinates") and points != [None, None]:
        rows, cols = (None if p is None else coordinate_order(p) for p in points)
        pairs.append((rows, cols))
    if ordering == "gram" or (ordering == "auto" and points == [None, None] and min(m, n) >= 64):
        pairs.append((gram_order(matrix), gram_order(matrix.T)))
    return pairs


def permute(matrix: Tensor, rows: Tensor | None, cols: Tensor | None) -> Tensor:
    """The matrix with its rows and columns in tree order."""
    if rows is not None:
        matrix = matrix[rows.long()]
    return matrix if cols is None else matrix[:, cols.long()]


def as_matrix(w: Any) -> Tensor:
    """`w` as a finite float64 (m, n) tensor on the CPU. Raises InputError."""
    if isinstance(w, Tensor):
        if w.device.type == "meta":
            raise InputError("The matrix is on the meta device and holds no numbers. Load the weights first.")
        w = w.detach().cpu()
    else:
        w = torch.as_tensor(np.asarray(w))
    if w.ndim != 2 or w.is_complex() or w.dtype == torch.bool:
        raise InputError(f"Expected a real matrix (m, n). Found {w.dtype} of shape {tuple(w.shape)}.")
    w = w.to(torch.float64)
    bad = int((~torch.isfinite(w)).sum())
    if bad:
        raise InputError(f"Found {bad} NaN or infinite entries in a {tuple(w.shape)} matrix. Expected finite weights.")
    return w


def as_second_moment(c: Any, n: int) -> Tensor | None:
    """A symmetric positive semidefinite (n, n) float64 second moment, or None. Raises InputError."""
    if c is None:
        return None
    c = as_matrix(c)
    if tuple(c.shape) != (n, n):
        raise InputError(f"Expected a second moment of shape {(n, n)}. Found {tuple(c.shape)}.")
    scale = float(c.abs().max()) if n else 0.0
    if scale and float((c - c.T).abs().max()) > 1e-8 * scale:
        raise InputError("The second moment is not symmetric. Expected C = E[x x^T].")
    c = (c + c.T) / 2
    if scale:
        lowest = float(torch.linalg.eigvalsh(c)[0])
        if lowest < -1e-8 * scale * n:
            raise InputError(f"The second moment has an eigenvalue {lowest:.3g}. Expected positive semidefinite.")
    return c


def check_tol(tol: Any) -> float:
    """A usable tolerance. Raises ToleranceError for anything not a positive finite number."""
    try:
        value = float(tol)
    except (TypeError, ValueError):
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise ToleranceError(f"Found tol = {tol!r}. Expected a positive number such as 1e-3 (a relative error).")
    return value


def storages_of(storage: str) -> tuple[str, ...]:
    """The storage types that a `storage` argument allows. Raises InputError."""
    if storage == "auto":
        return ("float32", "float16", "bfloat16", "int8")  # most exact first
    if storage not in STORAGE:
        raise InputError(f"Found storage {storage!r}. Expected one of auto, {', '.join(STORAGE)}.")
    return (storage,)


def _as_points(points: Any, count: int, what: str) -> Tensor | None:
    if points is None:
        return None
    p = torch.as_tensor(np.asarray(points), dtype=torch.float64)
    p = p.reshape(p.shape[0], -1) if p.ndim else p.reshape(1, 1)
    if p.shape[0] != count or not bool(torch.isfinite(p).all()):
        raise InputError(f"Expected {what} as {count} finite points (count, d). Found shape {tuple(p.shape)}.")
    return p


def _dense_within(matrix: Tensor, c: Tensor | None, tol: float, storages: tuple[str, ...]) -> HMatrix:
    """The smallest dense form within `tol`. Overflow or a tolerance below narrow rounding falls back to float32."""
    norm2 = squared_norm(matrix, c)
    found = math.inf
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if 0 < largest < SMALLEST_FLOAT32:
        raise ToleranceError(
            f"The largest entry is {largest:.3g}; float32 holds nothing below {SMALLEST_FLOAT32:.3g}. Scale it up."
        )
    for name in sorted({*storages, "float32"}, key=lambda s: ITEM[s]):
        part = round_rows(matrix, name, c if name == "int8" else None)
        leaf = Leaf(0, matrix.shape[0], 0, matrix.shape[1], dense=part.numbers, scale=part.scale)
        h = HMatrix((matrix.shape[0], matrix.shape[1]), (leaf,) if matrix.numel() else ())
        e = matrix - h.to_dense()
        if bool(torch.isfinite(e).all()):
            found = relative(squared_norm(e, c), norm2)
            if found <= tol:
                return h
    raise ToleranceError(
        f"tol = {tol:.3g} is below what float32 storage can hold: dense float32 already has error {found:.3g}. "
        "Ask for a larger tolerance."
    )


def _zero(m: int, n: int) -> HMatrix:
    return HMatrix((m, n), (Leaf(0, m, 0, n, u=torch.zeros(m, 0), vt=torch.zeros(0, n)),))
