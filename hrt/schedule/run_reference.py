"""Runs a schedule in plain torch: the oracle of every backend."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hrt.kernels.reference import run_steps
from hrt.program.op_table import TABLE
from hrt.schedule.schedule import Apply, Epilogue, Gather, Schedule, Span, Wave


def execute(
    schedule: Schedule, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float64, *, workspace: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The network's outputs, each (batch, *shape), for `inputs`, each (batch, *shape), computed in `dtype`.

    workspace: (batch, schedule.width) of `dtype` to work in; its padding must be zero.
    """
    if workspace is None:
        workspace = torch.zeros(inputs[0].shape[0], schedule.width, dtype=dtype)
    for span, x in zip(schedule.inputs, inputs, strict=True):
        write(workspace, span, x)
    constants = {k: c.to(dtype) if isinstance(c, Tensor) else c for k, c in schedule.constants.items()}
    functions = [epilogue_function(e) for e in schedule.epilogues]
    for stage in schedule.stages:
        match stage:
            case Wave():
                run_steps(workspace, schedule.tables, stage.first_tile, stage.end_tile, functions)
            case Gather():
                workspace[:, torch.from_numpy(stage.output.columns)] = workspace[:, stage.index.long()]
            case Apply():
                arguments = [constants[s] if isinstance(s, str) else read(workspace, s) for s in stage.operands]
                write(workspace, stage.output, TABLE[stage.op].torch(arguments, stage.attrs))
    return tuple(read(workspace, span).clone() for span in schedule.outputs)


def read(workspace: Tensor, span: Span) -> Tensor:
    """The value in the columns of `span`, (batch, *shape); a view."""
    if not span.pitch:
        value = workspace[:, span.start : span.start + span.size]
        return value.unflatten(1, span.shape) if span.shape else value[:, 0]
    rows, width = span.shape
    strides, start = (workspace.stride(0), span.pitch, 1), workspace.storage_offset() + span.start
    return workspace.as_strided((workspace.shape[0], rows, width), strides, start)


def write(workspace: Tensor, span: Span, value: Tensor) -> None:
    """Put `value`, (batch, *shape), or anything that can be viewed or broadcast so, into the columns of `span`."""
    target = read(workspace, span)
    if value.shape != target.shape and value.numel() == target.numel():
        value = value.reshape(target.shape)
    target.copy_(value)


def epilogue_function(epilogue: Epilogue) -> Callable[[Tensor], Tensor]:
    """The torch function of an epilogue."""
    row = TABLE[epilogue.op]
    return lambda x: row.torch((x,), epilogue.attrs)
