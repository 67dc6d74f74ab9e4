"""Where every value of a program lies in the caller's workspace, and which nodes are one step.

A step is one node, or elementwise nodes of one shape that follow each other (one loop, what only they read is never
stored), or linear nodes on one weight that follow each other (its numbers are decoded once). Reshapes and slices of
whole runs are the same memory. Values that do not live at the same time share memory.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hrt.export.c.layout.numbers import up16
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program

SPARE = 16  # numbers behind every value that loops may read and write
BACK = 8  # steps that a node may be moved back over
LOOP = 16  # elementwise nodes of one loop: more would not fit the registers
STREAMS = 8  # rows of one weight that are multiplied together


@dataclass(frozen=True)
class Alias:
    """A value that is numbers [offset, offset + its size) of another one."""

    source: str
    offset: int


@dataclass(frozen=True)
class Plan:
    """steps: in order.  offsets: by value that has memory.  aliases: by value that has none of its own.  size: numbers
    of a sample in all. inside: values that only their own step reads, and that are not stored.  direct: inputs and
    outputs that one row reads and writes where the caller keeps them, by name: "given[0]".  equal: see `same`.
    """

    steps: tuple[tuple[Node, ...], ...]
    offsets: Mapping[str, int]
    aliases: Mapping[str, Alias]
    inside: frozenset[str]
    size: int
    direct: Mapping[str, str]
    equal: Mapping[str, str]

    def same(self, name: str) -> str:
        """The value that has the same numbers in the same order and is no alias, where there is one."""
        return self.equal.get(name, name)

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

    names = _Names(aliases, shapes)
    root = names.root
    uses = Counter([*(name for node in program.nodes for name in node.inputs), *program.outputs])

    def accompanies(node: Node, step: Sequence[Node]) -> bool:
        *before, last = step
        alone = node.op != "linear" or not before  # what is turned behind one linear node is not read turned by another
        return alone and node.inputs[0] == last.name and uses[last.name] == 1 and _accompanies(node, last, shapes)

    steps: list[list[Node]] = []
    made: dict[str, int] = {}  # the step of a value
    for node in program.nodes:
        if node.name in aliases:
            continue
        first = max([made.get(root(name), 0) for name in node.inputs if name in shapes], default=0)
        earlier = range(len(steps) - 1, max(first, len(steps) - BACK) - 1, -1)
        k = next((k for k in earlier if _joins(node, steps[k], names) or accompanies(node, steps[k])), len(steps))
        if k == len(steps):
            steps.append([])
        steps[k].append(node)
        made[node.name] = k
    readers: dict[str, int] = {}  # the last step that reads a value's memory, by value that has memory
    outside = {root(name) for name in program.outputs}
    for k, step in enumerate(steps):
        for name in (root(name) for node in step for name in node.inputs if name in shapes):
            readers[name] = k
            outside |= {name} if made.get(name, -1) != k else set()
    for node in program.nodes:  # what reads an alias reads memory, but in the loop that makes it
        for name in node.inputs if node.name in made else ():
            if name in aliases and not (names.same(name) == root(name) and made.get(root(name), -1) == made[node.name]):
                outside.add(root(name))
    inside = frozenset(node.name for step in steps for node in step if node.name not in outside)
    last = {name: readers.get(name, -1) for name in shapes}
    last |= dict.fromkeys((root(name) for name in program.outputs), len(steps))
    equal = {name: names.same(name) for name in aliases}
    born = [(-1, v.name) for v in program.inputs]
    born += [(k, node.name) for k, step in enumerate(steps) for node in step if node.name not in inside]
    sizes = {name: up16(prod(shapes[name])) + SPARE for name in shapes}
    shapes |= {name: tuple(c.shape) for name, c in program.constants.items()}
    taken = _taken(steps, shapes, {name: k for name, k in last.items() if name not in aliases})
    offsets, size = _offsets(born, last, sizes, {new: old for new, old in taken.items() if new not in inside})
    return Plan(tuple(map(tuple, steps)), offsets, aliases, inside, size, _direct(program, aliases), equal)


def _direct(program: Program, aliases: Mapping[str, Alias]) -> dict[str, str]:
    """Values that linear nodes alone read or make: they touch no number outside of them."""
    readers: dict[str, set[str]] = {}
    for node in program.nodes:
        for name in node.inputs:
            readers.setdefault(name, set()).add(node.op)
    linear = {node.name for node in program.linear_nodes}
    direct = {v.name: f"given[{k}]" for k, v in enumerate(program.inputs) if readers.get(v.name) == {"linear"}}
    for k, name in enumerate(program.outputs):
        if name in linear and name not in readers and program.outputs.count(name) == 1:
            direct[name] = f"asked[{k}]"
    return {name: pointer for name, pointer in direct.items() if name not in aliases}


def _taken(
    steps: Sequence[Sequence[Node]], shapes: Mapping[str, Sequence[int]], last: Mapping[str, int]
) -> dict[str, str]:
    """Results of elementwise steps and the arguments in whose memory they may be written: those that nobody reads
    later, of loops that read and write every number at its own place.
    """
    taken = {}
    for k, step in enumerate(steps):
        shape, made = lined(step[0].shape), {node.name for node in step}
        arguments = [name for node in step for name in node.inputs if name not in made]
        if TABLE[step[0].op].elementwise and all(lined(shapes[name]) in (shape, ()) for name in arguments):
            ending = [name for name in dict.fromkeys(arguments) if last.get(name) == k and lined(shapes[name]) == shape]
            taken |= dict(zip((node.name for node in step[::-1]), ending, strict=False))
    return taken


def _offsets(
    born: Sequence[tuple[int, str]], last: Mapping[str, int], sizes: Mapping[str, int], taken: Mapping[str, str]
) -> tuple[dict[str, int], int]:
    """First fit: every value in the lowest gap between those that live while it does, or in the place of another."""
    offsets: dict[str, int] = {}
    living: list[tuple[int, int, int]] = []  # offset, end, last step
    top = 0
    for step, name in born:
        living = sorted(e for e in living if e[2] >= step)
        if name in taken:
            offset = offsets[name] = offsets[taken[name]]
            living = [e for e in living if e[0] != offset] + [(offset, offset + sizes[name], max(last[name], step))]
            continue
        offset = 0
        for start, end, _ in living:
            if offset + sizes[name] <= start:
                break
            offset = max(offset, end)
        offsets[name] = offset
        living.append((offset, offset + sizes[name], max(last[name], step)))
        top = max(top, offset + sizes[name])
    return offsets, top


@dataclass(frozen=True)
class _Names:
    """Which values are the same memory."""

    aliases: Mapping[str, Alias]
    shapes: Mapping[str, Sequence[int]]

    def root(self, name: str) -> str:
        """The value in whose memory one lies."""
        while name in self.aliases:
            name = self.aliases[name].source
        return name

    def same(self, name: str) -> str:
        """The value that has the same numbers in the same order."""
        while name in self.aliases and prod(self.shapes[name]) == prod(self.shapes[self.aliases[name].source]):
            name = self.aliases[name].source
        return name


def lined(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without axes of one number."""
    return tuple(n for n in shape if n != 1)


