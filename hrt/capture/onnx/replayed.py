"""An ONNX graph as a network of torch, captured as torch's networks are: batches that move, layers step by step.

What depends on the batch's size alone is followed as an array whose entries may be symbols.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from hrt.capture.calls import Call
from hrt.capture.onnx.budgets import EXAMPLE_BYTES
from hrt.capture.onnx.functions import FUNCTIONS
from hrt.capture.onnx.layers import LAYERS
from hrt.capture.onnx.operands import SIZES, NodeError, ints
from hrt.capture.torch_export import BATCH_AT_EXPORT, exported
from hrt.capture.torch_graph import program_of
from hrt.errors import CaptureError, reason
from hrt.program.names import unique_name
from hrt.program.program import Program, Value

TABLE = {**FUNCTIONS, **LAYERS}
NUMBERS = EXAMPLE_BYTES // 8  # that all values of a few rows may take together
TOO_MANY = "its values are too many numbers"
BUFFER = re.compile(r"^onnx(\d+)(?=\b|_)")  # how a constant is called until it gets its name back


def replayed(graph: onnx.GraphProto, opset: int, known: Mapping[str, np.ndarray], inputs: Sequence[Value]) -> Program:
    """The Program of a graph. known: all constants by name, computed ones too.  inputs: what they are, in order.

    Raises CaptureError where a node is none of the operators here, or torch's trace of them is not captured.
    """
    net = _Replayed(graph, opset, known, [v.name for v in inputs])
    rows = [torch.zeros(BATCH_AT_EXPORT, *v.shape) for v in inputs]
    try:
        program = program_of(exported(net, rows, Call(kinds=tuple(v.kind for v in inputs))))
    except CaptureError as error:
        raise (net.refusals or [error])[-1] from None
    return _named(program, net.constants, inputs, [o.name for o in graph.output])


def is_replayable(node: onnx.NodeProto) -> bool:
    """Whether a node that depends on an input is one of the operators here."""
    return node.domain in ("", "ai.onnx") and node.op_type in {*TABLE, "Shape", "Size"}


class _Replayed(nn.Module):
    """Runs the nodes one after the other. constants: their ONNX names, in the order of the buffers."""

    def __init__(self, graph: onnx.GraphProto, opset: int, known: Mapping[str, np.ndarray], inputs: Sequence[str]):
        super().__init__()
        self.known, self.opset, self.inputs = known, opset, tuple(inputs)
        self.nodes = [n for n in graph.node if not all(o in known for o in n.output)]
        self.outputs = [o.name for o in graph.output]
        self.refusals: list[CaptureError] = []  # filled, not replaced: a trace puts attributes back
        self.constants: list[str] = []
        self.places: dict[str, str] = {}
        for node in self.nodes:
            for k, name in enumerate(node.input):
                if name in known and k not in SIZES.get(node.op_type, ()) and known[name].ndim:
                    self._keep(name, known[name])

    def _keep(self, name: str, array: np.ndarray) -> None:
        if name in self.places:
            return
        wide = array.astype(np.float64) if array.dtype.kind not in "iub" else array
        wide = wide.astype(np.int64) if wide.dtype.kind in "iu" else wide
        self.places[name] = f"onnx{len(self.constants)}"
        self.register_buffer(self.places[name], torch.from_numpy(np.array(wide, order="C")))
        self.constants.append(name)

    def forward(self, *rows: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Any] = dict(zip(self.inputs, rows, strict=True))
        room = NUMBERS
        if any(TOO_MANY in str(e) for e in self.refusals):  # whoever asks again may want the numbers themselves
            raise NodeError(TOO_MANY)
        for node in self.nodes:
            where = f"ONNX node {node.name!r} ({node.op_type})"
            try:
                results = self._results(node, values)
                room -= sum(_numbers(r) for r in results)
                if room < 0:
                    raise NodeError(TOO_MANY)
            except NodeError as error:
                self.refusals.append(NodeError(f"{where}: {error}."))
                raise
            except Exception as error:  # what torch says of shapes that do not fit, or a lowering of what it misses
                self.refusals.append(CaptureError(f"{where}: {reason(error)}."))
                raise
            values.update(zip(node.output, results, strict=False))
        return tuple(values[name] for name in self.outputs)

    def _results(self, node: onnx.NodeProto, values: Mapping[str, Any]) -> Sequence[Any]:
        attributes = {a.name: _attribute(a) for a in node.attribute}
        attributes |= {"opset": self.opset, "outputs": len(node.output)}
        fixed = SIZES.get(node.op_type, ())
        operands = [self._operand(name, k in fixed, values) for k, name in enumerate(node.input)]
        if node.op_type in ("Shape", "Size"):
            return [_shape(operands[0], node.op_type, attributes)]
        arrays = [self.known[n] if n in self.known else values[n] for n in node.input if n]
        if node.op_type in OF_SIZES and all(isinstance(a, np.ndarray) for a in arrays):
            return [_settled(OF_SIZES[node.op_type](arrays, attributes))]
        operands = [x if k in fixed else _as_tensor(x) for k, x in enumerate(operands)]
        result = TABLE[node.op_type](operands, attributes)
        return result if isinstance(result, (list, tuple)) else [result]

    def _operand(self, name: str, is_size: bool, values: Mapping[str, Any]) -> Any:
        if not name:
            return None
        value = values.get(name)
        if name not in self.known:
            if is_size and isinstance(value, Tensor):
                raise NodeError("its sizes or places depend on an input; only the batch may vary")
            return value
        if is_size:
            return self.known[name]
        return getattr(self, self.places[name]) if name in self.places else self.known[name].item()


def _attribute(a: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(a)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, list) and value and isinstance(value[0], bytes):
        return [v.decode() for v in value]
    return value.decode() if isinstance(value, bytes) else value


def _numbers(value: Any) -> int:
    """Of a result, for the rows of the trace."""
    sizes = value.shape if isinstance(value, Tensor) else ()
    return math.prod(n if isinstance(n, int) else int(n.node.hint or 1) for n in sizes)


def _as_tensor(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == object:
        raise NodeError("it computes with the batch's size")
    return torch.from_numpy(value) if value.ndim else value.item()


def _settled(sizes: np.ndarray) -> np.ndarray:
    """Numbers as such where no symbol is among them."""
    is_plain = not any(isinstance(n, torch.SymInt | torch.SymFloat) for n in sizes.reshape(-1))
    return np.array(sizes.tolist()) if sizes.dtype == object and is_plain else sizes


def _shape(x: Any, op: str, t: Mapping[str, Any]) -> np.ndarray:
    sizes = list(x.shape)
    if op == "Size":
        return _settled(np.array(math.prod(sizes), dtype=object))
    return _settled(np.array(sizes[slice(t.get("start", 0), t.get("end"))], dtype=object))


Arrays = Sequence[np.ndarray]


def _sliced(a: Arrays, t: Mapping[str, Any]) -> np.ndarray:
    starts, ends = ints(a[1]), ints(a[2])
    axes = ints(a[3]) if len(a) > 3 else list(range(len(starts)))
    steps = ints(a[4]) if len(a) > 4 else [1] * len(starts)
    index: list[slice] = [slice(None)] * a[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[axis] = slice(start, end, step)
    return a[0][tuple(index)]


def _axes(a: Arrays, t: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(ints(t["axes"] if "axes" in t else a[1])) if len(a) > 1 or "axes" in t else ()


def _elementwise(function: Callable[..., Any]) -> Callable[[Arrays, Mapping[str, Any]], np.ndarray]:
    return lambda a, t: np.asarray(np.vectorize(function, otypes=[object])(*a))


# What is done with sizes. Their entries are few.
OF_SIZES: dict[str, Callable[[Arrays, Mapping[str, Any]], np.ndarray]] = {
    "Identity": lambda a, t: a[0],
    "Cast": lambda a, t: a[0],
    "Gather": lambda a, t: np.asarray(np.take(a[0], a[1].astype(np.int64), axis=t.get("axis", 0))),
    "Concat": lambda a, t: np.concatenate(a, axis=t["axis"]),
    "Slice": _sliced,
    "Unsqueeze": lambda a, t: np.expand_dims(a[0], _axes(a, t)),
    "Squeeze": lambda a, t: np.squeeze(a[0], _axes(a, t) or None),
    "Reshape": lambda a, t: a[0].reshape(ints(a[1])),
    "Add": _elementwise(lambda x, y: x + y),
    "Sub": _elementwise(lambda x, y: x - y),
    "Mul": _elementwise(lambda x, y: x * y),
    "Div": _elementwise(lambda x, y: x // y if isinstance(y, (int, torch.SymInt)) else x / y),
    "Equal": _elementwise(lambda x, y: bool(x == y)),
    "Where": _elementwise(lambda c, x, y: x if c else y),
    "ReduceProd": lambda a, t: np.asarray(math.prod(a[0].reshape(-1)), dtype=object),
}


def _named(program: Program, constants: Sequence[str], inputs: Sequence[Value], outputs: Sequence[str]) -> Program:
    """The program with its inputs, outputs and constants under the file's own names."""
    names = {v.name: given.name for v, given in zip(program.inputs, inputs, strict=True)}
    computed = {n.name for n in program.nodes}
    once = [o for o in program.outputs if program.outputs.count(o) == 1 and o in computed]
    names |= {o: name for o, name in zip(program.outputs, outputs, strict=True) if o in once}
    taken = {*names.values()}
    for name in sorted(computed - names.keys()):
        names[name] = unique_name(name, taken)
        taken.add(names[name])
    for name in program.stored_constants:
        wanted = BUFFER.sub(lambda m: constants[int(m[1])], name)
        names[name] = unique_name(wanted, taken, first=1) if wanted in taken else wanted
        taken.add(names[name])
    return replace(
        program,
        inputs=tuple(replace(v, name=names[v.name]) for v in program.inputs),
        nodes=tuple(
            replace(n, name=names[n.name], inputs=tuple(names.get(k, k) for k in n.inputs)) for n in program.nodes
        ),
        outputs=tuple(names.get(k, k) for k in program.outputs),
        constants={names.get(k, k): c for k, c in program.constants.items()},
    )
