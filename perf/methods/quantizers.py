"""Quantized networks by the libraries' own quantizers: ONNX Runtime's dynamic int8 and blockwise weights, and torchao.

The knob is which layers stay float32: those that do most harm, as few as the error allows. int4 and fp8 are tried like
the others; where a library refuses on this machine, the row says in the library's words what it needs.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper
from torch import Tensor, nn

from hrt.calibration.output_error import OutputError
from hrt.export.onnx.exporter import graph_of
from hrt.perf.measuring.results import FAILED, MISSING, UNREACHABLE
from hrt.perf.methods.matched_error import Offer, Refusal, Run, fewest_kept, search_error
from hrt.perf.methods.runtimes import compiled, in_onnxruntime, in_torch, quiet, run_of, session_run
from hrt.perf.networks.as_torch_module import module_of
from hrt.perf.networks.registry import MissingError, Workload

GET_TORCHAO = "pip install --no-deps torchao"
GET_ONNX_IR = "pip install onnx-ir"  # what ONNX Runtime's blockwise quantizer imports
BLOCK = 32  # numbers that share a scale; the smallest that is allowed by all bit widths, so the most accurate
EVERYTHING_KEPT = "not even with all layers but one in float32"

Method = Callable[[Workload, float], Offer | Refusal]
Kept = frozenset[str]  # names of weights that stay float32


def _imported(module: str, command: str) -> Any:
    """A library that may be missing. Raises MissingError with the command that installs it."""
    try:
        with quiet():
            return import_module(module)
    except ImportError as error:
        raise MissingError(f"{error}; get it with: {command}") from error


def _searched(workload: Workload, make: Callable[[Kept], Any], run: Callable[[Any], Run], tol: float) -> Any:
    """(what was made, kept) with the fewest layers kept, or None. Errors of settings are shared between tolerances."""
    errors: dict[Kept, OutputError] = workload.once(("errors", make), dict)

    def error(kept: Kept) -> OutputError:
        if kept not in errors:
            errors[kept] = search_error(workload, run(make(kept)))
        return errors[kept]

    kept = fewest_kept(list(workload.program.weights), error, tol)
    return None if kept is None else (make(kept), kept)


def _kept_note(kept: Kept, workload: Workload) -> str:
    total = len(workload.program.weights)
    return "all layers quantized" if not kept else f"{len(kept)} of {total} layers kept in float32"


# ONNX Runtime ------------------------------------------------------------------------------------------------------


def _plain_graph(workload: Workload) -> tuple[onnx.ModelProto, dict[str, list[str]]]:
    """The network with MatMul nodes that are named, and their names by weight."""
    quantizer = _imported("onnxruntime.quantization.onnx_model", "pip install onnxruntime")
    model = quantizer.ONNXModel(graph_of(workload.program))
    model.replace_gemm_with_matmul()
    proto = model.model
    constants = {t.name for t in proto.graph.initializer}
    products = [n for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
    names: dict[str, list[str]] = {}
    if len(products) != len(workload.program.linear_nodes):
        raise RuntimeError(f"{len(products)} products of constants for {len(workload.program.linear_nodes)} layers")
    for k, (node, linear) in enumerate(zip(products, workload.program.linear_nodes, strict=True)):
        node.name = f"product{k}"
        names.setdefault(linear.inputs[1], []).append(node.name)
    return proto, names


def _excluded(names: Mapping[str, list[str]], kept: Kept) -> list[str]:
    return [node for weight in kept for node in names[weight]]


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    return found


def _onnx_nbytes(proto: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)


def onnxruntime_dynamic(workload: Workload, tol: float) -> Offer | Refusal:
    """`quantize_dynamic`: int8 weights, activations quantized as they come; one scale per channel or per matrix,
    signed or not, whichever has the least error with all layers quantized.
    """
    library = _imported("onnxruntime.quantization", "pip install onnxruntime")
    proto, names = workload.once("plain graph", lambda: _plain_graph(workload))

    def quantized(kept: Kept, per_channel: bool, signed: bool) -> onnx.ModelProto:
        kind = library.QuantType.QInt8 if signed else library.QuantType.QUInt8
        with tempfile.TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "int8.onnx"
            options = {"per_channel": per_channel, "weight_type": kind, "nodes_to_exclude": _excluded(names, kept)}
            library.quantize_dynamic(_copy(proto), path, **options)
            return onnx.load(path)

    def variant() -> tuple[bool, bool]:
        choices = [(channel, signed) for channel in (True, False) for signed in (True, False)]
        errors = {c: search_error(workload, session_run(quantized(frozenset(), *c))).value for c in choices}
        return min(errors, key=lambda c: errors[c])

    chosen = workload.once("dynamic variant", variant)
    make = workload.once("dynamic maker", lambda: lambda kept: quantized(kept, *chosen))
    found = _searched(workload, make, session_run, tol)
    if found is None:
        return Refusal(UNREACHABLE, EVERYTHING_KEPT)
    how = f"one scale per {'channel' if chosen[0] else 'matrix'}, {'signed' if chosen[1] else 'unsigned'}"
    note = f"{_kept_note(found[1], workload)}; {how}"
    facts = {"nodes": len(found[0].graph.node)}
    return Offer(_onnx_nbytes(found[0]), (in_onnxruntime(found[0]),), note, _work(workload), facts, "int8")


def onnxruntime_blocks(bits: int) -> Method:
    """`MatMulNBitsQuantizer`: weights in blocks of 32 with a scale each, products by ONNX Runtime's own kernels, in
    float arithmetic and in int8 arithmetic.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        library = _imported("onnxruntime.quantization.matmul_nbits_quantizer", GET_ONNX_IR)
        proto, names = workload.once("plain graph", lambda: _plain_graph(workload))

        def make(kept: Kept, level: int = 1) -> onnx.ModelProto:
            with quiet():
                settings = {"bits": bits, "block_size": BLOCK, "is_symmetric": False, "accuracy_level": level}
                quantizer = library.MatMulNBitsQuantizer(
                    _copy(proto), nodes_to_exclude=_excluded(names, kept), **settings
                )
                quantizer.process()
            return quantizer.model.model

        shared = workload.once(("blocks maker", bits), lambda: make)
        found = _searched(workload, shared, session_run, tol)
        if found is None:
            return Refusal(UNREACHABLE, EVERYTHING_KEPT)
        ways = (
            in_onnxruntime(found[0]),
            in_onnxruntime(shared(found[1], 4), "onnxruntime, int8 arithmetic"),
        )
        note = f"{_kept_note(found[1], workload)}; blocks of {BLOCK}"
        return Offer(_onnx_nbytes(found[0]), ways, note, _work(workload), {"nodes": len(found[0].graph.node)})

    return method


