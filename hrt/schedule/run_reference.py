"""Runs a schedule in plain torch: the oracle of every backend."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.kernels.reference import run_steps
from hrt.program.op_table import TABLE
from hrt.schedule.schedule import Apply, Epilogue, Gather, Schedule, Span, Wave


def execute(
    schedule: Schedule,
    inputs: Sequence[Tensor],
    dtype: torch.dtype = torch.float64,
    *,
    workspace: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The network's outputs, each (batch, *shape), for `inputs`, each (batch, *shape), computed in `dtype`.

    workspace: (batch, schedule.width) of `dtype` to work in; its padding must be zero. Raises InputError.
    """
    batch = check_inputs(schedule, inputs)
    if workspace is None:
        workspace = torch.zeros(batch, schedule.width, dtype=dtype)
    if tuple(workspace.shape) != (batch, schedule.width) or workspace.dtype != dtype:
        raise InputError(
            f"Found a workspace {workspace.dtype} {tuple(workspace.shape)}. Expected {dtype} {(batch, schedule.width)}."
        )
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


def check_inputs(schedule: Schedule, inputs: Sequence[Tensor]) -> int:
    """The batch size. Raises InputError unless there is one (batch, *shape) tensor per input, all of one batch."""
    if len(inputs) != len(schedule.inputs):
        raise InputError(f"Found {len(inputs)} input(s). Expected {len(schedule.inputs)}, as a tuple.")
    for k, (span, x) in enumerate(zip(schedule.inputs, inputs, strict=True)):
        if x.ndim != 1 + len(span.shape) or tuple(x.shape[1:]) != span.shape:
            raise InputError(f"Input {k}: found shape {tuple(x.shape)}. Expected (batch, {str(span.shape)[1:]}.")
    batches = {int(x.shape[0]) for x in inputs}
    if len(batches) > 1:
        raise InputError(f"Inputs of different batch sizes: {sorted(batches)}. Expected one.")
    return batches.pop() if batches else 0
