"""Where the rows of a linear node with many rows come from and go to, without the copies that stand beside it.

Three forms: rows one after the other; the last axis of the result brought to the front (and the first to the end, for
arguments), so that a number of all rows is a run; windows of an image, where it is a run for neighbouring steps.
"""

from dataclasses import dataclass

from hrt.export.c.body import Body
from hrt.program.patches import Window
from hrt.program.program import Node


@dataclass(frozen=True)
class Arrivals:
    """C that fills `lanes` with rows r and following (a block of one sample), or with row r of L samples."""

    body: Body
    before: Node | None
    node: Node
    rows: int

    @property
    def _source(self) -> str:
        return self.body.of((self.before or self.node).inputs[0]).pointer

    @property
    def _size(self) -> int:
        return self.body.shapes[self.before.name if self.before else self.node.inputs[0]][-1]

    @property
    def of_block(self) -> str:
        """Rows as lanes."""
        x, n = self._source, self._size
        if self.before is None:
            return f"hrt_lanes_in(HRT_BLOCK, lanes, {x} + r * {n}, {n}, {n}, count);"
        if self.before.op == "patches":
            return f"{{ {self._window} hrt_window_lanes(HRT_BLOCK, lanes, {x}, &window, r, count); }}"
        return f"hrt_runs_in(HRT_BLOCK, lanes, {x} + r, {self.rows}, {n}, count);"

    @property
    def of_row(self) -> str:
        """Samples as lanes."""
        x, n = self._source, self._size
        if self.before is None:
            return f"hrt_copy(L, lanes, {x} + (size_t)L * (r * {n}), {n});"
        if self.before.op == "patches":
            return f"{{ {self._window} hrt_window_row(L, lanes, {x}, &window, r); }}"
        return f"hrt_copy_steps(L, lanes, {x} + (size_t)L * r, {n}, 1, {self.rows});"

    @property
    def _window(self) -> str:
        node = self.before or self.node
        return f"static const hrt_window window = {window_fields(node, self.body.shapes[node.inputs[0]])};"


@dataclass(frozen=True)
class Departures:
    """C that takes `out` to rows r and following, or to row r of L samples."""

    body: Body
    behind: Node | None
    node: Node
    rows: int

    @property
    def of_block(self) -> str:
        """Rows as lanes."""
        y, m = self.body.out(self.behind or self.node).pointer, self.node.shape[-1]
        if self.behind is None:
            return f"hrt_lanes_out(HRT_BLOCK, {y} + r * {m}, out, {m}, {m}, count);"
        return f"hrt_runs_out(HRT_BLOCK, {y} + r, out, {self.rows}, {m}, count);"

    @property
    def of_row(self) -> str:
        """Samples as lanes."""
        y, m = self.body.out(self.behind or self.node).pointer, self.node.shape[-1]
        if self.behind is None:
            return f"hrt_copy(L, {y} + (size_t)L * (r * {m}), out, {m});"
        return f"hrt_copy_steps(L, {y} + (size_t)L * r, out, {m}, {self.rows}, 1);"


def window_fields(node: Node, shape: tuple[int, ...]) -> str:
    """An hrt_window in C: three axes, those that are missing of size 1."""
    window = Window.of(node.attrs)
    axes = window.axes
    fields = [
        (shape[-axes:], 1),
        (window.steps(shape), 1),
        (window.kernel, 1),
        (window.stride, 1),
        (window.dilation, 1),
        (window.padding[:axes], 0),
    ]
    texts = ["{" + ", ".join(map(str, [*[filler] * (3 - axes), *values])) + "}" for values, filler in fields]
    return f"{{{shape[-axes - 1]}, {', '.join(texts)}}}"