# torchao -----------------------------------------------------------------------------------------------------------


def _quantized_module(workload: Workload, config: Any, kept: Kept) -> nn.Module:
    library = _imported("torchao.quantization", GET_TORCHAO)
    net = module_of(workload.program)

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.weight_name not in kept

    with quiet():
        library.quantize_(net, config, filter_fn=chosen)
    return net


def tensor_nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor or of the tensors inside a subclass of it."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in (Tensor, nn.Parameter) or flatten is None:
        return tensor.numel() * tensor.element_size()
    inner, _ = flatten()
    return sum(tensor_nbytes(getattr(tensor, name)) for name in inner)


def module_nbytes(net: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    tensors: Iterable[Tensor] = {id(t): t for t in (*net.parameters(), *net.buffers())}.values()
    return sum(map(tensor_nbytes, tensors))


def torchao(config: str, decode: bool = False, **settings: Any) -> Method:
    """`quantize_` with the configuration of that name, run by torch and torch.compile. decode: weights are multiplied
    out to float32 when the network is loaded, and ONNX Runtime runs it: for weights only quantized the same numbers.
    """

    def method(workload: Workload, tol: float) -> Offer | Refusal:
        library = _imported("torchao.quantization", GET_TORCHAO)
        make = workload.once(
            (config, "maker"),
            lambda: lambda kept: _quantized_module(workload, getattr(library, config)(**settings), kept),
        )
        try:
            with quiet():
                found = _searched(workload, make, run_of, tol)
        except ImportError as error:
            return Refusal(MISSING, f"torchao {config}: {error}")
        except (AssertionError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            return Refusal(FAILED, f"torchao {config}: {(str(error).strip().splitlines() or [''])[0]}")
        if found is None:
            return Refusal(UNREACHABLE, EVERYTHING_KEPT)
        net, kept = found
        nbytes, note = module_nbytes(net), _kept_note(kept, workload)
        if not decode:
            kind = "int8" if "Int8Dynamic" in config else "float8" if "Float8Dynamic" in config else "float32"
            return Offer(nbytes, (in_torch(net), compiled(net)), note, _work(workload), arithmetic=kind)
        weights: dict[str, Tensor] = {}
        for layer in net.modules():
            if isinstance(layer, nn.Linear) and layer.weight_name not in kept:
                weights[str(layer.weight_name)] = layer.weight.dequantize().double()  # type: ignore[operator]
        proto = graph_of(workload.program.with_constants(weights), narrow=False)
        note += "; int8 as stored, decoded to float32 at loading"
        return Offer(nbytes, (in_onnxruntime(proto),), note, _work(workload), {"nodes": len(proto.graph.node)})

    return method


def _work(workload: Workload) -> int:
    shapes = [workload.program.constants[n.inputs[1]].shape for n in workload.program.linear_nodes]
    return sum(m * n for m, n in shapes)


def _smaller(method: Method) -> Method:
    """The method, refused where scales and padding make its network no smaller than dense."""

    def checked(workload: Workload, tol: float) -> Offer | Refusal:
        found = method(workload, tol)
        if isinstance(found, Offer) and found.nbytes >= workload.dense_nbytes:
            return Refusal(UNREACHABLE, f"nothing smaller than dense: {found.nbytes:,} bytes, {found.note}")
        return found

    return checked


_METHODS: Mapping[str, Method] = {
    "quantized, onnxruntime int8 dynamic": onnxruntime_dynamic,
    "quantized, onnxruntime int8 blocks": onnxruntime_blocks(8),
    "quantized, onnxruntime int4 blocks": onnxruntime_blocks(4),
    "quantized, torchao int8 weights": torchao("Int8WeightOnlyConfig"),
    "quantized, torchao int8 decoded": torchao("Int8WeightOnlyConfig", decode=True),
    "quantized, torchao int8 dynamic": torchao("Int8DynamicActivationInt8WeightConfig"),
    "quantized, torchao int4 weights": torchao("Int4WeightOnlyConfig"),
    "quantized, torchao fp8 weights": torchao("Float8WeightOnlyConfig"),
    "quantized, torchao fp8 dynamic": torchao("Float8DynamicActivationFloat8WeightConfig"),
}
QUANTIZERS: Mapping[str, Method] = {name: _smaller(method) for name, method in _METHODS.items()}
