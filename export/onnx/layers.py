"""A linear layer as ONNX nodes, in one of several forms (`hrt.runtime.onnx_costs` says which is fastest)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hrt.export.onnx.batched_layer import batched, plan_of
from hrt.export.onnx.graph import Graph
from hrt.hmatrix.diagonal import diagonal_blocks
from hrt.hmatrix.hmatrix import HMatrix
from hrt.runtime.onnx_costs import LANES

NARROW_INPUTS = 8  # a layer of so few inputs takes its bias as one more of them


@dataclass(frozen=True, eq=False)
class Layer:
    """A weight (m, n), a bias (m,) or none, the name of what they give, and the form (see `linear`)."""

    weight: Tensor | HMatrix
    bias: Tensor | None
    wanted: str
    form: str


def linear(g: Graph, x: str, shape: Sequence[int], layer: Layer) -> str:
    """x (batch, ..., n) times weight^T plus bias, of `shape` (..., m) per sample.

    form: "dense" is one Gemm; "multiplied" too, of a compressed weight whose entries a runtime works out when it loads;
    "low rank" is two Gemms; "batched" a few products of many leaves; "stacked" one of equal blocks on the diagonal.
    """
    weight, bias, wanted, form = layer.weight, layer.bias, layer.wanted, layer.form
    (m, n), rank = weight.shape, 1 + len(shape)
    added = None if bias is None else bias.float()
    if form == "dense" and rank > 2:
        return _dense_rows(g, x, weight, added, wanted)
    if rank == 2 and not m * n:  # a weight without entries: OpenVINO takes it for a scalar
        row = torch.zeros(m) if added is None else added
        return g.add("Expand", [g.constant(row[None], f"{wanted}.row"), g.batched_shape(x, [m], wanted)], wanted)
    flat = x if rank == 2 else g.add("Reshape", [x, g.integers([-1, n])], f"{wanted}.rows")
    if isinstance(weight, Tensor) or form == "dense":
        y = _dense(g, flat, entries_of(g, weight, wanted), weight.shape, added, wanted)
    elif form == "multiplied":
        y = _multiplied(g, flat, weight, added, wanted)
    elif form == "low rank":
        y = _low_rank(g, flat, weight, added, wanted)
    elif form == "stacked":
        y = _stacked(g, flat, weight, added, wanted)
    else:
        y = batched(g, flat, weight, plan_of(g, weight), added, wanted)
    if rank == 2:
        return y
    whole = g.integers([-1, *shape]) if math.prod(shape) else g.batched_shape(x, shape, wanted)
    return g.add("Reshape", [y, whole], wanted)


def entries_of(g: Graph, weight: Tensor | HMatrix, wanted: str) -> str:
    """A dense weight (m, n) in float32."""
    if isinstance(weight, HMatrix) and weight.leaves:
        leaf = weight.leaves[0]
        return g.decoded(leaf.tensors[0], leaf.scale, f"{wanted}.weight")
    numbers = weight.float() if isinstance(weight, Tensor) else torch.zeros(weight.shape)
    return g.decoded(numbers, None, f"{wanted}.weight")


def _dense_rows(g: Graph, x: str, weight: Tensor | HMatrix, bias: Tensor | None, wanted: str) -> str:
    """x of more than two dimensions: MatMul takes it as it is."""
    if isinstance(weight, Tensor):
        w = g.constant(weight.float().T, f"{wanted}.weight")
    else:
        w = g.add("Transpose", [entries_of(g, weight, wanted)], f"{wanted}.weight", perm=[1, 0])
    y = g.add("MatMul", [x, w], wanted)
    return y if bias is None else g.add("Add", [y, g.constant(bias, f"{wanted}.bias")], wanted)


def _dense(g: Graph, x: str, w: str, shape: tuple[int, ...], bias: Tensor | None, wanted: str) -> str:
    """One Gemm. ONNX Runtime copies the bias first, on one thread, and pads one column to 16: avoided there."""
    m, n = shape
    if g.narrow:
        return g.gemm(x, w, bias, wanted)
    if m == 1:
        inputs = [w, x] if bias is None else [w, x, g.constant(bias.reshape(1, 1), f"{wanted}.bias")]
        return g.add("Reshape", [g.add("Gemm", inputs, f"{wanted}.row", transB=1), g.integers([-1, 1])], wanted)
    if bias is None or n > NARROW_INPUTS or m <= n:
        return g.gemm(x, w, bias, wanted)
    one = torch.zeros(n + 1)
    one[n] = 1
    wider = g.gemm(x, g.constant(torch.eye(n + 1, n), f"{wanted}.copy"), one, f"{wanted}.inputs")
    column = g.constant(bias[:, None], f"{wanted}.bias")
    return g.gemm(wider, g.beside([w, column], f"{wanted}.block", 1), None, wanted)


def _multiplied(g: Graph, x: str, h: HMatrix, bias: Tensor | None, wanted: str) -> str:
    """One Gemm with the entries of a compressed weight; in a file runtimes work them out."""
    if not g.narrow:
        return _dense(g, x, g.constant(h.to_dense(torch.float32), f"{wanted}.weight"), h.shape, bias, wanted)
    return g.gemm(x, written_out(g, h, wanted), bias, wanted)


def written_out(g: Graph, h: HMatrix, wanted: str) -> str:
    """The entries (m, n) of a compressed weight, from constants alone, which runtimes fold. Not the layer's answer to
    unit vectors: OpenVINO 2026.4 folds no EyeLike, and refuses what it then meets in a Gemm or as a kernel.
    """
    m, n = h.shape
    parts = []
    for e in (e for e in h.leaves if e.is_dense or e.rank):
        if e.is_dense:
            block = g.decoded(e.tensors[0], e.scale, f"{wanted}.block")
        else:
            u, vt = g.decoded(e.tensors[0], None, f"{wanted}.u"), g.decoded(e.tensors[1], e.scale, f"{wanted}.vt")
            block = g.add("MatMul", [u, vt], f"{wanted}.block")
        around = [e.row, e.col, m - e.row - e.rows, n - e.col - e.cols]
        parts.append(g.add("Pad", [block, g.integers(around, "around")], f"{wanted}.part") if any(around) else block)
    whole = g.add("Sum", parts, f"{wanted}.entries") if parts else g.constant(torch.zeros(m, n), f"{wanted}.entries")
    for axis, order in enumerate((h.row_order, h.col_order)):
        if order is not None:
            whole = g.add("Gather", [whole, g.index(order.long().argsort().numpy())], f"{wanted}.entries", axis=axis)
    return whole


def _stacked(g: Graph, x: str, h: HMatrix, bias: Tensor | None, wanted: str) -> str:
    """One batched product with the blocks on the diagonal written out; the rows' parts go to the front and back."""
    blocks = diagonal_blocks(h)
    (m, n), count = blocks[0].shape, len(blocks)
    if g.narrow:
        one = g.integers([1, m, n])
        parts = [g.add("Reshape", [written_out(g, b, wanted), one], f"{wanted}.entries") for b in blocks]
        weight = g.add("Transpose", [g.beside(parts, f"{wanted}.stack", 0)], f"{wanted}.weight", perm=[0, 2, 1])
    else:
        weight = g.constant(torch.stack([b.to_dense(torch.float32).T for b in blocks]), f"{wanted}.weight")
    parted = g.add("Reshape", [x, g.integers([-1, count, n])], f"{wanted}.parts")
    read = g.add("Transpose", [parted], f"{wanted}.read", perm=[1, 0, 2])
    product = g.add("MatMul", [read, weight], f"{wanted}.blocks")
    written = g.add("Transpose", [product], f"{wanted}.written", perm=[1, 0, 2])
    name = wanted if bias is None else f"{wanted}.product"
    y = g.add("Reshape", [written, g.integers([-1, count * m])], name)
    return y if bias is None else g.add("Add", [y, g.constant(bias, f"{wanted}.bias")], wanted)


