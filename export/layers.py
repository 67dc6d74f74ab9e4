"""A linear layer as ONNX nodes: dense as one Gemm, hierarchical as V^T products by column panel and one Gemm per row
panel over the concatenation of its inputs (the form that measured best on ONNX Runtime; no Gather inside a layer).
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import torch
from torch import Tensor

from hrt.export.graph import Graph
from hrt.hmatrix import HMatrix, Leaf


def linear(g: Graph, x: str, rank: int, weight: Tensor | HMatrix, bias: Tensor | None, wanted: str) -> str:
    """x (batch, ..., n) of so many dimensions times weight^T plus bias. Orderings are the caller's business."""
    m, n = weight.shape
    added = None if bias is None else bias.float()
    if not isinstance(weight, HMatrix) or weight.is_dense:
        leaf = weight.leaves[0] if isinstance(weight, HMatrix) and weight.leaves else None
        numbers = weight.float() if isinstance(weight, Tensor) else torch.zeros(m, n)
        if rank == 2 or leaf is not None:
            w = g.decoded(numbers, None, f"{wanted}.weight") if leaf is None else _dense(g, leaf, slice(None), wanted)
        else:
            w = g.constant(numbers.T, f"{wanted}.weight")
        if rank == 2:
            return _gemm(g, x, w, added, wanted)
        w = w if leaf is None else g.add("Transpose", [w], f"{wanted}.weight", perm=[1, 0])
        y = g.add("MatMul", [x, w], wanted)
        return y if added is None else g.add("Add", [y, g.constant(added, f"{wanted}.bias")], wanted)
    flat = x if rank == 2 else g.add("Reshape", [x, g.integers([-1, n])], f"{wanted}.rows")
    y = _hierarchical(g, flat, weight, added, wanted)
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
    inner = _Inner(g, columns, [e for e in leaves if not e.is_dense], wanted)
    ends = sorted({0, h.shape[0], *(e.row for e in leaves), *(e.row + e.rows for e in leaves)})
    panels = []
    for a, b in pairwise(ends):  # a panel reads whole leaves side by side
        here = [e for e in leaves if e.row < b and e.row + e.rows > a]
        dense, low = [e for e in here if e.is_dense], [e for e in here if not e.is_dense]
        sources, low = [columns.take(e.col, e.col + e.cols) for e in dense], inner.ordered(low)
        sources += inner.take(low)
        rows = None if bias is None else bias[a:b]
        panels.append(_panel(g, x, sources, [*dense, *low], (a, b), rows, wanted))
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


class _Inner:
    """T = X V^T of the low-rank leaves: one product per column range; split only where a panel reads a part of it."""

    def __init__(self, g: Graph, columns: _Columns, low: Sequence[Leaf], wanted: str):
        self.g, self.wanted = g, wanted
        self.groups: dict[tuple[int, int], list[Leaf]] = {}
        for e in sorted(low, key=lambda e: (e.col, e.cols, e.row, e.rows)):
            self.groups.setdefault((e.col, e.cols), []).append(e)
        self.place = {id(e): (k, key) for key, members in self.groups.items() for k, e in enumerate(members)}
        self.whole: dict[tuple[int, int], str] = {}
        self.parts: dict[tuple[int, int], list[str]] = {}
        for (col, cols), members in self.groups.items():
            factors = [g.decoded(e.tensors[1], e.scale, f"{wanted}.vt") for e in members]
            stack = factors[0] if len(factors) == 1 else g.add("Concat", factors, f"{wanted}.v", axis=0)
            self.whole[col, cols] = _gemm(g, columns.take(col, col + cols), stack, None, f"{wanted}.t")

    def ordered(self, leaves: Sequence[Leaf]) -> list[Leaf]:
        """Leaves of one column range side by side, as they stand in its T."""
        return sorted(leaves, key=lambda e: (self.place[id(e)][1], self.place[id(e)][0]))

    def take(self, leaves: Sequence[Leaf]) -> list[str]:
        """The T of `ordered` leaves, side by side, in as few pieces as can be."""
        found = []
        for key, group in groupby(leaves, key=lambda e: self.place[id(e)][1]):
            members = list(group)
            found += [self.whole[key]] if len(members) == len(self.groups[key]) else self._split(key, members)
        return found

    def _split(self, key: tuple[int, int], members: Sequence[Leaf]) -> list[str]:
        if key not in self.parts:
            sizes = self.g.integers([e.rank for e in self.groups[key]], "sizes")
            names = [f"{self.wanted}.t"] * len(self.groups[key])
            self.parts[key] = self.g.add_several("Split", [self.whole[key], sizes], names, axis=1)
        return [self.parts[key][self.place[id(e)][0]] for e in members]


def _panel(
    g: Graph,
    x: str,
    sources: Sequence[str],
    leaves: Sequence[Leaf],
    rows: tuple[int, int],
    bias: Tensor | None,
    wanted: str,
) -> str:
    """Some rows of the output: `sources` side by side times the leaves' first factors side by side."""
    a, b = rows
    if not leaves:  # zeros, or the bias alone, for every row of the batch
        value = torch.zeros(1, b - a) if bias is None else bias[None]
        batch = g.add("Slice", [g.add("Shape", [x]), g.integers([0]), g.integers([1])], f"{wanted}.batch")
        shape = g.add("Concat", [batch, g.integers([b - a])], f"{wanted}.shape", axis=0)
        return g.add("Expand", [g.constant(value, f"{wanted}.bias"), shape], wanted)
    weights = []
    for e in leaves:
        own = slice(a - e.row, b - e.row)
        u = _dense(g, e, own, wanted) if e.is_dense else g.decoded(e.tensors[0][own], None, f"{wanted}.u")
        weights.append(u)
    source = sources[0] if len(sources) == 1 else g.add("Concat", sources, f"{wanted}.inputs", axis=1)
    weight = weights[0] if len(weights) == 1 else g.add("Concat", weights, f"{wanted}.block", axis=1)
    return _gemm(g, source, weight, bias, wanted)
