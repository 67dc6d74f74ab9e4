"""Quantized networks by the libraries' own quantizers: ONNX Runtime's dynamic int8 and blockwise weights, and torchao.

The knob is which layers stay float32: those that do most harm, as few as the error allows. int4 and fp8 are tried like
the others; where a library refuses on this machine, the row says in the library's words what it needs.
"""

import tempfile
from collections.abc import Callable, Mapping
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

GET_TORCHAO = "pip install --no-deps torchao"
GET_ONNX_IR = "pip install onnx-ir"  # what ONNX Runtime's blockwise quantizer imports
BLOCK = 32  # numbers that share a scale; the smallest that is allowed by all bit widths, so the most accurate
NONE_LEFT = Refusal(UNREACHABLE, "not even with all layers but one in float32")

Kept = frozenset[str]  # names of weights that stay float32


def _imported(module: str, command: str) -> Any:
    """A library that may be missing. Raises MissingError with the command that installs it."""
    try:
        with quiet():
            return import_module(module)
    except ImportError as error:
        raise MissingError(f"{error}; get it with: {command}") from error


def _fewest(workload: Workload, make: Callable[[Kept], Any], run: Callable[[Any], Run], tol: float) -> Kept | None:
    """The fewest layers to keep in float32, or None. Errors of settings are shared between tolerances."""
    errors: dict[Kept, OutputError] = workload.once(("errors", make), dict)

    def error(kept: Kept) -> OutputError:
        if kept not in errors:
            errors[kept] = search_error(workload, run(make(kept)))
        return errors[kept]

    return fewest_kept(list(workload.program.weights), error, tol)


def _kept_note(kept: Kept, workload: Workload) -> str:
    total = len(workload.program.weights)
    return "all layers quantized" if not kept else f"{len(kept)} of {total} layers kept in float32"


