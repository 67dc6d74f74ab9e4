"""Which derivatives a workspace carries beside a value, and how a function makes new ones of them. Without Triton.

The rows of a workspace that carries derivatives are streams of points: row p * rows + s holds stream s of point p,
stream 0 the value, the others derivatives D_S z by the coordinates S; rows past the last stream are zero. A product
treats all rows alike. A function f follows Faa di Bruno's formula,

    D_S f(z) = sum over partitions S = S_1 + ... + S_m of  f^(m)(z) D_(S_1) z ... D_(S_m) z,

whose term m = 1 is f'(z) D_S z for every stream; the others are a short table. (Griewank and Walther, Evaluating
Derivatives, 2008, ch. 13.)
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
    """The value, (), and derivatives by the coordinates of every other index: all that a derivative is made of stands
    before it. Raises ValueError for indices that are not so, beyond the third order, or more than 16.
    """

    indices: tuple[Index, ...] = ((),)

    def __post_init__(self) -> None:
        known: set[Index] = set()
        for index in self.indices:
            below = {index[:k] + index[k + 1 :] for k in range(len(index))}
            if list(index) != sorted(index) or index in known or not below <= known or len(index) > HIGHEST:
                raise ValueError(
                    f"Found the streams {self.indices}. Expected distinct sorted indices, of order {HIGHEST} at most, "
                    f"each behind all that it is made of; {index} is not."
                )
            known.add(index)
        if self.indices[:1] != ((),) or len(self.indices) > MOST_ROWS:
            raise ValueError(f"Found {len(self.indices)} streams. Expected at most {MOST_ROWS}, the first of them ().")

    @property
    def rows(self) -> int:
        """Rows of a point: the streams, rounded up to a power of two."""
        return 1 << (len(self.indices) - 1).bit_length()

    def terms(self, stream: int) -> tuple[Term, ...]:
        """What f adds to f'(z) D_S z: products of two factors and more, to be multiplied by f^(m) / m!, with m! in the
        number.
        """
        products = sorted((b, c) for b, c in partitions(self.indices[stream]).items() if len(b) > 1)
        return tuple((c * factorial(len(b)), tuple(map(self.indices.index, b))) for b, c in products)

    @property
    def code(self) -> str:
        """The terms of all streams as text, which is how kernels take them: numbers joined by dots, terms by plus
        signs, streams by semicolons. "" is the value alone, ";;;2.1.1" what u, u_x, u_t and u_xx take.
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
