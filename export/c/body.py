"""What a lowering writes to: the places of values, tables, scratch memory, and the lines of C.

Layout. A value of one sample is flattened row-major: n numbers. A block of L samples lies feature-major, samples as
lanes: number i of sample s at `p[i * L + s]`. The body's text stands once, over `const int L`: 1 for latency,
HRT_BLOCK for throughput. In C `w` is the workspace, `N` the tables, `fixed` memory for what is decoded.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from hrt.export.c.layout.numbers import Numbers, literal, up16, wrapped
from hrt.export.c.layout.packing import Packed, packed
from hrt.export.c.layout.workspace import SPARE, Plan, plan
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.program import Node, Program


@dataclass(frozen=True)
class Place:
    """Where a value lies. pointer: a C expression of `const real *` (of `real *` for what a node computes), without
    brackets around it needed.  shape: of one sample.  batch: whether it has samples; a constant has none (number i at
    pointer[i]) and its shape is that of the tensor.  number: the only one of a constant of one number, as C text.
    """

    pointer: str
    shape: tuple[int, ...]
    batch: bool = True
    number: str | None = None

    @property
    def numbers(self) -> int:
        """Of one sample."""
        return prod(self.shape)

    def at(self, offset: int | str) -> str:
        """The pointer to number `offset` of the value."""
        return f"{self.pointer} + (size_t)L * ({offset})" if self.batch else f"{self.pointer} + ({offset})"


@dataclass
class Shared:
    """What the programs of a file share. layers: names by the text of their tables.  many: streams of the functions for
    layers of many blocks.
    """

    numbers: Numbers
    layers: dict[str, str] = field(default_factory=dict)
    many: set[int] = field(default_factory=set)

    def layer(self, weight: Packed, bias: int) -> str:
        """The name of a weight's tables, with the bias at this offset."""
        dots = [[d.column, d.columns, d.place, d.scale, _row(d.count), _row(d.at)] for d in weight.dots]
        segments = [
            [_kind(s.kind), int(s.scale >= 0), s.count, s.index, s.at, max(s.scale, 0)]
            for strip in weight.strips
            for s in strip.segments
        ]
        strips, first = [], 0
        for strip in weight.strips:
            over_t = sum(s.over_t for s in strip.segments)
            strips.append([strip.row, strip.rows, first, len(strip.segments) - over_t, over_t])
            first += len(strip.segments)
        tables = {"dots": dots, "strips": strips, "segments": segments}
        kinds = {"dots": "hrt_dots", "strips": "hrt_strip", "segments": "hrt_segment"}
        lines = [f"static const {kinds[k]} %_{k}[] = {{\n{wrapped(map(_row, v))}\n}};" for k, v in tables.items() if v]
        pointers = ", ".join(f"%_{k}" if v else "0" for k, v in tables.items())
        lines.append(f"static const hrt_layer % = {{{pointers}, {len(dots)}, {len(strips)}, {bias}}};")
        return self.layers.setdefault("\n".join(lines), f"hrt_layer_{len(self.layers)}")


def _row(items: Any) -> str:
    return "{" + ", ".join(map(str, items)) + "}"


def _kind(kind: str) -> str:
    return f"HRT_{kind.upper()}"


