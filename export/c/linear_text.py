"""Linear nodes as C: one row by straight-line code or tables, blocks of samples by tables."""

from collections.abc import Sequence
from math import prod

import torch

from hrt.export.c.body import Body
from hrt.export.c.layout.numbers import up16
from hrt.export.c.layout.packing import ORDER, Dots, Packed, Strip
from hrt.export.c.operators.many_rows import Arrivals, Departures
from hrt.program.program import Node

UNROLLED = 12  # blocks of a layer up to which one row is straight-line code
TOGETHER = 4  # streams that are summed at once


def kind_name(kind: str) -> str:
    """HRT_I8 for "i8"."""
    return f"HRT_{kind.upper()}"


class LinearText:
    """Nodes on one weight that are computed together. Their rows are streams: the weight is decoded once for all.

    ending: a C function that is called with results, as soon as they are there.
    """

    def __init__(self, body: Body, step: Sequence[Node], weight: Packed, ending: str | None = None):
        self.body, self.weight, self.ending = body, weight, ending
        nodes = [node for node in step if node.op == "linear"]
        self.before = step[0] if step[0] is not nodes[0] else None  # what brings its rows in order
        self.behind = step[-1] if step[-1] is not nodes[-1] else None  # and what turns its results
        nodes = sorted(nodes, key=lambda node: len(node.inputs) < 3)  # those with a bias first
        self.rows = [(node, r) for node in nodes for r in range(prod(node.shape[:-1]))]
        self.biased = sum(len(node.inputs) > 2 for node, _ in self.rows)
        self.whole = all(prod(n.shape[:-1]) == 1 and n.name not in body.plan.direct for n in nodes)
        bias = next((node.inputs[2] for node in nodes if len(node.inputs) > 2), None)
        numbers = torch.zeros(weight.m) if bias is None else body.constant(bias).reshape(-1)
        if weight.row_order is not None:
            numbers = numbers[weight.row_order.long()]
        self.bias = body.numbers.add("reals", torch.cat([numbers.double(), torch.zeros(16)]), bias or "")
        self.layer = body.shared.layer(weight, self.bias)

    def write(self) -> None:
        """The step's lines."""
        add, w = self.body.add, self.weight
        node = self.rows[0][0]
        self.body.fixed_size = max(self.body.fixed_size, w.scratch)
        if len(self.rows) > 8:
            self._many_rows(node, len(self.rows))
            return
        add("if (L == 1) {")
        for k in range(0, len(self.rows), TOGETHER):
            self._one_row(self.rows[k : k + TOGETHER], min(max(self.biased - k, 0), TOGETHER))
        if self.ending:
            add(f"    {self.ending}({self.body.out(node).pointer}, {len(self.rows) * w.m});")
        add("} else {")
        self._ports(self.rows, self.biased, in_lanes=True)
        add(f"    hrt_blocks(L, N, &{self.layer}, &ports, fixed);")
        self._ordered_outputs(self.rows)
        add("}")

    def _x(self, node: Node, row: int) -> str:
        return self.body.of(node.inputs[0]).at(row * self.weight.n)

    def _y(self, node: Node, row: int) -> str:
        return self.body.out(node).at(row * self.weight.m)

    def _ports(self, rows: Sequence[tuple[Node, int]], biased: int, *, in_lanes: bool) -> None:
        """Declares x, t, y and ports; what must be padded or ordered is copied first."""
        add, w, body = self.body.add, self.weight, self.body
        top = body.top
        copied = w.col_order is not None or (not in_lanes and w.reach > w.n)
        x = [body.scratch(w.n) if copied else self._x(*row) for row in rows]
        t = [body.scratch(w.places) for _ in rows]
        y = [body.scratch(w.m) if w.row_order is not None else self._y(*row) for row in rows]
        self.outputs = y
        body.top = top
        table = "0" if w.col_order is None else body.table(w.col_order.to(torch.int32))
        for (node, row), target in zip(rows, x, strict=True):
            if copied and in_lanes:
                add(f"    hrt_take(L, {target}, {self._x(node, row)}, {table}, {w.n});")
            elif copied:
                add(f"    hrt_padded({target}, {self._x(node, row)}, {table}, {w.n});")
        add(f"    const real *const x[] = {{{', '.join(x)}}};")
        add(f"    real *const t[] = {{{', '.join(t)}}}, *const y[] = {{{', '.join(y)}}};")
        spare = int(self.whole or w.row_order is not None)
        add(f"    const hrt_ports ports = {{x, t, y, {len(rows)}, {biased}, {spare}, {self.ending or 0}}};")

    def _ordered_outputs(self, rows: Sequence[tuple[Node, int]]) -> None:
        if self.weight.row_order is None:
            return
        table = self.body.table(torch.argsort(self.weight.row_order.long()).to(torch.int32))
        for source, row in zip(self.outputs, rows, strict=True):
            self.body.add(f"    hrt_take(L, {self._y(*row)}, {source}, {table}, {self.weight.m});")

    def _one_row(self, rows: Sequence[tuple[Node, int]], biased: int) -> None:
        w, add = self.weight, self.body.add
        add("    {")
        self._ports(rows, biased, in_lanes=False)
        if len(w.dots) + len(w.strips) > UNROLLED:
            self.body.shared.many.add(len(rows))
            add(f"    hrt_many_{len(rows)}(N, &{self.layer}, &ports);")
        else:
            for d in w.dots:
                self._dots(d, len(rows))
            for strip in w.strips:
                self._strip(strip, len(rows), biased)
            add("    (void)ports;")
        self._ordered_outputs(rows)
        add("    }")

    def _dots(self, d: Dots, streams: int) -> None:
        place = d.place
        for kind, count, at in zip(ORDER, d.count, d.at, strict=True):
            if count:
                scale = f"N->reals + {d.scale}" if kind == "i8" else "0"
                numbers = f"{kind_name(kind)}, {streams}, N, {at}, {up16(d.columns)}, {count}"
                self.body.add(f"    hrt_dots_of({numbers}, x, {d.column}, t, {place}, {scale});")
                place += count

    def _strip(self, strip: Strip, streams: int, biased: int) -> None:
        add, tall = self.body.add, up16(strip.rows)
        step = f"HRT_STEP({tall}, {streams})"
        add(f"    for (int c = 0; c < {tall}; c += {step}) {{ /* rows {strip.row} to {strip.row + strip.rows - 1} */")
        add("        hrt_v a[HRT_MOST];")
        add(f"        hrt_begin({streams}, {step}, a, N->reals + {self.bias + strip.row} + c, {biased});")
        for s in strip.segments:
            source = "(const real *const *)t" if s.over_t else "x"
            place = f"a, N, {s.at} + (size_t)c, {tall}, {s.index}, {s.count}, {source}"
            if s.scale < 0:
                add(f"        hrt_columns({kind_name(s.kind)}, {streams}, {step}, {place});")
            else:
                add(f"        hrt_scaled_columns({streams}, {step}, {place}, N->reals + {s.scale} + c);")
        full = self.whole or strip.rows == tall or self.weight.row_order is not None
        add(f"        hrt_end({streams}, {step}, a, y, {strip.row} + c, {step if full else f'{strip.rows} - c'});")
        add("    }")

    def _many_rows(self, node: Node, rows: int) -> None:
        """Many rows of one node. One sample: rows are lanes, in blocks; blocks of samples: row by row."""
        add, w, body = self.body.add, self.weight, self.body
        body.lanes_size = max(body.lanes_size, 2 * w.n + w.places + 2 * w.m + 5 * 16)
        take = "0" if w.col_order is None else body.table(w.col_order.to(torch.int32))
        back = None if w.row_order is None else body.table(torch.argsort(w.row_order.long()).to(torch.int32))
        n, m, t = up16(w.n), up16(w.m) + 16, up16(w.places)
        arrivals, departures = Arrivals(body, self.before, node, rows), Departures(body, self.behind, node, rows)
        add(
            f"if (L == 1) for (size_t r = 0; r < {rows}; r += HRT_BLOCK) {{ /* rows are lanes */",
            f"    const size_t count = {rows} - r < HRT_BLOCK ? {rows} - r : HRT_BLOCK;",
            f"    real *const lanes = fixed + {body.name.upper()}_DECODED;",
            f"    {arrivals.of_block}",
        )
        self._lanes(["lanes", n, t, m], take, back, "HRT_BLOCK")
        add(f"    {departures.of_block}", "}")
        add(
            f"else for (size_t r = 0; r < {rows}; r++) {{",
            f"    real *const lanes = {body.scratch(n + t + 2 * m + n)};",
            f"    {arrivals.of_row}",
        )
        self._lanes(["lanes", n, t, m], take, back, "L")
        add(f"    {departures.of_row}", "}")

    def _lanes(self, sizes: Sequence[str | int], take: str, back: str | None, lanes: str) -> None:
        """One block: x at `lanes`, behind it ordered x, t, y and ordered y; declares `out`."""
        add, w = self.body.add, self.weight
        base, n, t, m = sizes
        step = f"{base} + (size_t){lanes} * "
        x = str(base)
        if take != "0":
            x = f"{step}{n}"
            add(f"    hrt_take({lanes}, {x}, {base}, {take}, {w.n});")
        y = f"{step}({n} + {n} + {t})"
        add(
            f"    const real *const x[] = {{{x}}};",
            f"    real *const t[] = {{{step}({n} + {n})}}, *const y[] = {{{y}}};",
            f"    const hrt_ports ports = {{x, t, y, 1, {min(self.biased, 1)}, 0, {self.ending or 0}}};",
            f"    hrt_blocks({lanes}, N, &{self.layer}, &ports, fixed);",
        )
        if back is None:
            add("    real *const out = y[0];")
        else:
            out = f"{step}({n} + {n} + {t} + {m})"
            add(f"    real *const out = {out};", f"    hrt_take({lanes}, out, y[0], {back}, {w.m});")
