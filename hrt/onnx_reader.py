"""An ONNX file to a Program: MatMul, Gemm and pointwise-convolution networks over the same op table.

Every value is followed as an example of three rows: a shape is what the table's own function makes of it, and a graph
that fixes its batch or mixes rows shows at once. What depends on constants alone is computed here, by onnx's reference.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from hrt.errors import CaptureError
from hrt.ops import TABLE
from hrt.program import Node, Program, Value

ROWS = 3  # of the examples; no network has a fixed dimension of its batch by chance
OLDEST_OPSET = 11
ALIASES = {"Identity", "Dropout", "Cast"}
UNARY = {row.onnx: name for name, row in TABLE.items() if row.onnx and row.arity == 1 and row.derivative is not None}
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "maximum", "Min": "minimum"}


def read_onnx(path: str | os.PathLike[str]) -> Program:
    """The network in a `.onnx` file as a Program with float64 constants, inputs and outputs under their own names.

    Raises CaptureError for a file that is missing, malformed or older than opset 11, for weights outside the model's
    folder, and for a node that the op table cannot say, naming it.
    """
    proto = _load(Path(path))
    return _Reader(proto).program()


def _load(path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.load(os.fspath(path), load_external_data=False)
        onnx.load_external_data_for_model(proto, os.fspath(path.parent))  # refuses names that leave the folder
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf, the system and onnx each have their own
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CaptureError(f"{path} cannot be read as ONNX: {first}") from error
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise CaptureError(
            f"{path} is of opset {opset}. Expected {OLDEST_OPSET} or newer; convert it (onnx.version_converter)."
        )
    return proto


class _Reader:
    """Walks the graph once. `known`: constants by name. `example`: a value of ROWS rows, by name."""

    def __init__(self, proto: onnx.ModelProto):
        self.proto, self.graph = proto, proto.graph
        self.known: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.example: dict[str, Tensor] = {}
        self.alias: dict[str, str] = {}
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.at = onnx.NodeProto()

    def program(self) -> Program:
        for v in self.graph.input:
            if v.name not in self.known:
                self._input(v)
        for node in self.graph.node:
            self.at = node
            self._node(node)
        outputs = tuple(self.alias.get(o.name, o.name) for o in self.graph.output)
        lost = [o for o in outputs if o not in self.example]
        if lost or not outputs:
            raise CaptureError(f"The outputs {lost} do not depend on an input. Expected values that do.")
        return Program(tuple(self.inputs), tuple(self.nodes), outputs, dict(self.constants)).simplified()

    def _input(self, v: onnx.ValueInfoProto) -> None:
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim]
        if not dims or any(d < 0 for d in dims[1:]):
            raise CaptureError(
                f"Input {v.name!r} has the shape {dims} (-1: any). Expected a batch and fixed dimensions."
            )
        self.inputs.append(Value(v.name, tuple(dims[1:])))
        self.example[v.name] = torch.rand(ROWS, *dims[1:], dtype=torch.float64)

    def _node(self, node: onnx.NodeProto) -> None:
        names = [self.alias.get(n, n) for n in node.input]
        if node.op_type == "Constant" or all(not n or n in self.known for n in names):
            self._fold(node)
        elif node.op_type in ALIASES:
            self.alias[node.output[0]] = names[0]
        else:
            lowering = LOWERINGS.get(node.op_type)
            if lowering is None:
                raise self.fail("the op table has nothing for it; replace it, or ask for it")
            lowering(self, names, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})

    def _fold(self, node: onnx.NodeProto) -> None:
        feed = {n: self.known[n] for n in node.input if n}
        graph = onnx.helper.make_graph(
            [node],
            "folded",
            [
                onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                for n, v in feed.items()
            ],
            [onnx.helper.make_empty_tensor_value_info(o) for o in node.output],
        )
        proto = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
        found: Any = ReferenceEvaluator(proto).run(None, feed)
        self.known |= {o: np.asarray(v) for o, v in zip(node.output, found, strict=True)}

    # what lowerings use ----------------------------------------------------------------------------------------------

    def fail(self, why: str) -> CaptureError:
        """The error for the node at hand."""
        where = self.at.name or (self.at.output[0] if self.at.output else "")
        return CaptureError(f"ONNX node {where!r} ({self.at.op_type}): {why}.")

    def number(self, name: str) -> np.ndarray | None:
        """A constant's numbers, or None."""
        return self.known.get(name)

    def integers(self, name: str, what: str) -> list[int]:
        """A constant's whole numbers. Raises CaptureError where it depends on an input."""
        if name not in self.known:
            raise self.fail(f"its {what} depend on an input; only the batch may vary")
        return [int(v) for v in self.known[name].reshape(-1)]

    def operand(self, name: str) -> str:
        """A value, or a constant put into the program, by its name there."""
        if name in self.example:
            return name
        numbers = torch.from_numpy(np.array(self.known[name], dtype=np.float64))
        self.constants[name] = numbers
        return name

    def emit(self, op: str, inputs: Sequence[str], wanted: str | None = None, **attrs: Any) -> str:
        """A node of the program; its example says its shape. Raises CaptureError where rows would mix."""
        name = wanted or f"{self.at.output[0]}.{len(self.nodes)}"
        arguments = [self.example[n] if n in self.example else self.constants[n] for n in inputs]
        try:
            value = TABLE[op].torch(arguments, attrs)
        except RuntimeError as error:
            raise self.fail(f"its operands do not fit: {str(error).partition(chr(10))[0]}") from error
        if value.ndim == 0 or value.shape[0] != ROWS:
            raise self.fail("its result has no batch in front, or one of a fixed size")
        self.example[name] = value
        self.nodes.append(Node(name, op, tuple(inputs), tuple(value.shape[1:]), attrs, self.at.name))
        return name

    @property
    def out(self) -> str:
        """The first output's name."""
        return self.at.output[0]

    def axis(self, axis: int, name: str) -> int:
        """A negative axis of a value. Raises CaptureError where it is the batch."""
        found = axis if axis < 0 else axis - self.example[name].ndim
        if found == -self.example[name].ndim:
            raise self.fail("it works along the batch, so that samples would depend on each other")
        return found

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None, wanted: str | None) -> str:
        """x times weight^T (m, n) plus bias."""
        source = next((n for n in self.at.input if n in self.known and self.known[n].ndim >= 2), self.out)
        numbers = torch.from_numpy(np.array(weight, dtype=np.float64, order="C"))
        same = source in self.constants and torch.equal(self.constants[source], numbers)  # tied weights stay tied
        name = source if same or source not in self.constants else f"{source}.{len(self.nodes)}"
        self.constants[name] = numbers
        inputs = [x, name]
        if bias is not None:
            self.constants[f"{self.out}.bias"] = torch.from_numpy(np.array(bias, dtype=np.float64))
            inputs.append(f"{self.out}.bias")
        return self.emit("linear", inputs, wanted)


