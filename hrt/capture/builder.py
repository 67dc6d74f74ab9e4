"""What the lowerings of `hrt.capture.aten` work with: values that depend on the input, and the Program's builder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.errors import CaptureError, InputError
from hrt.program.names import unique_name
from hrt.program.program import Node, Value

Lowering = Callable[..., Any]  # (builder, *the arguments of a call) to a Ref, a list of them, or a constant
ALONG_THE_BATCH = "it works along the batch, so that samples would depend on each other"


@dataclass(frozen=True)
class Ref:
    """A value that depends on the input: its name and the shape of one sample."""

    name: str
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Dimensions, the batch included."""
        return 1 + len(self.shape)


class Builder:
    """The program of an exported graph while it grows, and what a lowering may ask for. current: the call at hand."""

    def __init__(self, advice: str):
        self.advice = advice  # ends the complaints
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.constants: dict[str, Tensor] = {}
        self.names: dict[int, tuple[Tensor, str]] = {}  # by id, which the tensor kept beside it holds
        self.roles: dict[int, tuple[Tensor, str]] = {}  # the same for constants that were computed
        self.current: Any = None
        self.batch: str | None = None

    def emit(self, op: str, inputs: Sequence[Any], shape: Sequence[int], /, **attrs: Any) -> Ref:
        """Append a node; plain numbers and tensors among its inputs become constants."""
        names = tuple(x.name if isinstance(x, Ref) else self._constant(x) for x in inputs)
        attrs = {k: self._plain(v) for k, v in attrs.items()}
        taken = {*self.constants, *(v.name for v in self.inputs)}
        name = unique_name(f"{self.current.name}_{len(self.nodes)}", taken)
        self.nodes.append(Node(name, op, names, tuple(shape), attrs, _innermost(self.current)[0]))
        return Ref(name, tuple(shape))

    def named(self, constant: Tensor, role: str, source: Tensor | None = None) -> Tensor:
        """Give a constant the name of the one it was computed from, or that of its role in the current module."""
        if id(constant) not in self.names:
            if id(source) in self.names:
                self.names[id(constant)] = (constant, self.names[id(source)][1])
            else:
                self.roles.setdefault(id(constant), (constant, f"{_innermost(self.current)[0]}.{role}".lstrip(".")))
        return constant

    def result_shape(self) -> tuple[int, ...]:
        """Per-sample shape of the current node, from export's own shape inference."""
        return self.sample_shape(self.current.meta["val"])

    def static_shape(self) -> tuple[int, ...] | None:
        shape = self.current.meta["val"].shape
        return tuple(shape) if all(isinstance(n, int) for n in shape) else None

    def batch_ref(self) -> Ref:
        return Ref(self.inputs[0].name, self.inputs[0].shape)

    def fail(self, why: str, kind: type[CaptureError] = CaptureError) -> CaptureError:
        path, module = _innermost(self.current)
        module = getattr(module, "__name__", str(module)).rpartition(".")[2]
        place = f"{path} ({module})" if path else f"the forward of {module or 'the network'}"
        return kind(
            f"Op {schema_name(self.current.target)} in {place} cannot be captured: {why}. "
            f"Rewrite it, or keep that part outside the compressed network.{self.advice}"
        )

    def sample_shape(self, fake: Any) -> tuple[int, ...]:
        if fake.ndim == 0 or str(fake.shape[0]) != self.batch:
            raise self.fail(f"its result has shape {tuple(fake.shape)}, without the batch as dimension 0")
        if not all(isinstance(s, int) for s in fake.shape[1:]):
            raise self.fail(f"its result has shape {tuple(fake.shape)}; only dimension 0 may vary")
        return tuple(int(s) for s in fake.shape[1:])

    def _plain(self, value: Any) -> Any:
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
            name = self.roles[id(self.named(value, schema_name(self.current.target)))][1]
            name = next((k for k, c in self.constants.items() if torch.equal(c, tensor)), name)
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"The constant {name!r} holds NaN or infinite numbers.")
        taken = {v.name for v in self.inputs} | {n.name for n in self.nodes}

        def is_taken(name: str) -> bool:
            return name in taken or (name in self.constants and not torch.equal(self.constants[name], tensor))

        name = unique_name(name, is_taken, first=1)
        self.constants.setdefault(name, tensor)
        return name


def axis_of(ref: Ref, dim: int, b: Builder) -> int:
    """`dim` as a negative axis. Raises CaptureError where it is the batch."""
    axis = dim if dim < 0 else dim - ref.ndim
    if axis == -ref.ndim:
        raise b.fail(ALONG_THE_BATCH)
    return axis


def moved(b: Builder, x: Ref, axes: Sequence[int]) -> Ref:
    """The axes of one sample in a new order, given by negative axes."""
    if list(axes) == list(range(-len(x.shape), 0)):
        return x
    return b.emit("transpose", [x], [x.shape[k] for k in axes], axes=list(axes))


def reshaped(b: Builder, x: Ref, shape: Sequence[int]) -> Ref:
    """The numbers of one sample under another shape."""
    return x if tuple(shape) == x.shape else b.emit("reshape", [x], shape, shape=list(shape))


def runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """`indices` as ranges (start, stop), as few as possible, in their order."""
    starts = [k for k, i in enumerate(indices) if k == 0 or i != indices[k - 1] + 1]
    return [(indices[k], indices[stop - 1] + 1) for k, stop in pairwise([*starts, len(indices)])]


def schema_name(target: Any) -> str:
    """The name of an operator without its namespace."""
    schema = getattr(target, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else getattr(target, "__name__", str(target))


def module_path(node: Any) -> str:
    """The path of the innermost module that a node came from, "" for the network itself."""
    return _innermost(node)[0]


def _innermost(node: Any) -> tuple[str, Any]:
    """Path and class of the innermost module; a repeated call's mark "@1" is no part of the path."""
    stack = [(path, kind) for path, kind in (node.meta.get("nn_module_stack") or {}).values() if "_hook" not in path]
    return (stack[-1][0].partition("@")[0], stack[-1][1]) if stack else ("", "")
