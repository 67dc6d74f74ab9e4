"""`hrt.compress_matrix`: one matrix in, the smallest hierarchical matrix found that keeps the promised error out."""

import math
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hrt.errors import ToleranceError
from hrt.hmatrix.hmatrix import STORAGE, HMatrix, Leaf, relative, squared_error
from hrt.matrix_compression.block_choices import ITEM, SCALE_BYTES
from hrt.matrix_compression.block_source import STRIP, BlockSource
from hrt.matrix_compression.orderings import Order, orders, permute
from hrt.matrix_compression.planner import planner_for
from hrt.matrix_compression.request import FULL_FLOAT16, MatrixRequest, Problem, times_power, usable_storages
from hrt.matrix_compression.rounding import round_rows
from hrt.support.parallel import one_blas_thread
from hrt.support.progress import Advance, part, silent
from hrt.support.torch_state import guarded

SURE_TOL, SURE_RANGE = 1e-6, (2.0**-100, 2.0**127)
ROW_RANGE = 2.0**16  # of the rows' largest entries
MANY_TRIES_ENTRIES = 1 << 18
TINY = 1024  # bytes; of results so small every byte of bookkeeping counts
SQUARABLE = 1e-150  # squares of smaller numbers may vanish in float64
SMALLEST_FLOAT32 = 2.0**-149
FAST_TOL = 1e-4  # from here on a large matrix is factored from float32 numbers; its error is measured on its own
FAST_ENTRIES = 1 << 20
TRIALS = 12  # measured plans per ordering
SAME_BUDGET = 0.01  # relative; a budget this near one that was measured would give the same plan
SPENT = 0.9  # of the squared tolerance; a smaller rest is not worth another trial


@guarded
def compress_matrix(
    w: Tensor | ArrayLike,
    *,
    tol: float = 1e-3,
    second_moment: Tensor | ArrayLike | None = None,
    row_points: Tensor | ArrayLike | None = None,
    column_points: Tensor | ArrayLike | None = None,
    ordering: str = "auto",
    storage: str = "float32",
    min_leaf: int | None = None,
    seed: int = 0,
) -> HMatrix:
    """Compress a matrix within a relative error, measured on the stored numbers.

    The result never takes more bytes than dense float32: where no compression pays it is one dense leaf.

    Args:
        w: W (m, n).
        tol: ||W - H||_F <= tol ||W||_F or, with a second moment, sqrt(tr(E C E^T)) <= tol sqrt(tr(W C W^T)) with
            E = W - H: the relative error of y = W x in the mean square.
        second_moment: C = E[x x^T] (n, n) of the inputs, symmetric positive semidefinite.
        row_points: coordinates (m, d) of the unknowns, for a k-d ordering.
        column_points: likewise (n, d).
        ordering: "natural", "coordinates", "gram" (by Gram angles), or "auto": the smallest result of these; of a large
            matrix only those are tried that may be smallest by a sample of rows and columns.
        storage: "float32", "float16", "bfloat16", "int8", or "auto": chosen per group of directions. Where
            none of these holds W within tol in fewer bytes, W becomes one dense leaf, in the last resort of float32.
        min_leaf: smallest block side; by default from the shape.
        seed: same seed, same bytes.

    Returns:
        The smallest H-matrix found.

    Raises:
        InputError: no matrix, NaN or infinite entries, or a second moment or points that do not fit.
        ToleranceError: tol is not positive, above 1, or below what float32 can hold.

    Example:
        >>> x = torch.linspace(0, 1, 64)
        >>> w = torch.exp(-(x[:, None] - x).square())
        >>> h = compress_matrix(w, tol=1e-3)
        >>> h.error(w) <= 1e-3, 4 * w.numel() / h.nbytes > 4
        (True, True)
    """
    request = MatrixRequest(tol, second_moment, row_points, column_points, ordering, storage, min_leaf, seed)
    return compress_for(w, request)


