"""`export_onnx`: a compressed network as one plain ONNX file, for any runtime that reads standard operators."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from hrt.certificate.derivative_outputs import limits
from hrt.errors import InputError
from hrt.export.onnx.graph import Graph
from hrt.export.onnx.layer_functions import DOMAIN, VERSION, Functions
from hrt.export.onnx.layers import linear
from hrt.export.onnx.operators import lower
from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.program.program import Node, Program
from hrt.runtime.onnx_costs import ANY_BATCH, choose_forms
from hrt.support.atomic_files import check_writable, replacing

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # the oldest that goes with an opset
INLINE_BYTES = 2_000_000_000  # a protobuf may not hold more
EXTERNAL_FROM, ALIGNMENT = 1024, 4096  # bytes; tensors in a second file begin where a page does


class _Exporter:
    """Walks a program once. forms: the form of every weight of a linear layer. functions: where layers become nodes."""

    def __init__(self, program: Program, graph: Graph, forms: Mapping[str, str], functions: Functions | None):
        self.program, self.g, self.forms, self.functions = program, graph, forms, functions
        self.names: dict[str, str] = {}
        shapes = {k: len(c.shape) for k, c in program.constants.items()}
        self.ranks = {**shapes, **{v.name: 1 + len(v.shape) for v in (*program.inputs, *program.nodes)}}
        for v in program.inputs:
            self.names[v.name] = self.g.name(v.name or "input")

    def run(self) -> list[str]:
        """All nodes; the names of the outputs."""
        for node in self.program.nodes:
            self.names[node.name] = self._linear(node) if node.op == "linear" else self._node(node)
        outputs = []
        for k, name in enumerate(self.program.outputs):
            found = self.value(name)
            taken = found in outputs or found in (self.names[v.name] for v in self.program.inputs)
            wanted = name or f"output_{k}"
            outputs.append(
                self.g.add("Identity", [found], wanted) if taken or name in self.program.constants else found
            )
        return _keep_names(self.g, outputs, self.program)

    def value(self, name: str) -> str:
        """A value or constant by its name in the graph."""
        if name not in self.program.constants:
            return self.names[name]
        constant = self.program.constants[name]
        numbers = constant.to_dense(torch.float32) if isinstance(constant, HMatrix) else constant
        return self.g.constant(numbers.to(torch.float32), name or "constant")

    def _node(self, node: Node) -> str:
        inputs, ranks = [self.value(name) for name in node.inputs], [self.ranks[name] for name in node.inputs]
        return lower(self.g, node.op, inputs, node.attrs, ranks, node.name or "value")

    def _linear(self, node: Node) -> str:
        x, name, *rest = node.inputs
        bias = self.program.constants[rest[0]] if rest else None
        weight, added = self.program.constants[name], bias.detach() if isinstance(bias, Tensor) else None
        form = self.forms.get(name, "dense")
        kind = "DenseLinear" if form == "dense" else "HierarchicalLinear"
        with self.functions.layer(kind) if self.functions else nullcontext():
            return linear(self.g, self.value(x), self.ranks[x], weight, added, node.name or "value", form)


def to_onnx(model: CompressedModel, opset: int | None = None, *, functions: bool = False) -> onnx.ModelProto:
    """The model as an ONNX graph of float32 inputs and outputs (batch, *shape), any batch.

    Its metadata holds `hrt.certificate`, `hrt.nbytes`, `hrt.tol`, and in `hrt.error_upper_99` by output, as JSON, the
    99 % upper limit of its relative error or "not bounded" (see `hrt.certificate.derivative_outputs.limits`).  functions: see `export_onnx`.
    Raises InputError for an opset outside 18 to 23.
    """
    proto = graph_of(model.program, opset, functions=functions)
    found, names = limits(model.certificate, model.program.outputs), [v.name for v in proto.graph.output]
    facts = {
        "hrt.certificate": json.dumps(model.certificate.to_header(), default=str),
        "hrt.nbytes": str(model.nbytes),
        "hrt.tol": repr(model.certificate.tol),
        "hrt.error_upper_99": json.dumps({n: found[o] for n, o in zip(names, model.program.outputs, strict=True)}),
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
) -> onnx.ModelProto:
    """A program as an ONNX graph of float32 inputs and outputs (batch, *shape) with a dynamic batch.

    narrow: whether weights keep their storage types, as in a file; otherwise they are float32.  forms: of every weight
    of a linear layer (see `hrt.runtime.onnx_costs`); by default what is predicted to be fastest over batches of all sizes.
    functions: one node per linear layer, with a body.
    Raises InputError for an opset outside 18 to 23.
    """
    opset = DEFAULT_OPSET if opset is None else opset
    if opset not in OPSETS:
        raise InputError(f"Found opset {opset!r}. Expected one of {OPSETS.start} to {OPSETS.stop - 1}.")
    g = Graph(opset, narrow)
    layers = Functions(g) if functions else None
    exporter = _Exporter(program, g, choose_forms(program, ANY_BATCH) if forms is None else forms, layers)
    outputs = exporter.run()
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    inputs = [_typed(exporter.names[v.name], v.shape) for v in program.inputs]
    found = [_typed(name, shapes.get(o, ())) for name, o in zip(outputs, program.outputs, strict=True)]
    graph = helper.make_graph(g.nodes, "hrt", inputs, found, g.initializers)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(DOMAIN, VERSION)] if layers else [])
    facts = {"opset_imports": opsets, "producer_name": "hrt", "ir_version": IR_VERSION[opset]}
    return helper.make_model(graph, functions=layers.found if layers else [], **facts)


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
) -> None:
    """Write a network as an ONNX file of standard operators.

    derivatives: by input coordinates, as `predict` takes them: more outputs behind the network's own, derivative by
    derivative in the order asked, called "d0_u", "d0d1_u" for an output u and shaped like it; the metadata says of each
    whether it is bounded (`to_onnx`).  opset: 18 to 23 (default 20).  check: full check by onnx, and ONNX Runtime
    against `predict` on `inputs` (rows, as `predict` takes them; random ones by default); a failure raises and leaves
    no file.  external: weights in a second file, `path` + ".data" (always so above 2 GB).  functions: every linear
    layer is one node of the domain "hrt" with a function body in standard operators, for runtimes that know model-local
    functions. Raises InputError, DerivativeError or
    BackendError; see their messages.
    """
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    values = len(model.program.outputs)
    model = model if derivatives is None else model.differentiated(derivatives)
    proto = to_onnx(model, opset, functions=functions)
    if check:
        from hrt.export.onnx.check import check_onnx

        check_onnx(proto, model, inputs, values=values)
    target = Path(path)
    size = sum(len(t.raw_data) for t in proto.graph.initializer)
    if not external and size <= INLINE_BYTES:
        with replacing(target) as file:
            file.write(proto.SerializeToString())
        return
    # Both files are complete on the disk before either takes its name.
    target = check_writable(target, force=True)  # links followed: the second file goes where the first does
    data = target.with_name(target.name + ".data")
    with replacing(data) as numbers, replacing(target) as file:
        _move_weights(proto, data.name, numbers)
        numbers.flush()
        os.fsync(numbers.fileno())
        file.write(proto.SerializeToString())


def _move_weights(proto: onnx.ModelProto, location: str, file: BinaryIO) -> None:
    """Write the numbers of all but small initializers to `file` and leave references to it in their place."""
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) < EXTERNAL_FROM:
            continue
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        where = {"location": location, "offset": file.tell(), "length": len(tensor.raw_data)}
        file.write(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))


def _typed(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *map(int, np.asarray(shape, dtype=int))])


def _keep_names(g: Graph, outputs: Sequence[str], program: Program) -> list[str]:
    """The outputs under the program's own names wherever they can have them: clients know them by those, and what is
    inside a layer must not change them.
    """
    named = [v.name for v in program.inputs]
    for found, wanted in zip(outputs, program.outputs, strict=True):
        if wanted and wanted not in named and found not in program.outputs:
            swapped = {found: wanted, wanted: found}
            for node in g.nodes:
                for names in (node.input, node.output):
                    names[:] = [swapped.get(name, name) for name in names]
            for constant in g.initializers:
                constant.name = swapped.get(constant.name, constant.name)
            found = wanted
        named.append(found)
    return named[len(program.inputs) :]
