"""Sums of products as NVIDIA's tensor cores form them, to the bit.

One block adds n products to c. The products are exact. All terms are aligned to the largest exponent among them and cut
there, `extra` bits behind float32's last one; the sum of what is left is exact, and is cut to float32. The blocks of a
sum follow each other (Fasi, Higham, Mikaitis, Pranesh, PeerJ Computer Science 7:e330, 2021). n and `extra` of every
card, and the extra bit that products of 2 and more get: Khattak, Mikaitis, arXiv 2512.07004, models that were compared
with the cards bit by bit.
"""

from dataclasses import dataclass

import numpy as np
import torch

from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.precisions import WORKSPACE
from hrt.schedule.precision import cut

MANTISSA, LEAST = 23, -126  # float32
LOWEST = -133  # no alignment below
SMALLEST = {"fp16": -14, "bf16": -126, "tf32": -126}  # exponents of the smallest normal operands
ROUNDED = ("fp16", "bf16")


@dataclass(frozen=True)
class Core:
    """Products of a block, of 16-bit numbers and of tf32, and extra bits of the alignment."""

    narrow: int
    tf32: int
    extra: int

    def size(self, kind: str) -> int:
        """Products of a block."""
        return self.tf32 if kind == "tf32" else self.narrow


CORES = {"A100": Core(8, 4, 1), "H100": Core(16, 8, 2), "B200": Core(16, 8, 2)}


def cut_to_float32(v: np.ndarray) -> np.ndarray:
    """float64 rounded towards zero to float32's numbers, subnormal ones too."""
    unit = np.ldexp(1.0, np.maximum(np.frexp(v)[1] - 1 - MANTISSA, LEAST - MANTISSA))
    return np.trunc(v / unit) * unit


def exponents(v: np.ndarray, least: int) -> np.ndarray:
    """floor(log2 |v|), at least `least`; far below all others for 0."""
    return np.where(v == 0, -(10**6), np.maximum(np.frexp(v)[1] - 1, least))


def add_block(c: np.ndarray, a: np.ndarray, b: np.ndarray, kind: str, core: Core) -> np.ndarray:
    """c (...) plus the products of a and b (..., n), float64 arrays of numbers of the kind; c and the sum float32."""
    products = a * b
    raw = exponents(a, SMALLEST[kind]) + exponents(b, SMALLEST[kind])
    raw = np.where(products == 0, -(10**6), raw)
    significand = np.ldexp(np.abs(products), -np.maximum(raw, -(10**4)))
    of_c, highest = exponents(c, LEAST), raw.max(-1)
    largest = np.where(raw == highest[..., None], significand, 0).max(-1)
    special = (highest >= of_c) & (largest >= 2)
    top = np.maximum(np.maximum((raw + (significand >= 2)).max(-1), of_c), LOWEST)
    unit = np.ldexp(1.0, top - MANTISSA - core.extra - special)
    total = np.trunc(products / unit[..., None]).sum(-1) + np.trunc(c / unit)
    return cut_to_float32(total * unit)


def nearest_tf32(t: np.ndarray) -> np.ndarray:
    """`cvt.rna.tf32.f32`: to nearest, halves away from zero."""
    bits = t.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


@dataclass(frozen=True)
class Sums:
    """The step kernel's products of a card. columns: of a step."""

    core: Core
    precision: str
    columns: int = 32

    def add(self, acc: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """acc (rows, m) plus x (rows, n) times w (m, n) transposed; float64 arrays of float32 numbers.

        bf16, fp16: operands as they are stored, rounded to nearest. tf32: raw bits, of which the core drops 13. tf32x3:
        big and small parts (`cvt.rna`, and what is left, cut); each step is summed by itself and added in float32.
        """
        if self.precision in ROUNDED:
            a, b = (stored(t, self.precision) for t in (x, w))
            return self._products(acc, a, b)
        if self.precision == "tf32":
            return self._products(acc, cut_tf32(x), cut_tf32(w))
        big_x, big_w = nearest_tf32(x), nearest_tf32(w)
        small_x, small_w = cut_tf32(single(x - big_x)), cut_tf32(single(w - big_w))
        for k in range(0, x.shape[1], self.columns):
            part, here = np.zeros_like(acc), slice(k, k + self.columns)
            for a, b in ((small_x, big_w), (big_x, small_w), (big_x, big_w)):
                part = self._products(part, a[:, here], b[:, here])
            acc = single(acc + part)
        return acc

    def _products(self, acc: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        kind = self.precision if self.precision in ROUNDED else "tf32"
        for k in range(0, a.shape[1], self.core.size(kind)):
            here = slice(k, k + self.core.size(kind))
            acc = add_block(acc, a[:, None, here], b[None, :, here], kind, self.core)
        return acc

    def layer(self, x: torch.Tensor, h: HMatrix) -> torch.Tensor:
        """x (rows, n) h^T as it is stored, float64, leaf by leaf; h without orderings."""
        rows = x.double().numpy()
        y = np.zeros((len(rows), h.shape[0]))
        for leaf in h.leaves:
            here, out = rows[:, leaf.col : leaf.col + leaf.cols], slice(leaf.row, leaf.row + leaf.rows)
            *first, last = (t.double().numpy() for t in reversed(leaf.tensors))
            scale = None if leaf.scale is None else leaf.scale.double().numpy()
            for v in first:
                t = self.add(np.zeros((len(rows), len(v))), here, v)
                here = stored(t if scale is None else single(t * scale), self.precision)
            if scale is None or first:
                y[:, out] = self.add(y[:, out], here, last)
            else:
                part = self.add(np.zeros((len(rows), leaf.rows)), here, last)
                y[:, out] = single(y[:, out] + single(part * scale))
        return torch.from_numpy(stored(y, self.precision))


def single(t: np.ndarray) -> np.ndarray:
    """Rounded to float32, in float64."""
    return t.astype(np.float32).astype(np.float64)


def stored(t: np.ndarray, precision: str) -> np.ndarray:
    """As the workspace of a precision holds float32 numbers, in float64."""
    return torch.from_numpy(single(t)).to(WORKSPACE[precision]).double().numpy()


def cut_tf32(t: np.ndarray) -> np.ndarray:
    """As a core reads float32 numbers."""
    return cut(torch.from_numpy(t.astype(np.float32))).double().numpy()
