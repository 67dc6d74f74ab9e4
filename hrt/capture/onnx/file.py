"""An ONNX file to a Program over the same op table; what is refused is tried again as torch captures it (`replayed`).

Every value is followed as an example of three rows, and of the first alone: a node that fixes the batch or mixes
samples is found where it stands. Constants are computed by onnx's reference. Casts between floating types are left out
of the Program, and count in what ONNX Runtime answers (onnx's reference where that is missing or refuses the graph).
A file may be a stranger's: what it makes of few bytes meets a budget before it is computed, by us or by a runtime.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from onnx.reference import ReferenceEvaluator

from hrt.capture.answers import ROWS, RuntimeAnswers
from hrt.capture.onnx.budgets import CALL_BYTES, FOLDED, RUNTIME_BYTES, WORK, check_expansion
from hrt.capture.onnx.builder import OnnxBuilder, TooMuchError
from hrt.capture.onnx.choices import COMPARED, LOGICAL, WHOLE, cast
from hrt.capture.onnx.operands import NodeError
from hrt.capture.onnx.operators import LOWERINGS
from hrt.capture.onnx.replayed import is_replayable, replayed
from hrt.errors import CaptureError, first_line, reason
from hrt.program.check_program import check_program
from hrt.program.program import Kind, Program, Value
from hrt.support.atomic_files import usable

OLDEST_OPSET = 11
SHARED = 4  # times that bytes beside the file may be read
ALIASES = {"Identity", "Dropout", "Cast"}
RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
NARROW: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, *NARROW}
KINDS: dict[int, Kind] = {**dict.fromkeys(FLOATS, "float"), **dict.fromkeys(WHOLE, "int"), TensorProto.BOOL: "bool"}

Opened = tuple[Program, RuntimeAnswers | None, Mapping[str, str]]


def read_onnx(path: str | os.PathLike[str]) -> Program:
    """The network in a `.onnx` file as a Program with float64 constants, inputs and outputs under their own names.

    Raises CaptureError for a file that is missing, malformed, older than opset 11 or asks for too much, or a node
    outside the op table.
    """
    return _read(path).result


def opened(path: str | os.PathLike[str]) -> Opened:
    """`read_onnx` of the file, what a runtime answers to it, None where none runs it, and its narrow types by node."""
    reader = _read(path)
    return reader.result, _answers(reader), reader.roundings


def _read(path: str | os.PathLike[str]) -> "_Reader":
    proto = _load(usable(path, CaptureError))
    try:
        reader = _Reader(proto)
        check_program(reader.result)
    except (CaptureError, MemoryError):
        raise
    except Exception as error:  # what the file holds is not what its types and shapes say
        raise CaptureError(f"{path} cannot be read as a network: {reason(error)}.") from error
    return reader


def _load(path: Path) -> onnx.ModelProto:
    _check_file(path)
    try:
        proto = onnx.load(os.fspath(path), load_external_data=False)
        check_expansion(proto)
        _check_beside([ExternalDataInfo(t) for t in _external(proto.graph)], path.parent)
        onnx.load_external_data_for_model(proto, os.fspath(path.parent))  # refuses names that leave the folder
        onnx.checker.check_model(proto)
    except CaptureError:
        raise
    except Exception as error:  # protobuf, the system and onnx each have their own
        raise CaptureError(f"{path} cannot be read as ONNX: {first_line(error)}") from error
    opset = _opset(proto)
    if opset < OLDEST_OPSET:
        raise CaptureError(
            f"{path} is of opset {opset}. Expected {OLDEST_OPSET} or newer (see onnx.version_converter)."
        )
    if proto.graph.sparse_initializer:
        raise CaptureError(f"{path} holds sparse initializers. Expected dense ones; write them out first.")
    try:
        return onnx.inliner.inline_local_functions(proto) if proto.functions else proto
    except Exception as error:  # as above
        raise CaptureError(f"{path} has functions that cannot be written out: {first_line(error)}") from error


def _opset(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _check_file(path: Path) -> None:
    """Raise CaptureError for what is there and no file: a pipe would be waited for, a device has no end."""
    if path.exists() and not path.is_file():
        raise CaptureError(f"{path} is a {'folder' if path.is_dir() else 'device'}. Expected a file.")


def _external(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The tensors whose numbers lie in other files."""
    attributes = [a for node in graph.node for a in node.attribute]
    tensors = [*graph.initializer, *(a.t for a in attributes), *(t for a in attributes for t in a.tensors)]
    yield from (t for t in tensors if t.data_location == TensorProto.EXTERNAL)
    for a in attributes:
        for inner in (a.g, *a.graphs):
            yield from _external(inner)


