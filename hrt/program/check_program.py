"""Whether a Program that was read from a file is one: every op takes its attributes, every value has its shape, no row
reads another, and one row takes no more memory and time than a network may.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.program.carried import CARRIED, check
from hrt.program.patches import Window
from hrt.program.program import Constant, Node, Program

Shape = tuple[int, ...]
Cost = tuple[int, int]  # numbers, products
ROWS = (2, 3)  # what holds for both counts holds for every one: no op turns one of them into the other
MAX_NODES = 1 << 15
MAX_NUMBERS = 1 << 27  # alive at a time in one row: half a gigabyte in float32
MAX_OPERATIONS = 1 << 38  # of one row: some ten seconds
BOUNDS = ("low", "high")  # attributes that may be infinite
SHAPED = ("reshape", "expand", "repeat", CARRIED)  # ops whose attribute `shape` is that of their value


@dataclass(frozen=True)
class _Weight:
    """A matrix (m, n) of which nothing is known but its shape."""

    shape: tuple[int, ...]

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What a product with it looks like."""
        if x.shape[-1:] != self.shape[1:]:
            raise ValueError(f"a matrix {self.shape} multiplies values of shape {tuple(x.shape)}")
        return torch.empty(*x.shape[:-1], self.shape[0], device="meta")


def check_program(program: Program) -> None:
    """Raise, anything at all, unless every op takes its attributes, every value has the shape that its node claims,
    rows stay apart, and the work of a row is within the budgets. It runs on tensors without numbers, so that nothing
    is allocated for what a file claims.
    """
    if len(program.nodes) > MAX_NODES:
        raise ValueError(f"it has {len(program.nodes)} nodes; expected at most {MAX_NODES}")
    for name, constant in program.constants.items():
        check_finite(name, constant)
    for node in program.nodes:
        _check_attributes(node)
    for rows in ROWS:
        _check_shapes(program, rows)
    constant = [name for name in program.outputs if name in program.constants]
    if constant:
        raise ValueError(f"output {constant[0]} is a constant")
    _check_work(program)


def check_finite(name: str, constant: Constant) -> None:
    """Raise ValueError unless the numbers of a constant are finite, and scales with them."""
    tensors = [constant] if isinstance(constant, Tensor) else [t for leaf in constant.leaves for t in _stored(leaf)]
    for t in tensors:
        if t.is_floating_point() and t.numel() and not all(math.isfinite(float(v)) for v in torch.aminmax(t)):
            raise ValueError(f"{name} holds NaN or infinite numbers")


def _stored(leaf: Leaf) -> Iterator[Tensor]:
    yield from leaf.tensors
    if leaf.scale is not None:
        yield leaf.scale


def _check_attributes(node: Node) -> None:
    for key, value in node.attrs.items():
        if isinstance(value, float) and not (math.isfinite(value) or (key in BOUNDS and not math.isnan(value))):
            raise ValueError(f"node {node.name} has {key} {value}")
    if node.op in SHAPED and tuple(node.attrs["shape"]) != node.shape:
        raise ValueError(f"node {node.name} of shape {node.shape} has the attribute shape {node.attrs['shape']}")
    if node.op == "patches":
        Window.of(node.attrs)


def _check_shapes(program: Program, rows: int) -> None:
    values: dict[str, Any] = {k: torch.empty(c.shape, device="meta") for k, c in program.constants.items()}
    values |= {k: _Weight(tuple(program.constants[k].shape)) for k in program.weights}
    values |= {v.name: torch.empty(rows, *v.shape, device="meta") for v in program.inputs}
    with torch.no_grad():
        for node in program.nodes:
            others = [k for i, k in enumerate(node.inputs) if i != 1 or node.op != "linear"]
            if any(isinstance(program.constants.get(k), HMatrix) for k in others):
                raise TypeError(f"node {node.name} has an H-matrix where only numbers can be")
            arguments = [values[name] for name in node.inputs]
            if node.op == "gather":
                _check_indices(node, program, arguments[0].shape[node.attrs["axis"]])
            _check_axes(node, arguments, [name not in program.constants for name in node.inputs])
            value = values[node.name] = without_numbers(node, arguments)
            if tuple(value.shape) != (rows, *node.shape):
                raise ValueError(f"{node.name} has the shape {('batch', *value.shape[1:])}, it claims {node.shape}")


def _check_axes(node: Node, arguments: Sequence[Any], varies: Sequence[bool]) -> None:
    """Raise ValueError where axes that an op names are the batch. varies: which arguments have one, in front."""
    attrs = node.attrs
    for axis in (*attrs.get("axes", ()), *([attrs["axis"]] if "axis" in attrs else ())):
        if not -arguments[0].ndim < axis < 0:
            raise ValueError(f"node {node.name} works along the axis {axis} of {arguments[0].ndim}")
    if node.op != "einsum":
        return
    *terms, result = einsum_labels(attrs["equation"], [a.ndim for a in arguments])
    batch = {term[:1] for term, is_value in zip(terms, varies, strict=True) if is_value}
    inner = "".join(term[is_value:] for term, is_value in zip(terms, varies, strict=True))
    if batch != {result[:1]} or result[:1] in inner + result[1:]:
        raise ValueError(f"node {node.name} mixes rows: {attrs['equation']}")


