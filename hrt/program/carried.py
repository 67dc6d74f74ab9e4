"""Parts that the op table has no row for: each a small ONNX model, which ONNX Runtime runs on the CPU.

A node "carried" gets its values, then its constants, and has one result. Its attributes are `name`, what the network
calls it, `values`, how many arguments are values, `shape` of a result's sample, and `model`, an ONNX model in base64.
The model has no numbers of its own but sizes, reads float32 (batch, *sample) and constants, and gives float32.
"""

import math
from base64 import b64decode, b64encode
from binascii import Error
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from hrt.errors import BackendError, DerivativeError
from hrt.support.recent import Recent

CARRIED = "carried"  # the op
LARGEST = 1 << 16  # bytes of a model: its numbers are constants of the program
SESSIONS = 1 << 12  # of models that are known at a time
OPSET = 20  # of every model
ROWS = (2, 3, 4)  # for which a model is checked
Function = Callable[..., Tensor]

_sessions: Recent[str, Any] = Recent(SESSIONS)
_functions: dict[str, Function] = {}  # by model: what it was made of, for slopes in the process that made it


def encoded(model: bytes, function: Function) -> str:
    """A model as an attribute. function: of torch, of the same arguments, which gives slopes as long as this process
    lives.
    """
    text = b64encode(model).decode()
    _functions[text] = function
    if len(_functions) > SESSIONS:
        del _functions[next(iter(_functions))]
    return text


def model_nbytes(attrs: Mapping[str, Any]) -> int:
    """Bytes of a node's model."""
    return len(attrs["model"]) * 3 // 4


def decoded(attrs: Mapping[str, Any]) -> Any:
    """The ONNX model of a node. Raises ValueError for what is none, or could do more than compute its one result."""
    import onnx

    try:
        raw = b64decode(attrs["model"], validate=True)
        if len(raw) > LARGEST:
            raise ValueError(f"a carried part of {len(raw):,} bytes; expected at most {LARGEST:,}")
        proto = onnx.load_model_from_string(raw)
        onnx.checker.check_model(proto)
    except (Error, TypeError, onnx.checker.ValidationError) as error:
        raise ValueError(f"a carried part is no ONNX model ({error})") from error
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError("a carried part is no ONNX model") from error  # protobuf has errors of its own
    graph = proto.graph
    inner = [a for node in graph.node for a in node.attribute if a.HasField("g") or a.graphs]
    opsets = [(o.domain, o.version) for o in proto.opset_import]
    outside = [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if opsets != [("", OPSET)] or proto.functions or inner or outside or len(graph.output) != 1:
        raise ValueError("a carried part has operators, graphs or files of its own, or several results")
    return proto


def check(attrs: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Numbers that come and go in a row of a carried part, and at most how many products, for arguments of these
    shapes (values: of one row). Raises ValueError where the model does not fit them, the size of a value in it is not
    known beforehand, or grows faster than the rows. Whether rows stay apart is not known: who captured it compared.
    """
    proto, count = decoded(attrs), attrs["values"]
    if not isinstance(attrs["name"], str) or type(count) is not int or not 0 < count <= len(shapes):
        raise ValueError(f"a carried part of {len(shapes)} arguments says nothing of them")
    if len(proto.graph.input) != len(shapes):
        raise ValueError(f"a carried part of {len(proto.graph.input)} inputs gets {len(shapes)} arguments")
    samples = [s[1:] if k < count else None for k, s in enumerate(shapes)] + [tuple(attrs["shape"])]
    fixed = [*shapes, ()]
    work = [
        _work(proto, [s if sample is None else (rows, *sample) for s, sample in zip(fixed, samples, strict=True)])
        for rows in ROWS
    ]
    (few, products), (more, _), (most, _) = work
    if most - more > more - few:
        raise ValueError("a carried part has values that grow faster than the rows")
    return few // ROWS[0] + 1, products // ROWS[0] + 1


def _work(model: Any, shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Numbers and products of a model whose inputs, then its result, have these shapes."""
    import onnx

    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    for value, shape in zip((*proto.graph.input, *proto.graph.output), shapes, strict=True):
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise ValueError("a carried part reads or gives other numbers than float32")
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    try:
        graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:
        raise ValueError(f"a carried part does not fit its arguments ({error})") from error
    known = {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}
    sizes = {name: _size(t) for name, t in known.items()} | {t.name: math.prod(t.dims) for t in graph.initializer}
    numbers = products = 0
    for node in graph.node:
        results = [sizes.get(name, -1) for name in node.output if name]
        if min(results, default=0) < 0 or node.op_type == "Einsum":
            raise ValueError(f"a carried part has an operator {node.op_type} whose work is not known beforehand")
        numbers += sum(results)
        products += sum(results) * max((sizes.get(name, 1) for name in node.input if name), default=1)
    return numbers, products


def _size(described: Any) -> int:
    """How many numbers; -1 where that is not known."""
    dims = described.shape.dim
    return math.prod(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else -1


def run(arguments: Sequence[Any], attrs: Mapping[str, Any]) -> Tensor:
    """The result of a carried part, in the type of its first argument. Raises BackendError without ONNX Runtime."""
    first = arguments[0]
    if first.is_meta or not len(first):
        return first.new_empty((len(first), *attrs["shape"]))
    if any(is_functorch_wrapped_tensor(x) for x in arguments):
        raise _without_slopes(attrs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in arguments):
        return _Sloped.apply(attrs, *arguments)
    return _computed(attrs, arguments)


def _computed(attrs: Mapping[str, Any], arguments: Sequence[Tensor]) -> Tensor:
    session = _sessions.get(attrs["model"], lambda: _opened(attrs))
    arrays = [x.detach().to("cpu", torch.float32).contiguous().numpy() for x in arguments]
    (result,) = session.run(None, dict(zip((v.name for v in session.get_inputs()), arrays, strict=True)))
    return torch.from_numpy(result).to(arguments[0])


class _Sloped(torch.autograd.Function):
    """The same, with the slopes of the function that the part was made of."""

    @staticmethod
    def forward(ctx: Any, attrs: Mapping[str, Any], *arguments: Tensor) -> Tensor:
        ctx.attrs = attrs
        ctx.save_for_backward(*arguments)
        return _computed(attrs, arguments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        function = _functions.get(ctx.attrs["model"])
        if function is None:
            raise _without_slopes(ctx.attrs)
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            result = function(*inputs)
            if not result.requires_grad:  # whole numbers, say
                return None, *[None] * len(inputs)
            slopes = torch.autograd.grad(result, inputs, grad_outputs[0].to(result), allow_unused=True)
        return None, *(s if s is None else s.to(x) for s, x in zip(slopes, inputs, strict=True))


def _without_slopes(attrs: Mapping[str, Any]) -> DerivativeError:
    return DerivativeError(
        f"Found a derivative of {attrs['name']}, which is carried outside the op table. Expected none: only `compress` "
        "knows its slopes, while it runs."
    )


def _opened(attrs: Mapping[str, Any]) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise BackendError(
            f"ONNX Runtime, which runs the carried part {attrs['name']}, is not installed. Expected it: "
            "pip install onnxruntime."
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a forked process has no threads of others
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(b64decode(attrs["model"]), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has errors of its own
        raise BackendError(f"ONNX Runtime cannot run the carried part {attrs['name']}: {error}") from error
