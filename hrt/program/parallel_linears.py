"""Slices of a value, each times its own matrix, side by side: one linear node with a block-diagonal matrix.

A stack of matrices (modes of a spectral layer, heads, ensembles) is planned slice by slice. To execute it so would take
three operations a slice; as one matrix it takes the few batched products of any hierarchical matrix.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix
from hrt.hmatrix.leaf import Leaf
from hrt.program.names import unique_name
from hrt.program.program import Constant, Node, Program


def joined(program: Program) -> Program:
    """The same function with parallel linear nodes as one node each. What is stored are the slices; this is for those
    who execute. A program that has none is returned as it is.
    """
    nodes = {node.name: node for node in program.nodes}
    uses = Counter([*(name for node in program.nodes for name in node.inputs), *program.outputs])
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    taken = {*nodes, *program.constants, *(v.name for v in program.inputs)}
    made: dict[str, list[Node]] = {}
    constants: dict[str, Constant] = {}
    for node in program.nodes:
        group = _group(node, program, nodes, uses, shapes) if node.op == "concat" else None
        if group is not None:
            made[node.name] = group.nodes(shapes[group.base], taken, constants)
    if not made:
        return program
    replaced = [n for node in program.nodes for n in made.get(node.name, [node])]
    return replace(program, nodes=tuple(replaced), constants={**program.constants, **constants}).simplified()


@dataclass(frozen=True, eq=False)
class _Group:
    """Linear nodes on parts of `base`, whose results stand side by side in `result` along `axis`. starts: their first
    columns. Parts along another axis than the last are laid out one behind the other.
    """

    result: Node
    base: str
    axis: int
    starts: tuple[int, ...]
    weights: tuple[HMatrix, ...]
    bias: Tensor | None

    def nodes(self, shape: Sequence[int], taken: set[str], constants: dict[str, Constant]) -> list[Node]:
        """The nodes that take the place of the concatenation; their constants are added to `constants`."""
        name, module, final = self.result.name, self.result.module, self.result.shape
        width = shape[-1] if self.axis == -1 else shape[self.axis] * shape[-1]
        height = sum(w.shape[0] for w in self.weights)

        def new(stem: str) -> str:
            fresh = unique_name(f"{name}.{stem}", taken)
            taken.add(fresh)
            return fresh

        inputs = [new("weight")]
        constants[inputs[0]] = beside(self.weights, self.starts, width)
        if self.bias is not None:
            inputs.append(new("bias"))
            constants[inputs[1]] = self.bias
        if self.axis == -1:
            return [Node(name, "linear", (self.base, *inputs), final, {}, module)]
        lead = [k for k in range(-len(shape), -1) if k != self.axis]
        order = [*lead, self.axis, -1]
        back = [order.index(k) - len(order) for k in range(-len(shape), 0)]
        rest = tuple(shape[k] for k in lead)
        steps: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
            ("transpose", (*rest, shape[self.axis], shape[-1]), {"axes": order}),
            ("reshape", (*rest, width), {"shape": [*rest, width]}),
            ("linear", (*rest, height), {}),
            ("reshape", (*rest, final[self.axis], final[-1]), {"shape": [*rest, final[self.axis], final[-1]]}),
            ("transpose", final, {"axes": back}),
        ]
        nodes, value = [], self.base
        for op, made, attrs in steps if self.axis < -2 else steps[1:-1]:
            more = inputs if op == "linear" else []
            nodes.append(Node(new(op), op, (value, *more), made, attrs, module))
            value = nodes[-1].name
        return [*nodes[:-1], replace(nodes[-1], name=name)]


def _group(
    node: Node, program: Program, nodes: Mapping[str, Node], uses: Counter[str], shapes: Mapping[str, Sequence[int]]
) -> _Group | None:
    """The linear nodes whose results `node` concatenates, if they can be one; else None."""
    parts = [nodes.get(name) for name in node.inputs]
    linear = [p for p in parts if p is not None and p.op == "linear" and uses[p.name] == 1]
    axis = node.attrs["axis"]
    if len(linear) < max(2, len(parts)) or len({len(p.shape) for p in linear}) > 1:
        return None
    if any(p.inputs[1] in program.generated or p.inputs[0] in program.constants for p in linear):
        return None
    places = [_place(p.inputs[0], nodes, shapes, axis) for p in linear]
    bases = {base for base, _, _ in places}
    if len(bases) > 1:
        return None
    (base,) = bases
    weights = tuple(_hmatrix(program.constants[p.inputs[1]]) for p in linear)
    if axis < -1:
        alike = len({w.shape for w in weights}) == 1 and all(stop - start == 1 for _, start, stop in places)
        if not alike or len(shapes[base]) < -axis:
            return None
    width = 1 if axis == -1 else weights[0].shape[1]
    starts = tuple(start * width for _, start, _ in places)
    if not _orders_fit(weights, starts):
        return None
    return _Group(node, base, axis, starts, weights, _bias(program, linear))


def _place(
    name: str, nodes: Mapping[str, Node], shapes: Mapping[str, Sequence[int]], axis: int
) -> tuple[str, int, int]:
    """The value that `name` is a slice of along `axis`, and from where to where; itself where it is none."""
    node = nodes.get(name)
    if node is not None and node.op == "slice" and node.attrs["axis"] == axis and node.attrs["step"] == 1:
        source = node.inputs[0]
        return (source, *slice(node.attrs["start"], node.attrs["stop"]).indices(shapes[source][axis])[:2])
    return name, 0, shapes[name][axis] if len(shapes[name]) >= -axis else 0


def _hmatrix(weight: Constant) -> HMatrix:
    return weight if isinstance(weight, HMatrix) else HMatrix.from_dense(weight, weight.dtype)


def _orders_fit(weights: Sequence[HMatrix], starts: Sequence[int]) -> bool:
    """Whether columns that several matrices read stand in the same order in all of them."""
    spans: dict[tuple[int, int], Tensor | None] = {}
    for w, start in zip(weights, starts, strict=True):
        key, order = (start, start + w.shape[1]), w.col_order
        if key in spans and not _same(spans[key], order):
            return False
        spans[key] = order
    ordered = sorted(spans)
    apart = all(a[1] <= b[0] for a, b in pairwise(ordered))
    return apart or all(order is None for order in spans.values())


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def _bias(program: Program, linear: Sequence[Node]) -> Tensor | None:
    """The biases one behind the other, zeros where there is none."""
    if all(len(p.inputs) < 3 for p in linear):
        return None
    parts = []
    for p in linear:
        bias = program.constants[p.inputs[2]] if len(p.inputs) == 3 else torch.zeros(p.shape[-1])
        if not isinstance(bias, Tensor):
            raise TypeError(p.inputs[2])
        parts.append(bias)
    kind = parts[0].dtype if len({b.dtype for b in parts}) == 1 else torch.promote_types(torch.float32, parts[0].dtype)
    return torch.cat([b.to(kind) for b in parts])


def beside(weights: Sequence[HMatrix], starts: Sequence[int], width: int) -> HMatrix:
    """Matrices below each other, each over the columns from its start on, as one of so many columns. Its leaves are
    theirs, and blocks of rank 0 beside them.
    """
    tops = list(accumulate((w.shape[0] for w in weights), initial=0))
    leaves: list[Leaf] = []
    rows, cols = torch.arange(tops[-1]), torch.arange(width)
    for w, top, start in zip(weights, tops, starts, strict=False):
        m, n = w.shape
        leaves += [replace(e, row=e.row + top, col=e.col + start) for e in w.leaves]
        for col, end in ((0, start), (start + n, width)):
            if end > col and m:
                leaves.append(Leaf(top, m, col, end - col, u=torch.zeros(m, 0), vt=torch.zeros(0, end - col)))
        if w.row_order is not None:
            rows[top : top + m] = w.row_order.long() + top
        if w.col_order is not None:
            cols[start : start + n] = w.col_order.long() + start
    return HMatrix((tops[-1], width), tuple(leaves), rows, cols)
