"""Interval arithmetic in float64 that always rounds outwards: every result encloses what exact arithmetic gives.

The neighbours of a correctly rounded result enclose it (`nextafter`). A sum of n products in any order errs by at most
gamma_n = n u / (1 - n u) times the sum of their absolute values, u = 2^-53 (Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 3.1). torch's elementary functions err by a few units in the last place; 64 are granted.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from hrt.program.op_table import Attrs, Op

UNIT = 2.0**-53
TINY = 1e-300  # far above what underflow can take from a sum, far below what anybody measures
PERIODS = 8  # of tan, on both sides of 0, whose bends are listed
SINC_FAR = 4.0  # where sinc turns, and bends, up to here
SINC_TURNS = (0.0, *(s * v for s in (-1, 1) for v in (1.4302966531242025, 2.459024032956761, 3.47088972434702)))
SINC_BENDS = [
    s * v for s in (-1, 1) for v in (0.6625862125821923, 1.8908784955888058, 2.930309928124341, 3.9484574830947063)
]
FAR = 1e8  # beyond this, a period of sin cannot be located well enough


def gamma(terms: float) -> float:
    """n u / (1 - n u), rounded up."""
    return 1.001 * terms * UNIT / (1 - min(0.5, terms * UNIT))


def up(v: Tensor) -> Tensor:
    """An upper bound of a sum or difference that was rounded to `v`; an exact zero stays one."""
    return torch.where(v == 0, v, torch.nextafter(v, torch.full_like(v, math.inf)))


def down(v: Tensor) -> Tensor:
    """A lower bound of a sum or difference that was rounded to `v`."""
    return -up(-v)


def where(condition: Tensor, value: float) -> Tensor:
    """`value` in float64 where the condition holds, else 0 (a number times a mask would be float32, and lose TINY)."""
    return torch.where(condition, torch.tensor(value, dtype=torch.float64), 0.0)


@dataclass(frozen=True, eq=False)
class Interval:
    """lo <= value <= hi, entry by entry. NaN stands for no knowledge."""

    lo: Tensor
    hi: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value inside."""
        return torch.maximum(self.lo.abs(), self.hi.abs())

    def centred(self) -> tuple[Tensor, Tensor]:
        """Centre c and radius r with the interval inside [c - r, c + r]."""
        c = (self.lo + self.hi) / 2
        return c, up(torch.maximum(self.hi - c, c - self.lo))

    def meet(self, other: "Interval") -> "Interval":
        """What lies in both, where both are known to hold; an unknown (NaN) one gives way to the other."""
        return Interval(torch.fmax(self.lo, other.lo), torch.fmin(self.hi, other.hi))

    def hull(self, other: "Interval") -> "Interval":
        """The smallest interval around both."""
        return Interval(torch.minimum(self.lo, other.lo), torch.maximum(self.hi, other.hi))

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(down(self.lo + other.lo), up(self.hi + other.hi))

    def __sub__(self, other: "Interval") -> "Interval":
        return Interval(down(self.lo - other.hi), up(self.hi - other.lo))

    def __mul__(self, other: "Interval") -> "Interval":
        ends = [_product(a, b) for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Interval(_least([lo for lo, _ in ends]), -_least([-hi for _, hi in ends]))

    def inverse(self) -> "Interval":
        """1 / value; no knowledge where 0 lies inside."""
        known = (self.lo > 0) | (self.hi < 0)
        return Interval(torch.where(known, down(1 / self.hi), -math.inf), torch.where(known, up(1 / self.lo), math.inf))


def point(v: Tensor) -> Interval:
    """The interval of one value."""
    return Interval(v, v)


def around(centre: Tensor, radius: Tensor) -> Interval:
    """[c - r, c + r]."""
    return Interval(down(centre - radius), up(centre + radius))


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a b rounded down and up; exactly 0 where a factor is 0, also beside infinity."""
    p, zero = a * b, (a == 0) | (b == 0)
    low, high = (torch.nextafter(p, torch.full_like(p, side)) for side in (-math.inf, math.inf))
    return torch.where(zero, 0.0, low), torch.where(zero, 0.0, high)


def _least(values: Sequence[Tensor]) -> Tensor:
    return reduce(torch.minimum, values)


def _everywhere(x: Interval, _: Attrs) -> Tensor:
    return torch.ones_like(x.lo, dtype=torch.bool)


@dataclass(frozen=True)
class Curve:
    """What the range of an elementwise function f needs beyond its row in the op table.

    turns, bends: attributes -> points where f, or f', may change direction or jump to a value that it takes nowhere
    else; a point rounded by delta is off by delta^2, since f (or f') is flat there.  domain: where f is smooth on the
    interval.  ulps: what f or f' may err by, in u (|f| + |x|) and u (1 + |x|) (1 + |f'|), or in u |f| and u |f'| where
    it is `relative`; 0 where it is exact.
    """

    turns: Callable[[Attrs], Sequence[float]] = lambda _: ()
    bends: Callable[[Attrs], Sequence[float]] = lambda _: ()
    domain: Callable[[Interval, Attrs], Tensor] = _everywhere
    ulps: int = 64
    relative: bool = False

    def image(self, op: Op, x: Interval, attrs: Attrs) -> Interval:
        """The range of f over x."""
        out = _extremes(lambda v: op.torch((v,), attrs), x, self.turns(attrs))
        return self._rounded(out, x, attrs, self.ulps * UNIT, x.magnitude)

    def slopes(self, op: Op, x: Interval, attrs: Attrs) -> Interval:
        """The range of f' over x, which holds all difference quotients: never wider than the Lipschitz constant."""
        out = _extremes(_derivative(op, attrs), x, self.bends(attrs))
        unit = self.ulps * UNIT * (1.0 if self.relative else 1 + x.magnitude)
        return _limited(self._rounded(out, x, attrs, unit, 1.0), op, attrs)

    def _rounded(
        self, out: Interval, x: Interval, attrs: Attrs, unit: float | Tensor, size: float | Tensor
    ) -> Interval:
        size, inside = 0.0 if self.relative else size, self.domain(x, attrs)
        low, high = down(out.lo - unit * (out.lo.abs() + size)), up(out.hi + unit * (out.hi.abs() + size))
        return Interval(torch.where(inside, low, -math.inf), torch.where(inside, high, math.inf))


@dataclass(frozen=True)
class Wave:
    """A function with values in [-1, 1] and period 2 pi. peak, slope_peak: where it, and its derivative, is 1."""

    peak: float
    slope_peak: float

    def image(self, op: Op, x: Interval, attrs: Attrs) -> Interval:
        """The range of f over x."""
        return self._range(lambda v: op.torch((v,), attrs), x, self.peak)

    def slopes(self, op: Op, x: Interval, attrs: Attrs) -> Interval:
        """The range of f' over x."""
        return _limited(self._range(_derivative(op, attrs), x, self.slope_peak), op, attrs)

    @staticmethod
    def _range(f: Callable[[Tensor], Tensor], x: Interval, peak: float) -> Interval:
        out, near = _extremes(f, x, ()), x.magnitude < FAR
        free = [torch.ceil((x.lo - p) / math.tau) > torch.floor((x.hi - p) / math.tau) for p in (peak + math.pi, peak)]
        low, high = down(out.lo - 64 * UNIT), up(out.hi + 64 * UNIT)
        return Interval(torch.where(free[0] & near, low, -1.0), torch.where(free[1] & near, high, 1.0))


def _derivative(op: Op, attrs: Attrs) -> Callable[[Tensor], Tensor]:
    derivative = op.derivative
    if derivative is None:
        raise TypeError(op.name)
    return lambda v: derivative(v, attrs)


def _limited(slopes: Interval, op: Op, attrs: Attrs) -> Interval:
    if op.lipschitz is None:
        return slopes
    limit = torch.full_like(slopes.lo, op.lipschitz(attrs))
    return slopes.meet(Interval(-limit, limit))


def _extremes(f: Callable[[Tensor], Tensor], x: Interval, points: Sequence[float]) -> Interval:
    """Least and greatest value of f at both ends and at `points`, each moved into the interval."""
    values = [f(x.lo), f(x.hi), *(f(torch.full_like(x.lo, p).clamp(x.lo, x.hi)) for p in points)]
    return Interval(_least(values), -_least([-v for v in values]))


def _at(*points: float) -> Callable[[Attrs], Sequence[float]]:
    return lambda _: points


def _one_side(x: Interval, _: Attrs) -> Tensor:
    return (x.lo > 0) | (x.hi < 0)


def _limits(t: Attrs) -> Sequence[float]:
    return [v for v in (t["low"], t["high"]) if v is not None]


def _within_one(x: Interval, _: Attrs) -> Tensor:
    return x.magnitude < 1


def _between_poles(x: Interval, _: Attrs) -> Tensor:
    low, high = (torch.floor(v / math.pi + 0.5) for v in (x.lo - 1e-6, x.hi + 1e-6))
    return (low == high) & (high.abs() <= PERIODS)


def _power_domain(x: Interval, t: Attrs) -> Tensor:
    p = float(t["exponent"])
    if p.is_integer():
        return _everywhere(x, t) if p >= 0 else _one_side(x, t)
    return x.lo >= 0 if p > 1 else x.lo > 0


CURVES: dict[str, Curve | Wave] = {
    "tanh": Curve(bends=_at(0.0)),
    "sin": Wave(math.pi / 2, 0.0),
    "cos": Wave(0.0, -math.pi / 2),
    "sigmoid": Curve(bends=_at(0.0)),
    "silu": Curve(_at(-1.278464542761074), _at(-2.3993572805154676, 2.3993572805154676)),
    "gelu": Curve(
        lambda t: (-0.7524614220710162 if t["approximate"] == "tanh" else -0.7517915246935645,),
        lambda t: [s * (1.4185040087908283 if t["approximate"] == "tanh" else math.sqrt(2)) for s in (-1, 1)],
    ),
    "mish": Curve(_at(-1.1924312145154952), _at(-2.256376396360793, 1.4905711794854286)),
    "relu": Curve(ulps=0),
    "leaky_relu": Curve(_at(0.0), ulps=4),
    "elu": Curve(_at(0.0), _at(0.0)),
    "softplus": Curve(),
    "clamp": Curve(_limits, _limits, ulps=0),
    "neg": Curve(ulps=0),
    "abs": Curve(_at(0.0), ulps=0),
    "exp": Curve(relative=True),
    "log": Curve(domain=lambda x, _: x.lo > 0),
    "sqrt": Curve(domain=lambda x, _: x.lo > 0, relative=True),
    "reciprocal": Curve(domain=_one_side, relative=True),
    "erf": Curve(bends=_at(0.0)),
    "atan": Curve(bends=_at(0.0)),
    "tan": Curve(bends=lambda _: [math.pi * k for k in range(-PERIODS, PERIODS + 1)], domain=_between_poles),
    "asin": Curve(bends=_at(0.0), domain=_within_one),
    "acos": Curve(bends=_at(0.0), domain=_within_one),
    "asinh": Curve(bends=_at(0.0)),
    "acosh": Curve(domain=lambda x, _: x.lo > 1),
    "atanh": Curve(bends=_at(0.0), domain=_within_one),
    "sinc": Curve(_at(*SINC_TURNS), _at(*SINC_BENDS), lambda x, _: x.magnitude < SINC_FAR),
    "power": Curve(_at(0.0), _at(0.0), _power_domain, relative=True),
}
