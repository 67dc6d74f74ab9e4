"""Convolutions as ONNX nodes: one Conv, or two for a weight of low rank; patches alone where they are read as such."""

from collections.abc import Sequence

import torch

from hrt.export.onnx.graph import Graph
from hrt.export.onnx.layers import Layer, entries_of, factors_of, written_out
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.patches import Window


def convolution(g: Graph, x: str, shape: Sequence[int], layer: Layer, window: Window) -> str:
    """x (batch, *shape) under a window, channels first. A weight of low rank is a thin kernel, and points after it."""
    weight, wanted, axes = layer.weight, layer.wanted, window.axes
    m, n = weight.shape
    lead = list(shape[: len(shape) - axes - 1])
    if lead:
        x = g.add("Reshape", [x, g.integers([-1, *shape[len(lead) :]])], f"{wanted}.images")
    if not isinstance(weight, HMatrix) or layer.form == "dense":
        entries = entries_of(g, weight, wanted)
    elif layer.form == "low rank":
        us, vts = factors_of(g, weight, wanted)
        entries = g.beside(vts, f"{wanted}.vt", 0)
    elif g.narrow:
        entries = written_out(g, weight, wanted)
    else:
        entries = g.constant(weight.to_dense(torch.float32), f"{wanted}.weight")
    kernel = g.integers([-1, n // window.numbers, *window.kernel])
    bias = [] if layer.bias is None else [g.constant(layer.bias.float(), f"{wanted}.bias")]
    is_thin = layer.form == "low rank"
    inputs = [x, g.add("Reshape", [entries, kernel], f"{wanted}.kernel"), *([] if is_thin else bias)]
    name = f"{wanted}.images" if lead else wanted
    y = g.add("Conv", inputs, f"{wanted}.thin" if is_thin else name, **_attributes(window))
    if is_thin:
        points = g.add("Reshape", [g.beside(us, f"{wanted}.u", 1), g.integers([m, -1, *[1] * axes])], f"{wanted}.u")
        y = g.add("Conv", [y, points, *bias], name)
    return g.add("Reshape", [y, g.integers([-1, *lead, m, *window.steps(tuple(shape))])], wanted) if lead else y


def patches(g: Graph, x: str, shape: Sequence[int], window: Window, wanted: str) -> str:
    """The row `patches` alone: a convolution of every channel whose kernels are units, and channels moved behind."""
    axes, size, steps = window.axes, window.numbers, window.steps(tuple(shape))
    lead, channels, sizes = [*shape[: -axes - 1]], shape[-axes - 1], shape[-axes:]
    if lead:
        x = g.add("Reshape", [x, g.integers([-1, channels, *sizes])], f"{wanted}.images")
    unit = g.decoded(torch.eye(size, dtype=torch.int8), None, f"{wanted}.unit")
    units = g.add("Reshape", [unit, g.integers([1, size, 1, *window.kernel])], f"{wanted}.units")
    units = g.add("Expand", [units, g.integers([channels, size, 1, *window.kernel])], f"{wanted}.units")
    units = g.add("Reshape", [units, g.integers([channels * size, 1, *window.kernel])], f"{wanted}.units")
    y = g.add("Conv", [x, units], f"{wanted}.steps", group=channels, **_attributes(window))
    last = g.add("Transpose", [y], f"{wanted}.last" if lead else wanted, perm=[0, *range(2, 2 + axes), 1])
    return g.add("Reshape", [last, g.integers([-1, *lead, *steps, channels * size])], wanted) if lead else last


def _attributes(window: Window) -> dict[str, list[int]]:
    """A window as attributes of ONNX's Conv."""
    sides = {"kernel_shape": window.kernel, "strides": window.stride, "dilations": window.dilation}
    return {k: list(v) for k, v in {**sides, "pads": window.padding}.items()}
