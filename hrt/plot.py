"""Pictures of a compressed network: block structure with ranks, dense blocks, singular-value decay."""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.files import check_writable, replacing
from hrt.hmatrix import HMatrix, Leaf
from hrt.model import CompressedModel

SKETCH_SIDE, SKETCH = 2048, 256  # beyond this side the leading singular values come from a random sketch
PANEL, SMALL_PANEL = 5.2, 2.9  # inches, height of a layer's row; small where one leaf is all there is to see
MAX_PANELS = 40  # a taller picture than this many rows would be refused by every format
FEW = 24  # singular values that are drawn one by one
SMALLEST_TEXT = 3.2  # points; smaller ranks are left out
DENSE, ZERO, EDGE, INK, GRID = "#33314f", "#ffffff", "#ffffff", "#22223b", "#d8d8e0"
CURVES = ("#22223b", "#c8553d", "#3d7ea6", "#588157")


def plot_model(model: CompressedModel, path: str | PathLike[str]) -> None:
    """Draw every weight matrix of `model`, one row each (the first 40), into an image file (.png, .pdf, .svg).

    Left: leaves at their place (tree order), coloured by their share of the dense bytes, dense leaves dark, ranks
    written in. Right: the singular values of the compressed matrix and of its largest low-rank leaves, each over its
    largest. Raises InputError for a file that cannot be written or a format matplotlib does not know; nothing is left
    behind then.
    """
    from matplotlib.figure import Figure

    suffix = Path(path).suffix.removeprefix(".").lower()
    known = Figure().canvas.get_supported_filetypes()
    if suffix not in known:
        raise InputError(f"Cannot draw {Path(path).name}: found the format {suffix!r}. Expected .png, .pdf or .svg.")
    check_writable(path, force=True)
    weights = [(name, model.program.constants[name]) for name in model.program.weights]
    if not weights:
        raise InputError("The network has no weight matrix to draw.")
    shown = weights[:MAX_PANELS]
    matrices = [value if isinstance(value, HMatrix) else HMatrix.from_dense(value) for _, value in shown]
    heights = [PANEL if len(h.leaves) > 1 else SMALL_PANEL for h in matrices]
    figure = Figure(figsize=(11.5, sum(heights) + 0.9), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr, call-arg]
    title = (
        f"{model.nbytes:,} bytes, {model.compression_ratio:.1f}x smaller than float32, tol {model.certificate.tol:g}"
    )
    more = f" (the first {len(shown)} of {len(weights)} layers)" if len(shown) < len(weights) else ""
    figure.suptitle(title + more, fontsize=13, color=INK)
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(1.15, 1), height_ratios=heights)
    for (name, _), h, height, (left, right) in zip(shown, matrices, heights, axes, strict=True):
        draw_blocks(left, h, name, height)
        draw_decay(right, h)
    legend(figure)
    with replacing(path) as file:
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


def draw_blocks(axes: Any, h: HMatrix, name: str, height: float = PANEL) -> None:
    """The leaves of `h`, the first row at the top, with their ranks where they can be read on `height` inches."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    m, n = h.shape
    dense = sum(leaf.is_dense for leaf in h.leaves)
    kinds = f"{len(h.leaves)} leaves, {dense} dense"
    if len(h.leaves) == 1:
        kinds = "dense" if dense else f"rank {h.leaves[0].rank}"
    ratio = f", {4 * m * n / h.nbytes:.1f}x smaller" if h.nbytes and m * n else ""
    axes.set_title(f"{name}\n{m} x {n}, {kinds}{ratio}", fontsize=10, color=INK)
    if not m * n:
        _say_empty(axes)
        return
    square = max(m, n) <= 6 * min(m, n)
    inches = 0.78 * height
    across, down = (inches / max(m, n),) * 2 if square else (inches / n, inches / m)
    faces = [DENSE if leaf.is_dense else ZERO if not leaf.rank else shade(_share(leaf)) for leaf in h.leaves]
    for leaf in h.leaves:
        text = str(leaf.rank) if leaf.rank > 0 else "dense" if leaf.is_dense and len(h.leaves) == 1 else ""
        size = min(72 * down * leaf.rows * 0.62, 72 * across * leaf.cols * 1.15 / max(1, len(text)), 22.0)
        if text and size >= SMALLEST_TEXT:
            at = (leaf.col + leaf.cols / 2, leaf.row + leaf.rows / 2)
            axes.text(*at, text, ha="center", va="center", fontsize=size, color=EDGE if leaf.is_dense else INK)
    patches = [Rectangle((leaf.col, leaf.row), leaf.cols, leaf.rows) for leaf in h.leaves]
    width = 0.8 if len(h.leaves) < 200 else 0.3
    axes.add_collection(PatchCollection(patches, facecolor=faces, edgecolor=EDGE, linewidth=width))
    axes.set(xlim=(0, n), ylim=(m, 0), xlabel="columns (tree order)", ylabel="rows (tree order)")
    axes.set_aspect("equal" if square else "auto")
    axes.locator_params(integer=True)
    for side in axes.spines.values():
        side.set_color(GRID)
    axes.tick_params(colors=INK, labelsize=8)


def draw_decay(axes: Any, h: HMatrix) -> None:
    """Singular values of the whole compressed matrix, and of its largest low-rank leaves, each over its largest."""
    axes.set_title("singular-value decay", fontsize=10, color=INK)
    if not h.shape[0] * h.shape[1]:
        _say_empty(axes)
        return
    _curve(axes, singular_values(h.to_dense(torch.float32)), "whole matrix", CURVES[0], linewidth=1.8)
    low = sorted((leaf for leaf in h.leaves if leaf.rank > 1), key=lambda leaf: -leaf.rows * leaf.cols)
    shapes = {(leaf.rows, leaf.cols): leaf for leaf in reversed(low)} if len(h.leaves) > 1 else {}
    largest = sorted(shapes.values(), key=lambda leaf: -leaf.rows * leaf.cols)[: len(CURVES) - 1]
    for leaf, colour in zip(largest, CURVES[1:], strict=False):
        values = singular_values(leaf.to_dense(torch.float32))[: leaf.rank]
        _curve(axes, values, f"a leaf {leaf.rows} x {leaf.cols}, rank {leaf.rank}", colour, linewidth=1.2)
    axes.set(xlabel="index", ylabel="singular value / largest")
    if not axes.lines:
        axes.text(0.5, 0.5, "all zero", ha="center", va="center", transform=axes.transAxes, color=INK)
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


def _share(leaf: Leaf) -> float:
    return leaf.nbytes / (4 * leaf.rows * leaf.cols) if leaf.rows * leaf.cols else 0.0


def _say_empty(axes: Any) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no entries", ha="center", va="center", transform=axes.transAxes, color=INK)


def _curve(axes: Any, values: Tensor, label: str, colour: str, **style: Any) -> None:
    """Down to float32's own rounding, below which the values are noise; single points where there are few."""
    top = float(values.max())
    if top > 0:
        kept = (values / top)[values > torch.finfo(torch.float32).eps * len(values) * top].tolist()
        style |= {"marker": "o", "markersize": 4} if len(kept) <= FEW else {}
        axes.semilogy(range(1, len(kept) + 1), kept, label=label, color=colour, **style)
