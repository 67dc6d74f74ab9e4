"""How long ONNX Runtime takes for a layer in each of its forms, roughly: which form a graph gets is decided by this.

The constants were fitted to layers of 256 to 2048 neurons at 1 to 64 rows on two threads of a server CPU (2026-11,
ONNX Runtime 1.31, AVX-512), within a factor of 1.5. A wrong choice costs time, never correctness.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from hrt.hmatrix.batched_products import Plan, plan
from hrt.hmatrix.diagonal import block_count
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.convolutions import CONVOLUTION, fused
from hrt.program.program import Program

ANY_BATCH, FEW_ROWS, MANY_ROWS = (1, 16, 256), (1, 8), (64, 256)  # batches that a graph should be fast at, alike
GEMM_US, NODE_US = 0.4, 0.77  # a Gemm; a node of a batched layer
SMALL_US, LANED_US = 0.04, 0.09  # one small product in there: of one row, and of several
GATHERED_US = 0.00375  # an index of a gather, before anything is copied
DENSE_US, BATCHED_US = 2.1, 2.8  # a million floating-point operations
MOVED_US = 26.0  # a million bytes of activations that a batched layer moves
CACHED_US, STREAMED_US, CACHE_MB = 6.4, 27.0, 32.0  # a million bytes of weights, from a cache or from memory
NEAR_US, NEAR_MB = 1.6, 1.0  # the same from a core's own cache, and its size
LANES = 16  # columns that a product is padded to
CLEAR = 0.9  # a compressed form is taken where it needs less than this share of the dense one's time


def layer_us(weight: Tensor | HMatrix, form: str, rows: int, batched: Plan | None = None) -> float:
    """Predicted microseconds of a layer (m, n) on so many rows. batched: the plan of a batched one."""
    m, n = weight.shape
    if not isinstance(weight, HMatrix) or form in ("dense", "multiplied"):
        size = 4e-6 * m * n
        return GEMM_US + DENSE_US * 2e-6 * m * n * rows + size * (CACHED_US if size < CACHE_MB else STREAMED_US)
    if form == "stacked":
        return _stacked_us(weight.shape, block_count(weight), rows)
    if form == "low rank":
        rank = sum(e.rank for e in weight.leaves)
        numbers = n * math.ceil(rank / LANES) * LANES + m * (rank + 1)
        return 2 * GEMM_US + DENSE_US * 2e-6 * numbers * rows + CACHED_US * 4e-6 * rank * (m + n)
    return _batched_us(weight, rows, batched or plan(weight))


def _stacked_us(shape: tuple[int, int], blocks: int, rows: int) -> float:
    """Equal blocks along the diagonal, written out, as one batched product of rows that are transposed before and
    after it.
    """
    m, n = shape
    numbers = m * n / blocks
    moved = NODE_US * 3 + MOVED_US * 4e-6 * (m + n) * rows + SMALL_US * blocks
    return moved + DENSE_US * 2e-6 * numbers * rows + CACHED_US * 4e-6 * numbers


def _batched_us(matrix: HMatrix, rows: int, batched: Plan) -> float:
    """One row is limited by reading weights; several by arithmetic, on whole lanes of rows."""
    m, n = matrix.shape
    buckets = (*batched.first, *batched.second)
    nodes, products = 3 + 3 * len(batched.first) + 4 * len(batched.second), sum(len(b.blocks) for b in buckets)
    moved = n + batched.height + batched.out_height + m + sum(len(b.blocks) * b.wide for b in batched.second)
    moved += sum(len(b.blocks) * b.wide for b in batched.first if _gathered(b.sources()))
    overhead = NODE_US * nodes + GATHERED_US * _indices(matrix, batched) + MOVED_US * 4e-6 * moved * rows
    if rows > 1:
        lanes = LANES * math.ceil(rows / LANES)
        return overhead + LANED_US * products + BATCHED_US * 2e-6 * batched.numbers * lanes
    size = 4e-6 * batched.numbers
    return overhead + SMALL_US * products + size * (NEAR_US if size < NEAR_MB else CACHED_US)


def _indices(matrix: HMatrix, batched: Plan) -> int:
    """How many rows are gathered one by one; runs are sliced."""
    m, n = matrix.shape
    place = np.arange(m) if matrix.row_order is None else matrix.row_order.long().argsort().numpy()
    read = [b.sources() for b in (*batched.first, *batched.second)]
    written = [layer[place] for layer in batched.layers]
    return sum(rows.size for rows in (*read, *written) if _gathered(rows)) + (0 if matrix.col_order is None else n)


def _gathered(rows: np.ndarray) -> bool:
    return bool((np.diff(rows.reshape(-1)) != 1).any())


def choose_forms(program: Program, batches: Sequence[int], never_slower: bool = False) -> dict[str, str]:
    """The form of every weight of a linear layer that is predicted to be fastest over `batches`, by its name.

    never_slower: compressed only where no single one of the batches is predicted to take longer than dense.
    """
    convolved, forms = _convolved(program), {}
    for name, nodes in program.weights.items():
        rows, weight = max(math.prod(node.shape[:-1]) for node in nodes), program.constants[name]
        several = [rows * b for b in batches]
        forms[name] = _thin(weight) if name in convolved else _choose(weight, several, never_slower)
    return forms


def program_us(program: Program, forms: Mapping[str, str], rows: int) -> float:
    """Predicted microseconds of all linear layers of a program on so many rows."""
    layers = ((n.inputs[1], math.prod(n.shape[:-1])) for n in program.linear_nodes if n.inputs[1] in forms)
    return sum(layer_us(program.constants[name], forms[name], rows * steps) for name, steps in layers)


def _convolved(program: Program) -> set[str]:
    """The weights that only convolutions use."""
    counts = Counter(node.inputs[1] for node in fused(program) if node.op == CONVOLUTION)
    return {name for name, nodes in program.weights.items() if counts[name] == len(nodes)}


def _is_plain(weight: HMatrix) -> bool:
    return weight.is_dense and weight.row_order is None and weight.col_order is None


def _thin(weight: Tensor | HMatrix) -> str:
    """The form of a convolution: of low rank where that is less arithmetic; other leaves are written out at loading."""
    if not isinstance(weight, HMatrix) or _is_plain(weight):
        return "dense"
    (m, n), rank = weight.shape, sum(e.rank for e in weight.leaves)
    thin = compressed_form(weight) == "low rank" and rank * (m + n) < CLEAR * m * n
    return "low rank" if thin else "multiplied"


def compressed_form(weight: HMatrix) -> str:
    """Either "low rank", where all leaves cover the whole matrix, in natural order, or "batched"."""
    whole = all(not e.is_dense and (e.rows, e.cols) == weight.shape for e in weight.leaves)
    natural = weight.row_order is None and weight.col_order is None
    return "low rank" if whole and natural and any(e.rank for e in weight.leaves) else "batched"


def _choose(weight: Tensor | HMatrix, batches: Sequence[int], never_slower: bool) -> str:
    if not isinstance(weight, HMatrix) or _is_plain(weight):
        return "dense"
    forms = (compressed_form(weight), *(("stacked",) if block_count(weight) else ()))
    times = [layer_us(weight, "multiplied", b) for b in batches]
    best, least = "multiplied", CLEAR ** len(batches)
    for form in forms:
        batched = plan(weight) if form == "batched" else None
        shares = [layer_us(weight, form, b, batched) / t for b, t in zip(batches, times, strict=True)]
        if math.prod(shares) < least and (max(shares) <= 1.0 or not never_slower):
            best, least = form, math.prod(shares)
    return best
