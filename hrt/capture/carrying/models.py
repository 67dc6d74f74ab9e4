"""A call of an ATen operator as a function of its tensors, and as an ONNX model that says the same."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from hrt.capture.tracing.modes import quiet

FEW, MORE = 3, 5  # rows that a model is made with, and that it must also run with


@dataclass(frozen=True)
class Hole:
    """The place of a tensor among the arguments of a call: its number, its type, and which dimension is the batch, None
    for a constant.
    """

    number: int
    dtype: torch.dtype
    batch: int | None = None


@dataclass(frozen=True, eq=False)
class ForeignCall:
    """target(*arguments, **keywords) with a Hole in the place of every tensor."""

    target: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def result(self, place: int | None, batch: int) -> nn.Module:
        """A module of all tensors as floats, values (batch, *sample), constants behind them: the result, or that at
        `place` of several, whose dimension `batch` is the batch, as (batch, *sample) of floats.
        """
        return _Result(self, place, batch)

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """What the call gives."""

        def put(value: Any) -> Any:
            if not isinstance(value, Hole):
                return value
            x = tensors[value.number].to(value.dtype)
            return x if not value.batch else x.movedim(0, value.batch)

        return self.target(*tree_map(put, self.arguments), **tree_map(put, self.keywords))


class _Result(nn.Module):
    """See `ForeignCall.result`."""

    def __init__(self, call: ForeignCall, place: int | None, batch: int):
        super().__init__()
        self.call, self.place, self.batch = call, place, batch

    def forward(self, *tensors: Tensor) -> Tensor:
        result = self.call.filled(tensors)
        result = result if self.place is None else result[self.place]
        return (result.movedim(self.batch, 0) if self.batch else result).to(torch.float32)


def as_model(net: nn.Module, values: Sequence[Sequence[int]], constants: Sequence[Tensor], opset: int) -> bytes:
    """A module of float32 tensors as an ONNX model of any batch. values: shapes of samples. Raises, in any way, where
    torch cannot say it in ONNX, or ONNX Runtime says something else.
    """
    few, more = _rows(FEW, values, constants), _rows(MORE, values, constants)
    refusal: Exception | None = None
    for write in _exporters():
        try:
            with quiet(), _silent(), torch.no_grad():
                model = _settled(write(net, few, opset), few, more)
                (result,) = _run(model, more, [model.graph.output[0].name])
                expected = net(*more).numpy()
            np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-4)
            return model.SerializeToString()
        except Exception as error:  # torch's exporters, onnx and the runtime have errors of their own
            refusal = refusal or error
    raise refusal or ValueError("torch has no exporter")


def _rows(count: int, values: Sequence[Sequence[int]], constants: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Numbers from 0 to 1: whole ones of those are 0, which is a place everywhere."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.rand(count, *shape, generator=generator) for shape in values]
    return (*rows, *(c.to(torch.float32) for c in constants))


def _by_script(net: nn.Module, rows: tuple[Tensor, ...], opset: int) -> onnx.ModelProto:
    """By what every torch has."""
    file, names = io.BytesIO(), [f"x{k}" for k in range(len(rows))]
    axes = {name: {0: "batch"} for name, x in zip((*names, "y"), (*rows, rows[0]), strict=True) if len(x) == FEW}
    options: dict[str, Any] = {"opset_version": opset, "input_names": names, "output_names": ["y"], "dynamo": False}
    torch.onnx.export(net, rows, file, **options, dynamic_axes=axes)  # pyright: ignore[reportArgumentType]
    return onnx.load_model_from_string(file.getvalue())


def _by_export(net: nn.Module, rows: tuple[Tensor, ...], opset: int) -> onnx.ModelProto:
    """By torch.export, which says more, where onnxscript is installed."""
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if len(x) == FEW else {} for x in rows)
    options: dict[str, Any] = {"opset_version": opset, "dynamo": True, "optimize": True}
    program = torch.onnx.export(net, rows, **options, dynamic_shapes={"tensors": shapes})
    return program.model_proto  # pyright: ignore[reportOptionalMemberAccess]


def _exporters() -> list[Callable[..., onnx.ModelProto]]:
    return [_by_script, *([_by_export] if find_spec("onnxscript") else [])]


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, the exporter does not print the graph of what it refuses, which it does from C++ whatever it is told."""
    before = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = before


def _settled(model: onnx.ModelProto, few: Sequence[Tensor], more: Sequence[Tensor]) -> onnx.ModelProto:
    """The model without its comments, and with sizes as plain numbers where they are not of the batch: nobody knows the
    work of the others beforehand.
    """
    graph = model.graph
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Shape", "Size", "Constant") or (node.input and known.issuperset(node.input)):
            known.update(node.output)
    sizes = sorted(known.intersection(name for node in graph.node for name in node.output))
    fixed = {
        name: onnx.numpy_helper.from_array(a, name)
        for name, a, b in zip(sizes, _run(model, few, sizes), _run(model, more, sizes), strict=True)
        if np.array_equal(a, b)
    }
    nodes = [_plain(node) for node in graph.node if not fixed.keys() >= {*node.output}]
    read = {name for node in nodes for name in node.input}
    constants = [t for t in (*graph.initializer, *fixed.values()) if t.name in read]
    settled = onnx.helper.make_graph(nodes, "part", list(graph.input), list(graph.output), constants)
    opsets = [o for o in model.opset_import if o.domain == ""]
    return onnx.helper.make_model(settled, opset_imports=opsets, ir_version=model.ir_version)


def _plain(node: onnx.NodeProto) -> onnx.NodeProto:
    """A node without what its maker noted."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.doc_string = ""
    del copy.metadata_props[:]
    return copy


def _run(model: onnx.ModelProto, rows: Sequence[Tensor], names: Sequence[str]) -> Sequence[Any]:
    """Values of a model, by name."""
    import onnxruntime

    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(asked.SerializeToString(), providers=["CPUExecutionProvider"])
    given = dict(zip((v.name for v in session.get_inputs()), (x.numpy() for x in rows), strict=True))
    return session.run(None, given) if names else []
