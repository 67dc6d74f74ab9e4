"""Pictures of a compressed network: block structure with ranks, dense blocks, singular-value decay."""

import math
import warnings
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.contents import Contents
from hrt.support.atomic_files import check_writable, replacing, usable

LARGEST_DRAWN = 1 << 27  # entries that are written out for singular values: half a gigabyte
SKETCH_SIDE, SKETCH = 2048, 256  # beyond this side the leading singular values come from a random sketch
PANEL, SMALL_PANEL = 5.2, 2.9  # inches, height of a layer's row; small where one leaf is all there is to see
MAX_PANELS = 40  # a taller picture than this many rows would be refused by every format
FEW = 24  # singular values that are drawn one by one
SMALLEST_TEXT = 3.2  # points; smaller ranks are left out
DENSE, ZERO, EDGE, INK, GRID = "#33314f", "#ffffff", "#ffffff", "#22223b", "#d8d8e0"
CURVES = ("#22223b", "#c8553d", "#3d7ea6", "#588157")


def plot_model(model: Contents, path: str | PathLike[str]) -> None:
    """Draw every weight matrix of `model`, one row each (the first 40), into an image file (.png, .pdf, .svg).

    Left: leaves at their place (tree order), coloured by their share of the dense bytes, ranks written in. Right:
    singular values. Raises InputError for a file that cannot be written or a format matplotlib does not know.
    """
    from matplotlib.figure import Figure

    suffix = usable(path).suffix.removeprefix(".").lower()
    known = Figure().canvas.get_supported_filetypes()
    if suffix not in known:
        raise InputError(f"Cannot draw {usable(path).name}: found the format {suffix!r}. Expected .png, .pdf or .svg.")
    check_writable(path, force=True)
    weights = [(name, model.program.constants[name]) for name in model.program.weights]
    if not weights:
        raise InputError("The network has no weight matrix to draw.")
    shown = weights[:MAX_PANELS]
    matrices = [value if isinstance(value, HMatrix) else HMatrix.from_dense(value) for _, value in shown]
    heights = [PANEL if len(Block.all_of(h)) > 1 else SMALL_PANEL for h in matrices]
    figure = Figure(figsize=(11.5, sum(heights) + 0.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr, call-arg]
    title = f"{model.nbytes:,} bytes, {model.compression_ratio:.1f}x smaller than float32"
    more = f" (the first {len(shown)} of {len(weights)} layers)" if len(shown) < len(weights) else ""
    figure.suptitle(f"{title}, tol {model.certificate.tol:g}{more}", fontsize=13, color=INK)
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1.15, 1), height_ratios=heights)
    for (name, _), h, height, (left, right) in zip(shown, matrices, heights, axes, strict=True):
        draw_blocks(left, h, name, height)
        draw_decay(right, h)
    legend(figure)
    with replacing(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter that the font lacks is drawn as a box
        figure.savefig(file, dpi=140, format=suffix)


def legend(figure: Any) -> None:
    """What the colours of the blocks mean, under all panels."""
    from matplotlib.patches import Patch

    marks = [
        Patch(facecolor=DENSE, label="dense"),
        *(Patch(facecolor=shade(s), label=f"low-rank, {s:.0%} of dense") for s in (0.75, 0.25, 0.05)),
        Patch(facecolor=ZERO, edgecolor=GRID, label="zero"),
    ]
    figure.legend(handles=marks, loc="outside lower left", ncols=len(marks), fontsize=9, frameon=False)


def shade(share: float) -> Any:
    """The colour of a low-rank leaf that takes `share` of its dense bytes, pale to strong."""
    from matplotlib import colormaps

    return colormaps["YlOrRd"](0.05 + 0.6 * min(1.0, share) ** 0.5)


@dataclass(frozen=True)
class Block:
    """What stands at one place: a dense leaf, or the sum of low-rank leaves."""

    leaves: tuple[Leaf, ...]

    @staticmethod
    def all_of(h: HMatrix) -> "list[Block]":
        """The blocks of `h`, the largest first."""
        return sorted((Block(leaves) for leaves in h.blocks().values()), key=lambda b: -math.prod(b.size))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.leaves[0].rows, self.leaves[0].cols

    @property
    def rank(self) -> int:
        """Of all leaves together; -1 for a dense block."""
        return sum(leaf.rank for leaf in self.leaves)

    @property
    def colour(self) -> Any:
        """Of its face."""
        if self.rank <= 0:
            return DENSE if self.rank < 0 else ZERO
        return shade(sum(leaf.nbytes for leaf in self.leaves) / (4 * math.prod(self.size)))

    @property
    def values(self) -> Tensor:
        """Its singular values, as many as the rank says."""
        return singular_values(sum((e.to_dense(torch.float32) for e in self.leaves), torch.zeros(())))[: self.rank]


def draw_blocks(axes: Any, h: HMatrix, name: str, height: float = PANEL) -> None:
    """The blocks of `h`, the first row at the top, with their ranks where they can be read on `height` inches."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    m, n = h.shape
    blocks = Block.all_of(h)
    kinds = f"{len(blocks)} blocks, {sum(b.rank < 0 for b in blocks)} dense"
    if len(blocks) == 1:
        kinds = "dense" if blocks[0].rank < 0 else f"rank {blocks[0].rank}"
    ratio = f", {4 * m * n / h.nbytes:.1f}x smaller" if h.nbytes and m * n else ""
    axes.set_title(f"{name}\n{m} x {n}, {kinds}{ratio}", fontsize=10, color=INK, parse_math=False)
    if not m * n:
        axes.set_axis_off()
        _write(axes, (0.5, 0.5), "no entries")
        return
    square = max(m, n) <= 6 * min(m, n)
    inches = 0.78 * height
    across, down = (inches / max(m, n),) * 2 if square else (inches / n, inches / m)
    patches = []
    for block in blocks:
        row, col, (rows, cols) = block.leaves[0].row, block.leaves[0].col, block.size
        patches.append(Rectangle((col, row), cols, rows))
        text = str(block.rank) if block.rank > 0 else "dense" if block.rank < 0 and len(blocks) == 1 else ""
        size = min(72 * down * rows * 0.62, 72 * across * cols * 1.15 / max(1, len(text)), 22.0)
        if text and size >= SMALLEST_TEXT:
            _write(axes, (col + cols / 2, row + rows / 2), text, EDGE if block.rank < 0 else INK, fontsize=size)
    faces, width = [block.colour for block in blocks], 0.8 if len(blocks) < 200 else 0.3
    axes.add_collection(PatchCollection(patches, facecolor=faces, edgecolor=EDGE, linewidth=width))
    axes.set(xlim=(0, n), ylim=(m, 0), xlabel="columns (tree order)", ylabel="rows (tree order)")
    axes.set_aspect("equal" if square else "auto")
    axes.locator_params(integer=True)
    axes.spines[:].set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8)


def draw_decay(axes: Any, h: HMatrix) -> None:
    """Singular values of the whole compressed matrix, and of its largest low-rank blocks, each over its largest."""
    axes.set_title("singular-value decay", fontsize=10, color=INK)
    if not math.prod(h.shape):
        axes.set_axis_off()
        _write(axes, (0.5, 0.5), "no entries")
        return
    if math.prod(h.shape) > LARGEST_DRAWN:
        axes.set_axis_off()
        _write(axes, (0.5, 0.5), "too large to draw")
        return
    _curve(axes, singular_values(h.to_dense(torch.float32)), "whole matrix", CURVES[0], linewidth=1.8)
    blocks = Block.all_of(h)
    shapes = {b.size: b for b in reversed(blocks) if b.rank > 1 and len(blocks) > 1}
    for ((m, n), block), colour in zip(reversed(shapes.items()), CURVES[1:], strict=False):
        _curve(axes, block.values, f"a block {m} x {n}, rank {block.rank}", colour, linewidth=1.2)
    axes.set(xlabel="index", ylabel="singular value / largest")
    if not axes.lines:
        _write(axes, (0.5, 0.5), "all zero")
        return
    longest = max(len(line.get_xdata()) for line in axes.lines)
    if longest > FEW:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        axes.set_xlim(0.5, longest + 0.5)
    axes.set_ylim(bottom=min(0.08, axes.get_ylim()[0]), top=1.6)
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="lower left")


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values, largest first; of a large matrix the leading ones, from a random sketch."""
    if min(matrix.shape) > SKETCH_SIDE:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(matrix.shape[1], SKETCH, dtype=matrix.dtype, generator=generator)
        basis = torch.linalg.qr(matrix @ (matrix.T @ (matrix @ start))).Q
        return torch.linalg.svdvals(basis.T @ matrix)[: SKETCH // 2]
    return torch.linalg.svdvals(matrix)


def _write(axes: Any, at: tuple[float, float], text: str, colour: str = INK, **style: Any) -> None:
    """Centred at a place of the matrix, or with no size given of the panel."""
    style = style or {"transform": axes.transAxes}
    axes.text(*at, text, ha="center", va="center", color=colour, **style)


def _curve(axes: Any, values: Tensor, label: str, colour: str, **style: Any) -> None:
    """Down to float32's own rounding, below which the values are noise; single points where there are few."""
    top = float(values.max())
    if top > 0:
        above = (values / top)[values > torch.finfo(torch.float32).eps * len(values) * top].tolist()
        style |= {"marker": "o", "markersize": 4} if len(above) <= FEW else {}
        axes.semilogy(range(1, len(above) + 1), above, label=label, color=colour, **style)