class PlainGraph:
    """The network as ONNX with MatMul nodes that are named, so that a quantizer can be told which to leave alone."""

    def __init__(self, workload: Workload) -> None:
        quantizer = _imported("onnxruntime.quantization.onnx_model", "pip install onnxruntime")
        model = quantizer.ONNXModel(graph_of(workload.program))
        model.replace_gemm_with_matmul()
        self.proto = model.model
        constants, layers = {t.name for t in self.proto.graph.initializer}, workload.program.linear_nodes
        products = [n for n in self.proto.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
        if len(products) != len(layers):
            raise RuntimeError(f"{len(products)} products of constants for {len(layers)} layers")
        self._names: dict[str, list[str]] = {}
        for k, (node, linear) in enumerate(zip(products, layers, strict=True)):
            node.name = f"product{k}"
            self._names.setdefault(linear.inputs[1], []).append(node.name)

    def excluded(self, kept: Kept) -> list[str]:
        """Nodes of the weights that stay float32."""
        return [node for weight in kept for node in self._names[weight]]

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
    library = _imported("onnxruntime.quantization", "pip install onnxruntime")
    graph = workload.once("plain graph", lambda: PlainGraph(workload))

    def quantized(kept: Kept, per_channel: bool, signed: bool) -> onnx.ModelProto:
        kind = library.QuantType.QInt8 if signed else library.QuantType.QUInt8
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "int8.onnx"
            options = {"per_channel": per_channel, "weight_type": kind, "nodes_to_exclude": graph.excluded(kept)}
            library.quantize_dynamic(graph.copy(), path, **options)
            return onnx.load(path)

    def variant() -> tuple[bool, bool]:
        choices = [(channel, signed) for channel in (True, False) for signed in (True, False)]
        return min(choices, key=lambda c: search_error(workload, session_run(quantized(frozenset(), *c))).value)

    chosen = workload.once("dynamic variant", variant)
    make = workload.once("dynamic maker", lambda: lambda kept: quantized(kept, *chosen))
    kept = _fewest(workload, make, session_run, tol)
    if kept is None:
        return NONE_LEFT
    how = f"one scale per {'channel' if chosen[0] else 'matrix'}, {'signed' if chosen[1] else 'unsigned'}"
    return _onnx_offer(workload, make(kept), f"{_kept_note(kept, workload)}; {how}", arithmetic="int8")


def onnxruntime_blocks(bits: int) -> Method:
    """`MatMulNBitsQuantizer`: weights in blocks of 32 with a scale each, products by ONNX Runtime's own kernels, in
    float arithmetic and in int8 arithmetic.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        library = _imported("onnxruntime.quantization.matmul_nbits_quantizer", GET_ONNX_IR)
        graph = workload.once("plain graph", lambda: PlainGraph(workload))

        def quantized(kept: Kept, level: int = 1) -> onnx.ModelProto:
            settings = {"bits": bits, "block_size": BLOCK, "is_symmetric": False, "accuracy_level": level}
            with quiet():
                quantizer = library.MatMulNBitsQuantizer(
                    graph.copy(), nodes_to_exclude=graph.excluded(kept), **settings
                )
                quantizer.process()
            return quantizer.model.model

        make = workload.once(("blocks maker", bits), lambda: quantized)
        kept = _fewest(workload, make, session_run, tol)
        if kept is None:
            return NONE_LEFT
        in_int8 = in_onnxruntime(make(kept, 4), "onnxruntime, int8 arithmetic")
        return _onnx_offer(workload, make(kept), f"{_kept_note(kept, workload)}; blocks of {BLOCK}", in_int8)

    return method


def tensor_nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor or of the tensors inside a subclass of it."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in (Tensor, nn.Parameter) or flatten is None:
        return tensor.numel() * tensor.element_size()
    inner, _ = flatten()
    return sum(tensor_nbytes(getattr(tensor, name)) for name in inner)


def module_nbytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    return sum(map(tensor_nbytes, {id(t): t for t in (*net.parameters(), *net.buffers())}.values()))


def torchao(config: str, decode: bool = False, **settings: Any) -> Method:
    """`quantize_` with the configuration of that name, run by torch and torch.compile. decode: weights are multiplied
    out to float32 when the network is loaded, and ONNX Runtime runs it: for weights only quantized the same numbers.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        library = _imported("torchao.quantization", GET_TORCHAO)

        def quantized(kept: Kept) -> nn.Module:
            net = module_of(workload.program)
            layers = {m for m in net.modules() if isinstance(m, nn.Linear) and m.weight_name not in kept}
            with quiet():
                library.quantize_(net, getattr(library, config)(**settings), filter_fn=lambda m, name: m in layers)
            return net

        make = workload.once((config, "maker"), lambda: quantized)
        try:
            with quiet():
                kept = _fewest(workload, make, run_of, tol)
        except ImportError as error:
            return Refusal(MISSING, f"torchao {config}: {error}")
        except (AssertionError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            return Refusal(FAILED, f"torchao {config}: {first_line(error)}")
        if kept is None:
            return NONE_LEFT
        net, note, work = make(kept), _kept_note(kept, workload), work_of(workload.program)
        if not decode:
            kind = "int8" if "Int8Dynamic" in config else "float8" if "Float8Dynamic" in config else "float32"
            return Offer(module_nbytes(net), (in_torch(net), compiled(net)), note, work, arithmetic=kind)
        layers = [m for m in net.modules() if isinstance(m, nn.Linear) and m.weight_name not in kept]
        weights = {str(m.weight_name): m.weight.dequantize().double() for m in layers}  # type: ignore[operator]
        proto = graph_of(workload.program.with_constants(weights), narrow=False)
        note += "; int8 as stored, decoded to float32 at loading"
        return Offer(module_nbytes(net), (in_onnxruntime(proto),), note, work, {"nodes": len(proto.graph.node)})

    return method


def _smaller(method: Method) -> Method:
    """The method, refused where scales and padding make its network no smaller than dense."""

    def checked(workload: Workload, tol: float) -> Offer | Refusal:
        offer = method(workload, tol)
        if isinstance(offer, Offer) and offer.nbytes >= workload.dense_nbytes:
            return Refusal(UNREACHABLE, f"nothing smaller than dense: {offer.nbytes:,} bytes, {offer.note}")
        return offer

    return checked


_METHODS: Mapping[str, Method] = {
    "onnxruntime int8 dynamic": onnxruntime_dynamic,
    "onnxruntime int8 blocks": onnxruntime_blocks(8),
    "onnxruntime int4 blocks": onnxruntime_blocks(4),
    "torchao int8 weights": torchao("Int8WeightOnlyConfig"),
    "torchao int8 decoded": torchao("Int8WeightOnlyConfig", decode=True),
    "torchao int8 dynamic": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao int4 weights": torchao("Int4WeightOnlyConfig"),
    "torchao fp8 weights": torchao("Float8WeightOnlyConfig"),
    "torchao fp8 dynamic": torchao("Float8DynamicActivationFloat8WeightConfig"),
}
QUANTIZERS: Mapping[str, Method] = {f"quantized, {name}": _smaller(method) for name, method in _METHODS.items()}