def compress_for(
    w: Any, request: MatrixRequest, *, advance: Advance = silent, executor: Executor | None = None
) -> HMatrix:
    """`compress_matrix` for any target, or within blocks that are there already; see `MatrixRequest`."""
    problem = Problem.of(w, request)
    matrix, storages, largest = problem.matrix, request.storages, problem.largest
    m, n = matrix.shape
    name = dense_within(problem)
    if not m * n:
        return HMatrix((m, n), ())
    if largest == 0:
        zero = HMatrix((m, n), (Leaf(0, m, 0, n, u=torch.zeros(m, 0), vt=torch.zeros(0, n)),))
        return min(_dense(matrix, name, problem.moment), zero, key=lambda h: h.nbytes)
    best, fewest = None, ITEM[name] * m * n + (SCALE_BYTES * m if name == "int8" else 0)
    pairs = orders(problem)
    sets = storage_sets(problem)
    attempts = [(kinds, order) for kinds in sets for order in pairs]
    for k, (kinds, order) in enumerate(attempts):
        here = part(advance, k / len(attempts), (k + 1) / len(attempts))
        h = compress_ordered(problem, order, kinds, here, executor)
        if h is not None and h.nbytes < fewest:
            best, fewest = h, h.nbytes
        if k + 1 == len(sets) * len(pairs) and len(sets) <= 2 <= len(storages) and fewest < TINY:
            attempts += [((s,), order) for s in storages for order in pairs]
    return _dense(matrix, name, problem.moment) if best is None else best


def storage_sets(problem: Problem) -> list[tuple[str, ...]]:
    """Which storage types to allow together: usually all that hold the matrix, and one try for a large one.

    Where rows differ too much in size the plan's model of rounding fails; then fewer, or each alone, are tried too. So
    it may with small entries in float16: all but that are tried, too.
    """
    storages = usable_storages(problem.request.storages, problem.largest)
    sets = [storages, tuple(s for s in storages if s != "float16") or ("float32",)]
    if len(storages) > 1 and problem.matrix.numel() <= MANY_TRIES_ENTRIES:
        peaks = problem.near.abs().amax(1)
        if float(problem.near.abs().max()) > ROW_RANGE * float(peaks[peaks > 0].min()):
            return [*sets, *((s,) for s in storages)]
    return sets if "float16" in storages and problem.largest < FULL_FLOAT16 else [storages]


def compress_alone(w: Any, request: MatrixRequest) -> HMatrix:
    """`compress_for` with one BLAS thread: in a worker of any kind of pool the bytes are the same as here."""
    with one_blas_thread():
        return compress_for(w, request)


def compress_ordered(
    problem: Problem,
    order: Order,
    storages: tuple[str, ...],
    advance: Advance = silent,
    executor: Executor | None = None,
) -> HMatrix | None:
    """Compress in one given ordering; None where no partition meets the tolerance with these storages."""
    matrix, c, request, exponent = problem.near, problem.moment, problem.request, problem.exponent
    allowed2 = problem.near_allowed2
    rows, cols = order
    fast = c is None and request.tol >= FAST_TOL and matrix.numel() >= FAST_ENTRIES
    ordered = permute(matrix, rows, cols, torch.float32 if fast else matrix.dtype)
    source = BlockSource(ordered, None if c is None else permute(c, cols, cols), None, request.seed, fast)
    planner = planner_for(source, request, allowed2, storages, part(advance, 0.0, 0.8), executor)
    budget2, best = allowed2, None
    measured: dict[float, float] = {}  # squared errors, by what was planned
    for trial in range(TRIALS):
        advance(f"factors, trial {trial + 1}", 0.8 + 0.2 * trial / TRIALS)
        h = scaled(planner.build(planner.solve_budget(budget2), rows, cols), exponent)
        error2 = measured[budget2] = math.ldexp(squared_error(problem.matrix, h, c), -2 * exponent)
        if error2 <= allowed2 and (best is None or h.nbytes < best.nbytes):
            best = h
        if SPENT * allowed2 <= error2 <= allowed2:
            break
        budget2 = next_budget(measured, allowed2)
        if budget2 <= 0 or any(abs(budget2 - b) < SAME_BUDGET * b for b in measured):
            break
    return best


