"""Which derivatives a workspace carries beside a value, and how a function makes new ones of them. Without Triton.

Row p * rows + s of a workspace holds stream s of point p: stream 0 is the value, the others are derivatives D_S z by
the coordinates S; rows past the last stream are zero. A product treats all rows alike. A function f follows

    D_S f(z) = sum over partitions S = S_1 + ... + S_m of  f^(m)(z) D_(S_1) z ... D_(S_m) z  (Faa di Bruno)

(Griewank and Walther, Evaluating Derivatives, 2008, ch. 13).
"""

from collections import Counter
from dataclasses import dataclass
from itertools import product
from math import factorial

Index = tuple[int, ...]  # the coordinates that a derivative is by, sorted
Term = tuple[int, tuple[int, ...]]  # a number, and the streams whose product it multiplies
HIGHEST = 3  # order: as far as the kernels know the functions' derivatives
MOST_ROWS = 16  # of a point: the smallest block of a launch


@dataclass(frozen=True)
class Streams:
    """The value, (), and derivatives by the coordinates of every other index, each behind all that it is made of.
    Raises ValueError for other indices, orders beyond the third, or more than 16.
    """

    indices: tuple[Index, ...] = ((),)

    def __post_init__(self) -> None:
        for place, index in enumerate(self.indices):
            before = self.indices[:place]
            made_of = {index[:k] + index[k + 1 :] for k in range(len(index))} if index else set()
            if list(index) != sorted(index) or index in before or len(index) > HIGHEST or not made_of <= set(before):
                raise ValueError(f"Found the streams {self.indices}. Expected distinct sorted indices in order.")
        if self.indices[:1] != ((),) or len(self.indices) > MOST_ROWS:
            raise ValueError(f"Found {len(self.indices)} streams. Expected at most {MOST_ROWS}, the first of them ().")

    @property
    def rows(self) -> int:
        """Rows of a point: the streams, rounded up to a power of two."""
        return 1 << (len(self.indices) - 1).bit_length()

    def terms(self, stream: int) -> tuple[Term, ...]:
        """What f adds to f'(z) D_S z: products of streams, to be multiplied by f^(m) / m!; m! is in the number."""
        products = sorted((b, c) for b, c in partitions(self.indices[stream]).items() if len(b) > 1)
        return tuple((c * factorial(len(b)), tuple(map(self.indices.index, b))) for b, c in products)

    @property
    def code(self) -> str:
        """The terms of all streams as text, as kernels take them: ".", "+" and ";" join numbers, terms and streams. ""
        is the value alone, ";;;2.1.1" what u, u_x, u_t and u_xx take.
        """
        terms = map(self.terms, range(len(self.indices)))
        return ";".join("+".join(".".join(map(str, (c, *b))) for c, b in products) for products in terms)


VALUE = Streams()


def partitions(index: Index) -> Counter[tuple[Index, ...]]:
    """Every way to cut `index` into blocks, sorted, and how often it occurs among distinguishable coordinates."""
    if not index:
        return Counter({(): 1})
    first, rest, counts = index[:1], index[1:], Counter[tuple[Index, ...]]()
    for chosen in product((False, True), repeat=len(rest)):
        block = first + tuple(c for c, inside in zip(rest, chosen, strict=True) if inside)
        others = tuple(c for c, inside in zip(rest, chosen, strict=True) if not inside)
        for blocks, count in partitions(others).items():
            counts[tuple(sorted((block, *blocks), key=lambda b: (len(b), b)))] += count
    return counts
