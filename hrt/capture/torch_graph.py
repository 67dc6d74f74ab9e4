"""From an exported graph to a Program: every ATen call said in the closed op table, constants folded in float64."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import OutputKind

from hrt.capture.aten import LOWERINGS
from hrt.capture.builder import Ref
from hrt.capture.weights import check_numbers
from hrt.errors import CaptureError, InputError
from hrt.program.names import unique_name
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value

RETURNED = (OutputKind.USER_OUTPUT, OutputKind.USER_INPUT_MUTATION)
PLACEMENT = {"dtype", "device", "layout", "pin_memory", "memory_format", "copy", "non_blocking", "implicit"}


class _OutsideError(CaptureError):
    """An operator without a lowering; it may still have a decomposition into operators that have one."""


def program_of(exported: torch.export.ExportedProgram) -> Program:
    """The Program of an exported graph, its constants in float64 and its own."""
    advice = "" if exported.dialect == "TRAINING" else " Do not call run_decompositions before: it splits operators."
    try:
        return _Walk(exported, advice).program()
    except _OutsideError as outside:
        try:
            simpler = _decomposed(exported)
        except Exception:  # torch's passes have limits of their own
            raise outside from None
        try:
            return _Walk(simpler, advice).program()
        except _OutsideError:
            raise outside from None  # it names what the user wrote; any other reason is better than this one


class _Walk:
    """Walks an exported graph once. Values are a Ref (depends on the input), a constant (floats in float64), plain
    Python, or None for a number that depends on the batch size.
    """

    def __init__(self, exported: torch.export.ExportedProgram, advice: str):
        self.exported = exported
        self.advice = advice  # ends the complaints
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.constants: dict[str, Tensor] = {}
        self.names: dict[int, tuple[Tensor, str]] = {}  # by id, which the tensor kept beside it holds
        self.roles: dict[int, tuple[Tensor, str]] = {}  # the same for constants that were computed
        self.tied: dict[tuple, Tensor] = {}
        self.values: dict[Any, Any] = {}
        self.current: Any = None
        self.batch: str | None = None

    def program(self) -> Program:
        """Lower every node, drop what no output needs, check the numbers."""
        signature = self.exported.graph_signature
        state = {s.arg.name: s.target for s in signature.input_specs if s.target is not None}
        outputs: list[Ref] = []
        for node in self.exported.graph.nodes:
            self.current = node
            if node.op == "placeholder":
                self.values[node] = self._state(state[node.name]) if node.name in state else self._input(node)
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                specs = list(zip(node.args[0], signature.output_specs, strict=True))
                changed = [spec.target for _, spec in specs if spec.kind not in RETURNED]
                if changed:
                    raise CaptureError(f"The network changes its own {changed} when it runs. Expected no memory.")
                outputs = [self._output(v) for v, spec in specs if spec.kind == OutputKind.USER_OUTPUT]
        constants = {k: c.clone(memory_format=torch.contiguous_format) for k, c in self.constants.items()}
        return Program(tuple(self.inputs), tuple(self.nodes), tuple(r.name for r in outputs), constants).simplified()

    # what lowerings may ask for ------------------------------------------------------------------------------------

    def emit(self, op: str, inputs: Sequence[Any], shape: Sequence[int], /, **attrs: Any) -> Ref:
        """Append a node; plain numbers and tensors among its inputs become constants."""
        names = tuple(x.name if isinstance(x, Ref) else self._constant(x) for x in inputs)
        attrs = {k: self._plain(v) for k, v in attrs.items()}
        taken = {*self.constants, *(v.name for v in self.inputs)}
        name = unique_name(f"{self.current.name}_{len(self.nodes)}", taken)
        self.nodes.append(Node(name, op, names, tuple(shape), attrs, _module_path(self.current)))
        return Ref(name, tuple(shape))

    def named(self, constant: Tensor, role: str, source: Tensor | None = None) -> Tensor:
        """Give a constant the name of the one it was computed from, or that of its role in the current module."""
        if id(constant) not in self.names:
            if id(source) in self.names:
                self.names[id(constant)] = (constant, self.names[id(source)][1])
            else:
                self.roles.setdefault(id(constant), (constant, f"{_module_path(self.current)}.{role}".lstrip(".")))
        return constant

    def result_shape(self) -> tuple[int, ...]:
        """Per-sample shape of the current node, from export's own shape inference."""
        return self._sample_shape(self.current.meta["val"])

    def static_shape(self) -> tuple[int, ...] | None:
        """The whole shape of the current node where it has no batch."""
        shape = self.current.meta["val"].shape
        return tuple(shape) if all(isinstance(n, int) for n in shape) else None

    def batch_ref(self) -> Ref:
        """Some value that has the batch dimension."""
        return Ref(self.inputs[0].name, self.inputs[0].shape)

    def fail(self, why: str) -> CaptureError:
        """The error for the current node."""
        return CaptureError(self._complaint(why))

    # ----------------------------------------------------------------------------------------------------------------

    def _complaint(self, why: str) -> str:
        return (
            f"Op {_op_name(self.current)} in {_place(self.current)} cannot be captured: {why}. "
            f"Rewrite it with ops of the table ({', '.join(TABLE)}), or keep that part outside the compressed network."
            f"{self.advice}"
        )

    def _state(self, target: str) -> Tensor:
        """A parameter, a buffer or a tensor of the network, whole numbers and masks as they are."""
        tensor = self.exported.state_dict.get(target, self.exported.constants.get(target))
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"{target!r} is a {type(tensor).__name__}. Expected networks of tensors only.")
        check_numbers(target, tensor)
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and same in self.tied:
            return self.tied[same]
        value = tensor.detach().to("cpu", torch.float64 if tensor.is_floating_point() else tensor.dtype)
        value = value.view_as(value)  # its own object, also where nothing was converted
        self.names[id(value)] = (value, target)
        self.tied[same] = value
        return value

    def _input(self, node: Any) -> Any:
        fake = node.meta["val"]
        if not isinstance(fake, Tensor):
            return fake  # an option that was given at export
        if fake.ndim < 1 or not fake.is_floating_point():
            raise CaptureError(
                f"Input {node.name!r} is {fake.dtype} with {fake.ndim} dimensions. Expected floats, (batch, ...)."
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
        self.inputs.append(Value(node.name, self._sample_shape(fake)))
        return Ref(node.name, self.inputs[-1].shape)

    def _sample_shape(self, fake: Any) -> tuple[int, ...]:
        if fake.ndim == 0 or str(fake.shape[0]) != self.batch:
            raise self.fail(f"its result has shape {tuple(fake.shape)}, without the batch as dimension 0")
        if not all(isinstance(s, int) for s in fake.shape[1:]):
            raise self.fail(f"its result has shape {tuple(fake.shape)}; only dimension 0 may vary")
        return tuple(int(s) for s in fake.shape[1:])

    def _call(self, node: Any) -> Any:
        name = _op_name(node)
        fakes = _flatten([node.meta.get("val")])
        if "_assert" in name or any(isinstance(f, (torch.SymInt, torch.SymFloat, torch.SymBool)) for f in fakes):
            return None
        arguments = [self._read(a) for a in node.args]
        if name == "getitem":
            return arguments[0][arguments[1]]
        keywords = {k: self._read(v) for k, v in node.kwargs.items()}
        schema = getattr(node.target, "_schema", None)
        if (
            schema is not None and schema.is_mutable and name != "detach_"
        ):  # never carried out, not even on constants: they may be the user's
            raise _OutsideError(self._complaint("it works in place"))
        dynamic = any(isinstance(f, Tensor) and not all(isinstance(n, int) for n in f.shape) for f in fakes)
        if not dynamic and not any(isinstance(a, Ref) for a in _flatten([*arguments, *keywords.values()])):
            return self._fold(node, arguments, keywords)
        if name not in LOWERINGS:
            raise _OutsideError(self._complaint("it is outside the op table"))
        keywords = {k: v for k, v in keywords.items() if k not in PLACEMENT}
        try:
            value = LOWERINGS[name](self, *arguments, **keywords)
        except (TypeError, AttributeError, IndexError, KeyError) as error:
            raise self.fail(f"these arguments are not supported ({error})") from error
        for result, fake in zip(_flatten([value]), fakes, strict=True):
            if isinstance(result, Ref) and not fake.is_floating_point():
                raise self.fail(f"its result is {fake.dtype}, not floating-point")
            if isinstance(result, Ref) and result.shape != self._sample_shape(fake):
                raise self.fail(f"its result has shape {tuple(fake.shape)}, said in the table {result.shape}")
        return value

    def _fold(self, node: Any, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Evaluate what does not depend on the input, in float64."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise self.fail("it draws random numbers")
        try:
            value = node.target(*arguments, **keywords)
        except Exception as error:
            raise self.fail(f"its constant value cannot be computed ({error})") from error
        if isinstance(value, Tensor):
            value = value.to(torch.float64) if value.is_floating_point() else value
            sources = [self.names[id(a)] for a in _flatten(arguments) if id(a) in self.names]
            if len({name for _, name in sources}) == 1:
                self.named(value, "", sources[0][0])
        return value

    def _read(self, argument: Any) -> Any:
        """A node's argument as its value; constants live on the CPU, in float64 where they are floats."""
        if isinstance(argument, (list, tuple)):
            return [self._read(a) for a in argument]
        if isinstance(argument, torch.dtype) and argument.is_floating_point:
            return torch.float64
        if isinstance(argument, torch.device):
            return torch.device("cpu")
        return self.values[argument] if isinstance(argument, torch.fx.Node) else argument

    def _plain(self, value: Any) -> Any:
        """An attribute as JSON knows it."""
        if isinstance(value, (list, tuple)):
            return [self._plain(v) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise self.fail(f"it depends on a {type(value).__name__} that is no plain number")

    def _constant(self, value: Any) -> str:
        """The name of a constant. Equal ones of one origin are one, and so are equal ones that were computed."""
        if value is None:
            raise self.fail("it computes with the batch size")
        if isinstance(value, complex) or (isinstance(value, Tensor) and value.is_complex()):
            raise self.fail("it computes with complex numbers")
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if not isinstance(value, Tensor):
            name = f"number.{tensor.item():.6g}"
        elif id(value) in self.names:
            name = self.names[id(value)][1]
        else:
            name = self.roles[id(self.named(value, _op_name(self.current)))][1]
            name = next((k for k, c in self.constants.items() if torch.equal(c, tensor)), name)
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The constant {name!r} holds NaN or infinite numbers.")
        taken = {v.name for v in self.inputs} | {n.name for n in self.nodes}

        def is_taken(name: str) -> bool:
            return name in taken or (name in self.constants and not torch.equal(self.constants[name], tensor))

        name = unique_name(name, is_taken, first=1)
        self.constants.setdefault(name, tensor)
        return name

    def _output(self, node: Any) -> Ref:
        value = self._read(node)
        if not isinstance(value, Ref):
            raise CaptureError(f"Output {node} of the network does not depend on its input.")
        return value


def _flatten(values: Sequence[Any]) -> list[Any]:
    out: list[Any] = []
    for v in values:
        out += _flatten(v) if isinstance(v, (list, tuple)) else [v]
    return out


def _schema_name(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(target, "__name__", str(target))


def _op_name(node: Any) -> str:
    return _schema_name(node.target)


def _module_path(node: Any) -> str:
    """Path of the innermost module that called the node."""
    return _innermost(node)[0]


def _place(node: Any) -> str:
    path, kind = _innermost(node)
    kind = getattr(kind, "__name__", str(kind)).rpartition(".")[2]
    return f"{path} ({kind})" if path else f"the forward of {kind or 'the network'}"


def _innermost(node: Any) -> tuple[str, Any]:
    """Path and class of the innermost module; a repeated call's mark "@1" is no part of the path."""
    stack = [(path, kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values() if "_hook" not in path]
    return (stack[-1][0].partition("@")[0], stack[-1][1]) if stack else ("", "")


def _decomposed(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program without operations in place, operators without a lowering replaced by simpler ones."""
    table = torch.export.default_decompositions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exported.run_decompositions({op: f for op, f in table.items() if _schema_name(op) not in LOWERINGS})