def _low_rank(g: Graph, x: str, h: HMatrix, bias: Tensor | None, wanted: str) -> str:
    """Two Gemms; every leaf covers the whole matrix. In ONNX Runtime the bias is one more column of U, read by a one in
    T, unless that row costs as much as LANES of them.
    """
    us, vts = factors_of(g, h, wanted)
    rank, n = sum(e.rank for e in h.leaves), h.shape[1]
    if bias is None or g.narrow or rank % LANES == 0:
        t = g.gemm(x, g.beside(vts, f"{wanted}.vt", 0), None, f"{wanted}.t")
        return g.gemm(t, g.beside(us, f"{wanted}.u", 1), bias, wanted)
    one = torch.zeros(rank + 1)
    one[rank] = 1
    vts.append(g.constant(torch.zeros(1, n), f"{wanted}.zeros"))
    us.append(g.constant(bias[:, None], f"{wanted}.bias"))
    t = g.gemm(x, g.beside(vts, f"{wanted}.vt", 0), one, f"{wanted}.t")
    return g.gemm(t, g.beside(us, f"{wanted}.u", 1), None, wanted)


def factors_of(g: Graph, h: HMatrix, wanted: str) -> tuple[list[str], list[str]]:
    """U (m, rank) and V^T (rank, n) of every leaf, all of which cover the whole matrix."""
    leaves = [e for e in h.leaves if e.rank]
    us = [g.decoded(e.tensors[0], None, f"{wanted}.u") for e in leaves]
    return us, [g.decoded(e.tensors[1], e.scale, f"{wanted}.vt") for e in leaves]
