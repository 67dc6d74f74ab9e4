"""What the kernels write, computed without a card: in torch, straight from a launch's lists, or where rows are streams
of derivatives by Triton's interpreter, in a process of its own (it cannot live beside Triton's compiler).
"""

import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hrt.kernels import step_tables as at

WRITTEN = {"step_kernel": "target", "finish_kernel": "workspace", "network_kernel": "workspace"}
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
    if values["JET"]:
        interpreter().execute(name, grid, values)
        return
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

    def numbers(offset: int, absent: float) -> Any:
        return absent if offset == at.NONE else v["biases"][offset : offset + length].float()

    total = total[:, :length] + numbers(row[at.LAUNCH_BIAS], 0.0)
    if row[at.HAS_EPILOGUE]:
        plain = v["EPILOGUE"]
        function = EPILOGUES.get(plain) or (lambda t, a, b: getattr(torch, plain)(t))
        total = function(total, v["FIRST"], v["SECOND"])
    if v["RESCALE"]:
        total = total * numbers(row[at.GAINS], 1.0) + numbers(row[at.SHIFTS], 0.0)
    target[: v["batch"], row[at.OUT_COLUMN] : row[at.OUT_COLUMN] + length] = total.to(target.dtype)


class Interpreter:
    """Triton's interpreter in a process of its own."""

    def __init__(self) -> None:
        paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if not (Path(p) / "triton").is_dir()]
        environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process: Any = subprocess.Popen([sys.executable, os.path.abspath(__file__)], env=environment, **pipes)
        self.lock = threading.Lock()
        weakref.finalize(self, self.process.kill)

    def execute(self, name: str, grid: Sequence[int], values: Mapping[str, Any]) -> None:
        with self.lock:
            pickle.dump((name, tuple(grid), values), self.process.stdin)
            self.process.stdin.flush()
            values[WRITTEN[name]].copy_(pickle.load(self.process.stdout))


@cache
def interpreter() -> Interpreter:
    return Interpreter()


def interpret() -> None:
    """The other side of `Interpreter`: launches come in, what they wrote goes out."""
    from hrt.kernels.network_kernel import network_kernel
    from hrt.kernels.step_kernel import finish_kernel, step_kernel

    kernels: Any = {"step_kernel": step_kernel, "finish_kernel": finish_kernel, "network_kernel": network_kernel}
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            name, grid, values = pickle.load(source)
        except EOFError:
            return
        if values["workspace"].dtype == torch.bfloat16 and "WIDEN" in values:
            values["WIDEN"] = True  # the interpreter's bfloat16 products are wrong
        kernels[name][grid](**values)
        pickle.dump(values[WRITTEN[name]], target)
        target.flush()


if __name__ == "__main__":
    interpret()
