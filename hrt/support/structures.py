"""What a network takes or gives, as tuples, lists, dictionaries and dataclasses around arrays."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrt.support.arrays import as_parts, is_numbers

Key = str | int  # of a dictionary's entry, a dataclass's field, or a place in a list
Path = tuple[Key, ...]  # from the outside in
OPTION = (bool, str, type(None))  # under a name they are part of the structure, not numbers of a sample


@dataclass(frozen=True)
class Leaf:
    """The place of an array: its number."""

    number: int


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor of a class of its own, with what it says of its columns. inside: the place of its numbers."""

    kind: type[Tensor]
    attributes: Mapping[str, Any]
    inside: Any

    def around(self, x: Tensor) -> Tensor:
        """Other numbers under the same labels."""
        y = labelled(x, self.kind)
        vars(y).update(self.attributes)
        return y


def labelled(x: Tensor, kind: type[Tensor]) -> Tensor:
    """`x` as a tensor of a class of the author's. One that stands for others in a trace stays that, too."""
    if isinstance(x, kind) or not is_traced(x):
        return x if isinstance(x, kind) else x.as_subclass(kind)
    y = x.view_as(x)
    made_by = {"__init__": kind.__init__, "__torch_function__": torch._C._disabled_torch_function_impl}
    y.__class__ = type(kind.__name__, (type(x), kind), made_by)
    return y


def is_traced(x: Any) -> bool:
    """Whether `x` stands for other tensors in a trace."""
    return isinstance(x, Tensor) and any(k.__module__.startswith("torch._subclasses") for k in type(x).__mro__)


def is_labelled(x: Any) -> bool:
    """Whether `x` is a tensor of a class that is not torch's."""
    return isinstance(x, Tensor) and not type(x).__module__.startswith("torch")


@dataclass(frozen=True, eq=False)
class Structure:
    """tree: what was given, with a Leaf in the place of every array. paths: of the arrays, in their order."""

    tree: Any
    paths: tuple[Path, ...]

    def filled(self, arrays: Sequence[Any]) -> Any:
        """The structure around other arrays, in containers of the same kinds."""

        def leaf(x: Any, path: Path) -> Any:
            if isinstance(x, Leaf):
                return arrays[x.number]
            if isinstance(x, Labelled):
                return x.around(arrays[x.inside.number])
            names = [name for name, v in getattr(x, "__dict__", {}).items() if isinstance(v, Leaf)]
            return _changed(x, {name: arrays[vars(x)[name].number] for name in names}) if names else x

        return _mapped(self.tree, leaf, ())


def flattened(given: Any, atoms: tuple[type, ...] = (), *, opened: bool = False) -> tuple[tuple[Any, ...], Structure]:
    """The arrays in `given`, and the structure around them. atoms: types that count as arrays. opened: objects around
    one tensor, such as points that know their space, are structures, too.

    Numbers in lists are one array, and so are rows in a list (see `as_parts`).
    """
    parts = as_parts(given) if isinstance(given, list) and not is_numbers(given) else ()
    given = parts if len(parts) == 1 < len(given) else given  # rows in a list
    arrays: list[Any] = []
    paths: list[Path] = []

    def leaf(x: Any, path: Path) -> Any:
        if path and isinstance(path[-1], str) and isinstance(x, OPTION):
            return x
        if opened and (name := _only_tensor(x)):
            return _changed(x, {name: leaf(vars(x)[name], path)})
        arrays.append(x)
        paths.append(path)
        place = Leaf(len(arrays) - 1)
        return Labelled(type(x), dict(vars(x)), place) if opened and is_labelled(x) else place

    tree = _mapped(given, leaf, (), atoms)
    return tuple(arrays), Structure(tree, tuple(paths))


def _only_tensor(x: Any) -> str:
    """The name of the one tensor that a plain object holds; "" for any other."""
    names = [name for name, v in getattr(x, "__dict__", {}).items() if isinstance(v, Tensor)]
    plain = not isinstance(x, (type, Tensor, nn.Module)) and not hasattr(x, "__array__")
    return names[0] if plain and len(names) == 1 else ""


def _changed(x: Any, attributes: Mapping[Key, Any]) -> Any:
    """A copy of an object with other attributes."""
    changed = copy.copy(x)
    for key, v in attributes.items():
        object.__setattr__(changed, str(key), v)  # frozen ones, too; what checks them has checked the whole
    return changed


def _mapped(x: Any, leaf: Callable[[Any, Path], Any], path: Path, atoms: tuple[type, ...] = ()) -> Any:
    """`x` with leaf(part, path) in the place of every part that holds no others."""
    if isinstance(x, (Leaf, Labelled, *atoms)):
        return leaf(x, path)

    def over(entries: Iterable[tuple[Key, Any]]) -> dict[Key, Any]:
        return {key: _mapped(v, leaf, (*path, key), atoms) for key, v in entries}

    if isinstance(x, Mapping):
        return over(x.items())
    if is_dataclass(x) and not isinstance(x, type):
        return _changed(x, over((f.name, getattr(x, f.name)) for f in fields(x)))
    if isinstance(x, (tuple, list)) and not is_numbers(x):
        parts = over(enumerate(x)).values()
        return type(x)(*parts) if hasattr(x, "_fields") else type(x)(parts)
    return leaf(x, path)
