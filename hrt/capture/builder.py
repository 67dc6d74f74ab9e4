"""What the lowerings of `hrt.capture.aten` work with: values that depend on the input, and the Program's builder.

A Program's values are (batch, *sample). An author may hold the batch in any dimension, also merged with its neighbours
(`q.view(T, batch * heads, d)`): a `Ref` says where it stands, so that moving the batch costs no node.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from hrt.errors import CaptureError, InputError
from hrt.program.generated import Recipe, check_recipes
from hrt.program.names import unique_name
from hrt.program.program import Node, Value

Lowering = Callable[..., Any]  # (builder, *the arguments of a call) to a Ref, a list of them, or a constant
ROWS = "the numbers of the rows"  # of a Ref that no node gives, and no node reads
ALONG_THE_BATCH = "it works along the batch, so that samples would depend on each other"


@dataclass(frozen=True)
class Ref:
    """A value that depends on the input: its name and the shape of one sample, its axes in the author's order.

    axis: the author's dimension that is the batch.  before, after: 1 where the author merged the axis of the sample
    that stands before the batch, or after it, into that dimension.
    """

    name: str
    shape: tuple[int, ...]
    axis: int = 0
    before: int = 0
    after: int = 0

    @property
    def ndim(self) -> int:
        """The author's dimensions, the batch included."""
        return 1 + len(self.shape) - self.before - self.after

    @property
    def fold(self) -> tuple[int, int]:
        """The sizes of what is merged into the batch's dimension, before and after the batch."""
        middle = self.axis + self.before
        return prod(self.shape[self.axis : middle]), prod(self.shape[middle : middle + self.after])

    @property
    def outer(self) -> int:
        """How many numbers of a sample stand before the batch, in the author's order."""
        return prod(self.shape[: self.axis + self.before])

    def axes_of(self, dim: int) -> list[int]:
        """The sample's axes, negative, that are the author's dimension `dim`: one, or what the batch is merged with."""
        dim, merged = dim % self.ndim, self.before + self.after
        first = dim if dim <= self.axis else dim - 1 + merged
        return [k - len(self.shape) for k in range(first, first + (merged if dim == self.axis else 1))]


