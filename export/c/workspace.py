"""Where every value of a program lies in the caller's workspace, and which nodes are one step.

A step is one node, or elementwise nodes of one shape that follow each other (one loop, what only they read is never
stored), or linear nodes on one weight that follow each other (its numbers are decoded once). Reshapes and slices of
whole runs are the same memory. Values that do not live at the same time share memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hrt.export.c.numbers import up16
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program

SPARE = 16  # numbers behind every value that loops may read and write
STREAMS = 8  # rows of one weight that are multiplied together


@dataclass(frozen=True)
class Alias:
    """A value that is numbers [offset, offset + its size) of another one."""

    source: str
    offset: int


@dataclass(frozen=True)
class Plan:
    """steps: in order.  offsets: by value that has memory.  aliases: by value that has none of its own.  size: numbers
    of a sample in all. inside: values that only their own step reads, and that are not stored.
    """

    steps: tuple[tuple[Node, ...], ...]
    offsets: Mapping[str, int]
    aliases: Mapping[str, Alias]
    inside: frozenset[str]
    size: int

    def offset(self, name: str) -> int:
        """Where a value begins, in numbers of one sample."""
        if name in self.offsets:
            return self.offsets[name]
        alias = self.aliases[name]
        return self.offset(alias.source) + alias.offset


def plan(program: Program) -> Plan:
    """Steps and places of a program."""
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    aliases = _aliases(program, shapes)

    def root(name: str) -> str:
        while name in aliases:
            name = aliases[name].source
        return name

    steps: list[list[Node]] = []
    for node in program.nodes:
        if node.name in aliases:
            continue
        if steps and _joins(node, steps[-1], root):
            steps[-1].append(node)
        else:
            steps.append([node])
    readers: dict[str, int] = {}  # the last step that reads a value's memory, by value that has memory
    at = {node.name: k for k, step in enumerate(steps) for node in step}
    outside = {root(name) for name in program.outputs}
    for k, step in enumerate(steps):
        for name in (root(name) for node in step for name in node.inputs if name in shapes):
            readers[name] = k
            outside |= {name} if at.get(name, -1) != k else set()
    for name in aliases:  # its memory is read where it is
        outside.add(root(name))
    inside = frozenset(node.name for step in steps for node in step if node.name not in outside)
    last = {name: readers.get(name, -1) for name in shapes}
    last |= dict.fromkeys((root(name) for name in program.outputs), len(steps))
    born = [(-1, v.name) for v in program.inputs]
    born += [(k, node.name) for k, step in enumerate(steps) for node in step if node.name not in inside]
    offsets, size = _offsets(born, last, {name: up16(prod(shapes[name])) + SPARE for name in shapes})
    return Plan(tuple(map(tuple, steps)), offsets, aliases, inside, size)


def _offsets(
    born: Sequence[tuple[int, str]], last: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[dict[str, int], int]:
    """First fit: every value in the lowest gap between those that live while it does."""
    offsets: dict[str, int] = {}
    living: list[tuple[int, int, int]] = []  # offset, end, last step
    top = 0
    for step, name in born:
        living = sorted(e for e in living if e[2] >= step)
        offset = 0
        for start, end, _ in living:
            if offset + sizes[name] <= start:
                break
            offset = max(offset, end)
        offsets[name] = offset
        living.append((offset, offset + sizes[name], max(last[name], step)))
        top = max(top, offset + sizes[name])
    return offsets, top


def _joins(node: Node, group: Sequence[Node], root: Callable[[str], str]) -> bool:
    """Whether a node can be computed together with those of a step. root: the value in whose memory one lies."""
    inside = {n.name for n in group}
    if TABLE[node.op].elementwise and TABLE[group[0].op].elementwise:
        moved = any(root(name) in inside and name not in inside for name in node.inputs)
        return node.shape == group[0].shape and not moved
    if node.op == group[0].op == "linear":
        rows = sum(prod(n.shape[:-1]) for n in (*group, node))
        biases = {n.inputs[2] for n in (*group, node) if len(n.inputs) > 2}
        alike = node.inputs[1] == group[0].inputs[1] and len(biases) <= 1
        return alike and rows <= STREAMS and root(node.inputs[0]) not in inside
    return False


def moved_index(node: Node, shape: Sequence[int]) -> Tensor | None:
    """The number of the only argument, of this shape, at every number of an op that only moves them; None otherwise."""
    if node.op not in ("reshape", "slice", "transpose", "expand"):
        return None
    return TABLE[node.op].torch([torch.arange(prod(shape)).reshape(1, *shape)], node.attrs).reshape(-1)


def _aliases(program: Program, shapes: Mapping[str, Sequence[int]]) -> dict[str, Alias]:
    aliases = {}
    for node in program.nodes:
        if node.inputs and node.inputs[0] in shapes:
            index = moved_index(node, shapes[node.inputs[0]])
            if index is not None and index.numel():
                first = int(index[0])
                if torch.equal(index, torch.arange(first, first + index.numel())):
                    aliases[node.name] = Alias(node.inputs[0], first)
    return aliases