Lowering = Callable[[_Reader, Sequence[str], Mapping[str, Any]], object]


def _unary(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    op, attrs = UNARY[r.at.op_type], {}
    if op == "gelu":
        attrs = {"approximate": t.get("approximate", b"none").decode()}
    elif op == "leaky_relu":
        attrs = {"slope": float(t.get("alpha", 0.01))}
    elif op == "elu":
        attrs = {"alpha": float(t.get("alpha", 1.0))}
    elif op == "softplus":
        attrs = {"beta": 1.0}
    elif op == "clamp":
        bounds = [r.number(n) if n else None for n in [*x[1:], "", ""][:2]]
        low, high = (None if b is None else float(b) for b in bounds)
        attrs = {"low": low, "high": high}
    elif op == "power":
        exponent = r.number(x[1])
        if exponent is None or exponent.size != 1:
            raise r.fail("its exponent is no single constant")
        attrs = {"exponent": float(exponent.reshape(()))}
    r.emit(op, x[:1], r.out, **attrs)


def _binary(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    if len(x) != 2:
        raise r.fail(f"it has {len(x)} operands; expected two")
    r.emit(BINARY[r.at.op_type], [r.operand(n) for n in x], r.out)


def _matmul(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight = r.number(x[1])
    if weight is not None and weight.ndim == 2 and x[0] in r.example:
        r.linear(x[0], weight.T, None, r.out)
    else:
        r.emit("matmul", [r.operand(n) for n in x], r.out)


def _gemm(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight, bias = r.number(x[1]), r.number(x[2]) if len(x) > 2 and x[2] else None
    if weight is None or t.get("transA", 0) or (len(x) > 2 and x[2] and bias is None) or x[0] not in r.example:
        raise r.fail("expected a value times a constant matrix, plus a constant")
    weight = float(t.get("alpha", 1.0)) * (weight if t.get("transB", 0) else weight.T).astype(np.float64)
    if bias is not None:
        bias = float(t.get("beta", 1.0)) * np.broadcast_to(bias.astype(np.float64).reshape(-1), (weight.shape[0],))
    r.linear(x[0], weight, bias, r.out)


def _conv(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight, bias = r.number(x[1]), r.number(x[2]) if len(x) > 2 and x[2] else None
    ones = ("kernel_shape", "strides", "dilations")
    plain = all(set(t.get(k, [1])) == {1} for k in ones) and not any(t.get("pads", [])) and t.get("group", 1) == 1
    if weight is None or not plain or any(s != 1 for s in weight.shape[2:]):
        raise r.fail("only pointwise convolutions (kernel 1, stride 1, one group) are linear layers")
    last = [*range(-(weight.ndim - 2), 0), -(weight.ndim - 1)]
    moved = r.emit("transpose", x[:1], None, axes=last)
    y = r.linear(moved, weight.reshape(weight.shape[:2]), bias, None)
    r.emit("transpose", [y], r.out, axes=[-1, *range(-(weight.ndim - 1), -1)])


def _shaped(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    have = r.example[x[0]]
    if r.at.op_type == "Flatten":
        if t.get("axis", 1) != 1:
            raise r.fail("it flattens the batch")
        shape = [-1]
    elif r.at.op_type == "Reshape":
        target = r.integers(x[1], "dimensions")
        target = [have.shape[k] if v == 0 and not t.get("allowzero", 0) else v for k, v in enumerate(target)]
        if target[:1] not in ([ROWS], [-1]):
            raise r.fail(f"its first dimension is {target[:1]}, and so the batch is not kept")
        shape = target[1:]
    else:
        axes = list(t["axes"]) if "axes" in t else r.integers(x[1], "axes") if len(x) > 1 else []
        value = have
        size = have.ndim + (len(axes) if r.at.op_type == "Unsqueeze" else 0)
        axes = sorted(a % size for a in axes) or [k for k in range(1, have.ndim) if have.shape[k] == 1]
        if 0 in axes:
            raise r.fail("it moves the batch")
        for a in axes if r.at.op_type == "Unsqueeze" else reversed(axes):
            value = value.unsqueeze(a) if r.at.op_type == "Unsqueeze" else value.squeeze(a)
        shape = list(value.shape[1:])
    try:
        found = have.reshape(ROWS, *shape)
    except RuntimeError:
        raise r.fail("its dimensions do not fit a batch of any size") from None
    r.emit("reshape", x[:1], r.out, shape=list(found.shape[1:]))


def _transpose(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    ndim = r.example[x[0]].ndim
    perm = list(t.get("perm", range(ndim)[::-1]))
    if perm[0] != 0:
        raise r.fail("it moves the batch")
    r.emit("transpose", x[:1], r.out, axes=[k - ndim for k in perm[1:]])


def _slice(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    starts, ends = r.integers(x[1], "starts"), r.integers(x[2], "ends")
    axes = r.integers(x[3], "axes") if len(x) > 3 and x[3] else list(range(len(starts)))
    steps = r.integers(x[4], "steps") if len(x) > 4 and x[4] else [1] * len(starts)
    value = x[0]
    for k, (a, b, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        if step < 1:
            raise r.fail("its steps go backwards")
        length = r.example[value].shape[r.axis(axis, value)]
        bounds = {"start": max(-length, min(a, length)), "stop": max(-length, min(b, length)), "step": step}
        value = r.emit("slice", [value], r.out if k == len(starts) - 1 else None, axis=r.axis(axis, value), **bounds)


def _split(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    axis = r.axis(t.get("axis", 0), x[0])
    length, count = r.example[x[0]].shape[axis], len(r.at.output)
    even = [-(-length // count)] * (count - 1)
    sizes = (
        list(t["split"]) if "split" in t else r.integers(x[1], "sizes") if len(x) > 1 else [*even, length - sum(even)]
    )
    at = 0
    for name, size in zip(r.at.output, sizes, strict=True):
        r.emit("slice", x[:1], name, axis=axis, start=at, stop=at + size, step=1)
        at += size


def _concat(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    first = next(n for n in x if n in r.example)
    if any(n not in r.example for n in x):
        raise r.fail("it joins a constant; expected values that depend on an input")
    r.emit("concat", list(x), r.out, axis=r.axis(t["axis"], first))


def _reduce(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    axes = list(t["axes"]) if "axes" in t else r.integers(x[1], "axes") if len(x) > 1 and x[1] else []
    if not axes:
        raise r.fail("it reduces all dimensions, the batch too")
    op = {"ReduceSum": "sum", "ReduceMean": "mean"}[r.at.op_type]
    r.emit(op, x[:1], r.out, axes=[r.axis(a, x[0]) for a in axes], keep=bool(t.get("keepdims", 1)))


def _layer_norm(r: _Reader, x: Sequence[str], t: Mapping[str, Any]) -> None:
    axis = r.axis(t.get("axis", -1), x[0])
    shape = list(r.example[x[0]].shape[axis:])
    r.emit(
        "layer_norm", [x[0], *(r.operand(n) for n in x[1:] if n)], r.out, shape=shape, eps=float(t.get("epsilon", 1e-5))
    )


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _shaped),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduce),
    "LayerNormalization": _layer_norm,
    "Einsum": lambda r, x, t: r.emit("einsum", [r.operand(n) for n in x], r.out, equation=t["equation"].decode()),
}
