"""Taylor coefficients of every elementwise op, as formulas over symbols (`hrt.derivatives.symbols`).

A rule gets x and y = f(x) and gives f', f''/2 and f'''/6 there, the higher ones as ratios to f' where they share it:
D2 = f' (z2 + ratio z1^2) takes fewer products than f' z2 + (f''/2) z1^2. None is zero.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Term = Any  # a Symbol, a number, or None for zero: what arithmetic is written for


@dataclass(frozen=True)
class Series:
    """first: f'.  higher: f''/2 and f'''/6, divided by f' where `ratio`.  scale: s, where these are the coefficients in
    powers of s h instead of h: with s = 1 / x those of 1 / x have no square of y, which float32 would lose.
    """

    first: Term
    higher: tuple[Term, Term] = (None, None)
    ratio: bool = False
    scale: Term = None

    @property
    def terms(self) -> list[Term]:
        """f', f''/2 and f'''/6 themselves."""
        higher = [times(self.first, t) for t in self.higher] if self.ratio else self.higher
        if self.scale is None:
            return [self.first, *higher]
        return [times(t, *[self.scale] * k) for k, t in enumerate([self.first, *higher], 1)]


Rule = Callable[[Any, Any, Mapping[str, Any]], Series]
ORDER = 3  # how far the rules go
TINY, HUGE = 1e-37, 1e30  # within float32
# sinc x = S((pi x)^2). Coefficients of the first three derivatives of S over 1, 2 and 6, for arguments up to SINC_NEAR;
# beyond, their formulas lose no digits
SINC_NEAR = 4.0
SINC_SERIES = tuple(
    [(-1.0) ** k * math.comb(k, order) / math.factorial(2 * k + 1) for k in range(order, 17)] for order in (1, 2, 3)
)


def ratios(first: Term, second: Term, third: Term) -> Series:
    """A series whose higher terms are given as ratios to f'."""
    return Series(first, (second, third), ratio=True)


def added(*terms: Term) -> Term:
    """Their sum, in which None is nothing."""
    summands = [t for t in terms if t is not None]
    return sum(summands[1:], summands[0]) if summands else None


def times(*factors: Term) -> Term:
    """Their product, in which None is zero."""
    return None if any(f is None for f in factors) else math.prod(factors[1:], start=factors[0])


def times_x(x: Term, value: Term, inner: Series) -> Series:
    """The series of x u(x) from u and its own: (x u)_k = x u_k + u_(k-1)."""
    us = [value, *inner.terms]
    first, *higher = (added(times(x, us[k]), us[k - 1]) for k in range(1, ORDER + 1))
    return Series(first, tuple(higher))


def composed(outer: Series, inner: Series) -> Series:
    """The series of f(g(x)): Faa di Bruno's formula for Taylor coefficients."""
    f1, f2, f3 = outer.terms
    g1, g2, g3 = inner.terms
    second = added(times(f1, g2), times(f2, g1, g1))
    third = added(times(f1, g3), times(f2, g1, g2, 2.0), times(f3, g1, g1, g1))
    return Series(times(f1, g1), (second, third))


