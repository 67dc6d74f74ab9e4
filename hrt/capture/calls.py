"""How a network is called: its inputs in the tuples, lists, dictionaries and dataclasses that it takes, floats, whole
numbers and truth values as what they are.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hrt.errors import InputError, shown
from hrt.program.names import unique_name
from hrt.program.program import Kind, Program
from hrt.support.structures import Leaf, Path, Structure, flattened, is_labelled

MOST_BARE = 3  # inputs of a network that is tried sample by sample: every one doubles the ways
WHOLE = {"int": torch.int64, "bool": torch.bool}  # the types of inputs that are no floats


@dataclass(frozen=True, eq=False)
class Call:
    """net(*positional, **keywords), with a Leaf in the place of every input. kinds: of the inputs; () where all are
    floats.  slopes: it differentiates inside, and runs only where gradients are taken.  carries: what has no row of the
    op table is carried along as ONNX models.

    Without a structure inputs are positional, one after the other. bare: of every input whether the network takes one
    sample of it without a batch, so that samples are given to it one by one, the other inputs as batches of one; () for
    a network that takes batches.
    """

    structure: Structure | None = None
    keywords: bool = False
    alone: bool = False
    kinds: tuple[Kind, ...] = ()
    slopes: bool = False
    bare: tuple[bool, ...] = ()
    carries: bool = False

    def answers(self, net: Callable[..., Any], rows: Sequence[Tensor]) -> Any:
        """What the network, or what stands for it, gives."""
        if self.bare:

            def of_one(*sample: Any) -> tuple[Tensor, ...]:
                return self._of_one(net, sample)

            return torch.vmap(of_one)(*rows)
        arguments, keywords = self.arguments(rows)
        return net(*arguments, **keywords)

    def answers_in_turn(self, net: Callable[..., Any], rows: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same of a network that takes single samples, where torch cannot give them to it at once."""
        answers = [self._of_one(net, sample) for sample in zip(*rows, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*answers, strict=True))

    def _of_one(self, net: Callable[..., Any], sample: Sequence[Tensor]) -> tuple[Tensor, ...]:
        given = [x if bare else x[None] for x, bare in zip(sample, self.bare, strict=True)]
        outputs = tensors_in(replace(self, bare=()).answers(net, given))
        return tuple(outputs if all(self.bare) else (y.squeeze(0) for y in outputs))

    def arguments(self, rows: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the network is called with."""
        if self.structure is None:
            return tuple(rows), {}
        filled = self.structure.filled(rows)
        if self.keywords:
            return (), filled
        return (filled,) if self.alone else tuple(filled), {}

    @property
    def is_plain(self) -> bool:
        """Whether inputs are floats, one after the other."""
        return self.structure is None and not self.bare and not any(kind != "float" for kind in self.kinds)

    def placed(self, rows: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Rows on a device, floats in `dtype`."""
        kinds = self.kinds or ("float",) * len(rows)
        return tuple(x.to(device, WHOLE.get(kind, dtype)) for x, kind in zip(rows, kinds, strict=True))

    @contextmanager
    def flat(self, net: nn.Module) -> Iterator[None]:
        """Inside, the network takes its inputs one after the other and gives its outputs so. The caller restores it."""
        if self.structure is None and not self.bare:
            yield
            return
        forward = net.forward

        def flat_forward(*rows: Tensor) -> tuple[Tensor, ...]:
            return tuple(tensors_in(self.answers(forward, rows)))

        net.forward = flat_forward
        yield

    def named(self, program: Program, net: nn.Module) -> Program:
        """The program with its inputs under the names by which the network knows them, and where they stand."""
        if self.structure is None:
            return program
        names: dict[str, str] = {}
        parameters = list(_parameters(net))
        taken = {*program.constants, *(n.name for n in program.nodes)}
        for value, path in zip(program.inputs, self.structure.paths, strict=True):
            keys = list(path)
            if self.alone and not (keys and isinstance(keys[0], str)):
                keys = [*parameters[:1], *keys]
            elif keys and isinstance(keys[0], int):
                keys[0] = parameters[keys[0]] if keys[0] < len(parameters) else f"input_{keys[0]}"
            names[value.name] = unique_name(words(tuple(keys)) or value.name, {*taken, *names.values()})
        has_names = any(isinstance(key, str) for path in self.structure.paths for key in path)
        paths = self.structure.paths if has_names else ((),) * len(program.inputs)
        inputs = zip(program.inputs, paths, strict=True)
        return replace(
            program,
            inputs=tuple(replace(v, name=names[v.name], path=path) for v, path in inputs),
            nodes=tuple(replace(n, inputs=tuple(names.get(k, k) for k in n.inputs)) for n in program.nodes),
            outputs=tuple(names.get(k, k) for k in program.outputs),
        )


PLAIN_CALL = Call()


@dataclass(frozen=True, eq=False)
class Given:
    """What a caller gives as inputs, as float64 (rows, *shape) per input, on the CPU; numbers (rows,) are one feature.

    structure: the tuples, lists and dictionaries that they came in. kinds: what they are. single: which were (rows,).
    """

    rows: tuple[Tensor, ...]
    structure: Structure
    kinds: tuple[Kind, ...]
    single: tuple[bool, ...]

    def calls(self) -> Iterator[tuple[tuple[Tensor, ...], Call]]:
        """The ways to call a network with these rows, the usual one first: whole numbers as floats before themselves,
        numbers (rows,) as themselves before a feature, a tuple as several arguments before one.
        """
        bare = tuple(x[:, 0] if one else x for x, one in zip(self.rows, self.single, strict=True))
        as_floats: tuple[Kind, ...] = tuple("float" if kind == "int" else kind for kind in self.kinds)
        ways = [(bare, as_floats), (self.rows, as_floats), (bare, self.kinds), (self.rows, self.kinds)]
        for k, (rows, kinds) in enumerate(ways):
            if (rows is bare and not any(self.single)) or (k > 1 and kinds == as_floats):
                continue
            yield from ((rows, replace(call, kinds=kinds)) for call in self._forms())

    def one_by_one(self) -> Iterator[tuple[tuple[Tensor, ...], Call]]:
        """The ways to call a network that takes some input of one sample alone, without a batch."""
        if len(self.rows) > MOST_BARE:
            return
        for rows, call in self.calls():
            shapes = [x.ndim for x in rows]
            for bare in product((True, False), repeat=len(rows)):
                if any(bare) and all(n > 1 for n, one in zip(shapes, bare, strict=True) if one):
                    yield rows, replace(call, bare=bare)

    @property
    def is_named(self) -> bool:
        """Whether inputs came in a dictionary."""
        return isinstance(self.structure.tree, Mapping)

    def in_order(self, names: Sequence[str]) -> tuple[Tensor, ...]:
        """The rows in the order of these names, by which they came. Raises InputError for other names."""
        given = dict(zip(map(words, self.structure.paths), self.rows, strict=True))
        if given.keys() != set(names):
            raise InputError(f"Found inputs {shown(list(given))}. Expected {shown(list(names))}, or a tuple of them.")
        return tuple(given[name] for name in names)

    def _forms(self) -> Iterator[Call]:
        tree = self.structure.tree
        parts = tree if isinstance(tree, (tuple, list)) else (tree,)
        if all(isinstance(part, Leaf) for part in parts):
            yield Call()
        elif isinstance(tree, Mapping):
            yield Call(self.structure, keywords=True)
        elif isinstance(tree, (tuple, list)):
            yield Call(self.structure)
        if not isinstance(tree, Leaf):
            yield Call(self.structure, alone=True)


def in_arguments_order(net: Any, inputs: Any) -> Any:
    """A dictionary of inputs in the order of the network's arguments, in which they may come as a tuple, too; those
    that it takes by name alone behind them, as they were given.
    """
    parameters = _parameters(net) if isinstance(net, nn.Module) else {}
    if not isinstance(inputs, Mapping) or not inputs.keys() <= parameters.keys():
        return inputs
    by_place = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY and name in inputs]
    return {name: inputs[name] for name in dict.fromkeys([*by_place, *inputs])}


def words(path: Path) -> str:
    """The name of an input that stands at a path, as torch.export makes it."""
    return "_".join(map(str, path))


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors in what a network gives, in their order."""
    parts = [part for leaf in tree_leaves(outputs) for part in flattened((leaf,), opened=True)[0]]
    return [part.as_subclass(Tensor) if is_labelled(part) else part for part in parts if isinstance(part, Tensor)]


def with_state(net: nn.Module, state: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The network as a function, with other tensors in the place of its own."""
    return lambda *arguments, **keywords: torch.func.functional_call(net, dict(state), arguments, keywords)


def _parameters(net: nn.Module) -> Mapping[str, inspect.Parameter]:
    with suppress(TypeError, ValueError):  # builtins have none
        return inspect.signature(net.forward).parameters
    return {}
