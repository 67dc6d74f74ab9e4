"""What an ONNX file may ask for: how many nodes its functions become, and how many numbers its constants."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from hrt.errors import CaptureError

MAX_NODES = 1 << 15
MAX_DEPTH = 64  # of functions that call each other
FOLDED = 1 << 25  # numbers that the constants of a small file may become
EXAMPLE_BYTES = 1 << 29  # of all values of the example rows together
EXAMPLE_PRODUCTS = 1 << 36
CALL_BYTES = 1 << 27  # of all values of the rows that a runtime is given at once, in float64
RUNTIME_BYTES = 1 << 28  # of constants; a runtime that copies them several times over is not given more

Arrays = Sequence[np.ndarray]


def check_expansion(proto: onnx.ModelProto) -> None:
    """Raise CaptureError where the functions of `proto`, written out, are too many nodes, too deep or without end."""
    bodies = {(f.domain, f.name): f.node for f in proto.functions}
    sizes: dict[tuple[str, str], int] = {}

    def expanded(nodes: Iterable[onnx.NodeProto], depth: int) -> int:
        if depth > MAX_DEPTH:
            raise CaptureError(f"Functions of the file call each other over {MAX_DEPTH} deep, or without end.")
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in bodies and key not in sizes:
                sizes[key] = expanded(bodies[key], depth + 1)
            total += 1 + sizes.get(key, 0)
            graphs = [a.g for a in node.attribute if a.HasField("g")] + [g for a in node.attribute for g in a.graphs]
            total += sum(expanded(g.node, depth + 1) for g in graphs)
        return total

    if (total := expanded(proto.graph.node, 0)) > MAX_NODES:
        raise CaptureError(f"The file asks for {total:.3g} nodes, functions written out. Expected at most {MAX_NODES}.")


def _broadcast(arrays: Arrays) -> int:
    return math.prod(np.broadcast_shapes(*(a.shape for a in arrays)))


def _product(arrays: Arrays) -> int:
    a, b = arrays[0].shape, arrays[1].shape
    return math.prod(np.broadcast_shapes(a[:-2], b[:-2])) * math.prod(a[-2:]) * (b[-1] if len(b) > 1 else 1)


def _range(arrays: Arrays) -> int:
    start, limit, step = (float(a.reshape(())) for a in arrays[:3])
    return math.ceil(max(0.0, (limit - start) / step))


def _inputs(arrays: Arrays) -> int:
    return sum(a.size for a in arrays)


def _listed(array: np.ndarray) -> list[int]:
    return [abs(int(v)) for v in array.reshape(-1)]


# How much work an operator makes of constants, at least as many as the numbers that come out. Operators that are not
# here are not computed: they have bodies of their own, draw random numbers, or nobody writes them.
WORK: Mapping[str, Callable[[Arrays], int]] = {
    **dict.fromkeys(("Constant", "Identity", "Cast", "CastLike", "Shape", "Size", "Reshape", "Flatten"), _inputs),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Concat", "Trilu", "EyeLike"), _inputs),
    **dict.fromkeys(("Neg", "Abs", "Sqrt", "Reciprocal", "Exp", "Log", "Sin", "Cos", "Tan", "Tanh", "Erf"), _inputs),
    **dict.fromkeys(("Floor", "Ceil", "Round", "Sign", "Not", "IsNaN", "IsInf", "Sigmoid", "Softplus"), _inputs),
    **dict.fromkeys(("Relu", "LeakyRelu", "Elu", "Gelu", "Clip", "Softmax", "CumSum", "Dropout"), _inputs),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin", "ArgMax", "ArgMin"), _inputs),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare", "LayerNormalization", "ScatterND"), _inputs),
    **dict.fromkeys(
        ("Add", "Sum", "Sub", "Mul", "Div", "Pow", "Mod", "Max", "Min", "Where", "And", "Or", "Xor"), _broadcast
    ),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"), _broadcast),
    **dict.fromkeys(("MatMul", "Gemm"), _product),
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _inputs),
    "Gather": lambda a: a[0].size * max(1, a[1].size),
    "GatherElements": _inputs,
    "Expand": lambda a: math.prod(np.broadcast_shapes(a[0].shape, tuple(_listed(a[1])))),
    "Tile": lambda a: a[0].size * math.prod(_listed(a[1])),
    "ConstantOfShape": lambda a: math.prod(_listed(a[0])),
    "Range": _range,
    "Pad": lambda a: math.prod(n + sum(_listed(a[1])) for n in a[0].shape),
    "NonZero": lambda a: a[0].size * max(1, a[0].ndim),
}
