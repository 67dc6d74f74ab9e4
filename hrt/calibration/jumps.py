"""Jumps of a network's values: how often new rows cross one, and what that changes.

Where a value jumps (a comparison, a rounded number, an angle's cut), a compressed network moves the place of the jump,
and rows between the old place and the new one change by the whole jump. They are rare: a hundred rows may hold none.
How many there are is told by how far rows are from jumps. What the jump is computed from, up to the products by weights
before it, moves by some d; a row that would cross if it moved by s d is near a jump. If a share q of the rows would at
S d, then about q / S do at d: densities are flat over so short a way. What a crossing changes is the output behind the
jump less that before it.

A function that nearly always is at one of its ends, such as tanh(200 x), jumps too, over a width. What it changes is
c^2 / w for the changes c over all widths w around the crossing, where that is largest: over the whole of a ramp.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from scipy.special import gammaincinv
from torch import Tensor

from hrt.calibration.moments import evaluate, rows_at_once
from hrt.calibration.output_error import RISK
from hrt.calibration.replay import Replay
from hrt.program.program import Constant, Node, Program, Value

REACH = tuple(4**k for k in range(11))  # times d; the last is a million
LEAST, MOST, SHARE = 8, 32, 0.1  # rows that cross to wait for: this share of all, between these numbers
ROWS, NUMBERS = 4096, 1 << 26  # looked at: rows, and numbers of them that jumps are computed from
STEEP, AT_END, FIRST = 0.9, 1e-3, 256  # a share of numbers so near an end, of its range, on the first rows, is a jump
SURE = 2.0  # standard deviations by which Hill's index must be below 1 to count


Moved = Callable[[Tensor, Tensor], list[Tensor]]  # rows and how far they are to move to inputs and sources


@dataclass(frozen=True, eq=False)
class Unseen:
    """What crossings of jumps add to the squared error of the first rows, as expected of them.

    squares: (rows, features).  seen: (rows,) those that cross one as they are: `squares` stands for these, too.
    smooth2: the mean squared error of the others.  rates: how probable it is that a row crosses, by node.  sizes: the
    mean squared change then.
    """

    squares: Tensor
    seen: Tensor
    smooth2: float
    rates: Mapping[str, float]
    sizes: Mapping[str, float]

    def lost(self, lost: Tensor) -> Tensor:
        """Errors (rows, features) of the compressed network with crossings as expected: more of them where it is
        evaluated with larger errors than those of its weights.
        """
        others = lost[: len(self.seen)].square() * ~self.seen[:, None]
        further = float(others.sum()) / len(others) / self.smooth2 if self.smooth2 > 0 else 1.0
        return (others + math.sqrt(max(1.0, further)) * self.squares).sqrt()


@dataclass(frozen=True, eq=False)
class Jump:
    """A node whose value may jump, and the products by weights (`sources`) from which it is computed.

    until: from the inputs and these to the node's arguments.  beyond: to the program's outputs.
    """

    node: Node
    sources: tuple[str, ...]
    until: Program
    beyond: Program

    @staticmethod
    def of(program: Program, node: Node) -> "Jump":
        """Of a node of `program`."""
        nodes, names, waiting = {n.name: n for n in program.nodes}, dict[str, None](), list(node.inputs)
        seen: set[str] = set()
        while waiting:
            before = nodes.get(waiting.pop())
            if before is None or before.name in seen:
                continue
            seen.add(before.name)
            if before.op == "linear":
                names[before.name] = None
            else:
                waiting += before.inputs
        inputs = (*program.inputs, *(Value(k, nodes[k].shape) for k in names))
        rest = tuple(n for n in program.nodes if n.name not in names)
        beyond = replace(program, inputs=inputs, nodes=rest)
        return Jump(node, tuple(names), replace(beyond, outputs=node.inputs).simplified(), beyond.simplified())

    def side(self, inputs: Sequence[Tensor]) -> Tensor:
        """(rows, numbers) that differ by more than a half across a jump. inputs: the program's, then the sources."""
        sides = []
        with torch.no_grad():
            for rows in torch.arange(len(inputs[0])).split(rows_at_once(self.until)):
                sides.append(side(self.node, self.until.run([x[rows] for x in inputs])).float().reshape(len(rows), -1))
        return torch.cat(sides)

    def change(self, moved: Moved, rows: Tensor, behind: Tensor) -> Tensor:
        """The squared change (rows, features) of every output by what is crossed in the step that ends `behind`."""
        change = torch.zeros(())
        for width in [1.0] if self.node.row.side else [2.0**k for k in range(int(math.log2(float(behind.max()))) + 1)]:
            ends = (evaluate(self.beyond, moved(rows, behind - 0.5 + k * width)) for k in (-0.5, 0.5))
            change = torch.maximum(change, (next(ends) - next(ends)).square() / width)
        return change