def _check_indices(node: Node, program: Program, size: int) -> None:
    """Raise ValueError unless the second argument is a constant list of places below `size`."""
    index = program.constants.get(node.inputs[1])
    if not isinstance(index, Tensor) or index.ndim != 1:
        raise ValueError(f"node {node.name} gathers by something else than a constant list")
    if bool(((index < 0) | (index >= size) | (index % 1 != 0)).any()):
        raise ValueError(f"node {node.name} gathers from places that are not there")


def einsum_labels(equation: str, ranks: Sequence[int]) -> list[str]:
    """The labels of every operand, then of the result, a letter an axis: an ellipsis and a missing result spelled out.

    ranks: of the operands. Raises ValueError where the equation does not fit them.
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if any(count < 0 or (count and "..." not in term) for term, count in zip(terms, hidden, strict=True)):
        raise ValueError(f"{equation} does not fit operands of {list(ranks)} dimensions")
    spare = "".join(chr(0x100 + k) for k in range(max(hidden, default=0)))
    terms = [t.replace("...", spare[len(spare) - count :]) for t, count in zip(terms, hidden, strict=True)]
    if not arrow:
        letters = "".join(terms)
        result = "..." + "".join(sorted(c for c in {*letters} - {*spare} if letters.count(c) == 1))
    return [*terms, result.replace("...", spare)]


def without_numbers(node: Node, arguments: Sequence[Any]) -> Tensor:
    """What the op makes of tensors without numbers. An elementwise op takes its attributes if it does so for single
    numbers; asked for tensors without any, torch would first import its compiler, which takes seconds.
    """
    if not node.row.elementwise:
        return node.row.torch(arguments, node.attrs)
    if node.row.torch([torch.ones(1) for _ in arguments], node.attrs).shape != (1,):
        raise ValueError(f"node {node.name} makes several numbers of one")
    return torch.broadcast_tensors(*arguments)[0]


def _check_work(program: Program) -> None:
    """Raise ValueError where one row takes more memory or arithmetic than a network may. Shapes are right by now."""
    values = (*program.inputs, *program.nodes)
    shapes = {k: tuple(c.shape) for k, c in program.constants.items()} | {v.name: (1, *v.shape) for v in values}
    sizes = {v.name: math.prod(v.shape) for v in values}
    alive, operations = sum(sizes[v.name] for v in program.inputs), 0
    for node in program.nodes:
        alive += sizes[node.name]
        intermediate, products = work(node, [shapes[name] for name in node.inputs], program.constants)
        operations += sizes[node.name] + products
        if alive + intermediate > MAX_NUMBERS or operations > MAX_OPERATIONS:
            raise ValueError(
                f"up to node {node.name} one row takes {alive + intermediate:.3g} numbers and {operations:.3g} "
                f"products; expected at most {MAX_NUMBERS:.3g} and {MAX_OPERATIONS:.3g}"
            )
        alive -= sum(sizes[name] for name in program.last_use.get(node.name, ()))


def _nothing(node: Node, shapes: Sequence[Shape], constants: Mapping[str, Constant]) -> Cost:
    """Its result is all that it takes."""
    return 0, 0


def work(node: Node, shapes: Sequence[Shape], constants: Mapping[str, Constant]) -> Cost:
    """Numbers that come and go within a node, and its products, for arguments of these shapes (values: of one row)."""
    return (0, 0) if node.row.elementwise else WORK[node.op](node, shapes, constants)


def _linear(node: Node, shapes: Sequence[Shape], constants: Mapping[str, Constant]) -> Cost:
    weight = constants[node.inputs[1]]
    entries = math.prod(weight.shape) if isinstance(weight, Tensor) else sum(map(_numbers, weight.leaves))
    return 0, math.prod(node.shape[:-1]) * entries


def _matmul(node: Node, shapes: Sequence[Shape], constants: Mapping[str, Constant]) -> Cost:
    return 0, math.prod(node.shape) * (shapes[0][-1] if shapes[0] else 1)


def _einsum(node: Node, shapes: Sequence[Shape], constants: Mapping[str, Constant]) -> Cost:
    terms = einsum_labels(node.attrs["equation"], [len(shape) for shape in shapes])
    pairs = [pair for term, shape in zip(terms, shapes, strict=False) for pair in zip(term, shape, strict=True)]
    products = math.prod(dict(pairs).values())
    return (products if len(shapes) > 2 else 0), products


def _pass(copies: int) -> Callable[..., Cost]:
    """Reads every number of its first argument once, and makes so many copies of all on the way."""
    return lambda node, shapes, constants: (copies * math.prod(shapes[0]), math.prod(shapes[0]))


WORK: dict[str, Callable[[Node, Sequence[Shape], Mapping[str, Constant]], Cost]] = {
    "linear": _linear,
    "matmul": _matmul,
    "einsum": _einsum,
    **dict.fromkeys(("concat", "slice", "reshape", "transpose", "expand", "repeat", "gather", "patches"), _nothing),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "cumsum", "layer_norm"), _pass(0)),
    **dict.fromkeys(("softmax", "log_softmax", "logsumexp"), _pass(1)),
    CARRIED: lambda node, shapes, constants: check(node.attrs, shapes),
}


def _numbers(leaf: Leaf) -> int:
    return sum(t.numel() for t in leaf.tensors)
