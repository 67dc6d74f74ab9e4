"""How kernels would be launched, without a device: the grid and the arguments, and what a GPU would refuse of them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from hrt.kernels import launch
from hrt.kernels.step_tables import COLUMN, NONE, StepTables

# CUDA C++ Programming Guide, table of technical specifications, compute capability 5.0 and higher.
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)
MOST_THREADS = 1024
KERNELS = ("step_kernel", "finish_kernel", "network_kernel")
ALIGNED = 16  # Triton compiles for pointers and integers that are multiples of 16, or anew for others


@dataclass(frozen=True)
class Call:
    """One launch. arguments: by name, the compile-time ones too."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]

    @property
    def rows(self) -> int:
        """Rows of the batch that its programs have, those beyond the batch included."""
        return self.grid[-1] * self.arguments["BLOCK"]

    @property
    def specialization(self) -> tuple[Any, ...]:
        """What Triton compiles a kernel for: types, alignment, the numbers 1, and constants."""
        return self.kernel, *(_specialized(name, value) for name, value in sorted(self.arguments.items()))


def _specialized(name: str, value: Any) -> Any:
    if isinstance(value, Tensor):
        return name, value.dtype, value.data_ptr() % ALIGNED == 0
    if name in ("batch", "waves"):  # do_not_specialize
        return name, -(2**31) <= value < 2**31
    if name.endswith("pitch"):
        return name, value % ALIGNED == 0, value == 1, -(2**31) <= value < 2**31
    return name, value


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The launches of tile and network lists; nothing is executed, so that tensors may be on the meta device."""
    calls: list[Call] = []

    class Recorder:
        def __init__(self, kernel: Any, name: str):
            self.arg_names, self.name = kernel.arg_names, name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def noted(*arguments: Any, **options: Any) -> None:
                calls.append(Call(self.name, tuple(grid), dict(zip(self.arg_names, arguments, strict=False)) | options))

            return noted

    with ExitStack() as stack:
        for name in KERNELS:
            stack.enter_context(patch.object(launch, name, Recorder(getattr(launch, name), name)))
        yield calls


def launch_faults(call: Call) -> list[str]:
    """What a GPU refuses, what would be compiled anew inside a request, and integers that do not fit."""
    faults = []
    for axis, count, most in zip("xyz", call.grid, MOST_BLOCKS, strict=False):
        if not 1 <= count <= most:
            faults.append(f"grid {axis} is {count}, {most} at most")
    if 32 * call.arguments["num_warps"] > MOST_THREADS:
        faults.append(f"{call.arguments['num_warps']} warps, {MOST_THREADS // 32} at most")
    for name, value in call.arguments.items():
        if isinstance(value, Tensor) and value.data_ptr() % ALIGNED:
            faults.append(f"{name} begins at an address that is no multiple of {ALIGNED}")
        if name.endswith("pitch") and value % ALIGNED:
            faults.append(f"{name} is {value}, no multiple of {ALIGNED}")
        if isinstance(value, int) and not -(2**31) <= value < 2**31:
            faults.append(f"{name} is {value}, which is no int32")
    if call.rows >= 2**31:
        faults.append(f"{call.rows} rows: their numbers are int32")
    return [f"{call.kernel}: {fault}" for fault in faults]


def read_faults(tables: StepTables, itemsize: int) -> list[str]:
    """Steps whose columns or weights begin where 16 bytes at a time cannot be read. itemsize: of the workspace."""
    steps = tables.numbers[1]
    faults = []
    if (steps[:, COLUMN] * itemsize % ALIGNED).any():
        faults.append(f"a step's column begins at no multiple of {ALIGNED} bytes")
    for weight in tables.weights:
        if tables.step_columns * weight.element_size() % ALIGNED:
            faults.append(f"rows of {tables.step_columns} x {weight.dtype} are no multiple of {ALIGNED} bytes")
    return faults


def dense_tables(outputs: int, inputs: int, side: tuple[int, int], weight: torch.dtype, unit: int) -> StepTables:
    """A dense layer as tiles of rows x columns, `side`; its weights are on the meta device. Inputs come first."""
    rows, columns = side
    across = -(-inputs // columns)
    down = -(-outputs // rows)
    number = torch.arange(down)
    tiles = torch.stack(
        [
            across * columns + number * rows,
            (outputs - number * rows).clamp(max=rows),
            number * across,
            (number + 1) * across,
            torch.full_like(number, NONE),
            torch.full_like(number, NONE),
        ],
        1,
    )
    step = torch.arange(down * across, dtype=torch.int64)
    steps = torch.stack(
        [
            step % across * columns,
            torch.full_like(step, columns),
            step * (rows * columns),
            torch.zeros_like(step),
            torch.full_like(step, NONE),
        ],
        1,
    )
    weights = torch.empty(len(step) * rows * columns, dtype=weight, device="meta")
    return StepTables(tiles.int(), steps, (weights,), torch.zeros(0), rows, columns, unit)
