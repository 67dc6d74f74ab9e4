"""An ONNX file to a Program: MatMul, Gemm and pointwise-convolution networks over the same op table.

Every value is followed as an example of three rows, and of the first of them alone: a shape is what the table's own
function makes of it, and a node that fixes the batch or lets samples depend on each other is found where it stands.
What depends on constants alone is computed here, by onnx's reference. Casts between floating types are left out: the
network is read as what it approximates in lower precision.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from hrt.capture.onnx_operators import LOWERINGS
from hrt.errors import CaptureError
from hrt.program.names import unique_name
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value
from hrt.support.atomic_files import usable

ROWS = 3  # of the examples
OLDEST_OPSET = 11
ALIASES = {"Identity", "Dropout", "Cast"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def read_onnx(path: str | os.PathLike[str]) -> Program:
    """The network in a `.onnx` file as a Program with float64 constants, inputs and outputs under their own names.

    Raises CaptureError for a file that is missing, malformed or older than opset 11, for weights outside the model's
    folder, and for a node that the op table cannot say, naming it.
    """
    proto = _load(usable(path, CaptureError))
    return Reader(proto).program()


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
    if proto.graph.sparse_initializer:
        raise CaptureError(f"{path} holds sparse initializers. Expected dense ones; write them out first.")
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


class Reader:
    """Walks the graph once. `known`: constants by name. `example`: a value of ROWS rows, by name."""

    def __init__(self, proto: onnx.ModelProto):
        self.proto, self.graph, self.rows = proto, proto.graph, ROWS
        self.known: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.example: dict[str, Tensor] = {}
        self.alone: dict[str, Tensor] = {}  # the first row of each, computed without the others
        self.alias: dict[str, str] = {}
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.values = {n for node in self.graph.node for n in node.output} | {v.name for v in self.graph.input}
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
        kind = v.type.tensor_type.elem_type
        if kind not in FLOATS:
            raise CaptureError(
                f"Input {v.name!r} is of type {TensorProto.DataType.Name(kind)}. Expected floating-point numbers."
            )
        self.inputs.append(Value(v.name, tuple(dims[1:])))
        self.example[v.name] = torch.rand(ROWS, *dims[1:], dtype=torch.float64)
        self.alone[v.name] = self.example[v.name][:1]

    def _node(self, node: onnx.NodeProto) -> None:
        names = [self.alias.get(n, n) for n in node.input]
        if node.domain not in ("", "ai.onnx"):
            raise self.fail(f"it is of the domain {node.domain!r}; expected an operator of ONNX itself")
        if node.op_type in RANDOM:
            raise self.fail("it draws random numbers")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" or all(not n or n in self.known for n in names):
            self._fold(node)
        elif node.op_type in ALIASES:
            self._passed(node, names, attributes)
        else:
            lowering = LOWERINGS.get(node.op_type)
            if lowering is None:
                raise self.fail("the op table has nothing for it; replace it, or ask for it")
            lowering(self, names, attributes)

    def _passed(self, node: onnx.NodeProto, names: Sequence[str], attributes: dict[str, Any]) -> None:
        """A node that changes nothing, once that is sure."""
        if node.op_type == "Cast" and attributes["to"] not in FLOATS:
            raise self.fail(f"it casts to {TensorProto.DataType.Name(attributes['to'])}; expected a floating type")
        if node.op_type == "Dropout" and len(names) > 2 and names[2]:
            training = self.known.get(names[2])
            if training is None or bool(training.any()):
                raise self.fail("it is in training mode, and so drops values at random")
        self.alias[node.output[0]] = names[0]

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
        try:
            found: Any = ReferenceEvaluator(proto).run(None, feed)
        except Exception as error:  # of whatever kind an operator's reference raises
            first = str(error).strip().partition("\n")[0]
            raise self.fail(f"its constants cannot be worked out: {first}") from error
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
        return name if name in self.example else self.constant(name, self.known[name])

    def constant(self, wanted: str, numbers: np.ndarray) -> str:
        """A constant of the program, and its name: `wanted`, unless that is taken by anything else. One that is there
        with the same numbers is taken again, so that tied weights stay tied.
        """
        value = torch.from_numpy(np.array(numbers, dtype=np.float64, order="C"))

        def is_taken(name: str) -> bool:
            same = name not in self.constants or _equal(self.constants[name], value)
            return name in self.values or not same

        name = unique_name(wanted, is_taken)
        self.constants[name] = value
        return name

    def emit(self, op: str, inputs: Sequence[str], wanted: str | None = None, **attrs: Any) -> str:
        """A node of the program; its example says its shape. Raises CaptureError where rows would mix."""
        name = wanted or self._free(f"{self.at.output[0]}.{len(self.nodes)}")
        arguments = [self.example[n] if n in self.example else self.constants[n] for n in inputs]
        first = [self.alone[n] if n in self.alone else self.constants[n] for n in inputs]
        try:
            value = TABLE[op].torch(arguments, attrs)
        except RuntimeError as error:
            raise self.fail(f"its operands do not fit: {str(error).partition(chr(10))[0]}") from error
        if value.ndim == 0 or value.shape[0] != ROWS:
            raise self.fail("its result has no batch in front, or one of a fixed size")
        try:
            alone = TABLE[op].torch(first, attrs)
        except RuntimeError as error:
            raise self.fail("it works for a batch of one size alone") from error
        if alone.shape != value[:1].shape or not torch.allclose(
            alone, value[:1], rtol=1e-9, atol=1e-12, equal_nan=True
        ):
            raise self.fail("it lets samples depend on each other, or on how many there are")
        self.example[name], self.alone[name] = value, alone
        self.nodes.append(Node(name, op, tuple(inputs), tuple(value.shape[1:]), attrs, self.at.name))
        return name

    def _free(self, wanted: str) -> str:
        return unique_name(wanted, {*self.values, *self.constants, *self.example})

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
        source = next((n for n in self.at.input if n in self.known and self.known[n].ndim >= 2), f"{self.out}.weight")
        inputs = [x, self.constant(source, weight)]
        if bias is not None:
            inputs.append(self.constant(f"{self.out}.bias", bias))
        return self.emit("linear", inputs, wanted)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
