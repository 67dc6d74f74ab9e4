"""Pictures of a compressed network: block structure with ranks, dense blocks, singular-value decay."""

import math
import warnings
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.samples import Inputs
from hrt.capture.network import Network
from hrt.errors import InputError, printable
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.contents import Contents
from hrt.model.plot_fields import FIELDS, Reference, draw_fields
from hrt.support.atomic_files import check_writable, replacing, usable

LARGEST_DRAWN = 1 << 27  # entries that are written out for singular values: half a gigabyte
SKETCH_SIDE, SKETCH = 2048, 256  # beyond this side the leading singular values come from a random sketch
PANEL, SMALL_PANEL = 5.2, 2.9  # inches, height of a layer's row; small where one leaf is all there is to see
MAX_PANELS = 40  # a taller picture than this many rows would be refused by every format
FEW = 24  # singular values that are drawn one by one
SMALLEST_TEXT = 3.2  # points; smaller ranks are left out
DENSE, ZERO, EDGE, INK, GRID = "#33314f", "#ffffff", "#ffffff", "#22223b", "#d8d8e0"
ORIGINAL, COMPRESSED = "original W", "compressed H"
CURVES = {ORIGINAL: ("#22223b", 2.4), COMPRESSED: ("#c8553d", 1.2)}  # colour and width
TOLERANCE = "#3d7ea6"
SHADES = 64  # of the colour bar
HEAD, FOOT, FIELD_PANEL = 0.5, 1.1, 3.2  # inches, height of the title, of the legend, of a row of fields
FORMATS = ("png", "pdf", "svg")