def _joins(node: Node, group: Sequence[Node], names: _Names) -> bool:
    """Whether a node can be computed together with those of a step."""
    inside = {n.name for n in group}
    if TABLE[node.op].elementwise and TABLE[group[0].op].elementwise:
        moved = any(names.root(name) in inside and names.same(name) not in inside for name in node.inputs)
        return len(group) < LOOP and lined(node.shape) == lined(group[0].shape) and not moved
    if node.op == group[0].op == "linear":
        rows = sum(prod(n.shape[:-1]) for n in (*group, node))
        biases = {n.inputs[2] for n in (*group, node) if len(n.inputs) > 2}
        alike = node.inputs[1] == group[0].inputs[1] and len(biases) <= 1
        return alike and rows <= STREAMS and names.root(node.inputs[0]) not in inside
    return False


def _accompanies(node: Node, last: Node, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a linear node of many rows reads windows or channels turned to the end, or such a node's results are
    turned back, by the only reader: rows are then read and written where they are (`operators.many_rows`).
    """
    if node.op == "linear" and prod(node.shape[:-1]) > STREAMS:
        return is_window(last, shapes) or turns(last, shapes, -1)
    return last.op == "linear" and prod(last.shape[:-1]) > STREAMS and turns(node, shapes, 1)


def is_window(node: Node, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Patches of one image."""
    return node.op == "patches" and prod(shapes[node.inputs[0]][: -len(node.attrs["kernel"]) - 1]) == 1


def turns(node: Node, shapes: Mapping[str, Sequence[int]], by: int) -> bool:
    """Whether a transpose brings the last axis to the front (1), or the first to the end (-1), and moves no other."""
    rank = len(node.shape)
    order = list(range(-rank, 0))
    return node.op == "transpose" and rank > 1 and list(node.attrs["axes"]) == [*order[-by:], *order[:-by]]


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
