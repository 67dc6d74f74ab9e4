"""Where a program convolves: patches, a linear layer on them, and the move of channels to the front, as one step.

A Program says a convolution in three nodes, so that its weight is a matrix like any other. What runs a program may do
the three at once, without writing patches out: `fused` gives the nodes to run, some of them of the op CONVOLUTION.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hrt.program.patches import Window
from hrt.program.program import Constant, Node, Program

CONVOLUTION = "convolution"  # no op of the table: inputs x (..., channels, *axes), weight, bias; channels first
BY_AXES = (F.conv1d, F.conv2d, F.conv3d)


def fused(program: Program, admits: Callable[[Constant], bool] = lambda _: True) -> tuple[Node, ...]:
    """The nodes to run in place of the program's. admits: whether a weight can be that of a CONVOLUTION."""
    uses = Counter([*(name for node in program.nodes for name in node.inputs), *program.outputs])
    nodes = {node.name: node for node in program.nodes}
    readers = {name: node for node in program.nodes for name in node.inputs}
    replaced: dict[str, Node | None] = {}
    for linear in program.linear_nodes:
        before, after = nodes.get(linear.inputs[0]), readers.get(linear.name)
        first = after if after is not None and uses[linear.name] == 1 else None
        window = None if before is None or first is None else _window(before, first)
        if before is not None and replaced.get(before.name) is not None:
            continue  # it ends the convolution before this one
        if before is None or first is None or window is None or not admits(program.constants[linear.inputs[1]]):
            continue
        inputs = (before.inputs[0], *linear.inputs[1:])
        replaced[linear.name] = None
        replaced[first.name] = Node(first.name, CONVOLUTION, inputs, first.shape, window.attrs, linear.module)
        uses[before.name] -= 1
        if not uses[before.name]:
            replaced[before.name] = None
    result = (replaced.get(node.name, node) for node in program.nodes)
    return tuple(node for node in result if node is not None)


def _window(before: Node, first: Node) -> Window | None:
    """The window of a convolution that ends with the node `first`; None where channels do not come to the front."""
    if first.op != "transpose":
        return None
    rank, axes = len(first.shape), list(first.attrs["axes"])
    if before.op == "patches":
        window = Window.of(before.attrs)
    elif before.op == "transpose":  # a kernel of 1 reads channels that were moved behind
        count = rank - 1 - next((k for k, axis in enumerate(before.attrs["axes"]) if axis != k - rank), rank)
        if not 1 <= count <= len(BY_AXES) or list(before.attrs["axes"]) != [
            *range(-rank, -1 - count),
            *range(-count, 0),
            -1 - count,
        ]:
            return None
        window = Window((1,) * count, (1,) * count, (1,) * count, (0,) * (2 * count))
    else:
        return None
    moves = [*range(-rank, -1 - window.axes), -1, *range(-1 - window.axes, -1)]
    return window if axes == moves else None


def convolve(arguments: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor:
    """The torch function of a CONVOLUTION of x (..., channels, *axes) by a matrix (outputs, channels * kernel)."""
    x, weight, *rest = arguments
    window = Window.of(attrs)
    axes, lead = window.axes, x.shape[: x.ndim - window.axes - 1]
    if len(lead) != 1:
        x = x.reshape(math.prod(lead), *x.shape[len(lead) :])
    padding, tail = window.padding[:axes], window.padding[axes:]
    if padding != tail:
        x = F.pad(x, [n for k in reversed(range(axes)) for n in (padding[k], tail[k])])
        padding = (0,) * axes
    kernel = weight.reshape(weight.shape[0], x.shape[1], *window.kernel)
    y = BY_AXES[axes - 1](x, kernel, rest[0] if rest else None, window.stride, padding, window.dilation)
    return y if len(lead) == 1 else y.reshape(*lead, *y.shape[1:])