def plot_model(
    model: Contents, path: str | PathLike[str], *, reference: Network | None = None, inputs: Inputs | None = None
) -> None:
    """Draw every weight matrix of `model`, one row each (the first 40), into an image file (.png, .pdf, .svg).

    Left: leaves at their place (tree order), coloured by their share of the dense bytes, ranks written in. Right:
    singular values, the original's too where `reference` gives it, and as the inputs see them where there are `inputs`.
    Below, for inputs of one or two numbers, the first outputs as fields. Raises InputError for a file that cannot be
    written, another format, and a reference that is not the original.
    """
    from matplotlib.figure import Figure

    suffix = usable(path).suffix.removeprefix(".").lower()
    if suffix not in FORMATS:
        expected = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"Cannot draw {usable(path).name}: found the format {suffix!r}. Expected one of {expected}.")
    check_writable(path, force=True)
    weights = [(name, model.program.constants[name]) for name in model.program.weights]
    if not weights:
        raise InputError("The network has no weight matrix to draw.")
    known = Reference.of(model, reference, inputs)
    shown = weights[:MAX_PANELS]
    matrices = [value if isinstance(value, HMatrix) else HMatrix.from_dense(value) for _, value in shown]
    heights = [PANEL if len(Block.all_of(h)) > 1 else SMALL_PANEL for h in matrices]
    columns = range(min(FIELDS, known.fields[1].shape[1])) if known.has_fields else range(0)
    figure = Figure(figsize=(11.5, sum(heights) + HEAD + FOOT + FIELD_PANEL * len(columns)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.12)  # type: ignore[union-attr, call-arg]
    title = f"{model.nbytes:,} bytes, {model.compression_ratio:.1f}x smaller than float32"
    more = f" (the first {len(shown)} of {len(weights)} layers)" if len(shown) < len(weights) else ""
    figure.suptitle(f"{title}, tol {model.certificate.tol:g}{more}", fontsize=13, color=INK)
    parts = figure.subfigures(
        1 + len(columns), 1, squeeze=False, height_ratios=[sum(heights)] + [FIELD_PANEL] * len(columns)
    )
    axes = parts[0, 0].subplots(len(shown), 2, squeeze=False, width_ratios=(1.15, 1), height_ratios=heights)
    for (name, _), h, height, (left, right) in zip(shown, matrices, heights, axes, strict=True):
        draw_blocks(left, h, printable(name), height)
        root, tol = known.roots.get(name), model.certificate.tol
        of_weights = model.certificate.kind == "layers" or root is not None  # else tol is of the output alone
        draw_decay(right, h, known.weights.get(name), root, tol if of_weights else None)
    legend(parts[0, 0], axes[:, 0])
    for column in columns:
        draw_fields(parts[1 + column, 0], known, column)
    with replacing(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter that the font lacks is drawn as a box
        figure.savefig(file, dpi=140, format=suffix)


def legend(figure: Any, axes: Any) -> None:
    """What the colours of the blocks mean, under all panels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colours = ListedColormap([shade((k + 0.5) / SHADES) for k in range(SHADES)])
    bar = figure.colorbar(ScalarMappable(cmap=colours), ax=list(axes), location="bottom", aspect=40, pad=0.01)
    bar.set_label("low-rank block: its share of the dense bytes", fontsize=9, color=INK)
    bar.ax.tick_params(colors=INK, labelsize=8)
    marks = [Patch(facecolor=DENSE, label="dense block"), Patch(facecolor=ZERO, edgecolor=GRID, label="zero block")]
    figure.legend(handles=marks, loc="outside lower right", ncols=len(marks), fontsize=9, frameon=False)


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
    def share(self) -> float:
        """Its bytes over those of a dense float32 block."""
        return sum(leaf.nbytes for leaf in self.leaves) / (4 * math.prod(self.size))

    @property
    def colour(self) -> Any:
        """Of its face."""
        if self.rank <= 0:
            return DENSE if self.rank < 0 else ZERO
        return shade(self.share)


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


def draw_decay(
    axes: Any, h: HMatrix, original: Tensor | None = None, root: Tensor | None = None, tol: float | None = None
) -> None:
    """Singular values of the compressed matrix and, where it is known, of the original, over the original's largest.

    root: R, to show those of W R and H R, which is what inputs of the second moment R R^T see.  tol: drawn as a line.
    """
    seen = " as the inputs see it" if root is not None else ""
    axes.set_title(f"singular values of the weight{seen}", fontsize=10, color=INK)
    if not math.prod(h.shape):
        axes.set_axis_off()
        _write(axes, (0.5, 0.5), "no entries")
        return
    if math.prod(h.shape) > LARGEST_DRAWN:
        axes.set_axis_off()
        _write(axes, (0.5, 0.5), "too large to draw")
        return
    spectra = []
    for matrix, label in ((original, ORIGINAL), (h.to_dense(torch.float32), COMPRESSED)):
        if matrix is not None:
            matrix = matrix.to(torch.float32)
            spectra.append((singular_values(matrix if root is None else matrix @ root.to(torch.float32)), label))
    top = float(spectra[0][0].max())
    for values, label in spectra:
        colour, width = CURVES[label]
        _curve(axes, values, top, label, colour, linewidth=width)
    if not axes.lines:
        _write(axes, (0.5, 0.5), "all zero")
        return
    if tol:
        axes.axhline(tol, color=TOLERANCE, linewidth=1.0, linestyle="--", label=f"tol {tol:g}")
    axes.set(xlabel="index", ylabel="singular value / largest", yscale="log")
    axes.set_xlim(0.5, max(len(line.get_xdata()) for line in axes.lines) + 0.5)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_ylim(bottom=min(0.08, axes.get_ylim()[0]), top=max(1.6, axes.get_ylim()[1]))
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


def _curve(axes: Any, values: Tensor, top: float, label: str, colour: str, **style: Any) -> None:
    """Over `top`, down to float32's own rounding, below which the values are noise; single points where few."""
    if top > 0:
        above = (values / top)[values > torch.finfo(torch.float32).eps * len(values) * top].tolist()
        style |= {"marker": "o", "markersize": 4} if len(above) <= FEW else {}
        axes.plot(range(1, len(above) + 1), above, label=label, color=colour, **style)
