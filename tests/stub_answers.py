"""What the kernels write, computed without a card: in torch, straight from a launch's lists."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import factorial, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrt.kernels import step_tables as at

# The kernels' epilogues by name; a and b are their numbers.
EPILOGUES: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "none": lambda v, a, b: v,
    "relu": lambda v, a, b: v.relu(),
    "silu": lambda v, a, b: F.silu(v),
    "gelu": lambda v, a, b: F.gelu(v),
    "gelu_tanh": lambda v, a, b: F.gelu(v, approximate="tanh"),
    "mish": lambda v, a, b: F.mish(v),
    "leaky_relu": lambda v, a, b: F.leaky_relu(v, a),
    "elu": lambda v, a, b: F.elu(v, a),
    "softplus": lambda v, a, b: F.softplus(v, a),
    "clamp": lambda v, a, b: v.clamp(a, b),
}


def execute(name: str, grid: Sequence[int], values: dict[str, Any]) -> None:
    """One launch, in place. values: the kernel's arguments by name, tensors on the CPU."""
    rows = values["tiles"].tolist()
    if name == "finish_kernel":
        for row in rows[: grid[0]]:
            _store(values, row, _sum_of_parts(values, row))
        return
    ends = values["wave_ends"].tolist() if name == "network_kernel" else [0, grid[0]]
    for first, end in pairwise(ends):
        for tile in range(first, end):
            _store(values, rows[tile], _sum_of_steps(values, tile, rows[tile]))


def _sum_of_steps(v: Mapping[str, Any], tile: int, row: Sequence[int]) -> Tensor:
    """float32 (batch, ROWS): workspace columns times weight tiles, step by step as `sum_of_tile` does."""
    x, total = v["workspace"][: v["batch"]], torch.zeros(v["batch"], v["ROWS"])
    runs, size = v["runs"][tile].tolist(), v["ROWS"] * v["COLUMNS"]
    for buffer in range(v["BUFFERS"]):
        first, end = runs[buffer : buffer + 2]
        if end <= first:
            continue
        begin = int(v["starts"][tile, buffer]) * size
        weights = v[f"weights{buffer}"][begin : begin + (end - first) * size].view(-1, v["ROWS"], v["COLUMNS"]).float()
        if buffer == v["SCALED"]:
            for low, high, offset in v["groups"][row[at.FIRST_GROUP] : row[at.END_GROUP]].tolist():
                if offset != at.NONE:
                    scales = v["scales"][offset : offset + v["ROWS"]].float()
                    weights[low - first : high - first] *= scales[None, :, None]
        columns = (v["columns"][first:end].long() * v["UNIT"])[:, None] + torch.arange(v["COLUMNS"])
        total += x[:, columns.flatten()].float() @ weights.transpose(1, 2).flatten(0, 1)
    return total


def _sum_of_parts(v: Mapping[str, Any], row: Sequence[int]) -> Tensor:
    slots = v["partial"][: v["batch"]].unflatten(1, (-1, v["ROWS"]))
    return sum((slots[:, k] for k in range(row[at.FIRST_GROUP], row[at.END_GROUP])), torch.zeros(()))  # in this order


def _store(v: Mapping[str, Any], row: Sequence[int], total: Tensor) -> None:
    """Bias, epilogue, rescaling and the store, as `finish_tile` does."""
    length, target = row[at.OUT_LENGTH], v["target" if "target" in v else "workspace"]

    def numbers(offset: int, absent: float) -> Tensor:
        return v["biases"][offset : offset + length].float() if offset != at.NONE else torch.full((length,), absent)

    def function(t: Tensor) -> Tensor:
        named = EPILOGUES.get(v["EPILOGUE"])
        return named(t, v["FIRST"], v["SECOND"]) if named else getattr(torch, v["EPILOGUE"])(t)

    streams = v["JET"].split(";")
    points = total[:, :length].unflatten(0, (-1, 1 << (len(streams) - 1).bit_length()))
    points[:, 0] += numbers(row[at.LAUNCH_BIAS], 0.0)  # of derivatives, what is constant is none
    if row[at.HAS_EPILOGUE]:
        points = _jets(points, streams, function)
    if v["RESCALE"]:
        points = points * numbers(row[at.GAINS], 1.0)
        points[:, 0] += numbers(row[at.SHIFTS], 0.0)
    columns = slice(row[at.OUT_COLUMN], row[at.OUT_COLUMN] + length)
    target[: v["batch"], columns] = points.flatten(0, 1).to(target.dtype)


def _jets(z: Tensor, streams: Sequence[str], function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the value and of its derivatives (points, rows, n), by the terms of `Streams.code`."""
    with torch.enable_grad():
        value = z[:, 0].double().requires_grad_()
        orders = [function(value)]
        for _ in range(3 if len(streams) > 1 else 0):
            last = orders[-1]
            orders.append(
                torch.autograd.grad(last.sum(), value, create_graph=True)[0] if last.requires_grad else 0 * value
            )
    made = torch.zeros_like(z)
    made[:, 0] = function(z[:, 0])
    for place, terms in enumerate(streams[1:], 1):
        made[:, place] = orders[1].detach() * z[:, place]
        for term in filter(None, terms.split("+")):
            count, *factors = map(int, term.split("."))
            each = orders[len(factors)].detach() * (count / factorial(len(factors)))
            made[:, place] += each * prod(z[:, k] for k in factors)
    return made
