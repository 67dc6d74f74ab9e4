"""`export_onnx`: a compressed network as one plain ONNX file, for any runtime that reads standard operators."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from typing import Any, BinaryIO

import onnx
import torch
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data
from torch import Tensor

from hrt.certificate.derivative_outputs import limits
from hrt.errors import InputError
from hrt.export.onnx.carried import spliced
from hrt.export.onnx.check import check_onnx, fits_one_message
from hrt.export.onnx.convolutions import convolution, patches
from hrt.export.onnx.graph import DOMAIN, VERSION, Functions, Graph
from hrt.export.onnx.layers import Layer, linear
from hrt.export.onnx.operators import lower
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.program.along_axes import along_axes
from hrt.program.carried import CARRIED
from hrt.program.convolutions import CONVOLUTION, fused
from hrt.program.parallel_linears import joined
from hrt.program.patches import Window
from hrt.program.program import Node, Program
from hrt.runtime.onnx_costs import ANY_BATCH, choose_forms
from hrt.support.atomic_files import check_writable, replacing, warn_of_suffix
from hrt.support.torch_state import guarded

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # the oldest that goes with an opset
WHOLE = {"int": TensorProto.INT64, "bool": TensorProto.BOOL}  # types of inputs that are no floats
EXTERNAL_FROM, ALIGNMENT = 1024, 4096  # bytes; tensors in a second file begin where a page does


@guarded
def export_onnx(
    model_or_path: CompressedModel | str | PathLike[str],
    path: str | PathLike[str],
    *,
    derivatives: Sequence[str] | None = None,
    opset: int | None = None,
    check: bool = True,
    external: bool = False,
    functions: bool = False,
    inputs: Any = None,
    force: bool = True,
) -> None:
    """Write a network as an ONNX file of standard operators: inputs and outputs (batch, *shape) of any batch, float32
    but for inputs of whole numbers and truth values, which are int64 and bool.

    The file's metadata holds the certificate and, for every output, the bound of its error or "not bounded". A failure
    leaves no file, and a file that was there as it was.

    Args:
        model_or_path: A compressed network, or the path of its .hrt file.
        path: The file to write.
        derivatives: More outputs behind the network's own, by input coordinates as `predict` takes them. "d0" and
            "d0d1" of an output u are called "d0_u" and "d0d1_u" and shaped like u.
        opset: 18 to 23 (default 20).
        check: Whether onnx must pass the graph and ONNX Runtime must agree with `predict`.
        external: Whether weights go into a second file, `path` + ".data". They always do above 2 GB.
        functions: Whether every linear layer is one node of the domain "hrt" with a body of standard operators.
        inputs: Rows to check on, as `predict` takes them. Random ones by default.
        force: Replace a file that exists.

    Raises:
        InputError: An opset, path or input that cannot be used.
        DerivativeError: An op on the way has no such derivative.
        BackendError: ONNX Runtime, which the check needs, is not installed.
        ExportError: A carried part cannot be said in the opset.
        HrtError: The graph failed its check.

    Example:
        >>> import tempfile, torch, hrt
        >>> model = hrt.compress(torch.nn.Linear(4, 3), inputs=torch.rand(64, 4), tol=1e-2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hrt.export_onnx(model, f"{folder}/net.onnx", derivatives=["d0"])
        ...     graph = onnx.load(f"{folder}/net.onnx").graph
        >>> [len(v.type.tensor_type.shape.dim) for v in graph.output]
        [2, 2]
    """
    check_writable(path, force)
    warn_of_suffix(path, ".onnx")
    model, values = opened(model_or_path, derivatives)
    proto = to_onnx(model, opset, functions=functions, kinds=True)
    if check:
        check_onnx(proto, model, inputs, values=values)
    write_graph(proto, path, external=external, force=force)


def opened(
    model_or_path: CompressedModel | str | PathLike[str], derivatives: Sequence[str] | None
) -> tuple[CompressedModel, int]:
    """The network with derivatives as more outputs, and how many outputs are values."""
    if not isinstance(model_or_path, CompressedModel | str | PathLike):
        raise InputError(f"Found {type(model_or_path).__name__}. Expected a compressed network or a path to one.")
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    return model if derivatives is None else model.differentiated(derivatives), len(model.program.outputs)


def to_onnx(
    model: CompressedModel, opset: int | None = None, *, functions: bool = False, kinds: bool = False
) -> onnx.ModelProto:
    """The graph that `export_onnx` writes, with its metadata: the certificate, its bounds by output, tol and bytes.

    kinds: whether inputs of whole numbers and truth values are such; all are float32 where servers stand before it.
    """
    proto = graph_of(joined(model.program), opset, functions=functions, kinds=kinds)
    bounds, names = limits(model.certificate, model.program.outputs), [v.name for v in proto.graph.output]
    facts = {
        "hrt.certificate": json.dumps(model.certificate.to_header(), default=str),
        "hrt.nbytes": str(model.nbytes),
        "hrt.tol": repr(model.certificate.tol),
        "hrt.error_upper_99": json.dumps({n: bounds[o] for n, o in zip(names, model.program.outputs, strict=True)}),
    }
    helper.set_model_props(proto, facts)
    return proto


def graph_of(
    program: Program,
    opset: int | None = None,
    *,
    narrow: bool = True,
    forms: Mapping[str, str] | None = None,
    functions: bool = False,
    kinds: bool = False,
) -> onnx.ModelProto:
    """A program as an ONNX graph of float32 inputs and outputs (batch, *shape) with a dynamic batch.

    narrow: weights keep their storage types, as in a file, else float32.  forms: of every linear weight (see
    `hrt.runtime.onnx_costs`), by default the predicted fastest.  functions: one node per linear layer, with a body.
    kinds: inputs that are no floats are int64 and bool.
    """
    program = along_axes(program)
    opset = DEFAULT_OPSET if opset is None else opset
    if opset not in OPSETS:
        raise InputError(f"Found opset {opset!r}. Expected one of {OPSETS.start} to {OPSETS.stop - 1}.")
    g = Graph(opset, narrow)
    layers = Functions(g) if functions else None
    exporter = _Exporter(program, g, choose_forms(program, ANY_BATCH) if forms is None else forms, layers)
    types = [WHOLE.get(v.kind, TensorProto.FLOAT) if kinds else TensorProto.FLOAT for v in program.inputs]
    given = [exporter.names[v.name] for v in program.inputs]
    names = exporter.run(types)
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    inputs = [_described(name, v.shape, t) for name, v, t in zip(given, program.inputs, types, strict=True)]
    outputs = [_described(name, shapes.get(o, ())) for name, o in zip(names, program.outputs, strict=True)]
    graph = helper.make_graph(g.nodes, "hrt", inputs, outputs, g.initializers)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(DOMAIN, VERSION)] if layers else [])
    facts = {"opset_imports": opsets, "producer_name": "hrt", "ir_version": IR_VERSION[opset]}
    return helper.make_model(graph, functions=layers.made if layers else [], **facts)


def write_graph(
    proto: onnx.ModelProto, path: str | PathLike[str], *, external: bool = False, force: bool = True
) -> None:
    """Write a graph whole or not at all. external: weights go into a second file; `proto` then loses its own."""
    if not external and fits_one_message(proto):
        with replacing(path, force=force) as file:
            file.write(proto.SerializeToString())
        return
    # Both files are complete on the disk before either takes its name.
    target = check_writable(path, force)  # links followed: the second file goes where the first does
    data = target.with_name(target.name + ".data")
    with replacing(data, force=force) as numbers, replacing(target, force=force) as file:
        _move_weights(proto, data.name, numbers)
        numbers.flush()
        os.fsync(numbers.fileno())
        file.write(proto.SerializeToString())


def _move_weights(proto: onnx.ModelProto, location: str, file: BinaryIO) -> None:
    """Write the numbers of all but small initializers to `file` and leave references to it in their place."""
    for tensor in proto.graph.initializer:
        raw = tensor.raw_data
        if len(raw) >= EXTERNAL_FROM:
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            set_external_data(tensor, location, offset=file.tell(), length=len(raw))
            file.write(raw)
            tensor.ClearField("raw_data")


def _described(name: str, shape: Sequence[int], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["batch", *map(int, shape)])


class _Exporter:
    """Walks a program once. forms: the form of every weight of a linear layer. functions: where layers become nodes."""

    def __init__(self, program: Program, graph: Graph, forms: Mapping[str, str], functions: Functions | None):
        self.program, self.g, self.forms, self.functions = program, graph, forms, functions
        self.names = {v.name: graph.name(v.name or "input") for v in program.inputs}
        self.shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
        self.ranks = {k: len(c.shape) for k, c in program.constants.items()}
        self.ranks |= {k: 1 + len(shape) for k, shape in self.shapes.items()}

    def run(self, types: Sequence[int]) -> list[str]:
        """The names of the outputs. types: of the inputs; what is no float becomes one first."""
        inputs = [self.names[v.name] for v in self.program.inputs]
        for v, kind in zip(self.program.inputs, types, strict=True):
            if kind != TensorProto.FLOAT:
                self.names[v.name] = self.g.add("Cast", [self.names[v.name]], f"{v.name}.number", to=TensorProto.FLOAT)
        for node in fused(self.program):
            is_layer = node.op in ("linear", CONVOLUTION)
            self.names[node.name] = self._layer(node) if is_layer else self._node(node)
        outputs: list[str] = []
        for k, name in enumerate(self.program.outputs):
            value = self.value(name)
            if value in outputs or value in inputs or name in self.program.constants:
                value = self.g.add("Identity", [value], name or f"output_{k}")
            outputs.append(value)
        return self._keep_names(outputs)

    def value(self, name: str) -> str:
        if name not in self.program.constants:
            return self.names[name]
        constant = self.program.constants[name]
        numbers = constant.to_dense(torch.float32) if isinstance(constant, HMatrix) else constant
        return self.g.constant(numbers.to(torch.float32), name or "constant")

    def _node(self, node: Node) -> str:
        if node.op == "patches":
            (x,), window = node.inputs, Window.of(node.attrs)
            return patches(self.g, self.value(x), self.shapes[x], window, node.name or "value")
        inputs, ranks = [self.value(name) for name in node.inputs], [self.ranks[name] for name in node.inputs]
        if node.op == CARRIED:
            return spliced(self.g, inputs, node.attrs, node.name or "value")
        if node.op in ("add", "sub"):
            inputs = [self._filled(x, name, node.shape) for x, name in zip(inputs, node.inputs, strict=True)]
        return lower(self.g, node.op, inputs, node.attrs, ranks, node.name or "value")

    def _filled(self, value: str, name: str, shape: tuple[int, ...]) -> str:
        """An operand of a sum. OpenVINO 2026.4 takes a constant (c, 1, 1) beside a product with a constant matrix for
        the bias of that: it refuses the graph, or adds along the last axis where that has c entries. So it fills that.
        """
        sizes = tuple(getattr(self.program.constants.get(name), "shape", ()))
        if len(shape) < 3 or sizes[-1:] != (1,) or math.prod(sizes) != shape[0] or shape[-1] == 1:
            return value
        return self.g.add("Expand", [value, self.g.integers([*sizes[:-1], shape[-1]])], f"{value}.wide")

    def _layer(self, node: Node) -> str:
        x, name, *rest = node.inputs
        bias = self.program.constants[rest[0]] if rest else None
        weight, added = self.program.constants[name], bias.detach() if isinstance(bias, Tensor) else None
        form = self.forms.get(name, "dense")
        layer = Layer(weight, added, node.name or "value", form)
        kind = "DenseLinear" if form == "dense" else "HierarchicalLinear"
        with self.functions.layer(kind) if self.functions else nullcontext():
            if node.op == CONVOLUTION:
                return convolution(self.g, self.value(x), self.shapes[x], layer, Window.of(node.attrs))
            return linear(self.g, self.value(x), node.shape, layer)

    def _keep_names(self, outputs: Sequence[str]) -> list[str]:
        """The outputs under the program's own names, by which clients know them; names inside a layer give way."""
        named = [v.name for v in self.program.inputs]
        for name, wanted in zip(outputs, self.program.outputs, strict=True):
            if wanted and wanted not in named and name not in self.program.outputs:
                swapped = {name: wanted, wanted: name}
                for node in self.g.nodes:
                    for names in (node.input, node.output):
                        names[:] = [swapped.get(n, n) for n in names]
                for constant in self.g.initializers:
                    constant.name = swapped.get(constant.name, constant.name)
                name = wanted
            named.append(name)
        return named[len(self.program.inputs) :]
