"""The Program: a topologically sorted list of nodes over the closed op table. What every other part works on."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor

from hrt.errors import CaptureError, InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.carried import CARRIED, model_nbytes
from hrt.program.generated import Recipe, check_recipes
from hrt.program.op_table import TABLE, Op
from hrt.support.structures import Path

Constant = Tensor | HMatrix
Extent = Annotated[int, msgspec.Meta(ge=0)]  # of one axis
Kind = Literal["float", "int", "bool"]  # of an input's numbers


@dataclass(frozen=True)
class Value:
    """A named input: `shape` of one sample, without the batch.

    kind: what its numbers are for the network; a program computes with floats of the same value.  path: where it stands
    in the dictionaries and lists that the network takes, () where inputs are one after the other.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = "float"
    path: Path = ()


@dataclass(frozen=True)
class Node:
    """`name` = op(inputs; attrs). Inputs name earlier nodes, program inputs or constants; `shape` is that of one
    sample, without the batch; `module` is the path of the module it came from.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any]
    module: str = ""

    @property
    def row(self) -> Op:
        """The op's row in the table."""
        return TABLE[self.op]


@dataclass(frozen=True, eq=False)
class Program:
    """inputs, nodes in order, outputs by name, constants by name (weights are Tensors (m, n) or HMatrix). Raises
    CaptureError where they do not fit each other.

    generated: recipes of constants by name. They are made here, in float64, where they are not among the constants yet;
    they are never stored, rounded or replaced, and are no weights.
    """

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Constant]
    generated: Mapping[str, Recipe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        made = {k: recipe.matrix() for k, recipe in self.generated.items() if k not in self.constants}
        object.__setattr__(self, "constants", {**self.constants, **made})
        names = [*(v.name for v in self.inputs), *self.constants]
        known = set(names)
        if len(known) < len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            raise CaptureError(f"The program's inputs and constants share the names {twice}. Expected distinct names.")
        for node in self.nodes:
            op = TABLE.get(node.op)
            if op is None:
                raise CaptureError(f"Node {node.name} has the unknown op {node.op!r}. Known: {', '.join(TABLE)}.")
            if op.arity is not None and len(node.inputs) != op.arity:
                raise CaptureError(f"Node {node.name} gives {len(node.inputs)} arguments to {node.op} of {op.arity}.")
            missing = [name for name in node.inputs if name not in known]
            if missing or node.name in known:
                raise CaptureError(f"Node {node.name} is out of order: {missing or 'its name is taken'}.")
            known.add(node.name)
        for node in self.linear_nodes:
            shapes = [tuple(getattr(self.constants.get(name), "shape", ())) for name in node.inputs[1:]]
            if not shapes or len(shapes[0]) != 2 or shapes[1:] not in ([], [shapes[0][:1]]):
                raise CaptureError(
                    f"Node {node.name} is linear in {node.inputs} of shapes {['value', *shapes]}. "
                    "Expected a value, a constant weight (m, n) and at most a constant bias (m)."
                )
        missing = [name for name in self.outputs if name not in known]
        if missing:
            raise CaptureError(f"The program's outputs {missing} are not computed by any node.")

    @property
    def linear_nodes(self) -> tuple[Node, ...]:
        """The nodes whose second argument is a compressible weight."""
        return tuple(node for node in self.nodes if node.op == "linear")

    @property
    def weights(self) -> dict[str, tuple[Node, ...]]:
        """Weight name to the linear nodes that use it (several where weights are tied), in program order. A constant
        that is anything else besides (an operand of another op, an output) or is generated is not among them.
        """
        uses: dict[str, tuple[Node, ...]] = {}
        for node in self.linear_nodes:
            uses[node.inputs[1]] = (*uses.get(node.inputs[1], ()), node)
        other = {*self.outputs, *self.generated}
        for node in self.nodes:
            other.update(node.inputs[:1] + node.inputs[2:] if node.op == "linear" else node.inputs)
        return {name: nodes for name, nodes in uses.items() if name not in other}

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Per-sample shape of an input or node."""
        return {v.name: v.shape for v in (*self.inputs, *self.nodes)}[name]

    def with_constants(self, changed: Mapping[str, Constant]) -> "Program":
        """The same program with some constants replaced; generated ones stay as they are."""
        return replace(
            self, constants={**self.constants, **{k: c for k, c in changed.items() if k not in self.generated}}
        )

    def simplified(self) -> "Program":
        """The same function: constants added to a product become its bias; what no output needs is dropped."""
        uses = Counter([*(name for node in self.nodes for name in node.inputs), *self.outputs])
        product = {n.name: n for n in self.linear_nodes if len(n.inputs) == 2 and uses[n.name] == 1}
        fused: dict[str, Node | None] = {}  # by name of the node it replaces
        for node in self.nodes:
            for y, bias in (node.inputs, node.inputs[::-1]) if node.op == "add" else ():
                if y in product and tuple(getattr(self.constants.get(bias), "shape", ())) == product[y].shape[-1:]:
                    fused[y] = replace(product[y], name=node.name, inputs=(*product[y].inputs, bias))
                    fused[node.name] = None
        needed = set(self.outputs)
        reversed_nodes: list[Node] = []
        for node in (fused.get(n.name, n) for n in reversed(self.nodes)):
            if node is not None and node.name in needed:
                needed.update(node.inputs)
                reversed_nodes.append(node)
        constants = {k: c for k, c in self.constants.items() if k in needed}
        generated = {k: recipe for k, recipe in self.generated.items() if k in needed}
        return replace(self, nodes=tuple(reversed(reversed_nodes)), constants=constants, generated=generated)

    @property
    def stored_constants(self) -> dict[str, Constant]:
        """The constants that are not generated."""
        return {k: c for k, c in self.constants.items() if k not in self.generated}

    def run(
        self,
        inputs: Sequence[Tensor],
        *,
        dtype: torch.dtype = torch.float64,
        observe: Callable[[Node, tuple[Any, ...]], None] | None = None,
        constants: Mapping[str, Any] | None = None,
    ) -> tuple[Tensor, ...]:
        """Evaluate on `inputs`, each (batch, *shape), in `dtype`. observe: called with every node and its arguments
        before it is computed.  constants: already converted ones, to be used instead of the stored.
        """
        if constants is None:
            constants = {k: c.to(dtype) if isinstance(c, Tensor) else c for k, c in self.constants.items()}
        values: dict[str, Any] = dict(constants)
        for v, x in zip(self.inputs, inputs, strict=True):
            values[v.name] = x.to(dtype)
        last = self.last_use
        for node in self.nodes:
            arguments = tuple(values[name] for name in node.inputs)
            if observe:
                observe(node, arguments)
            values[node.name] = node.row.torch(arguments, node.attrs)
            for name in last.get(node.name, ()):
                del values[name]
        return tuple(values[name] for name in self.outputs)

    @cached_property
    def last_use(self) -> dict[str, list[str]]:
        """Node name to the values that nobody reads after it, so that memory is given back early."""
        return last_uses(self.nodes, {*self.outputs, *self.constants, *(v.name for v in self.inputs)})

    def check_inputs(self, inputs: Sequence[Any]) -> None:
        """Raise InputError unless there is one (batch, *shape) array per input, all of one batch size."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(v.name for v in self.inputs)
            raise InputError(f"Found {len(inputs)} input(s). Expected {len(self.inputs)}: {names}, as a tuple.")
        for v, x in zip(self.inputs, inputs, strict=True):
            if tuple(x.shape[1:]) != v.shape or x.ndim != 1 + len(v.shape):
                expected = ", ".join(("batch", *map(str, v.shape)))
                axes = ", ".join(("-1", *map(str, v.shape)))
                size, row = prod(x.shape), prod(v.shape)
                remedy = f" If its numbers are rows one after the other: x.reshape({axes})."
                raise InputError(
                    f"Input {v.name!r}: found shape {tuple(x.shape)}. Expected ({expected})."
                    f"{remedy if size and row and size % row == 0 else ''}"
                )
        if len({int(x.shape[0]) for x in inputs}) > 1:
            raise InputError(f"Inputs of different batch sizes: {[int(x.shape[0]) for x in inputs]}. Expected one.")

    def to_header(self) -> dict[str, Any]:
        """Everything but the constants, as JSON."""
        kinds = {v.name: v.kind for v in self.inputs if v.kind != "float"}
        paths = {v.name: list(v.path) for v in self.inputs if v.path}
        generated = {k: msgspec.to_builtins(recipe) for k, recipe in self.generated.items()}
        return {
            "inputs": [[v.name, list(v.shape)] for v in self.inputs],
            "nodes": [[n.name, n.op, list(n.inputs), list(n.shape), dict(n.attrs), n.module] for n in self.nodes],
            "outputs": list(self.outputs),
            **({"generated": generated} if generated else {}),
            **({"kinds": kinds} if kinds else {}),
            **({"paths": paths} if paths else {}),
        }

    @staticmethod
    def from_header(header: Mapping[str, Any], constants: Mapping[str, Constant]) -> "Program":
        """The inverse of `to_header`. Raises msgspec.ValidationError for anything else, and ValueError for recipes that
        are wrong, too large or name a stored constant, before anything is made of them.
        """
        plain = msgspec.convert(header, Header)
        check_recipes(plain.generated.values())
        if both := sorted(plain.generated.keys() & constants.keys()):
            raise ValueError(f"the constants {both[:4]} are both stored and generated")
        kinds, paths = plain.kinds, plain.paths
        if unknown := sorted({*kinds, *paths} - {name for name, _ in plain.inputs}):
            raise ValueError(f"there are kinds or paths of {unknown[:4]}, which are no inputs")
        inputs = tuple(Value(*v, kinds.get(v[0], "float"), paths.get(v[0], ())) for v in plain.inputs)
        nodes = tuple(Node(*n) for n in plain.nodes)
        return Program(inputs, nodes, plain.outputs, dict(constants), plain.generated)


def last_uses(nodes: Sequence[Node], keep: Collection[str]) -> dict[str, list[str]]:
    """Node name to the values that no later one of `nodes` reads, but for those to keep."""
    last: dict[str, str] = {}
    for node in nodes:
        last.update({name: node.name for name in node.inputs if name not in keep})
    uses: dict[str, list[str]] = {}
    for value, node_name in last.items():
        uses.setdefault(node_name, []).append(value)
    return uses


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program without its constants: the fields of its values and nodes, in order."""

    inputs: tuple[tuple[str, tuple[Extent, ...]], ...]
    nodes: tuple[tuple[str, str, tuple[str, ...], tuple[Extent, ...], dict[str, Any], str], ...]
    outputs: tuple[str, ...]
    generated: dict[str, Recipe] = {}
    kinds: dict[str, Kind] = {}
    paths: dict[str, Path] = {}


def program_nbytes(program: Program) -> int:
    """Bytes as stored: packed weights, tables, orderings, biases and other constants, and the models of carried parts,
    without what is generated.
    """
    models = sum(model_nbytes(node.attrs) for node in program.nodes if node.op == CARRIED)
    return models + sum(map(_nbytes, program.stored_constants.values()))


def carried_nbytes(program: Program) -> dict[str, int]:
    """The bytes of every carried part, by what it is called and where: "sort (encoder)". A model, and the constants
    that nobody else reads.
    """
    readers: dict[str, set[str]] = {}
    for node in program.nodes:
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.op)
    parts: dict[str, int] = {}
    left = {k: _nbytes(c) for k, c in program.stored_constants.items() if readers.get(k) == {CARRIED}}
    for node in program.nodes:
        if node.op == CARRIED:
            label = f"{node.attrs['name']} ({node.module})" if node.module else str(node.attrs["name"])
            constants = sum(left.pop(name, 0) for name in node.inputs)
            parts[label] = parts.get(label, 0) + model_nbytes(node.attrs) + constants
    return parts


def _nbytes(constant: Constant) -> int:
    return constant.numel() * constant.element_size() if isinstance(constant, Tensor) else constant.nbytes