class Builder:
    """The program of an exported graph while it grows, and what a lowering may ask for. current: the call at hand."""

    def __init__(self, advice: str):
        self.advice = advice  # ends the complaints
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.constants: dict[str, Tensor] = {}
        self.generated: dict[str, Recipe] = {}
        self.shared: dict[Any, Ref] = {}  # products with generated matrices, by what they are of
        self.names: dict[int, tuple[Tensor, str]] = {}  # by id, which the tensor kept beside it holds
        self.roles: dict[int, tuple[Tensor, str]] = {}  # the same for constants that were computed
        self.zero_padded: dict[str, tuple[Ref, tuple[tuple[int, int], ...]]] = {}  # what stands within zeros, and how
        self.current: Any = None
        self.operands: list[Ref] = []  # of the call at hand
        self.batch: str | None = None

    def emit(self, op: str, inputs: Sequence[Any], shape: Sequence[int], /, **attrs: Any) -> Ref:
        """Append a node of the Program, shapes and axes those of samples; plain numbers and tensors among its inputs
        become constants. The batch stands as in the first value of as many dimensions.
        """
        names = tuple(x.name if isinstance(x, Ref) else self._constant(x) for x in inputs)
        if ROWS in names:
            raise self.fail("it computes with torch.arange(batch), the numbers of the rows; they are an index alone")
        attrs = {k: self._plain(v) for k, v in attrs.items()}
        taken = {*self.constants, *(v.name for v in self.inputs)}
        name = unique_name(f"{self.current.name}_{len(self.nodes)}", taken)
        self.nodes.append(Node(name, op, names, tuple(shape), attrs, _innermost(self.current)[0]))
        like = next((x for x in inputs if isinstance(x, Ref) and len(x.shape) == len(shape)), Ref("", ()))
        return Ref(name, tuple(shape), like.axis, like.before, like.after)

    def generate(self, recipe: Recipe) -> str:
        """The name of a constant that is made from a recipe. Raises CaptureError where all of them are too large."""
        stem = f"generated/{'dft' if recipe.sign < 0 else 'idft' if recipe.sign else 'parts'}{recipe.length}"
        name = unique_name(stem, lambda name: self.generated.get(name, recipe) != recipe)
        self.generated[name] = recipe
        try:
            check_recipes(self.generated.values())
        except ValueError as error:
            raise self.fail(f"{error}. Use fewer modes, or shorter transforms") from error
        return name

    def named(self, constant: Tensor, role: str, source: Tensor | None = None) -> Tensor:
        """Give a constant the name of the one it was computed from, or that of its role in the current module."""
        if id(constant) not in self.names:
            if id(source) in self.names:
                self.names[id(constant)] = (constant, self.names[id(source)][1])
            else:
                self.roles.setdefault(id(constant), (constant, f"{_innermost(self.current)[0]}.{role}".lstrip(".")))
        return constant

    def entry(self, stack: Tensor, index: int, role: str) -> Tensor:
        """stack[index], named after the stack and its place in it."""
        constant = stack[index]
        if id(stack) in self.names:
            self.names[id(constant)] = (constant, f"{self.names[id(stack)][1]}.{index}")
            return constant
        return self.named(constant, f"{role}.{index}")

    def before_expansion(self, x: Ref, axes: Sequence[int]) -> Ref:
        """The value that was repeated along these axes of the samples, and no other, to make `x`; else `x`."""
        node = next((n for n in reversed(self.nodes) if n.name == x.name and n.op == "expand"), None)
        shapes = {v.name: v.shape for v in (*self.inputs, *self.nodes)}
        source = shapes[node.inputs[0]] if node else ()
        repeated = [k for k, (n, m) in enumerate(zip(source, x.shape, strict=False)) if n != m]
        if node and len(source) == len(x.shape) and set(repeated) <= set(axes):
            return replace(x, name=node.inputs[0], shape=source)
        return x

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

    def batch_place(self, fake: Any) -> tuple[int, int]:
        """The dimension of a result that is the batch, and how many of the sample's places are merged with it."""
        varying = [k for k, n in enumerate(fake.shape) if not isinstance(n, int)]
        if not varying:
            raise self.fail(f"its result has shape {tuple(fake.shape)}, without the batch")
        count, symbol = fake.shape[varying[0]].node.expr.as_coeff_Mul()
        if len(varying) > 1 or str(symbol) != self.batch:
            raise self.fail(f"its result has shape {tuple(fake.shape)}; only the batch may vary, in one dimension")
        return varying[0], int(count)

    def sample_shape(self, fake: Any) -> tuple[int, ...]:
        """The shape of one sample of a result, whose batch is merged with what it is merged with in the operands."""
        place, count = self.batch_place(fake)
        merged = next((r.fold for r in self.operands if prod(r.fold) == count), (1, 1)) if count > 1 else (1, 1)
        if prod(merged) != count:
            raise self.fail(f"its result has shape {tuple(fake.shape)}: it merges the batch with another dimension")
        shape = (*fake.shape[:place], *(n for n in merged if n > 1), *fake.shape[place + 1 :])
        return tuple(int(n) for n in shape)

    def placed(self, value: Any, fake: Any) -> Any:
        """A result with the batch where its shape says."""
        if isinstance(value, (list, tuple)):
            return [self.placed(v, f) for v, f in zip(value, fake, strict=True)]
        if not isinstance(value, Ref):
            return value
        place, count = self.batch_place(fake)
        if count == 1:
            value = replace(value, axis=place, before=0, after=0)
        elif prod(value.fold) != count or value.axis != place:
            like = next((r for r in self.operands if prod(r.fold) == count), value)
            value = replace(value, axis=place, before=like.before, after=like.after)
        merged = range(place, place + value.before + value.after)
        rest = tuple(n for k, n in enumerate(value.shape) if k not in merged)
        if prod(value.fold) != count or rest != (*fake.shape[:place], *fake.shape[place + 1 :]):
            raise self.fail(f"its result has shape {tuple(fake.shape)}, said in the table {value.shape}")
        return value

    def check_alike(self, values: Sequence[Ref]) -> None:
        """Raise CaptureError unless the batches of the values stand as far from the last dimension, merged alike."""
        if len({(x.ndim - x.axis, x.fold) for x in values}) > 1:
            raise self.fail(f"{ALONG_THE_BATCH}: the batches of its operands stand in different places")

    def aligned(self, operands: Sequence[Any], ndim: int, place: int, merged: int = 0) -> list[Any]:
        """Operands whose samples broadcast as the author's dimensions do, for a result of `ndim` dimensions whose batch
        is dimension `place`, merged with so many axes. Raises CaptureError where a sample would meet another.
        """
        values = [x for x in operands if isinstance(x, Ref)]
        self.check_alike(values)
        if values and values[0].ndim - values[0].axis != ndim - place:
            raise self.fail(ALONG_THE_BATCH)
        merged = values[0].before + values[0].after if values else merged
        return [self._aligned(x, ndim, ndim - place, merged) for x in operands]

    def _aligned(self, x: Any, ndim: int, distance: int, merged: int) -> Any:
        """One operand: a value gets as many axes as the result has, a constant none for the batch."""
        if isinstance(x, Ref):
            padding = ndim - x.ndim
            wider = reshaped(self, x, (1,) * padding + x.shape)
            return replace(wider, axis=x.axis + padding, before=x.before, after=x.after)
        if not isinstance(x, Tensor) or x.ndim < distance or (distance == ndim and not merged):
            return x
        shape, place = list(x.shape), x.ndim - distance
        if shape[place] != 1:
            raise self.fail(f"a constant of shape {tuple(shape)} has numbers of its own for every sample of a batch")
        shape[place : place + 1] = [1] * merged
        return self.named(x.reshape(shape), schema_name(self.current.target), x)

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
    """The author's dimension `dim` as a negative axis of a sample. Raises CaptureError where it is the batch."""
    if dim % ref.ndim == ref.axis:
        raise b.fail(ALONG_THE_BATCH)
    return ref.axes_of(dim)[0]