def _check_beside(places: Sequence[ExternalDataInfo], folder: Path) -> None:
    """Raise CaptureError where numbers lie in what is no file, or are the same bytes again and again."""
    sizes: dict[Path, int] = {}
    total = 0
    for place in places:
        _check_file(path := folder / place.location)
        sizes[path] = path.stat().st_size if path.exists() else 0
        total += min(place.length or sizes[path], sizes[path])
    if total > SHARED * sum(sizes.values()):
        raise CaptureError(f"It reads {total} bytes of files with {sum(sizes.values())}. Expected each about once.")


class _Reader:
    def __init__(self, proto: onnx.ModelProto):
        self.proto, self.graph = proto, proto.graph
        known = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        values = {n for node in self.graph.node for n in node.output} | {v.name for v in self.graph.input}
        self.builder = OnnxBuilder(known, values, _opset(proto))
        self.masks: set[str] = set()  # names of booleans
        self.alias: dict[str, str] = {}
        self.room = FOLDED + 2 * sum(v.size for v in known.values())  # numbers that constants may still become
        self.types: dict[str, np.dtype] = {}  # of the inputs
        self.roundings: dict[str, str] = {}  # types narrower than float32, by the nodes or inputs that have them
        self.nbytes = sum(v.nbytes for v in known.values())
        try:
            self.result = self._program()
        except TooMuchError:
            raise
        except CaptureError as refusal:
            if not self._is_sound():
                raise
            self.result = self._as_torch(refusal)

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """What the file is given; older files list their constants, too."""
        constants = {t.name for t in self.graph.initializer}
        return [v for v in self.graph.input if v.name not in constants]

    def _program(self) -> Program:
        for v in self.inputs:
            if v.type.tensor_type.elem_type not in FLOATS:
                raise CaptureError(f"Input {v.name!r} holds no floats.")
            self.builder.add_input(v.name, self._input(v).shape)
        for node in self.graph.node:
            self.builder.at = node
            try:
                self._node(node)
            except (CaptureError, MemoryError):
                raise
            except Exception as error:  # its inputs and attributes are not what the operator takes
                raise self.builder.fail(f"it cannot be read: {reason(error)}") from error
        outputs = tuple(self.alias.get(o.name, o.name) for o in self.graph.output)
        lost = [o for o in outputs if o not in self.builder.example]
        if lost or not outputs:
            raise CaptureError(f"The outputs {lost} do not depend on an input. Expected values that do.")
        b = self.builder
        return Program(tuple(b.inputs), tuple(b.nodes), outputs, dict(b.constants)).simplified()

    def _is_sound(self) -> bool:
        """Whether the file's shapes fit each other, and its outputs come from nodes: no other is tried again."""
        computed = {name for node in self.graph.node for name in node.output} - self.builder.known.keys()
        with suppress(Exception):  # onnx has an error of its own for every finding
            onnx.shape_inference.infer_shapes(self.proto, check_type=True, strict_mode=True, data_prop=True)
            return all(o.name in computed for o in self.graph.output)
        return False

    def _as_torch(self, refusal: CaptureError) -> Program:
        """The program by torch's own capture, for a file that was refused."""
        b, outside = self.builder, self.builder.at.op_type not in LOWERINGS
        self.roundings.clear()
        inputs = [self._input(v) for v in self.inputs]
        for node in self.graph.node:
            b.at = node
            if all(o in b.known for o in node.output):
                continue
            if node.op_type in RANDOM or (not (is_constant := self._is_constant(node)) and not is_replayable(node)):
                raise refusal
            if is_constant:
                self._fold(node)
            elif node.op_type == "Cast":
                self._rounded(node, onnx.helper.get_node_attr_value(node, "to"))
        try:
            program = replayed(self.graph, b.opset, b.known, inputs)
        except NodeError:
            raise
        except CaptureError as error:
            raise error if outside else refusal from None
        b.count(program)
        return program

    def _input(self, v: onnx.ValueInfoProto) -> Value:
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in v.type.tensor_type.shape.dim]
        if not dims or any(d < 0 for d in dims[1:]):
            raise CaptureError(f"Input {v.name!r} has the shape {dims} (-1: any). Expected a batch, then fixed ones.")
        kind = v.type.tensor_type.elem_type
        if kind not in KINDS:
            raise CaptureError(f"Input {v.name!r} is of type {TensorProto.DataType.Name(kind)}. Expected real numbers.")
        self.types[v.name] = onnx.helper.tensor_dtype_to_np_dtype(kind)
        if kind in NARROW:
            self.roundings[v.name] = NARROW[kind]
        return Value(v.name, tuple(dims[1:]), KINDS[kind])

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        return all(not n or n in self.builder.known for n in node.input)

    def _rounded(self, node: onnx.NodeProto, kind: int) -> None:
        if kind in NARROW:
            self.roundings[node.name or node.output[0]] = NARROW[kind]

    def _node(self, node: onnx.NodeProto) -> None:
        names = [self.alias.get(n, n) for n in node.input]
        if node.domain not in ("", "ai.onnx"):
            raise self.builder.fail(f"it is of the domain {node.domain!r}; expected an operator of ONNX itself")
        if node.op_type in RANDOM:
            raise self.builder.fail("it draws random numbers")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if self._is_constant(node):
            self._fold(node)
        elif node.op_type in ALIASES:
            self._passed(node, names, attributes)
        else:
            if node.op_type not in LOWERINGS:
                raise self.builder.fail("the op table has nothing for it; replace it, or ask for it")
            LOWERINGS[node.op_type](self.builder, names, attributes)
            self.masks |= {*node.output} if node.op_type in {*COMPARED, *LOGICAL} else set()

    def _passed(self, node: onnx.NodeProto, names: Sequence[str], attributes: dict[str, Any]) -> None:
        if node.op_type == "Cast" and attributes["to"] not in FLOATS and names[0] not in self.masks:
            self.masks |= {node.output[0]} if attributes["to"] == TensorProto.BOOL else set()
            cast(self.builder, names, attributes["to"])
            return
        if node.op_type == "Dropout" and len(names) > 2 and names[2]:
            training = self.builder.known.get(names[2])
            if training is None or bool(training.any()):
                raise self.builder.fail("it is in training mode, and so drops values at random")
        if node.op_type == "Cast":
            self._rounded(node, attributes["to"])
        self.alias[node.output[0]] = names[0]

    def _fold(self, node: onnx.NodeProto) -> None:
        if node.op_type not in WORK:
            raise self.builder.fail("it works on constants alone, and is none of the operators that are computed here")
        self.room -= WORK[node.op_type]([self.builder.known[n] for n in node.input if n])
        if self.room < 0:
            raise self.builder.fail(
                "its constants take more numbers than a file of this size may ask for", TooMuchError
            )
        feed = {n: self.builder.known[n] for n in node.input if n}
        types = {n: onnx.helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in feed.items()}
        inputs = [onnx.helper.make_tensor_value_info(n, types[n], v.shape) for n, v in feed.items()]
        outputs = [onnx.helper.make_empty_tensor_value_info(o) for o in node.output]
        graph = onnx.helper.make_graph([node], "folded", inputs, outputs)
        proto = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
        try:
            results: Any = ReferenceEvaluator(proto).run(None, feed)
        except Exception as error:  # of whatever kind an operator's reference raises
            raise self.builder.fail(f"its constants cannot be worked out: {first_line(error)}") from error
        self.builder.known |= {o: np.asarray(v) for o, v in zip(node.output, results, strict=True)}


