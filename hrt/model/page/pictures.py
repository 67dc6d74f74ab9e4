"""Pictures of a layer as shapes for the page: its blocks, and its singular values. Colours are the page's own."""

import math
from dataclasses import dataclass
from itertools import islice

import torch

from hrt.hmatrix.hmatrix import HMatrix
from hrt.model.plot import LARGEST_DRAWN, Block, singular_values

SIDE = 300.0  # units of the longer side of a picture
NARROW, THIN = 6, 60.0  # times as long as wide: beyond it sides keep no proportion; units of the shorter side then
SHADES = 8  # of low-rank blocks, by their share of the dense bytes
LEAST_TEXT = 7.0  # units; smaller ranks are not written
MOST_BLOCKS = 12_000  # drawn on a page, the largest ones of each layer
MOST_POINTS = 240  # of a curve
FEW = 24  # singular values that are drawn one by one
WIDTH, HEIGHT = 300.0, 220.0  # units of a spectrum
LEFT, RIGHT, BOTTOM = 46.0, 18.0, 26.0  # what its labels take
MOST_DECADES = 8  # labelled
STEPS = (1, 2, 5)  # of a decade, between the labels of the lower axis


@dataclass(frozen=True)
class Text:
    """A rank, in the middle of its block."""

    x: float
    y: float
    size: float
    text: str
    style: str


@dataclass(frozen=True)
class Blocks:
    """Outlines by style ("dense", "zero", "low3"), ranks that can be read, and how many small blocks are left out."""

    width: float
    height: float
    outlines: dict[str, str]
    texts: tuple[Text, ...]
    count: int
    dense: int
    left_out: int

    @staticmethod
    def of(h: HMatrix, most: int = MOST_BLOCKS) -> "Blocks":
        """At most so many blocks at their place in tree order, the first row at the top; h has entries."""
        (m, n), blocks = h.shape, Block.all_of(h)
        across, down = SIDE / max(m, n), SIDE / max(m, n)
        if max(m, n) > NARROW * min(m, n):  # too thin to be seen in proportion
            across, down = (SIDE / n, THIN / m) if n > m else (THIN / n, SIDE / m)
        outlines: dict[str, list[str]] = {}
        texts = []
        for block in islice(blocks, most):
            (rows, cols), first = block.size, block.leaves[0]
            x, y, wide, high = first.col * across, first.row * down, cols * across, rows * down
            style = _style(block)
            outlines.setdefault(style, []).append(f"M{x:.4g} {y:.4g}h{wide:.4g}v{high:.4g}h-{wide:.4g}z")
            text = str(block.rank) if block.rank > 0 else ""
            size = min(high * 0.6, wide * 1.3 / max(1, len(text)), 22.0)
            if text and size >= LEAST_TEXT:
                texts.append(Text(round(x + wide / 2, 1), round(y + high / 2, 1), round(size, 1), text, style))
        paths = {style: "".join(parts) for style, parts in sorted(outlines.items())}
        left_out, dense = max(0, len(blocks) - most), sum(block.rank < 0 for block in blocks)
        return Blocks(n * across, m * down, paths, tuple(texts), len(blocks), dense, left_out)


def _style(block: Block) -> str:
    if block.rank <= 0:
        return "dense" if block.rank < 0 else "zero"
    return f"low{min(SHADES - 1, int(SHADES * block.share**0.5))}"


@dataclass(frozen=True)
class Spectrum:
    """Singular values over the largest, on a logarithmic axis: points of a curve, labels of both axes, and where `tol`
    is. none: what to say where there is no curve.
    """

    points: tuple[tuple[float, float], ...] = ()
    rows: tuple[tuple[float, str], ...] = ()  # y and label
    columns: tuple[tuple[float, str], ...] = ()  # x and label
    tol: float | None = None  # y
    single: bool = False  # few enough to be drawn one by one
    partial: bool = False  # only the leading ones
    none: str = ""

    @staticmethod
    def of(h: HMatrix, tol: float | None = None) -> "Spectrum":
        """Of the stored numbers, in float32. tol: drawn as a line."""
        if not math.prod(h.shape):
            return Spectrum(none="no entries")
        if math.prod(h.shape) > LARGEST_DRAWN:
            return Spectrum(none="too large to compute")
        values = singular_values(h.to_dense(torch.float32))
        top = float(values.max())
        if not 0 < top < math.inf:
            return Spectrum(none="all zero" if top == 0 else "not finite")
        noise = torch.finfo(torch.float32).eps * len(values)
        shares = [v for v in (values / top).tolist() if v > noise]
        least = math.floor(math.log10(min(0.08, tol or 1.0, *shares)) + 1e-3)
        last = max(2, len(shares))

        def x(index: float) -> float:
            return round(LEFT + (WIDTH - LEFT - RIGHT) * (index - 1) / (last - 1), 1)

        def y(share: float) -> float:
            return round(10 + (HEIGHT - BOTTOM - 14) * math.log10(share) / least, 1)

        picked = sorted({round(k) for k in _spread(0, len(shares) - 1)})
        every = -(-least // -MOST_DECADES) or 1
        decades = range(0, least - 1, -every)
        return Spectrum(
            tuple((x(k + 1), y(shares[k])) for k in picked),
            tuple((y(10.0**k), f"{10.0**k:g}") for k in decades),
            tuple((x(k), f"{k:,}") for k in _ticks(last)),
            y(tol) if tol else None,
            len(shares) <= FEW,
            len(values) < min(h.shape),
        )


def _spread(low: float, high: float) -> list[float]:
    """At most MOST_POINTS places, both ends among them."""
    count = min(MOST_POINTS, int(high - low) + 1)
    return [low + (high - low) * k / max(1, count - 1) for k in range(count)]


def _ticks(last: int) -> list[int]:
    """Round numbers up to `last`, five or so, and 1."""
    step = next(s * 10**k for k in range(12) for s in STEPS if s * 10**k * 5 >= last)
    return [1, *(k for k in range(step, last + 1, step) if k > 1)]
