"""`export_onnx`: a compressed network as one plain ONNX file, for any runtime that reads standard operators."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from hrt.artifact import load
from hrt.errors import InputError
from hrt.export.costs import ANY_BATCH, choose_forms
from hrt.export.graph import Graph
from hrt.export.layers import linear
from hrt.export.lowering import lower
from hrt.files import check_writable, replacing
from hrt.hmatrix import HMatrix
from hrt.model import CompressedModel
from hrt.program import Node, Program

OPSETS = range(18, 24)
DEFAULT_OPSET = 20
IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # the oldest that goes with an opset
INLINE_BYTES = 2_000_000_000  # a protobuf may not hold more


class _Exporter:
    """Walks a program once. forms: the form of every weight of a linear layer."""

    def __init__(self, program: Program, graph: Graph, forms: Mapping[str, str]):
        self.program, self.g, self.forms = program, graph, forms
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
        return outputs

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
        return linear(self.g, self.value(x), self.ranks[x], weight, added, node.name or "value", form)


def to_onnx(model: CompressedModel, opset: int | None = None) -> onnx.ModelProto:
    """The model as an ONNX graph of float32 inputs and outputs (batch, *shape), any batch, with its certificate.

    Raises InputError for an opset outside 18 to 23.
    """
    proto = graph_of(model.program, opset)
    certificate = json.dumps(model.certificate.to_header(), default=str)
    facts = {"hrt.certificate": certificate, "hrt.nbytes": str(model.nbytes), "hrt.tol": repr(model.certificate.tol)}
    helper.set_model_props(proto, facts)
    return proto


def graph_of(
    program: Program, opset: int | None = None, *, narrow: bool = True, forms: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """A program as an ONNX graph of float32 inputs and outputs (batch, *shape) with a dynamic batch.

    narrow: whether weights keep their storage types, as in a file; otherwise they are float32.  forms: of every weight
    of a linear layer (see `hrt.export.costs`); by default what is predicted to be fastest over batches of all sizes.
    Raises InputError for an opset outside 18 to 23.
    """
    opset = DEFAULT_OPSET if opset is None else opset
    if opset not in OPSETS:
        raise InputError(f"Found opset {opset!r}. Expected one of {OPSETS.start} to {OPSETS.stop - 1}.")
    g = Graph(opset, narrow)
    exporter = _Exporter(program, g, choose_forms(program, ANY_BATCH) if forms is None else forms)
    outputs = exporter.run()
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    inputs = [_typed(exporter.names[v.name], v.shape) for v in program.inputs]
    found = [_typed(name, shapes.get(o, ())) for name, o in zip(outputs, program.outputs, strict=True)]
    graph = helper.make_graph(g.nodes, "hrt", inputs, found, g.initializers)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, producer_name="hrt", ir_version=IR_VERSION[opset])


def export_onnx(
    model_or_path: CompressedModel | str | PathLike[str],
    path: str | PathLike[str],
    *,
    derivatives: Sequence[str] | None = None,
    opset: int | None = None,
    check: bool = True,
    external: bool = False,
    inputs: Any = None,
) -> None:
    """Write a network as an ONNX file of standard operators.

    opset: 18 to 23 (default 20).  check: full check by onnx, and ONNX Runtime against `predict` on `inputs` (rows, as
    `predict` takes them; random ones by default); a failure raises and leaves no file.  external: weights in a second
    file, `path` + ".data" (always so above 2 GB). Raises InputError or BackendError; see their messages.
    """
    if derivatives is not None:
        raise InputError("export_onnx(derivatives=...) is not available in this version. Expected None.")
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    proto = to_onnx(model, opset)
    if check:
        from hrt.export.check import check_onnx

        check_onnx(proto, model, inputs)
    target = Path(path)
    size = sum(len(t.raw_data) for t in proto.graph.initializer)
    if external or size > INLINE_BYTES:
        check_writable(target, force=True)
        data = target.with_name(target.name + ".data")
        onnx.save(proto, str(target), save_as_external_data=True, location=data.name, size_threshold=1024)
        return
    with replacing(target) as file:
        file.write(proto.SerializeToString())


def _typed(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *map(int, np.asarray(shape, dtype=int))])
