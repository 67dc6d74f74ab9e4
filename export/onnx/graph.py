"""An ONNX graph while it grows: nodes in order, constants each stored once, names that cannot clash.

Protobuf messages are built directly: onnx-ir 1.1 takes 19.6 ms where this takes 4.3 ms (one layer of 170 leaves), and
0.25 s more to import.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from hrt.program.names import unique_name

DOMAIN, VERSION = "hrt", 1  # linear layers may be nodes of a domain of our own
ONNX_TYPE = {
    torch.float32: TensorProto.FLOAT,
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.int8: TensorProto.INT8,
    torch.int16: TensorProto.INT16,
    torch.int32: TensorProto.INT32,
    torch.int64: TensorProto.INT64,
}


class Graph:
    """Nodes and initializers. Every method that adds a node returns the name of its one output.

    narrow: numbers keep their storage types, as in a file; otherwise float32, in layers as ONNX Runtime likes them.
    """

    opset: int
    narrow: bool

    def __init__(self, opset: int, narrow: bool = True):
        self.opset, self.narrow = opset, narrow
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._stored: dict[bytes, str] = {}
        self._names: set[str] = set()

    def name(self, wanted: str) -> str:
        name = unique_name(wanted, self._names, separator="_")
        self._names.add(name)
        return name

    def add(self, op: str, inputs: Sequence[str], wanted: str | None = None, **attributes: Any) -> str:
        output = self.name(wanted or op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [output], self.name(f"{op}:{output}"), **attributes))
        return output

    def constant(self, value: Tensor, wanted: str = "constant") -> str:
        """An initializer with the numbers of `value` in its own type; equal ones are stored once."""
        value = value.detach().cpu().contiguous()
        raw = value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b""
        key = hashlib.sha256(f"{value.dtype}{tuple(value.shape)}".encode() + raw).digest()
        if key not in self._stored:
            self._stored[key] = self.name(wanted)
            tensor = helper.make_tensor(self._stored[key], ONNX_TYPE[value.dtype], tuple(value.shape), raw, raw=True)
            self.initializers.append(tensor)
        return self._stored[key]

    def integers(self, values: Sequence[int], wanted: str = "shape") -> str:
        return self.constant(torch.from_numpy(np.asarray(values, dtype=np.int64)), wanted)

    def index(self, values: Any) -> str:
        """An int32 vector for Gather, stored as int16 where that is enough."""
        index = np.asarray(values, dtype=np.int32)
        if not self.narrow or (index.size and index.max() > np.iinfo(np.int16).max):
            return self.constant(torch.from_numpy(index), "index")
        stored = self.constant(torch.from_numpy(index.astype(np.int16)), "index")
        return self.add("Cast", [stored], "index", to=TensorProto.INT32)

    def number(self, value: float) -> str:
        return self.constant(torch.tensor(value, dtype=torch.float32), "number")

    def decoded(self, value: Tensor, scale: Tensor | None = None, wanted: str = "weight") -> str:
        """Stored numbers as float32; narrow types keep their bytes in a file. scale: of int8 rows."""
        if not self.narrow and value.dtype != torch.float32:
            return self.constant(value.float() if scale is None else value.float() * scale.float()[..., None], wanted)
        stored = self.constant(value if value.dtype in ONNX_TYPE else value.float(), wanted)
        if value.dtype in (torch.float32, torch.float64):
            return stored
        numbers = self.add("Cast", [stored], wanted, to=TensorProto.FLOAT)
        if scale is None:
            return numbers
        # Not DequantizeLinear: ONNX Runtime takes that before a MatMul as leave to quantize the activations too, which
        # cost 1e-3 in a network of ours; a product of constants it folds and leaves alone.
        return self.add("Mul", [numbers, self.decoded(scale[..., None], None, "scale")], wanted)

    def beside(self, values: Sequence[str], wanted: str, axis: int) -> str:
        """Values next to each other; one alone is itself."""
        return values[0] if len(values) == 1 else self.add("Concat", values, wanted, axis=axis)

    def gemm(self, x: str, weight: str, bias: Tensor | None, wanted: str) -> str:
        """x (rows, n) times weight (m, n) transposed, plus bias (m,)."""
        inputs = [x, weight] if bias is None else [x, weight, self.constant(bias, f"{wanted}.bias")]
        return self.add("Gemm", inputs, wanted, transB=1)

    def batch_of(self, x: str, wanted: str) -> str:
        """The rows of `x` (batch, ...) as an int64 vector of one."""
        return self.add("Slice", [self.add("Shape", [x]), self.integers([0]), self.integers([1])], wanted)

    def batched_shape(self, x: str, shape: Sequence[int], wanted: str) -> str:
        """(batch, *shape) as an int64 vector, with the batch of `x`."""
        batch = self.batch_of(x, f"{wanted}.batch")
        return self.add("Concat", [batch, self.integers(shape)], f"{wanted}.shape", axis=0)


class Functions:
    """Collects a function per layer of a graph. made: those so far."""

    def __init__(self, g: Graph):
        self.g = g
        self.made: list[onnx.FunctionProto] = []

    @contextmanager
    def layer(self, kind: str) -> Iterator[None]:
        """The nodes added in this block become one node; constants are its inputs, since functions cannot hold any."""
        first = len(self.g.nodes)
        yield
        body = self.g.nodes[first:]
        if not body:
            return
        inner = {name for node in body for name in node.output}
        inputs = list(dict.fromkeys(name for node in body for name in node.input if name and name not in inner))
        (output,) = body[-1].output
        name = f"{kind}_{len(self.made)}"
        opsets = [helper.make_opsetid("", self.g.opset)]
        self.made.append(helper.make_function(DOMAIN, name, inputs, [output], body, opsets))
        self.g.nodes[first:] = [helper.make_node(name, inputs, [output], name=self.g.name(name), domain=DOMAIN)]
