"""From an exported graph to a Program: every ATen call said in the closed op table, constants folded in float64.

A graph may call whatever its author wrote. Only functional ATen operators are ever carried out, and on constants alone.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind, OutputKind

from hrt.capture.aten import COMPLEX, LOWERINGS, depends, is_complex, lower_complex
from hrt.capture.builder import ALONG_THE_BATCH, Builder, Ref, module_path, schema_name
from hrt.capture.carrying import carried
from hrt.capture.compositions import LARGEST
from hrt.capture.tracing.remedies import remedy
from hrt.capture.weights import check_numbers
from hrt.errors import CaptureError, HrtError
from hrt.program.program import Program, Value, carried_nbytes

RETURNED = (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
PLACEMENT = {"dtype", "device", "layout", "pin_memory", "memory_format", "copy", "non_blocking", "implicit"}
# Calls of a graph inside the graph that change no number but by rounding: the place of that graph among the arguments.
REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
FOLDED = 1 << 27  # numbers that all constants together may become: a gigabyte
READS_NUMBER = ("item", "_local_scalar_dense")
NUMERIC = ("_operator", "math")  # of functions that are carried out on plain numbers
MASKING = ("masked_fill", "where")  # they put infinities where nothing is to be seen
READS_FILES = "from_file"  # the one functional ATen operator that touches more than its arguments


class _OutsideError(CaptureError):
    """An operator without a lowering; it may still have a decomposition into operators that have one."""


def program_of(exported: torch.export.ExportedProgram, carries: bool = False) -> Program:
    """The Program of an exported graph, its constants in float64 and its own. carries: what has no row of the op table
    becomes a part of its own (`hrt.program.carried`), where the rest is captured.
    """
    if carries:
        with suppress(CaptureError):
            return program_of(exported)
    advice = "" if exported.dialect == "TRAINING" else " Do not call run_decompositions before: it splits operators."
    try:
        return _Walk(exported, advice, carries).program()
    except CaptureError as error:
        first = error  # it names what the user wrote
    try:
        return _Walk(_decomposed(exported), advice, carries).program()
    except _OutsideError:
        reason = first
    except CaptureError as error:
        reason = error if isinstance(first, _OutsideError) else first  # any reason is better than an operator's name
    except Exception:  # torch's passes have limits of their own
        reason = first
    raise CaptureError(str(reason)) from None


def carriable(exported: torch.export.ExportedProgram) -> list[str]:
    """What of a graph could be carried along, so that the rest is captured; nothing where that would not do."""
    try:
        return list(carried_nbytes(_Walk(exported, "", carries=True).program()))
    except HrtError:
        return []


def roundings(exported: torch.export.ExportedProgram) -> dict[str, str]:
    """Where a network computes in less than float32: the type by the path of the module, "" for the network itself."""
    places: dict[str, str] = {}
    for graph in _graphs(exported.graph_module):
        for node in graph.nodes:
            fakes = _flatten([node.meta.get("val")]) if node.op == "call_function" else []
            for dtype in (f.dtype for f in fakes if isinstance(f, Tensor)):
                if dtype.is_floating_point and dtype.itemsize < torch.float32.itemsize:
                    places.setdefault(module_path(node), str(dtype).removeprefix("torch."))
    return places


class _Walk(Builder):
    """Walks a graph once. Values are a Ref, a constant (floats in float64), plain Python, or None: the batch size."""

    def __init__(self, exported: torch.export.ExportedProgram, advice: str, carries: bool = False):
        super().__init__(advice)
        self.exported, self.carries = exported, carries
        self.tied: dict[tuple, Tensor] = {}
        self.values: dict[Any, Any] = {}
        self.room = FOLDED + 4 * sum(t.numel() for t in exported.state_dict.values())

    def program(self) -> Program:
        signature = self.exported.graph_signature
        if any(s.kind == InputKind.TOKEN for s in signature.input_specs):
            raise _OutsideError("it has effects beside its results")
        state = {s.arg.name: s.target for s in signature.input_specs if s.target is not None}
        outputs: list[Ref] = []
        for node in self.exported.graph.nodes:
            self.current = node
            if node.op == "placeholder":
                self.values[node] = self._state(state[node.name]) if node.name in state else self._input(node)
            elif node.op in ("call_function", "get_attr"):
                self.values[node] = self._value(node)
            elif node.op == "output":
                specs = list(zip(node.args[0], signature.output_specs, strict=True))
                changed = [spec.target for _, spec in specs if spec.kind not in RETURNED]
                if changed:
                    raise CaptureError(f"The network changes its own {changed} when it runs. Expected no memory.")
                outputs = [self._output(v) for v, spec in specs if spec.kind == OutputKind.USER_OUTPUT]
        constants = {k: c.clone(memory_format=torch.contiguous_format) for k, c in self.constants.items()}
        names = tuple(r.name for r in outputs)
        return Program(tuple(self.inputs), tuple(self.nodes), names, constants, dict(self.generated)).simplified()

    def _value(self, node: Any) -> Any:
        """What a call gives, or the graph or tensor that a node names."""
        if node.op == "call_function":
            return self._call(node)
        attribute = attrgetter(node.target)(node.graph.owning_module)
        return attribute if isinstance(attribute, torch.fx.GraphModule) else self._state(node.target, attribute)

    def _region(self, graph: Any, arguments: Sequence[Any]) -> list[Any]:
        """The results of a graph inside the graph, as if it stood in the place of its call."""
        if not isinstance(graph, torch.fx.GraphModule):
            raise self.fail("the graph that it calls is not in the network", _OutsideError)
        given, results = iter(arguments), []
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = next(given)
                continue
            self.current = node
            if node.op == "output":
                results = [self._read(v) for v in node.args[0]]
            else:
                self.values[node] = self._value(node)
        return results

    def _state(self, target: str, tensor: Any = None) -> Tensor:
        """A parameter, a buffer or a tensor of the network, whole numbers and masks as they are."""
        if tensor is None:
            tensor = self.exported.state_dict.get(target, self.exported.constants.get(target))
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{target!r} is a {type(tensor).__name__}. Expected networks of tensors only.")
        check_numbers(target, tensor, masks=target not in self.exported.graph_signature.parameters)
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and same in self.tied:
            return self.tied[same]
        value = tensor.detach().to("cpu", widest(tensor.dtype))
        if value.is_floating_point() and bool(torch.isinf(value).any()):
            value = value.clamp(-LARGEST, LARGEST)
        value = value.view_as(value)  # its own object, also where nothing was converted
        self.names[id(value)] = (value, target)
        self.tied[same] = value
        return value

    def _input(self, node: Any) -> Any:
        fake = node.meta["val"]
        if not isinstance(fake, Tensor):
            return fake  # an option that was given at export
        if fake.ndim < 1 or fake.is_complex():
            raise CaptureError(
                f"Input {node.name!r} is {fake.dtype} with {fake.ndim} dimensions. Expected real numbers, (batch, ...)."
            )
        batch = str(fake.shape[0])
        if isinstance(fake.shape[0], int):
            raise CaptureError(
                f"Input {node.name!r} was exported with a fixed batch of {batch}. "
                "Export with dynamic_shapes, dimension 0 of every input one torch.export.Dim('batch')."
            )
        if self.batch not in (None, batch) or not all(isinstance(n, int) for n in fake.shape[1:]):
            raise CaptureError(
                f"Input {node.name!r} was exported with the shape {tuple(fake.shape)}. Expected one "
                "torch.export.Dim('batch') as dimension 0 of every input, and all other dimensions fixed."
            )
        self.batch = batch
        kind = "bool" if fake.dtype == torch.bool else "float" if fake.is_floating_point() else "int"
        self.inputs.append(Value(node.name, self.sample_shape(fake), kind))
        return Ref(node.name, self.inputs[-1].shape)

    def _call(self, node: Any) -> Any:
        name = schema_name(node.target)
        fakes = _flatten([node.meta.get("val")])
        if "_assert" in name:
            return None
        arguments = [self._read(a) for a in node.args]
        if any(isinstance(f, (torch.SymInt, torch.SymFloat, torch.SymBool)) for f in fakes):
            return self._number(name, node.target, arguments)
        if name == "getitem":
            return arguments[0][arguments[1]]
        if name in REGIONS:
            return self._region(arguments[REGIONS[name]], arguments[REGIONS[name] + 1 :])
        keywords = {k: self._read(v) for k, v in node.kwargs.items()}
        schema = getattr(node.target, "_schema", None)
        if name == "detach_":
            return arguments[0]
        # Never carried out, not even on constants: they may be the user's.
        if schema is not None and schema.is_mutable:
            raise self.fail("it works in place", _OutsideError)
        dynamic = any(isinstance(f, Tensor) and not all(isinstance(n, int) for n in f.shape) for f in fakes)
        given = _flatten([*arguments, *keywords.values()])
        if not dynamic and not any(map(depends, given)):
            return self._fold(node, arguments, keywords)
        if torch.Tag.nondeterministic_seeded in node.target.tags and name not in LOWERINGS:
            raise self.fail("it draws random numbers; draw them outside, and give them as an input")
        try:
            return self._lowered(node, arguments, keywords)
        except CaptureError as refusal:
            if not self.carries or ALONG_THE_BATCH in str(refusal):
                raise
            return carried(self, node, self.values, refusal)

    def _lowered(self, node: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """A call said in the op table."""
        name, fakes = schema_name(node.target), _flatten([node.meta.get("val")])
        if is_complex(_flatten([*arguments, *keywords.values(), *fakes])):
            keywords = {k: v for k, v in keywords.items() if k not in PLACEMENT}
            try:
                return self.placed(lower_complex(self, name, arguments, keywords), node.meta["val"])
            except (TypeError, AttributeError, IndexError, KeyError) as error:
                raise self.fail(f"these arguments are not supported ({error})") from error
        if name not in LOWERINGS:
            raise self.fail(f"it is outside the op table{remedy(name, LOWERINGS)}", _OutsideError)
        keywords = {k: v for k, v in keywords.items() if k not in PLACEMENT}
        self.operands = [a for a in _flatten([*arguments, *keywords.values()]) if isinstance(a, Ref)]
        if torch.Tag.pointwise in node.target.tags:
            operands = self.aligned([*arguments, *keywords.values()], fakes[0].ndim, self.batch_place(fakes[0])[0])
            arguments, keywords = (
                operands[: len(arguments)],
                dict(zip(keywords, operands[len(arguments) :], strict=True)),
            )
        try:
            value = LOWERINGS[name](self, *arguments, **keywords)
        except (TypeError, AttributeError, IndexError, KeyError) as error:
            raise self.fail(f"these arguments are not supported ({error})") from error
        return self.placed(value, node.meta["val"])

    def _number(self, name: str, target: Any, arguments: Sequence[Any]) -> Any:
        """What a Python number in the graph is; None where the batch size is in it."""
        if name in READS_NUMBER:
            if not isinstance(arguments[0], Tensor):
                raise self.fail("it makes a Python number of a value that depends on the input; keep it a tensor")
            return arguments[0].item()
        plain = bool(arguments) and all(isinstance(a, (int, float)) for a in arguments)
        return target(*arguments) if plain and target.__module__ in NUMERIC else None

    def _fold(self, node: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Evaluate what does not depend on the input, in float64."""
        if getattr(node.target, "namespace", "") != "aten" or schema_name(node.target) == READS_FILES:
            raise self.fail("it is no operator of ATen, and nothing else is carried out here", _OutsideError)
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise self.fail("it draws random numbers")
        self._check_room(node, arguments, keywords)
        try:
            value = node.target(*arguments, **keywords)
        except Exception as error:
            raise self.fail(f"its constant value cannot be computed ({error})") from error
        if isinstance(value, Tensor):
            value = value.to(widest(value.dtype))
            if schema_name(node.target) in MASKING and value.is_floating_point():
                value = value.clamp(-LARGEST, LARGEST)
            sources = [self.names[id(a)] for a in _flatten(arguments) if id(a) in self.names]
            if len({name for _, name in sources}) == 1:
                self.named(value, "", sources[0][0])
        return value

    def _check_room(self, node: Any, arguments: list[Any], keywords: dict[str, Any]) -> None:
        """Raise CaptureError where a constant is too large. It is asked of tensors without numbers: what a stranger's
        file says of the shape need not be true.
        """
        places = {a.name: torch.device("meta") for a in node.target._schema.arguments if a.name == "device"}
        try:
            values = node.target(*_on_meta(arguments), **{k: _on_meta(v) for k, v in keywords.items()} | places)
        except Exception:  # it depends on numbers, and makes no more than there are; or it fails, and says so later
            return
        self.room -= sum(v.numel() for v in _flatten([values]) if isinstance(v, Tensor))
        if self.room < 0:
            raise self.fail(f"its constants take more than {FOLDED} numbers, and four times those of the network")

    def _read(self, argument: Any) -> Any:
        """A node's argument as its value; constants live on the CPU, in float64 where they are floats."""
        if isinstance(argument, (list, tuple)):
            return [self._read(a) for a in argument]
        if isinstance(argument, torch.dtype):
            return widest(argument)
        if isinstance(argument, torch.device):
            return torch.device("cpu")
        return self.values[argument] if isinstance(argument, torch.fx.Node) else argument

    def _output(self, node: Any) -> Ref:
        value = self._read(node)
        if is_complex([value]):
            raise CaptureError(f"Output {node} of the network is complex. Return torch.view_as_real(y), or y.real.")
        if not isinstance(value, Ref):
            raise CaptureError(f"Output {node} of the network does not depend on its input.")
        if value.axis or value.before or value.after:
            shape = tuple(node.meta["val"].shape)
            remedy = f"y.transpose(0, {value.axis})" if value.axis else "y.reshape(x.shape[0], ...)"
            raise CaptureError(
                f"Output {node} of the network has shape {shape}. Expected the batch as dimension 0: return {remedy}."
            )
        return value


def widest(dtype: torch.dtype) -> torch.dtype:
    """In which constants are computed: 64 bits a real number."""
    return torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype


def _on_meta(value: Any) -> Any:
    """Tensors, also in lists, without their numbers, and their place with them."""
    if isinstance(value, (list, tuple)):
        return [_on_meta(v) for v in value]
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.to("meta") if isinstance(value, Tensor) else value


def _flatten(values: Sequence[Any]) -> list[Any]:
    out: list[Any] = []
    for v in values:
        out += _flatten(v) if isinstance(v, (list, tuple)) else [v]
    return out


def _graphs(module: torch.nn.Module) -> Iterator[torch.fx.Graph]:
    """The graph of an exported network and the graphs inside it."""
    return (m.graph for m in module.modules() if isinstance(m, torch.fx.GraphModule))


def _decomposed(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program without operations in place, operators without a lowering replaced by simpler ones."""
    table = torch.export.default_decompositions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exported.run_decompositions(
            {op: f for op, f in table.items() if schema_name(op) not in {*LOWERINGS, *COMPLEX}}
        )
