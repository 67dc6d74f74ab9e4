"""Ops along axes: sums, extremes, softmax, layer norm. The axes are made one; where others stand between them, the
numbers are brought in order first.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod

from hrt.errors import ExportError
from hrt.export.c.body import Body
from hrt.export.c.operators.strides import Axis, copy, row_major
from hrt.program.program import Node

Lowering = Callable[[Body, Node], None]


def _ordered(body: Body, node: Node, axes: Sequence[int]) -> tuple[str, int, int, int]:
    """A pointer to outer x n x inner numbers whose middle are those along `axes`, and the three."""
    place = body.of(node.inputs[0])
    if not place.batch:
        raise ExportError(f"Node {node.name} sums the constant {node.inputs[0]}. Expected a value: fold it before.")
    shape = place.shape
    inside = sorted(k % len(shape) for k in axes)
    wide = [k for k in inside if shape[k] > 1] or inside[:1]
    if all(k in inside or shape[k] == 1 for k in range(wide[0], wide[-1] + 1)):
        n = prod(shape[wide[0] : wide[-1] + 1])
        return place.pointer, prod(shape[: wide[0]]), n, prod(shape[wide[-1] + 1 :])
    order = [*(k for k in range(len(shape)) if k not in inside), *inside]
    steps, turned = row_major(shape), [shape[k] for k in order]
    target = body.scratch(prod(shape))
    copied = [Axis(shape[k], {"o": o, "x": steps[k]}) for k, o in zip(order, row_major(turned), strict=True)]
    copy(body, target, place.pointer, copied)
    n = prod(shape[k] for k in inside)
    return target, prod(shape) // max(n, 1), n, 1


def _reduction(function: str, *more: Callable[[Body, int], str]) -> Lowering:
    """more: further arguments, made of the number of what is reduced."""

    def lowering(body: Body, node: Node) -> None:
        if not prod(node.shape):
            return
        x, outer, n, inner = _ordered(body, node, node.attrs["axes"])
        arguments = [body.out(node).pointer, x, str(outer), str(n), f"(size_t)L * {inner}", *(f(body, n) for f in more)]
        body.add(f"{function}({', '.join(arguments)});")

    return lowering


def _along(function: str) -> Lowering:
    def lowering(body: Body, node: Node) -> None:
        if not prod(node.shape):
            return
        x, outer, n, inner = _ordered(body, node, [node.attrs["axis"]])
        body.add(f"{function}({body.out(node).pointer}, {x}, {outer}, {n}, (size_t)L * {inner});")

    return lowering


def _layer_norm(body: Body, node: Node) -> None:
    n = prod(node.attrs["shape"])
    tables = [body.of(name) for name in node.inputs[1:]]
    if any(place.batch for place in tables):
        raise ExportError(f"Node {node.name} scales by computed numbers. Expected constants.")
    pointers = [body.table(body.constant(name).double().reshape(1, -1)) for name in node.inputs[1:]]
    weight, bias = [*pointers, "0", "0"][:2]
    eps = body.literal(float(node.attrs["eps"]))
    o, x = body.out(node).pointer, body.of(node.inputs[0]).pointer
    if prod(node.shape):
        body.add(f"hrt_layer_norm(L, {o}, {x}, {prod(node.shape) // n}, {n}, {eps}, {weight}, {bias});")


REDUCTIONS: Mapping[str, Lowering] = {
    "sum": _reduction("hrt_reduce_sum", lambda body, n: "1"),
    "mean": _reduction("hrt_reduce_sum", lambda body, n: str(n)),
    "amax": _reduction("hrt_reduce_amax"),
    "amin": _reduction("hrt_reduce_amin"),
    "logsumexp": _reduction("hrt_reduce_logsumexp", lambda body, n: body.scratch(n)),
    "softmax": _along("hrt_along_softmax"),
    "log_softmax": _along("hrt_along_log_softmax"),
    "cumsum": _along("hrt_along_cumsum"),
    "layer_norm": _layer_norm,
}
