"""Quantized networks by the libraries' own quantizers: ONNX Runtime's dynamic int8 and blockwise weights, and torchao.

The knob is which layers stay float32: those that do most harm, as few as the error allows. int4 and fp8 are tried like
the others; where a library refuses on this machine, the row says in the library's words what it needs.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from torch import Tensor, nn

from hrt.calibration.output_error import OutputError
from hrt.export.onnx.exporter import graph_of
from hrt.perf.measuring.results import FAILED, MISSING, UNREACHABLE
from hrt.perf.methods.matched_error import Method, Offer, Refusal, Run, fewest_kept, search_error, work_of
from hrt.perf.methods.runtimes import compiled, first_line, in_onnxruntime, in_torch, quiet, run_of, session_run
from hrt.perf.networks.as_torch_module import module_of
from hrt.perf.networks.registry import MissingError, Workload

GET = {  # what imports a module, and how to get what it needs
    "torchao.quantization": "pip install --no-deps torchao",
    "onnxruntime.quantization": "pip install onnxruntime",
    "onnxruntime.quantization.matmul_nbits_quantizer": "pip install onnx-ir",
}
BLOCK = 32  # numbers that share a scale; the smallest that is allowed by all bit widths, so the most accurate
NONE_LEFT = Refusal(UNREACHABLE, "not even with all layers but one in float32")

Exact = frozenset[str]  # names of weights that stay float32


def _imported(module: str) -> Any:
    """A library that may be missing. Raises MissingError with the command that installs it."""
    try:
        with quiet():
            return import_module(module)
    except ImportError as error:
        raise MissingError(f"{error}; get it with: {GET[module]}") from error


def _fewest(
    workload: Workload, name: Any, make: Callable[[Exact], Any], run: Callable[[Any], Run], tol: float
) -> tuple[Exact, str] | None:
    """The fewest layers to leave in float32, and a note; or None. Errors of settings are shared between tolerances."""
    errors: dict[Exact, OutputError] = workload.once(("errors", name), dict)

    def error(exact: Exact) -> OutputError:
        if exact not in errors:
            errors[exact] = search_error(workload, run(make(exact)))
        return errors[exact]

    names = list(workload.program.weights)
    exact = fewest_kept(names, error, tol)
    if exact is None:
        return None
    return exact, f"{len(exact)} of {len(names)} layers kept in float32" if exact else "all layers quantized"


class PlainGraph:
    """The network as ONNX with MatMul nodes that are named, so that a quantizer can be told which to leave alone."""

    def __init__(self, workload: Workload) -> None:
        model = _imported("onnxruntime.quantization").onnx_model.ONNXModel(graph_of(workload.program))
        model.replace_gemm_with_matmul()
        self.proto: onnx.ModelProto = model.model
        constants, layers = {t.name for t in self.proto.graph.initializer}, workload.program.linear_nodes
        products = [n for n in self.proto.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
        if len(products) != len(layers):
            raise RuntimeError(f"these quantizers take MatMul alone: {len(products)} of {len(layers)} layers")
        self._weights: dict[str, str] = {}  # by node
        for k, (node, linear) in enumerate(zip(products, layers, strict=True)):
            node.name = f"product{k}"
            self._weights[node.name] = linear.inputs[1]

    def excluded(self, exact: Exact) -> list[str]:
        """Nodes of the weights that stay float32."""
        return [node for node, weight in self._weights.items() if weight in exact]

    def copy(self) -> onnx.ModelProto:
        """For a quantizer to change."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return proto


def _onnx_offer(
    workload: Workload, proto: onnx.ModelProto, note: str, *more: Any, arithmetic: str = "float32"
) -> Offer:
    """A quantized graph, and other executions of the same weights."""
    nbytes = sum(numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)
    facts = {"nodes": len(proto.graph.node)}
    return Offer(nbytes, (in_onnxruntime(proto), *more), note, work_of(workload.program), facts, arithmetic)


def onnxruntime_dynamic(workload: Workload, tol: float) -> Offer | Refusal:
    """`quantize_dynamic`: int8 weights, activations quantized as they come; one scale per channel or per matrix,
    signed or not, whichever has the least error with all layers quantized.
    """
    library = _imported("onnxruntime.quantization")
    graph = workload.once("plain graph", lambda: PlainGraph(workload))

    def quantized(exact: Exact, per_channel: bool, signed: bool) -> onnx.ModelProto:
        kind = library.QuantType.QInt8 if signed else library.QuantType.QUInt8
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "int8.onnx"
            options = {"per_channel": per_channel, "weight_type": kind, "nodes_to_exclude": graph.excluded(exact)}
            library.quantize_dynamic(graph.copy(), path, **options)
            return onnx.load(path)

    def variant() -> tuple[bool, bool]:
        choices = [(channel, signed) for channel in (True, False) for signed in (True, False)]
        return min(choices, key=lambda c: search_error(workload, session_run(quantized(frozenset(), *c))).value)

    channel, signed = workload.once("dynamic variant", variant)
    make = partial(quantized, per_channel=channel, signed=signed)
    if (fewest := _fewest(workload, "dynamic", make, session_run, tol)) is None:
        return NONE_LEFT
    how = f"one scale per {'channel' if channel else 'matrix'}, {'signed' if signed else 'unsigned'}"
    return _onnx_offer(workload, make(fewest[0]), f"{fewest[1]}; {how}", arithmetic="int8")


