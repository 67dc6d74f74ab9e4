"""Axes by strides: copies of numbers in another order as nested loops, without tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hrt.export.c.body import Body


@dataclass(frozen=True)
class Axis:
    """One axis of a loop: how many, and by how many numbers each operand moves; strides by operand's name."""

    size: int
    strides: Mapping[str, int]


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides of numbers one after the other."""
    return [prod(shape[k + 1 :]) for k in range(len(shape))]


def merged(axes: Sequence[Axis]) -> list[Axis]:
    """The same axes, outermost first, with those that all operands walk as one made one; none of size 1."""
    result: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        last = result[-1] if result else None
        if last and all(last.strides[name] == axis.size * step for name, step in axis.strides.items()):
            result[-1] = Axis(last.size * axis.size, axis.strides)
        else:
            result.append(axis)
    return result


def offset(name: str, count: int, axes: Sequence[Axis], start: int = 0) -> str:
    """Where an operand is in the loops over the first `count` axes, as loops() names them."""
    terms = [f"i{k} * {axis.strides[name]}" for k, axis in enumerate(axes[:count]) if axis.strides[name]]
    return " + ".join([*terms, *([str(start)] if start else [])]) or "0"


def loops(axes: Sequence[Axis]) -> list[str]:
    """The heads of nested loops, i0 outermost, indented."""
    return ["    " * k + f"for (size_t i{k} = 0; i{k} < {axis.size}; i{k}++)" for k, axis in enumerate(axes)]


def at(pointer: str, where: str, *, batch: bool = True) -> str:
    """The pointer to a number of a value or, without batch, of a constant."""
    if where == "0":
        return pointer
    return f"{pointer} + (size_t)L * ({where})" if batch else f"{pointer} + ({where})"


def copy(body: Body, target: str, source: str, axes: Sequence[Axis], start: int = 0) -> None:
    """Numbers of "x" to "o" along axes, outermost first; `start`: the first of x."""
    axes = merged(axes) or [Axis(1, {"o": 1, "x": 1})]
    count = len(axes) - 1
    o, x = at(target, offset("o", count, axes)), at(source, offset("x", count, axes, start))
    last = axes[-1]
    if last.strides["o"] == last.strides["x"] == 1:
        line = f"hrt_copy(L, {o}, {x}, {last.size});"
    else:
        line = f"hrt_copy_steps(L, {o}, {x}, {last.size}, {last.strides['o']}, {last.strides['x']});"
    body.add(*loops(axes[:count]), "    " * count + line)
