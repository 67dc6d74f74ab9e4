"""Parts that a program carries along as ONNX models, in the graph around them."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from hrt.errors import ExportError
from hrt.export.onnx.graph import Graph
from hrt.program.carried import OPSET, decoded


def spliced(g: Graph, inputs: Sequence[str], attrs: Mapping[str, Any], wanted: str) -> str:
    """The nodes of a model among the others, on named inputs; the name of its result. Raises ExportError where onnx
    cannot say them in the graph's opset.
    """
    model = decoded(attrs)
    if g.opset != OPSET:
        try:
            model = onnx.version_converter.convert_version(model, g.opset)
        except Exception as error:  # onnx raises what its C++ does
            raise ExportError(
                f"{attrs['name']}, which is carried outside the op table, is of opset {OPSET}, and onnx cannot say it "
                f"in {g.opset}. Expected opset={OPSET}."
            ) from error
    names = {v.name: name for v, name in zip(model.graph.input, inputs, strict=True)} | {"": ""}
    for tensor in model.graph.initializer:
        names[tensor.name] = copy_name = g.name(f"{wanted}.{tensor.name}")
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        copy.name = copy_name
        g.initializers.append(copy)
    result = model.graph.output[0].name
    for node in model.graph.node:
        for output in node.output:
            names.setdefault(output, g.name(wanted if output == result else f"{wanted}.{output}"))
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = g.name(f"{node.op_type}:{names[node.output[0]]}")
        copy.input[:], copy.output[:] = [names[k] for k in node.input], [names[k] for k in node.output]
        g.nodes.append(copy)
    return names[result]