def onnxruntime_blocks(bits: int) -> Method:
    """`MatMulNBitsQuantizer`: weights in blocks of 32 with a scale each, products by ONNX Runtime's own kernels, in
    float arithmetic and in int8 arithmetic.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        library = _imported("onnxruntime.quantization.matmul_nbits_quantizer")
        graph = workload.once("plain graph", lambda: PlainGraph(workload))

        def quantized(exact: Exact, level: int = 1) -> onnx.ModelProto:
            settings = {"bits": bits, "block_size": BLOCK, "is_symmetric": False, "accuracy_level": level}
            with quiet():
                quantizer = library.MatMulNBitsQuantizer(
                    graph.copy(), nodes_to_exclude=graph.excluded(exact), **settings
                )
                quantizer.process()
            return quantizer.model.model

        if (fewest := _fewest(workload, ("blocks", bits), quantized, session_run, tol)) is None:
            return NONE_LEFT
        exact, note = fewest
        in_int8 = in_onnxruntime(quantized(exact, 4), "onnxruntime, int8 arithmetic")
        return _onnx_offer(workload, quantized(exact), f"{note}; blocks of {BLOCK}", in_int8)

    return method


def tensor_nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor or of the tensors inside a subclass of it."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in (Tensor, nn.Parameter) or flatten is None:
        return tensor.numel() * tensor.element_size()
    return sum(tensor_nbytes(getattr(tensor, name)) for name in flatten()[0])


def module_nbytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    return sum(map(tensor_nbytes, {id(t): t for t in (*net.parameters(), *net.buffers())}.values()))


def all_int8(workload: Workload) -> nn.Module:
    """The network after torchao's `quantize_` of every layer. Raises MissingError."""
    library, net = _imported("torchao.quantization"), module_of(workload.program)
    with quiet():
        library.quantize_(net, library.Int8WeightOnlyConfig())
    return net


def torchao(config: str, arithmetic: str = "float32", decode: bool = False) -> Method:
    """`quantize_` with the configuration of that name, run by torch and torch.compile. decode: weights are multiplied
    out to float32 when the network is loaded, and ONNX Runtime runs it: for weights only quantized the same numbers.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        library = _imported("torchao.quantization")

        def layers(net: nn.Module, exact: Exact) -> list[nn.Linear]:
            return [m for m in net.modules() if isinstance(m, nn.Linear) and m.weight_name not in exact]

        def quantized(exact: Exact) -> nn.Module:
            net = module_of(workload.program)
            chosen = set(layers(net, exact))
            with quiet():
                library.quantize_(net, getattr(library, config)(), filter_fn=lambda m, name: m in chosen)
            return net

        try:
            with quiet():
                fewest = _fewest(workload, config, quantized, run_of, tol)
        except ImportError as error:
            return Refusal(MISSING, f"torchao {config}: {error}")
        except (AssertionError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            return Refusal(FAILED, f"torchao {config}: {first_line(error)}")
        if fewest is None:
            return NONE_LEFT
        (exact, note), work = fewest, work_of(workload.program)
        net = quantized(exact)
        if not decode:
            return Offer(module_nbytes(net), (in_torch(net), compiled(net)), note, work, arithmetic=arithmetic)
        weights = {str(m.weight_name): m.weight.dequantize().double() for m in layers(net, exact)}  # type: ignore[operator]
        proto = graph_of(workload.program.with_constants(weights), narrow=False)
        note += "; int8 as stored, decoded to float32 at loading"
        return Offer(module_nbytes(net), (in_onnxruntime(proto),), note, work, {"nodes": len(proto.graph.node)})

    return method


QUANTIZERS: Mapping[str, Method] = {
    "quantized, onnxruntime int8 dynamic": onnxruntime_dynamic,
    "quantized, onnxruntime int8 blocks": onnxruntime_blocks(8),
    "quantized, onnxruntime int4 blocks": onnxruntime_blocks(4),
    "quantized, torchao int8 weights": torchao("Int8WeightOnlyConfig"),
    "quantized, torchao int8 decoded": torchao("Int8WeightOnlyConfig", decode=True),
    "quantized, torchao int8 dynamic": torchao("Int8DynamicActivationInt8WeightConfig", "int8"),
    "quantized, torchao int4 weights": torchao("Int4WeightOnlyConfig"),
    "quantized, torchao fp8 weights": torchao("Float8WeightOnlyConfig"),
    "quantized, torchao fp8 dynamic": torchao("Float8DynamicActivationFloat8WeightConfig", "float8"),
}