@dataclass(frozen=True, eq=False)
class Jumps:
    """Where values of `program`, the original, may jump, and rows to tell how often, one tensor per input."""

    program: Program
    rows: tuple[Tensor, ...]
    jumps: tuple[Jump, ...]

    @staticmethod
    def of(program: Program, nodes: Sequence[Node], rows: Sequence[Tensor]) -> "Jumps":
        """Of some nodes, by as many of the rows as are worth looking at."""
        jumps = tuple(Jump.of(program, node) for node in nodes)
        shapes = [v.shape for jump in jumps for v in (*jump.until.inputs, *jump.until.nodes)]
        count = min(ROWS, 1 + NUMBERS // max(1, sum(math.prod(s) for s in shapes)))
        return Jumps(program, tuple(x[:count] for x in rows), jumps)

    @cached_property
    def replay(self) -> Replay:
        """The outputs, then all sources, for one set of constants after the other."""
        sources = dict.fromkeys(k for jump in self.jumps for k in jump.sources)
        return Replay(replace(self.program, outputs=(*self.program.outputs, *sources)), self.rows)

    def values(self, constants: Mapping[str, Constant]) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (rows, features) and the sources by name, if `constants` take the place of the original's."""
        program = self.replay.program
        shapes = [program.shape_of(k) for k in program.outputs]
        parts = self.replay.outputs(constants).split([math.prod(s) for s in shapes], dim=1)
        count = len(self.program.outputs)
        named = zip(program.outputs[count:], parts[count:], shapes[count:], strict=True)
        return torch.cat(parts[:count], 1), {k: x.reshape(-1, *shape) for k, x, shape in named}

    @cached_property
    def start(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the original."""
        return self.values({})

    def unseen(self, compressed: Mapping[str, Constant]) -> Unseen | None:
        """What crossings do if `compressed` are the constants. None where so many are seen as to speak for themselves,
        or none within reach.
        """
        (outputs, start), (others, end) = self.start, self.values(compressed)
        moves = {k: end[k] - start[k] for k in start}
        count = len(outputs)
        enough = max(LEAST, min(MOST, round(SHARE * count)))
        squares, seen = torch.zeros_like(outputs), torch.zeros(count, dtype=torch.bool)
        rates, sizes = dict[str, float](), dict[str, float]()
        for jump in self.jumps:
            moved = partial(self._moved, jump, moves)
            rows, behind = first_across(jump, moved, count, enough)
            if not len(rows):
                continue
            change, share = jump.change(moved, rows, behind), share_before_one(behind)
            squares.index_add_(0, rows, change * share)
            seen[rows[behind <= 1]] = True
            rates[jump.node.name], sizes[jump.node.name] = share * len(rows) / count, float(change.sum(1).mean())
        smooth2 = float((others - outputs)[~seen].square().sum()) / count
        return Unseen(squares, seen, smooth2, rates, sizes) if rates else None

    def _moved(self, jump: Jump, moves: Mapping[str, Tensor], rows: Tensor, times: Tensor) -> list[Tensor]:
        """The inputs and the jump's sources of some rows, moved so many `times` as far as compression moves them."""
        sources = self.start[1]
        factors = {k: times.reshape(-1, *[1] * (sources[k].ndim - 1)) for k in jump.sources}
        return [*(x[rows] for x in self.rows), *(sources[k][rows] + factors[k] * moves[k][rows] for k in jump.sources)]


def first_across(jump: Jump, moved: Moved, count: int, enough: int) -> tuple[Tensor, Tensor]:
    """The `enough` rows of `count` that cross the jump first, fewer if no more do, and the whole steps behind where
    they do. None where so many cross at once.
    """
    rows = torch.arange(count)
    low, high = torch.zeros(count).double(), torch.full((count,), math.inf).double()
    start = jump.side(moved(rows, low))
    for step in REACH:
        far = torch.full_like(low, step)
        is_across = _across(start, jump.side(moved(rows, far))) & (high == math.inf)
        high[is_across] = step
        low[high == math.inf] = step
        if int((high < math.inf).sum()) >= enough:
            break
    if int((high <= 1).sum()) >= enough:
        return rows[:0], high[:0]
    keep = high < math.inf
    while True:
        rows, low, high, start = rows[keep], low[keep], high[keep], start[keep]
        if not bool((high - low > 1).any()):
            return rows, high
        middle = ((low + high) / 2).floor()
        is_across = _across(start, jump.side(moved(rows, middle)))
        low, high = torch.where(is_across, low, middle), torch.where(is_across, middle, high)
        keep = low < high.sort().values[:enough][-1]


def _across(start: Tensor, end: Tensor) -> Tensor:
    return ((start - end).abs() > 0.5).any(1)


def share_before_one(steps: Tensor) -> float:
    """Which share of the rows that cross at these steps, and are the first to, is expected to before the first step.

    As many in every step as in those up to the row, LEAST or a later one, where they are densest; but no more than goes
    with the few rows before some earlier row in 1 of 100 cases (Poisson), where there are more further off. Fewer in
    later steps if Hill's index of the steps is surely below 1.
    """
    steps, count = steps.sort().values, len(steps)
    index = 1 / max(float((steps[-1] / (steps - 0.5)).log().mean()), 1e-6)
    reached = steps ** min(1.0, index * (1 + SURE / math.sqrt(count)))
    rows, early = torch.arange(count) + 1, min(LEAST, count) - 1
    densest = float((rows / reached)[early:].max())
    limits = torch.from_numpy(gammaincinv(rows.numpy(), 1 - RISK)) / reached
    return min(densest, float(limits[: early + 1].min())) / count


def side(node: Node, arguments: Sequence[Tensor]) -> Tensor:
    """Numbers that differ by more than a half across a jump of the node's."""
    if node.row.side is not None:
        return node.row.side(arguments, node.attrs)
    low, high = node.row.ends(node.attrs) if node.row.ends else (-math.inf, math.inf)
    return node.row.torch(arguments, node.attrs) > (low + high) / 2


def jumping(program: Program, rows: Sequence[Tensor]) -> tuple[Node, ...]:
    """Nodes whose value depends on a weight and jumps somewhere, or nearly so, on the first rows."""
    weighted, steep = set[str](), set[str]()
    for node in program.nodes:
        if node.op == "linear" or weighted.intersection(node.inputs):
            weighted.add(node.name)

    def observe(node: Node, arguments: tuple[Any, ...]) -> None:
        if node.row.ends is None or node.name not in weighted:
            return
        low, high = node.row.ends(node.attrs)
        value, near = node.row.torch(arguments, node.attrs), AT_END * (high - low)
        if near < math.inf and float(((value - low <= near) | (high - value <= near)).double().mean()) >= STEEP:
            steep.add(node.name)

    if any(n.row.ends for n in program.nodes):
        with torch.no_grad():
            program.run([x[: min(FIRST, rows_at_once(program))] for x in rows], observe=observe)
    steep |= {n.name for n in program.nodes if n.row.side and n.name in weighted}
    return tuple(n for n in program.nodes if n.name in steep)
