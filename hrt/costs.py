"""How long ONNX Runtime takes for a layer in each of its forms, roughly: which form a graph gets is decided by this.

The constants were fitted to layers of 128 to 2048 neurons at 1 to 64 rows on two threads of a server CPU (2026-11,
ONNX Runtime 1.31, AVX-512): most predictions are within a factor of 1.5. Only their proportions matter, and a wrong
choice costs time, never correctness.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from hrt.batching import Plan, plan
from hrt.hmatrix import HMatrix
from hrt.program import Program

ANY_BATCH, FEW_ROWS, MANY_ROWS = (1, 16, 256), (1, 8), (64, 256)  # batches that a graph should be fast at, alike
GEMM_US, NODE_US, SMALL_US = 0.4, 0.85, 0.11  # a Gemm; a node of a batched layer; one small product in there
DENSE_US, BATCHED_US = 2.9, 6.4  # a million floating-point operations
MOVED_US = 21.0  # a million bytes of activations that a batched layer moves
CACHED_US, STREAMED_US, CACHE_MB = 7.0, 27.0, 32.0  # a million bytes of weights, from a cache or from memory
LANES = 16  # columns that a product is padded to
CLEAR = 0.9  # a compressed form is taken where it needs less than this share of the dense one's time


def layer_us(weight: Tensor | HMatrix, form: str, rows: int, found: Plan | None = None) -> float:
    """Predicted microseconds of a layer (m, n) on so many rows. found: the plan of a batched one."""
    m, n = weight.shape
    if not isinstance(weight, HMatrix) or form in ("dense", "multiplied"):
        size = 4e-6 * m * n
        return GEMM_US + DENSE_US * 2e-6 * m * n * rows + size * (CACHED_US if size < CACHE_MB else STREAMED_US)
    if form == "low rank":
        rank = sum(e.rank for e in weight.leaves)
        numbers = n * math.ceil(rank / LANES) * LANES + m * (rank + 1)
        return 2 * GEMM_US + DENSE_US * 2e-6 * numbers * rows + CACHED_US * 4e-6 * rank * (m + n)
    found = found or plan(weight)
    buckets = (*found.first, *found.second)
    nodes, products = 3 + 3 * len(found.first) + 4 * len(found.second), sum(len(b.blocks) for b in buckets)
    moved = n + found.height + found.out_height + m + sum(len(b.blocks) * b.wide for b in found.second)
    moved += sum(len(b.blocks) * b.wide for b in found.first if bool((np.diff(b.sources().reshape(-1)) != 1).any()))
    return NODE_US * nodes + SMALL_US * products + (BATCHED_US * 2 * found.numbers + MOVED_US * 4 * moved) * rows / 1e6


def choose_forms(program: Program, batches: Sequence[int]) -> dict[str, str]:
    """The form of every weight of a linear layer that is predicted to be fastest over `batches`, by its name."""
    return {name: _choose(program.constants[name], batches) for name in program.weights}


def program_us(program: Program, forms: Mapping[str, str], rows: int) -> float:
    """Predicted microseconds of all linear layers of a program on so many rows."""
    weights = (n.inputs[1] for n in program.nodes if n.op == "linear" and n.inputs[1] in forms)
    return sum(layer_us(program.constants[name], forms[name], rows) for name in weights)


def compressed_form(weight: HMatrix) -> str:
    """Either "low rank", where all leaves cover the whole matrix, in natural order, or "batched"."""
    whole = all(not e.is_dense and (e.rows, e.cols) == weight.shape for e in weight.leaves)
    natural = weight.row_order is None and weight.col_order is None
    return "low rank" if whole and natural and any(e.rank for e in weight.leaves) else "batched"


def is_plain(weight: Tensor | HMatrix) -> bool:
    """Whether a weight is an ordinary matrix in natural order."""
    if not isinstance(weight, HMatrix):
        return True
    return weight.is_dense and weight.row_order is None and weight.col_order is None


def _choose(weight: Tensor | HMatrix, batches: Sequence[int]) -> str:
    if not isinstance(weight, HMatrix) or is_plain(weight):
        return "dense"
    form = compressed_form(weight)
    found = plan(weight) if form == "batched" else None
    times: Mapping[str, float] = {
        f: math.exp(sum(math.log(layer_us(weight, f, b, found)) for b in batches) / len(batches))
        for f in (form, "multiplied")
    }
    return form if times[form] < CLEAR * times["multiplied"] else "multiplied"