def _tanh(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    square = y * y
    return ratios(1 - square, -y, square - 1 / 3)


def _sigmoid(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    s = y * (1 - y)
    return ratios(s, 0.5 - y, 1 / 6 - s)


def _silu(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    s = x.apply("sigmoid")
    return times_x(x, s, _sigmoid(x, s, {}))


def _gelu(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    square = x * x
    if t["approximate"] == "tanh":
        c, a = math.sqrt(2 / math.pi), 0.044715
        u = (x * (1 + square * a) * c).apply("tanh")
        gate = composed(_tanh(None, u, {}), Series((1 + square * (3 * a)) * c, (x * (3 * a * c), c * a)))
    else:
        u = (x * (1 / math.sqrt(2))).apply("erf")
        density = (square * -0.5).apply("exp") * math.sqrt(2 / math.pi)
        gate = ratios(density, x * -0.5, (square - 1) * (1 / 6))
    double = times_x(x, 1 + u, gate)
    return Series(double.first * 0.5, tuple(times(h, 0.5) for h in double.higher))


def _mish(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    inner = x.apply("softplus", beta=1.0)
    u = inner.apply("tanh")
    return times_x(x, u, composed(_tanh(inner, u, {}), _softplus(x, inner, {"beta": 1.0})))


def _softplus(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    beta = float(t["beta"])
    s = (x * beta).apply("sigmoid")
    slope = s * (1 - s)
    return Series(s, (slope * (beta / 2), slope * (1 - 2 * s) * (beta * beta / 6)))


def _elu(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    right = x.apply("step", at_zero=0.0)
    left = (1 - right) * x.apply("clamp", low=None, high=0.0).apply("exp") * t["alpha"]
    return Series(right + left, (left * 0.5, left * (1 / 6)))


def _clamp(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    sides = [x - t["low"]] if t["low"] is not None and t["low"] > -math.inf else []
    sides += [t["high"] - x] if t["high"] is not None and t["high"] < math.inf else []
    inside = [s.apply("step", at_zero=1.0) for s in sides]
    return Series(times(*inside) if inside else 1.0)


def _sqrt(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    root = y.apply("reciprocal")
    inverse = root * root
    return ratios(root * 0.5, inverse * -0.25, inverse * inverse * 0.125)


def _erf(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    square = x * x
    return ratios((-square).apply("exp") * (2 / math.sqrt(math.pi)), -x, (2 * square - 1) * (1 / 3))


def _atan(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    square = x * x
    inverse = (1 + square).apply("reciprocal")
    return ratios(inverse, -(x * inverse), (square - 1 / 3) * inverse * inverse)


def _tan(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    square = y * y
    return ratios(1 + square, y, square + 1 / 3)


def _arc(inside: Callable[[Term], Term], half: float, sixth: float, sign: float = 1.0) -> Rule:
    """Of a function whose derivative is sign times inside(x)^(-1/2), where inside is plus or minus x^2 and a number."""

    def rule(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
        root = inside(x).apply("sqrt").apply("reciprocal")
        u = root * root
        return ratios(root * sign, x * u * half, (x * x * (1 / 3) + sixth) * u * u)

    return rule


def _atanh(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    u = ((1 - x) * (1 + x)).apply("reciprocal")
    return ratios(u, x * u, (x * x + 1 / 3) * u * u)


def _sinc(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    """S(w) with w = (pi x)^2: S' = (cos pi x - S) / 2w, then 4w S'' + 6 S' + S = 0 and what that becomes derived."""
    w = x * x * math.pi**2
    near, is_far = w.apply("clamp", low=None, high=SINC_NEAR), (w - SINC_NEAR).apply("step", at_zero=1.0)
    inverse = w.apply("clamp", low=SINC_NEAR, high=None).apply("reciprocal")
    first = ((x * math.pi).apply("cos") - y) * inverse * 0.5
    second = (first * 6 + y) * inverse * -0.125
    third = (second * 20 + first) * inverse * (-1 / 24)
    polynomials = [_polynomial(near, c) * (1 - is_far) for c in SINC_SERIES]
    terms = [far * is_far + p for far, p in zip((first, second, third), polynomials, strict=True)]
    return composed(Series(terms[0], (terms[1], terms[2])), Series(x * (2 * math.pi**2), (math.pi**2, None)))


def _polynomial(x: Term, coefficients: Sequence[float]) -> Term:
    """By Horner's rule."""
    total = x * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        total = total * x + c
    return total


def _power(x: Term, y: Term, t: Mapping[str, Any]) -> Series:
    """Derivatives of x ** 1.5 and its like stay finite at 0: relu(x) ** 1.5 has 0 there, not infinity times 0."""
    p, terms = float(t["exponent"]), []
    for k in range(1, ORDER + 1):
        binomial, rest = math.prod((p - j) / (j + 1) for j in range(k)), p - k
        if binomial == 0:
            terms.append(None)
        elif rest == 0:
            terms.append(binomial)
        else:
            base = x if p < 1 or rest > 0 else x.apply("clamp", low=max(TINY, HUGE ** (1 / rest)), high=None)
            terms.append((base if rest == 1 else base.apply("power", exponent=rest)) * binomial)
    return Series(terms[0], tuple(terms[1:]))


# (x, y = f(x), attributes) -> series
RULES: dict[str, Rule] = {
    "tanh": _tanh,
    "sin": lambda x, y, t: Series(c := x.apply("cos"), (y * -0.5, c * (-1 / 6))),
    "cos": lambda x, y, t: Series(-(s := x.apply("sin")), (y * -0.5, s * (1 / 6))),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "gelu": _gelu,
    "mish": _mish,
    "relu": lambda x, y, t: Series(x.apply("step", at_zero=0.0)),
    "leaky_relu": lambda x, y, t: Series(x.apply("step", at_zero=0.0) * (1 - t["slope"]) + t["slope"]),
    "elu": _elu,
    "softplus": _softplus,
    "clamp": _clamp,
    "neg": lambda x, y, t: Series(-1.0),
    "abs": lambda x, y, t: Series(x.apply("step", at_zero=0.5) * 2 - 1),
    "exp": lambda x, y, t: ratios(y, 0.5, 1 / 6),
    "log": lambda x, y, t: Series(1.0, (-0.5, 1 / 3), scale=x.apply("reciprocal")),
    "sqrt": _sqrt,
    "reciprocal": lambda x, y, t: Series(-y, (-1.0, 1.0), ratio=True, scale=y),
    "erf": _erf,
    "atan": _atan,
    "tan": _tan,
    "asin": _arc(lambda x: (1 - x) * (1 + x), 0.5, 1 / 6),
    "acos": _arc(lambda x: (1 - x) * (1 + x), 0.5, 1 / 6, -1.0),
    "asinh": _arc(lambda x: x * x + 1, -0.5, -1 / 6),
    "acosh": _arc(lambda x: (x - 1) * (x + 1), -0.5, 1 / 6),
    "atanh": _atanh,
    "sinc": _sinc,
    "power": _power,
    **dict.fromkeys(("step", "floor", "round"), lambda x, y, t: Series(None)),
}
KINKED = {
    "relu",
    "leaky_relu",
    "elu",
    "clamp",
    "abs",
    "step",
    "floor",
    "round",
    "sqrt",
}  # a derivative jumps, or is infinite at 0
