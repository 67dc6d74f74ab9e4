"""An ONNX file to a Program: MatMul, Gemm and pointwise-convolution networks over the same op table.

Every value is followed as an example of three rows: a shape is what the table's own function makes of it, and a graph
that fixes its batch or mixes rows shows at once. What depends on constants alone is computed here, by onnx's reference.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from hrt.errors import CaptureError
from hrt.onnx_nodes import LOWERINGS
from hrt.ops import TABLE
from hrt.program import Node, Program, Value

ROWS = 3  # of the examples; no network has a fixed dimension of its batch by chance
OLDEST_OPSET = 11
ALIASES = {"Identity", "Dropout", "Cast"}


def read_onnx(path: str | os.PathLike[str]) -> Program:
    """The network in a `.onnx` file as a Program with float64 constants, inputs and outputs under their own names.

    Raises CaptureError for a file that is missing, malformed or older than opset 11, for weights outside the model's
    folder, and for a node that the op table cannot say, naming it.
    """
    proto = _load(Path(path))
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
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


class Reader:
    """Walks the graph once. `known`: constants by name. `example`: a value of ROWS rows, by name."""

    def __init__(self, proto: onnx.ModelProto):
        self.proto, self.graph, self.rows = proto, proto.graph, ROWS
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
