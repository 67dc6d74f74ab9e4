"""Arithmetic of the GPU kernels: what each precision rounds, and which is fast enough to want and exact enough to have.

bf16, fp16: the workspace and the weights are rounded to that type (int8 weights stay exact), sums are float32.
tf32: operands of products are cut to 10 bits of mantissa; layers of few inputs stay float32.
tf32x3: three tf32 products in place of one, near float32. ieee: float32 without tensor cores.

What meets the tolerance is worked out by rounding what the kernels round, on the held-out inputs, without a GPU. Tensor
cores do not round sums, they cut them and every product that enters: with every column a sum loses a share of its size,
from nothing to LOSS, by the card. tf32x3 sums each step of a tile by itself, where that does not matter.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.output_error import OutputError, output_error
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.precisions import WORKSPACE, epilogue_of
from hrt.program.dense_view import compressed_weights, written_out
from hrt.program.program import Node, Program

EMULATED = ("bf16", "fp16", "tf32")
EXACT_INPUTS = 16  # layers of so few inputs are computed in float32 under tf32: coordinates should not be rounded
FINE_TOL = 1e-5  # below, tf32x3 (about 1e-6 of the sum of absolute products) is not taken for float32
TF32_MASK = -(1 << 13)  # keeps sign, exponent and 10 bits of mantissa
HEADROOM = 16.0  # times the largest number seen must be finite in float16
# A100, the coarsest core, cuts each of n products (4 in tf32, 8 of 16 bits) 24 bits below the sum's exponent, half a
# unit at the mean, then the sum 23 bits below, a quarter: 1.25 2^-25 per column of a sum at the low end of its binade.
# H100 and B200 lose half as much (Fasi et al., PeerJ CS 7:e330, 2021; Khattak and Mikaitis, arXiv 2512.07004; to the
# bit in tests/tensor_cores.py).
LOSS = 1.25 * 2.0**-25
SEGMENT = 512  # columns between two losses


def default_precision(tol: float) -> str:
    """What to compute in where nothing was worked out: near float32, or float32 itself for fine tolerances."""
    return "tf32x3" if tol >= FINE_TOL else "ieee"


def cut(t: Tensor) -> Tensor:
    """float32 numbers as a tensor core reads them in tf32: the last 13 bits dropped, the worst it may do."""
    return t.contiguous().view(torch.int32).bitwise_and(TF32_MASK).view(torch.float32)


def stays_exact(inputs: int, precision: str) -> bool:
    """Whether a layer of so many inputs is computed in float32 although the network is in `precision`."""
    return precision == "tf32" and inputs <= EXACT_INPUTS


def emulate(
    program: Program, inputs: Sequence[Tensor], precision: str, loss: float = 0.0
) -> tuple[tuple[Tensor, ...], float]:
    """The outputs of kernels of `precision` (one of EMULATED) for `inputs`, and the largest number stored. loss: what a
    sum loses of its size with every column, 0 to LOSS.
    """
    store = WORKSPACE[precision]
    largest = 0.0

    def stored(value: Tensor) -> Tensor:
        nonlocal largest
        peak = float(value.abs().max()) if value.numel() else 0.0
        largest = max(largest, peak) if peak == peak else float("inf")
        return value.to(store).to(torch.float32)

    values: dict[str, Any] = {k: c.float() if isinstance(c, Tensor) else c for k, c in program.constants.items()}
    values |= {v.name: stored(x.float()) for v, x in zip(program.inputs, inputs, strict=True)}
    # activations that the kernels do not know are applied after the wave, to numbers that were stored
    fused = {k for k, a in fused_activations(program).items() if epilogue_of(a.op, a.attrs) is not None}
    for node in program.nodes:
        arguments = [values[name] for name in node.inputs]
        if node.op == "linear" and isinstance(arguments[0], Tensor):
            y = _linear(arguments, precision, stored, loss)
        else:
            y = node.row.torch(arguments, node.attrs)
        values[node.name] = y if node.name in fused else stored(y)
        for name in program.last_use.get(node.name, ()):
            del values[name]
    return tuple(values[name] for name in program.outputs), largest


def precision_limits(
    program: Program,
    inputs: Sequence[Tensor],
    reference: Tensor,
    error: Callable[[Tensor, Tensor], OutputError] = output_error,
) -> dict[str, float]:
    """The error limit (99 %) of every emulated precision. error: of outputs (rows, features) against `reference`.

    Layers may be written out as dense when the network is loaded, and cards differ in what sums lose: the largest limit
    of both forms and of both ends counts.
    """
    limits: dict[str, float] = {}
    compressed = compressed_weights(program)
    forms = [program, written_out(program, compressed)] if compressed else [program]
    for precision in EMULATED:
        limits[precision] = 0.0
        for form, loss in product(forms, (0.0, LOSS)):
            outputs, largest = emulate(form, inputs, precision, loss)
            rows = torch.cat([y.reshape(y.shape[0], -1) for y in outputs], dim=1).to(torch.float64)
            limit = error(reference, rows).limit
            overflows = precision == "fp16" and not HEADROOM * largest <= torch.finfo(torch.float16).max
            limits[precision] = max(limits[precision], float("inf") if overflows else limit)
    return limits


def fastest_within(limits: Mapping[str, float], tol: float) -> str:
    """The first of the emulated precisions whose limit is at most `tol`, else one near float32."""
    return next((p for p in EMULATED if limits[p] <= tol), default_precision(tol))


def fused_activations(program: Program) -> dict[str, Node]:
    """Linear node to the activation that alone reads it, and that is computed before anything is stored."""
    readers: dict[str, list[Node]] = {}
    for node in program.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    alone = {n.name: readers[n.name][0] for n in program.linear_nodes if len(readers.get(n.name, ())) == 1}
    return {k: a for k, a in alone.items() if a.row.is_activation and k not in program.outputs}


def _linear(arguments: Sequence[Any], precision: str, stored: Any, loss: float) -> Tensor:
    x, weight, *bias = arguments
    m, n = weight.shape
    is_exact = stays_exact(n, precision)

    def operand(t: Tensor) -> Tensor:
        if precision != "tf32":
            return t.to(WORKSPACE[precision]).float()
        return t.float() if is_exact else cut(t.float())

    def add(y: Tensor, rows: Tensor, w: Tensor) -> Tensor:
        return _add_products(y, operand(rows), operand(w), 0.0 if is_exact else loss)

    rows = x.reshape(-1, n) if x.numel() else x.new_zeros(0, n)
    if isinstance(weight, HMatrix):
        y = _hierarchical(rows, weight, add, stored)
    else:
        y = add(rows.new_zeros(rows.shape[0], m), rows, weight)
    y = y.reshape(*x.shape[:-1], m)
    return y + bias[0] if bias else y


def _add_products(y: Tensor, x: Tensor, w: Tensor, loss: float) -> Tensor:
    """y (rows, m) plus x (rows, n) times w (m, n) transposed, less what the sum loses on its way."""
    if not loss:
        return y + x @ w.T
    for k in range(0, x.shape[1], SEGMENT):
        part = x[:, k : k + SEGMENT]
        y = (y + part @ w[:, k : k + SEGMENT].T) * (1 - loss * part.shape[1])
    return y


def _hierarchical(x: Tensor, weight: HMatrix, add: Any, stored: Any) -> Tensor:
    """x (rows, n) times weight^T, leaf by leaf: V^T and its scale, T as stored, then U. add: y + x w^T of y, x, w."""
    if weight.col_order is not None:
        x = x[:, weight.col_order.long()]
    y = x.new_zeros(x.shape[0], weight.shape[0])
    for leaf in weight.leaves:
        part, rows = x[:, leaf.col : leaf.col + leaf.cols], slice(leaf.row, leaf.row + leaf.rows)
        scale = None if leaf.scale is None else leaf.scale.float()
        if leaf.is_dense:
            (dense,) = leaf.tensors
            if scale is None:
                y[:, rows] = add(y[:, rows], part, dense)
            else:
                y[:, rows] += add(x.new_zeros(x.shape[0], leaf.rows), part, dense) * scale
        else:
            u, vt = leaf.tensors
            t = add(x.new_zeros(x.shape[0], vt.shape[0]), part, vt)
            y[:, rows] = add(y[:, rows], stored(t if scale is None else t * scale), u)
    return y if weight.row_order is None else torch.empty_like(y).index_copy_(1, weight.row_order.long(), y)
