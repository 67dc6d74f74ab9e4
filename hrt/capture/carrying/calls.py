"""A call without a row of the op table as nodes of a Program that are carried along."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map_only

from hrt.capture.builder import Builder, Ref, schema_name
from hrt.errors import CaptureError, first_line
from hrt.program.carried import CARRIED, OPSET, check, encoded


def carried(b: Builder, call: Any, values: Mapping[Any, Any], refusal: CaptureError) -> Any:
    """What a call of the graph gives, every result that is read a node of its own. values: of the graph's nodes.

    Raises the refusal with the reason where the call cannot be carried.
    """
    try:
        return _carried(b, call, values)
    except _NotCarriedError as error:
        raise type(refusal)(f"{refusal} It cannot be carried along either: {error}.") from error


class _NotCarriedError(Exception):
    """Why a call cannot be carried."""


def _carried(b: Builder, call: Any, values: Mapping[Any, Any]) -> Any:
    from hrt.capture.carrying.models import ForeignCall, Hole, as_model  # imports onnx

    operands = [n for n in call.all_input_nodes if isinstance(values[n], (Ref, Tensor))]
    operands.sort(key=lambda n: isinstance(values[n], Tensor))  # values first
    refs = [values[n] for n in operands if isinstance(values[n], Ref)]
    constants = [values[n] for n in operands if isinstance(values[n], Tensor)]

    def place(n: Any) -> Any:
        value = values[n]
        if isinstance(value, (bool, int, float)):
            return value
        if n not in operands:
            raise _NotCarriedError("it computes with the batch's size, or with other things than tensors")
        dtype = n.meta["val"].dtype
        if dtype.is_complex or (isinstance(value, Ref) and value.before + value.after):
            raise _NotCarriedError("its numbers are complex, or of several samples in one row")
        dtype = torch.float32 if dtype.is_floating_point else dtype
        return Hole(operands.index(n), dtype, value.axis if isinstance(value, Ref) else None)

    plain = tree_map_only(torch.device, lambda _: torch.device("cpu"), (call.args, dict(call.kwargs)))
    foreign = ForeignCall(call.target, *map_arg(plain, place))
    fakes, name = call.meta["val"], schema_name(call.target)

    def result(index: int | None, fake: Any) -> Ref:
        batch, merged = b.batch_place(fake)
        if merged != 1 or fake.is_complex():
            raise _NotCarriedError("its result is complex, or has several samples in one row")
        function = foreign.result(index, batch)
        shape = b.sample_shape(fake)
        try:
            model = as_model(function, [r.shape for r in refs], constants, OPSET)
            attrs = {"name": name, "values": len(refs), "shape": list(shape), "model": encoded(model, function)}
            check(attrs, [(1, *r.shape) for r in refs] + [tuple(c.shape) for c in constants])
        except Exception as error:  # of torch's exporters, onnx, and the runtime
            raise _NotCarriedError(
                f"torch.onnx and ONNX Runtime refuse it ({first_line(error).strip('. ')})"
            ) from error
        made = b.emit(CARRIED, [*refs, *constants], shape, **attrs)
        return replace(made, axis=batch, before=0, after=0)

    if isinstance(fakes, Tensor):
        return result(None, fakes)
    read = {user.args[1] for user in call.users if schema_name(user.target) == "getitem"}
    return [result(k, fake) if k in read else None for k, fake in enumerate(fakes)]
