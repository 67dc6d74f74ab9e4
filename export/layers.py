"""A linear layer as ONNX nodes: dense as one Gemm, hierarchical as V^T products by column panel and one Gemm per row
panel over the concatenation of its inputs (the form that measured best on ONNX Runtime; no Gather inside a layer).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hrt.export.graph import Graph
from hrt.hmatrix import HMatrix, Leaf


@dataclass(frozen=True)
class _Part:
    """Columns `width` of a row panel's input, named `source`, times rows of a leaf's first factor."""

    source: str
    leaf: Leaf


def linear(g: Graph, x: str, rank: int, weight: Tensor | HMatrix, bias: Tensor | None, wanted: str) -> str:
    """x (batch, ..., n) of so many dimensions times weight^T plus bias. Orderings are the caller's business."""
    m, n = weight.shape
    flat = x if rank == 2 else g.add("Reshape", [x, g.integers([-1, n])], f"{wanted}.rows")
    added = None if bias is None else bias.float()
    if isinstance(weight, HMatrix) and not weight.is_dense:
        y = _hierarchical(g, flat, weight, added, wanted)
    else:
        leaf = weight.leaves[0] if isinstance(weight, HMatrix) and weight.leaves else None
        numbers = weight.float() if isinstance(weight, Tensor) else torch.zeros(m, n)
        w = g.decoded(numbers, None, f"{wanted}.weight") if leaf is None else _dense(g, leaf, slice(None), wanted)
        y = _gemm(g, flat, w, added, wanted)
    if rank == 2:
        return y
    lead = g.add("Slice", [g.add("Shape", [x]), g.integers([0]), g.integers([-1])], f"{wanted}.lead")
    shape = g.add("Concat", [lead, g.integers([m])], f"{wanted}.shape", axis=0)
    return g.add("Reshape", [y, shape], wanted)


def _gemm(g: Graph, x: str, w: str, bias: Tensor | None, wanted: str) -> str:
    inputs = [x, w] if bias is None else [x, w, g.constant(bias, f"{wanted}.bias")]
    return g.add("Gemm", inputs, wanted, transB=1)


def _dense(g: Graph, leaf: Leaf, rows: slice, wanted: str) -> str:
    scale = None if leaf.scale is None else leaf.scale[rows]
    return g.decoded(leaf.tensors[0][rows], scale, f"{wanted}.dense")


def _hierarchical(g: Graph, x: str, h: HMatrix, bias: Tensor | None, wanted: str) -> str:
    leaves = [e for e in h.leaves if e.rank != 0 and e.rows and e.cols]
    columns = _Columns(g, x, h.shape[1], wanted)
    inner = _first_products(g, columns, [e for e in leaves if not e.is_dense], wanted)
    ends = sorted({0, h.shape[0], *(e.row for e in leaves), *(e.row + e.rows for e in leaves)})
    panels = []
    for a, b in pairwise(ends):  # a panel reads whole leaves side by side
        parts = []
        for e in leaves:
            if e.row < b and e.row + e.rows > a:
                source = columns.take(e.col, e.col + e.cols) if e.is_dense else inner[id(e)]
                parts.append(_Part(source, e))
        panels.append(_panel(g, x, parts, a, b, None if bias is None else bias[a:b], wanted))
    return panels[0] if len(panels) == 1 else g.add("Concat", panels, wanted, axis=1)


class _Columns:
    """Column ranges of x, each sliced once."""

    def __init__(self, g: Graph, x: str, width: int, wanted: str):
        self.g, self.x, self.width, self.wanted = g, x, width, wanted
        self.made: dict[tuple[int, int], str] = {(0, width): x}

    def take(self, start: int, end: int) -> str:
        """x[:, start:end]."""
        if (start, end) not in self.made:
            bounds = [self.g.integers([v], "index") for v in (start, end, 1)]
            self.made[start, end] = self.g.add("Slice", [self.x, *bounds], f"{self.wanted}.x")
        return self.made[start, end]


def _first_products(g: Graph, columns: _Columns, low: Sequence[Leaf], wanted: str) -> dict[int, str]:
    """T = X V^T of every low-rank leaf, by id: one product per column range, split between its leaves."""
    groups: dict[tuple[int, int], list[Leaf]] = {}
    for e in low:
        groups.setdefault((e.col, e.cols), []).append(e)
    found = {}
    for (col, cols), members in groups.items():
        factors = [g.decoded(e.tensors[1], e.scale, f"{wanted}.vt") for e in members]
        stack = factors[0] if len(factors) == 1 else g.add("Concat", factors, f"{wanted}.v", axis=0)
        t = _gemm(g, columns.take(col, col + cols), stack, None, f"{wanted}.t")
        names = [t]
        if len(members) > 1:
            sizes = g.integers([e.rank for e in members], "sizes")
            names = g.add_several("Split", [t, sizes], [f"{wanted}.t"] * len(members), axis=1)
        found |= {id(e): name for e, name in zip(members, names, strict=True)}
    return found


def _panel(g: Graph, x: str, parts: Sequence[_Part], a: int, b: int, bias: Tensor | None, wanted: str) -> str:
    """Rows [a, b) of the output."""
    if not parts:  # zeros, or the bias alone, for every row of the batch
        value = torch.zeros(1, b - a) if bias is None else bias[None]
        batch = g.add("Slice", [g.add("Shape", [x]), g.integers([0]), g.integers([1])], f"{wanted}.batch")
        shape = g.add("Concat", [batch, g.integers([b - a])], f"{wanted}.shape", axis=0)
        return g.add("Expand", [g.constant(value, f"{wanted}.bias"), shape], wanted)
    weights = []
    for p in parts:
        rows = slice(a - p.leaf.row, b - p.leaf.row)
        if p.leaf.is_dense:
            weights.append(_dense(g, p.leaf, rows, wanted))
        else:
            weights.append(g.decoded(p.leaf.tensors[0][rows], None, f"{wanted}.u"))
    if len(parts) == 1:
        return _gemm(g, parts[0].source, weights[0], bias, wanted)
    joined = g.add("Concat", [p.source for p in parts], f"{wanted}.inputs", axis=1)
    return _gemm(g, joined, g.add("Concat", weights, f"{wanted}.block", axis=1), bias, wanted)
