"""Ops that only move numbers, as loops over runs; a table where places have no rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod

import torch

from hrt.errors import ExportError
from hrt.export.c.body import Body, Place
from hrt.export.c.elementwise_text import elementwise
from hrt.export.c.operators.many_rows import window_fields
from hrt.export.c.operators.strides import Axis, copy, row_major
from hrt.program.program import Node

Lowering = Callable[[Body, Node], None]


def _by_strides(body: Body, node: Node, strides: Sequence[int], start: int = 0) -> None:
    """The result's axis k walks the argument by strides[k]."""
    axes = [Axis(n, {"o": o, "x": x}) for n, o, x in zip(node.shape, row_major(node.shape), strides, strict=True)]
    if prod(node.shape):
        copy(body, body.out(node).pointer, _value(body, node).pointer, axes, start)


def _value(body: Body, node: Node) -> Place:
    place = body.of(node.inputs[0])
    if not place.batch:
        raise ExportError(f"Node {node.name} moves the constant {node.inputs[0]}. Expected a value: fold it before.")
    return place


def _slice(body: Body, node: Node) -> None:
    shape, axis = body.of(node.inputs[0]).shape, node.attrs["axis"]
    steps = row_major(shape)
    indices = range(shape[axis])[slice(node.attrs["start"], node.attrs["stop"], node.attrs["step"])]
    start = indices.start * steps[axis] if len(indices) else 0
    steps[axis] *= indices.step
    _by_strides(body, node, steps, start)


def _transpose(body: Body, node: Node) -> None:
    steps = row_major(body.of(node.inputs[0]).shape)
    _by_strides(body, node, [steps[k] for k in node.attrs["axes"]])


def _expand(body: Body, node: Node) -> None:
    shape = body.of(node.inputs[0]).shape
    steps = [0 if n == 1 else step for n, step in zip(shape, row_major(shape), strict=True)]
    _by_strides(body, node, [0] * (len(node.shape) - len(shape)) + steps)


def _repeat(body: Body, node: Node) -> None:
    """A constant for every sample: an elementwise op of one argument."""
    elementwise(body, [replace(node, inputs=node.inputs[:1])], {"repeat": lambda body, node: "{0}"})


def _concat(body: Body, node: Node) -> None:
    """The parts of every row of the result, one after the other."""
    axis = node.attrs["axis"]
    rows, width, start = prod(node.shape[:axis]), prod(node.shape[axis:]), 0
    for name in node.inputs:
        count = prod(body.of(name).shape[axis:])
        axes = [Axis(rows, {"o": width, "x": count}), Axis(count, {"o": 1, "x": 1})]
        if rows * count:
            copy(body, body.out(node).at(start), body.of(name).pointer, axes)
        start += count


def _gather(body: Body, node: Node) -> None:
    """Runs behind the axis, by a table of places."""
    shape, axis = _value(body, node).shape, node.attrs["axis"]
    places = body.constant(node.inputs[1]).to(torch.int64)
    outer, run = prod(shape[:axis]), prod(shape[len(shape) + axis + 1 :])
    if not prod(node.shape):
        return
    table, count = body.table(places.to(torch.int32)), len(places)
    rows = f"for (size_t r = 0; r < {outer}; r++) for (size_t i = 0; i < {count}; i++)"
    o = body.out(node).at(f"(r * {count} + i) * {run}")
    x = body.of(node.inputs[0]).at(f"(r * {shape[axis]} + (size_t)({table})[i]) * {run}")
    body.add(rows, f"    hrt_copy(L, {o}, {x}, {run});")


def _patches(body: Body, node: Node) -> None:
    """Step by step of every image."""
    shape = _value(body, node).shape
    if not prod(node.shape):
        return
    axes = len(node.attrs["kernel"])
    count, size = prod(shape[: -axes - 1]), prod(shape[-axes - 1 :])
    steps, n = prod(node.shape[:-1]) // count, node.shape[-1]
    o, x = body.out(node).at(f"(i * {steps} + r) * {n}"), body.of(node.inputs[0]).at(f"i * {size}")
    body.add(
        "{",
        f"    static const hrt_window window = {window_fields(node, shape)};",
        f"    for (size_t i = 0; i < {count}; i++) for (size_t r = 0; r < {steps}; r++)",
        f"        hrt_window_row(L, {o}, {x}, &window, r);",
        "}",
    )


MOVES: Mapping[str, Lowering] = {
    "slice": _slice,
    "transpose": _transpose,
    "expand": _expand,
    "repeat": _repeat,
    "concat": _concat,
    "gather": _gather,
    "patches": _patches,
}