def _answers(reader: _Reader) -> RuntimeAnswers | None:
    """By the first runtime that answers two rows; None where none does. Only graphs that met the budgets come here."""
    proto, shapes = reader.proto, [v.shape for v in reader.result.inputs]
    del proto.graph.value_info[:]
    for v in (*proto.graph.input, *proto.graph.output):  # a file written for one batch size is read for any
        if v.name in reader.types:
            v.type.tensor_type.shape.dim[0].dim_param = "batch"
        else:
            v.type.tensor_type.ClearField("shape")
    at_once = min(ROWS, reader.builder.rows_within(CALL_BYTES))
    runtimes = [_by_onnxruntime] if find_spec("onnxruntime") and reader.nbytes <= RUNTIME_BYTES else []
    for runtime in (*runtimes, _by_reference):
        with suppress(Exception):  # an operator, a type or a graph that it does not take, said in its own way
            run, name = runtime(proto)
            answers = RuntimeAnswers(run, reader.types, name, at_once)
            answers.outputs([torch.zeros(min(2, at_once), *shape) for shape in shapes])
            return answers
    return None


Run = Callable[[Mapping[str, np.ndarray]], Any]


def _by_onnxruntime(proto: onnx.ModelProto) -> tuple[Run, str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say comes as an exception
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, dict(given)), f"onnxruntime {onnxruntime.__version__}"


def _by_reference(proto: onnx.ModelProto) -> tuple[Run, str]:
    evaluator = ReferenceEvaluator(proto)

    def run(given: Mapping[str, np.ndarray]) -> Any:
        with np.errstate(all="ignore"):
            return evaluator.run(None, dict(given))

    return run, f"onnx.reference {onnx.__version__}"
