"""Transforms along an axis that is not the last, without moving the values: G x in place of (x^T G^T)^T.

A program knows products along the last axis alone, so that a spectral layer is transpose, product, transpose. For those
who execute, `along_axes` follows every value through transposes and reshapes back to where it lies in memory, and
multiplies by generated matrices from the left there. Transposes that cancel are gone, and others are gathered into one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import mul

from torch import Tensor

from hrt.program.convolutions import CONVOLUTION, fused
from hrt.program.names import unique_name
from hrt.program.program import Constant, Node, Program

BEHIND = 8  # numbers behind an axis from which a product along it is done in place: fewer are a product of few columns


@dataclass(frozen=True)
class View:
    """A value as the numbers of `source`, whose sample is cut into axes of `sizes`; `order`: of the axes, in the value.
    Axes of one number are left out.
    """

    source: str
    sizes: tuple[int, ...]
    order: tuple[int, ...]

    @staticmethod
    def whole(source: str, shape: Sequence[int]) -> "View":
        """The value itself."""
        sizes = tuple(n for n in shape if n != 1)
        return View(source, sizes, tuple(range(len(sizes))))

    @property
    def in_place(self) -> bool:
        """Whether the numbers lie in the value's own order."""
        return self.order == tuple(sorted(self.order))

    def cut(self, shape: Sequence[int]) -> "View | None":
        """The same with axes that make up every dimension of `shape`; None where there are none."""
        ordered = [self.sizes[k] for k in self.order]
        if not math.prod(ordered) or math.prod(ordered) != math.prod(shape):
            return None
        ends = sorted({1, *accumulate(ordered, mul), *accumulate((n for n in shape if n != 1), mul)})
        if any(b % a for a, b in pairwise(ends)):
            return None
        parts: dict[int, list[int]] = {}
        start = 1
        for k in self.order:
            stop = start * self.sizes[k]
            parts[k] = [b // a for a, b in pairwise(e for e in ends if start <= e <= stop)]
            start = stop
        first = list(accumulate((len(parts[k]) for k in range(len(self.sizes))), initial=0))
        sizes = tuple(n for k in range(len(self.sizes)) for n in parts[k])
        return View(self.source, sizes, tuple(first[k] + i for k in self.order for i in range(len(parts[k]))))

    def transposed(self, shape: Sequence[int], axes: Sequence[int]) -> "View | None":
        """Of a value of `shape` with its dimensions in another order."""
        if (cut := self.cut(shape)) is None:
            return None
        left, dimensions = iter(cut.order), []
        for n in shape:
            taken: list[int] = []
            while math.prod(cut.sizes[k] for k in taken) < n:
                taken.append(next(left))
            dimensions.append(taken)
        return replace(cut, order=tuple(k for axis in axes for k in dimensions[axis]))

    def merged(self) -> "View":
        """With axes as one that follow each other both in the source and in the value."""
        groups: list[list[int]] = []
        for k in self.order:
            if groups and k == groups[-1][-1] + 1:
                groups[-1].append(k)
            else:
                groups.append([k])
        ranked = sorted(groups)
        sizes = tuple(math.prod(self.sizes[k] for k in group) for group in ranked)
        return View(self.source, sizes, tuple(ranked.index(group) for group in groups))


def along_axes(program: Program) -> Program:
    """The same function, rounded otherwise; a program without such products is returned as it is."""
    if not any(node.inputs[1] in program.generated for node in program.linear_nodes):
        return program
    walk = _Walk(program)
    for node in program.nodes:
        walk.take(node)
    if not walk.rewritten:
        return program
    nodes = tuple(walk.nodes)
    return replace(program, nodes=nodes, constants={**program.constants, **walk.constants}).simplified()


class _Walk:
    """The program so far: nodes to run, and for every value where its numbers lie."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.rewritten = 0
        run = fused(program)
        names = {node.name for node in run}
        self.convolved = {node.name for node in run if node.op == CONVOLUTION}
        self.convolved.update(node.name for node in program.nodes if node.name not in names)
        self.reshaped: dict[tuple[str, tuple[int, ...]], str] = {}
        self.shapes = {v.name: tuple(v.shape) for v in (*program.inputs, *program.nodes)}
        self.taken = {*self.shapes, *program.constants}
        self.views: dict[str, View] = {v.name: View.whole(v.name, v.shape) for v in program.inputs}
        self.present = {v.name: v.name for v in program.inputs}  # by value: what holds it in its own shape

    def take(self, node: Node) -> None:
        """Follow a node, or keep it on the values that it reads."""
        view = None
        free = node.name not in self.program.outputs and node.name not in self.convolved
        if free and node.inputs and node.inputs[0] in self.views:
            view = self.moved(node) if node.op in ("reshape", "transpose") else self.product(node)
        if view is None:
            inputs = tuple(self.value(name, node.module) for name in node.inputs)
            self.nodes.append(replace(node, inputs=inputs))
            self.present[node.name], view = node.name, View.whole(node.name, node.shape)
        self.views[node.name] = view

    def moved(self, node: Node) -> View | None:
        """Where the numbers of a reshape or a transpose lie."""
        x = node.inputs[0]
        if node.op == "reshape":
            return self.views[x].cut(node.shape)
        return self.views[x].transposed(self.shapes[x], node.attrs["axes"])

    def product(self, node: Node) -> View | None:
        """Where the numbers of a product with a generated matrix lie, if it is done in place, else None."""
        x, *names = node.inputs
        if node.op != "linear" or len(names) > 1 or names[0] not in self.program.generated:
            return None
        (name,) = names
        (m, n), view = node.shape[-1:] + self.shapes[x][-1:], self.views[x].cut(self.shapes[x])
        if view is None or view.in_place or min(m, n) < 2:
            return None
        count = 0
        while math.prod(view.sizes[k] for k in view.order[len(view.order) - count :]) < n:
            count += 1
        last = view.order[len(view.order) - count :]
        first, end = min(last, default=0), max(last, default=-1) + 1
        behind = math.prod(view.sizes[end:])
        if sorted(last) != list(range(first, end)) or behind < BEHIND:
            return None
        lead = math.prod(view.sizes[:first])
        shape = tuple(d for d in (lead,) if d > 1)
        rows = self.in_shape(view.source, (*shape, n, behind), node.module)
        made = self.fresh(f"{node.name}.product")
        weight = self.matrix(name, [view.sizes[k] for k in last], [k - first for k in last])
        self.nodes.append(Node(made, "matmul", (weight, rows), (*shape, m, behind), {}, node.module))
        self.shapes[made] = (*shape, m, behind)
        self.rewritten += 1
        sizes = (*view.sizes[:first], m, *view.sizes[end:])
        order = [k if k < first else k - count + 1 for k in view.order if not first <= k < end]
        return View(made, sizes, (*order, first))

    def matrix(self, name: str, sizes: Sequence[int], order: Sequence[int]) -> str:
        """A generated matrix with its columns, axes of these sizes, in the order in which they lie in memory."""
        if list(order) == sorted(order):
            return name
        key = f"{name}.{'.'.join(map(str, (*sizes, *order)))}"
        matrix = self.program.constants[name]
        if key not in self.constants and isinstance(matrix, Tensor):
            back = [1 + order.index(k) for k in range(len(order))]
            permuted = matrix.reshape(-1, *sizes).permute(0, *back)
            self.constants[key] = permuted.reshape(matrix.shape).contiguous()
        return key

    def value(self, name: str, module: str) -> str:
        """What holds a value in its own shape."""
        if name not in self.views:
            return name
        if name not in self.present:
            self.present[name] = self.written(name, module)
        return self.present[name]

    def written(self, name: str, module: str) -> str:
        """A value whose numbers lie elsewhere: one transpose at most, and reshapes around it."""
        view, shape = self.views[name].merged(), self.shapes[name]
        if view.in_place:
            return self.in_shape(view.source, shape, module)
        rows = self.in_shape(view.source, view.sizes, module)
        moved = tuple(view.sizes[k] for k in view.order)
        axes = [k - len(moved) for k in view.order]
        turned = self.fresh(f"{name}.turned")
        self.nodes.append(Node(turned, "transpose", (rows,), moved, {"axes": axes}, module))
        self.shapes[turned] = moved
        return self.in_shape(turned, shape, module)

    def in_shape(self, source: str, shape: tuple[int, ...], module: str) -> str:
        """`source` in another shape, in the same order."""
        if self.shapes[source] == shape:
            return source
        if (source, shape) not in self.reshaped:
            name = self.reshaped[source, shape] = self.fresh(f"{source}.rows")
            self.nodes.append(Node(name, "reshape", (source,), shape, {"shape": list(shape)}, module))
            self.shapes[name] = shape
        return self.reshaped[source, shape]

    def fresh(self, wanted: str) -> str:
        """A name that nothing has yet."""
        name = unique_name(wanted, self.taken)
        self.taken.add(name)
        return name