class Body:
    """The lines of one program, as lowerings write them (`hrt.export.c.operators`).

    lines: C, indented by four. `L`, `w`, `N` and `fixed` are in scope.  functions: C that stands before them.
    """

    def __init__(self, program: Program, name: str, shared: "Shared"):
        self.program, self.name, self.shared, self.numbers = program, name, shared, shared.numbers
        self.plan: Plan = plan(program)
        self.lines: list[str] = []
        self.functions: list[str] = []
        self.shapes = {v.name: tuple(v.shape) for v in (*program.inputs, *program.nodes)}
        self.scratch_size = self.fixed_size = self.lanes_size = 0
        self.top = 0  # of the scratch of the step at work
        self._packed: dict[str, Packed] = {}

    # what lowerings ask for

    def of(self, name: str) -> Place:
        """Where a value or constant lies."""
        if name in self.shapes:
            pointer = f"w + (size_t)L * {self.plan.offset(name)}"
            if name in self.plan.direct:
                pointer = f"(L == 1 ? {self.plan.direct[name]} : {pointer})"
            return Place(pointer, self.shapes[name])
        constant = self.constant(name)
        number = literal(float(constant), suffix=self.suffix) if constant.numel() == 1 else None
        return Place(self.table(constant, name), tuple(constant.shape), False, number)

    def out(self, node: Node) -> Place:
        """Where a node's result goes; 16 numbers behind its last sample may be written too."""
        return self.of(node.name)

    def constant(self, name: str) -> Tensor:
        """The numbers of a constant, as float64 where they are not whole."""
        constant = self.program.constants[name]
        return constant.to_dense() if isinstance(constant, HMatrix) else constant.detach().cpu()

    def table(self, values: Any, note: str = "") -> str:
        """A static table as a C expression: `const real *` for floating point numbers, else `const int32_t *`."""
        tensor = torch.as_tensor(values)
        kind = "reals" if tensor.is_floating_point() else "ints"
        if tensor.ndim > 1:  # rows of any width are read by whole vectors
            tensor = torch.cat([tensor.reshape(-1), torch.zeros(SPARE, dtype=tensor.dtype)])
        return f"N->{kind} + {self.numbers.add(kind, tensor, note)}"

    def scratch(self, count: int) -> str:
        """So many numbers of every sample, as a `real *` of the step at work; their content is not kept."""
        offset = self.top
        self.top += up16(count) + SPARE
        self.scratch_size = max(self.scratch_size, self.top)
        return f"w + (size_t)L * ({self.name.upper()}_VALUES + {offset})"

    def add(self, *lines: str) -> None:
        """Lines of C, which may hold several."""
        self.lines += [f"    {line}" if line else "" for text in lines for line in text.split("\n")]

    @property
    def suffix(self) -> str:
        """Of a literal number."""
        return "" if self.numbers.double else "f"

    def literal(self, value: float) -> str:
        """A number as a C literal of type real."""
        return literal(value, suffix=self.suffix)

    def move(self, target: str, source: str, index: Tensor) -> None:
        """Number i of `target` is number index[i] of `source`, 0 where that is negative (pointers of values)."""
        count, first = index.numel(), int(index[0]) if index.numel() else 0
        if not count:
            return
        breaks = (index[1:] != index[:-1] + 1).nonzero().reshape(-1) + 1
        run = int(breaks[0]) if len(breaks) else count
        starts = index[::run]
        even = count % run == 0 and torch.equal(index.reshape(-1, run), starts[:, None] + torch.arange(run))
        step = int(starts[1] - starts[0]) if len(starts) > 1 else 0
        if even and int(starts.min()) >= 0 and torch.equal(starts, first + step * torch.arange(len(starts))):
            x = f"{source} + (size_t)L * {first}"
            if len(starts) == 1:
                self.add(f"hrt_copy(L, {target}, {x}, {run});")
                return
            self.add(
                f"for (size_t i = 0; i < {len(starts)}; i++)",
                f"    hrt_copy(L, {target} + (size_t)L * (i * {run}), {x} + (size_t)L * (i * {step}), {run});",
            )
            return
        self.add(f"hrt_take(L, {target}, {source}, {self.table(index.to(torch.int32))}, {count});")

    def weight(self, name: str) -> Packed:
        """The tables of a weight."""
        if name not in self._packed:
            constant = self.program.constants[name]
            note = comment(f"{name}: {' x '.join(map(str, constant.shape))}")
            self._packed[name] = packed(constant, self.numbers, note)
        return self._packed[name]


def comment(text: str) -> str:
    """`text` as the inside of a C comment, printable ASCII."""
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *").replace("??/", "?? /").replace("\\", "/")
