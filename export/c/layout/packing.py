"""A hierarchical matrix as tables for `kernels/native/products.h`: rows of V^T for wave 1, columns for wave 2.

Numbers stay in the types in which they are stored, and are rearranged once, here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from hrt.export.c.layout.numbers import Numbers, up16
from hrt.hmatrix.hmatrix import HMatrix
from hrt.hmatrix.leaf import Leaf
from hrt.program.program import Constant

ORDER = ("i8", "f16", "bf16", "f32", "f64")  # of storage types in every table: HRT_I8 to HRT_F64
TALL = 64  # outputs of a strip at most
FEW_ROWS = 4  # a dense leaf of so few rows is dot products: as columns most of its numbers would be padding


@dataclass(frozen=True)
class Dots:
    """Wave 1 over columns [column, column + columns): count rows by storage type; at: where their numbers lie."""

    column: int
    columns: int
    place: int
    scale: int
    count: tuple[int, ...]
    at: tuple[int, ...]

    @property
    def decoded(self) -> int:
        """Numbers of the block, decoded."""
        return sum(self.count) * up16(self.columns)


@dataclass(frozen=True)
class Segment:
    """Columns of one storage type of a strip. over_t: their factors are in t, not in x. scale: of rows, -1: none."""

    kind: str
    over_t: bool
    count: int
    index: int
    at: int
    scale: int = -1


@dataclass(frozen=True)
class Strip:
    """Wave 2 of rows [row, row + rows)."""

    row: int
    rows: int
    segments: tuple[Segment, ...]

    @property
    def decoded(self) -> int:
        """Numbers of the strip, decoded."""
        return sum(s.count for s in self.segments) * up16(self.rows)


@dataclass(frozen=True)
class Packed:
    """A weight (m, n). places: numbers of t.  row_order, col_order: of positions, None where natural."""

    m: int
    n: int
    places: int
    dots: tuple[Dots, ...]
    strips: tuple[Strip, ...]
    row_order: Tensor | None
    col_order: Tensor | None

    @property
    def reach(self) -> int:
        """Numbers of x that wave 1 reads for one row; those from n on must be zero."""
        return max([d.column + up16(d.columns) for d in self.dots], default=0)

    @property
    def scratch(self) -> int:
        """Numbers of the largest block, decoded."""
        return max([e.decoded for e in (*self.dots, *self.strips)], default=0)


@dataclass(frozen=True, eq=False)
class _Part:
    """A leaf as rows of V^T (vt) and columns (u), or columns alone. row_scale: of dense int8."""

    leaf: Leaf
    u: Tensor
    vt: Tensor | None = None
    vt_scale: Tensor | None = None
    row_scale: Tensor | None = None


def _part(leaf: Leaf) -> _Part:
    if leaf.dense is None:
        u, vt = leaf.tensors
        return _Part(leaf, u, vt, leaf.scale)
    if leaf.rows <= FEW_ROWS and leaf.cols > leaf.rows:
        unit = torch.eye(leaf.rows, dtype=leaf.dtype)
        return _Part(leaf, unit, leaf.dense, leaf.scale)
    return _Part(leaf, leaf.dense, row_scale=leaf.scale)


def packed(weight: Constant, numbers: Numbers, note: str = "") -> Packed:
    """The tables of a weight, its numbers added to `numbers`."""
    if isinstance(weight, Tensor):
        weight = HMatrix.from_dense(weight, weight.dtype if weight.is_floating_point() else torch.float32)
    m, n = weight.shape
    parts = [_part(leaf) for leaf in weight.leaves if leaf.rank and leaf.rows and leaf.cols]
    dots, places = _dots([p for p in parts if p.vt is not None], numbers, note)
    cuts = sorted({0, m, *(p.leaf.row for p in parts), *(p.leaf.row + p.leaf.rows for p in parts)})
    strips = []
    for start, stop in pairwise(cuts):
        for row in range(start, stop, TALL):
            strips.append(_strip(parts, places, (row, min(stop, row + TALL)), numbers))
    count = sum(sum(d.count) for d in dots)
    return Packed(m, n, count, tuple(dots), tuple(strips), weight.row_order, weight.col_order)


def _dots(parts: Sequence[_Part], numbers: Numbers, note: str) -> tuple[list[Dots], dict[int, int]]:
    """Wave 1, and the first place in t of every part, by identity."""
    places: dict[int, int] = {}
    dots, top = [], 0
    for column, columns in sorted({(p.leaf.col, p.leaf.cols) for p in parts}):
        group = [p for p in parts if (p.leaf.col, p.leaf.cols) == (column, columns)]
        first, scale, counts, at = top, 0, [], []
        for kind in ORDER:
            alike = [p for p in group if p.vt is not None and numbers.kind_of(p.vt) == kind]
            rows = [p.vt for p in alike if p.vt is not None]
            for p in alike:
                places[id(p)] = top
                top += p.u.shape[1]
            counts.append(sum(len(v) for v in rows))
            at.append(numbers.add(kind, _padded(torch.cat(rows)), note) if rows else 0)
            if kind == "i8" and rows:
                scales = [p.vt_scale.float() for p in alike if p.vt_scale is not None]
                scale = numbers.add("reals", torch.cat(scales))
        dots.append(Dots(column, columns, first, scale, tuple(counts), tuple(at)))
    return dots, places


def _padded(table: Tensor) -> Tensor:
    """A table (rows, columns) with zeros behind every row, up to a multiple of 16."""
    wide = torch.zeros(table.shape[0], up16(table.shape[1]), dtype=table.dtype)
    wide[:, : table.shape[1]] = table
    return wide


def _strip(parts: Sequence[_Part], places: dict[int, int], rows: tuple[int, int], numbers: Numbers) -> Strip:
    """The columns of all parts that reach into these rows: scaled ones apart, the others together by storage type."""
    start, stop = rows
    here = [p for p in parts if p.leaf.row < stop and p.leaf.row + p.leaf.rows > start]
    groups: list[tuple[str, bool, list[_Part]]] = []
    for over_t in (False, True):
        sources = [p for p in here if (p.vt is not None) == over_t]
        groups += [("i8", over_t, [p]) for p in sources if p.row_scale is not None]
        for kind in ORDER:
            alike = [p for p in sources if p.row_scale is None and numbers.kind_of(p.u) == kind]
            groups += [(kind, over_t, alike)] * bool(alike)
    index: list[int] = []
    counts = []
    for _, over_t, group in groups:
        before = len(index)
        for p in group:
            first = places[id(p)] if over_t else p.leaf.col
            index += range(first, first + p.u.shape[1])
        counts.append(len(index) - before)
    at_index = numbers.add("index", index) if index else 0  # of all segments, one behind the other
    segments = []
    for (kind, over_t, group), count in zip(groups, counts, strict=True):
        columns = torch.cat([p.u[start - p.leaf.row : stop - p.leaf.row] for p in group], 1).T
        scale = group[0].row_scale
        rows_scale = None if scale is None else scale[start - group[0].leaf.row : stop - group[0].leaf.row].float()
        at = numbers.add(kind, _padded(columns))
        segments.append(
            Segment(kind, over_t, count, at_index, at, -1 if rows_scale is None else numbers.add("reals", rows_scale))
        )
        at_index += count
    return Strip(start, stop - start, tuple(segments))