# --- what works on samples: axes are negative, and shapes are of samples


def resized(x: Ref, axis: int, *size: int) -> tuple[int, ...]:
    """The shape of a sample with another size of an axis, or without that axis."""
    place = axis + len(x.shape)
    return (*x.shape[:place], *size, *x.shape[place + 1 :])


def moved(b: Builder, x: Ref, axes: Sequence[int]) -> Ref:
    """The axes of one sample in a new order, given by negative axes."""
    if list(axes) == list(range(-len(x.shape), 0)):
        return x
    return b.emit("transpose", [x], [x.shape[k] for k in axes], axes=list(axes))


def reshaped(b: Builder, x: Ref, shape: Sequence[int]) -> Ref:
    """The numbers of one sample under another shape."""
    return x if tuple(shape) == x.shape else b.emit("reshape", [x], shape, shape=list(shape))


def sliced(b: Builder, x: Ref, axis: int, start: Any = None, stop: Any = None, step: int = 1) -> Ref:
    """Every `step`-th entry of an axis from `start` to `stop`."""
    start, stop, step = slice(start, stop, step).indices(x.shape[axis])
    shape = resized(x, axis, len(range(start, stop, step)))
    return x if shape == x.shape else b.emit("slice", [x], shape, axis=axis, start=start, stop=stop, step=step)


def joined(b: Builder, parts: Sequence[Ref], axis: int) -> Ref:
    """Values side by side along an axis."""
    return b.emit("concat", list(parts), resized(parts[0], axis, sum(p.shape[axis] for p in parts)), axis=axis)


def picked(b: Builder, x: Ref, axis: int, indices: Sequence[int]) -> Ref:
    """The entries `indices` of an axis, in that order, as few slices as possible."""
    parts = [sliced(b, x, axis, start, stop) for start, stop in runs(indices) or [(0, 0)]]
    return parts[0] if len(parts) == 1 else joined(b, parts, axis)


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