def scaled(h: HMatrix, exponent: int) -> HMatrix:
    """h * 2^exponent, in the same storage types."""

    def of_leaf(leaf: Leaf) -> Leaf:
        if leaf.scale is not None:
            return replace(leaf, scale=times_power(leaf.scale, exponent))
        if leaf.dense is not None:
            return replace(leaf, dense=times_power(leaf.dense, exponent))
        half = exponent // 2
        u, vt = (None if t is None else times_power(t, k) for t, k in ((leaf.u, half), (leaf.vt, exponent - half)))
        return replace(leaf, u=u, vt=vt)

    return replace(h, leaves=tuple(map(of_leaf, h.leaves))) if exponent else h


def next_budget(measured: dict[float, float], allowed2: float) -> float:
    """The squared error to plan for next: by the secant of the last two (planned: measured), between the bounds."""
    goal = (1 + SPENT) / 2 * allowed2
    low = max((b for b, m in measured.items() if m <= allowed2), default=0.0)
    high = min((b for b, m in measured.items() if m > allowed2), default=math.inf)
    (before, there), (now, here) = ((0.0, 0.0), *measured.items())[-2:]
    slope = (here - there) / (now - before)
    step = now + (goal - here) / slope if slope > 0 else 0.0
    step = min(4 * now, max(now / 4, step))
    return step if low < step < high else (low + min(high, 8 * now)) / 2


def dense_within(problem: Problem) -> str:
    """The storage type of the smallest dense form within the tolerance, or ToleranceError if float32 misses it."""
    matrix, c, tol, largest = problem.matrix, problem.moment, problem.request.tol, problem.largest
    error = math.inf
    if 0 < largest < SMALLEST_FLOAT32 and (c is None or largest < SQUARABLE or problem.norm2 > 0):
        raise ToleranceError(f"The largest entry is {largest:.3g}, below what float32 holds. Scale it up.")
    for name in sorted(dict.fromkeys((*problem.request.storages, "float32")), key=lambda s: ITEM[s]):
        if name == "float32" and c is None and tol >= SURE_TOL and SURE_RANGE[0] < largest < SURE_RANGE[1]:
            return name  # every entry's relative error is at most 2^-24, or its absolute one at most 2^-150
        error2 = 0.0
        for strip in matrix.split(STRIP):
            error2 += squared_error(strip, _dense(strip, name, c), c)
            if error2 > problem.allowed2 and name != "float32":
                break
        if math.isfinite(error2):
            error = relative(error2, problem.norm2)
            if error <= tol:
                return name
    if not math.isfinite(error):
        raise ToleranceError(f"The largest entry is {largest:.3g}, beyond float32 or its square. Scale it down.")
    raise ToleranceError(f"Found tol = {tol:.3g}; dense float32 has error {error:.3g}. Ask for a larger tolerance.")


def _dense(matrix: Tensor, storage: str, c: Tensor | None) -> HMatrix:
    """One dense leaf with numbers that nothing else holds; rows are rounded independently of each other."""
    m, n = matrix.shape
    if storage != "int8" or not m * n:
        return HMatrix.from_dense(matrix.to(STORAGE[storage], copy=True), STORAGE[storage])
    parts = [round_rows(part.to(torch.float64), storage, c) for part in matrix.split(STRIP)]
    scale = torch.cat([p.scale for p in parts if p.scale is not None])
    return HMatrix((m, n), (Leaf(0, m, 0, n, dense=torch.cat([p.numbers for p in parts]), scale=scale),))
