"""Outward rounding against exact fractions; ranges of functions and of their derivatives against dense samples."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrt.certificate.intervals import CURVES, Interval, gamma, point
from hrt.program.op_table import TABLE

from op_cases import DOMAINS as OTHER_DOMAINS
from op_cases import POSITIVE

numbers = st.floats(-1e6, 1e6, allow_subnormal=True) | st.sampled_from([0.0, 1e-200, -1e-200, 5e-324, 1 / 3])
ends = st.tuples(numbers, numbers).map(sorted)
ATTRS = {
    "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    "leaky_relu": [{"slope": 0.2}, {"slope": -0.5}, {"slope": 3.0}],
    "elu": [{"alpha": 1.0}, {"alpha": 0.3}, {"alpha": 2.0}],
    "softplus": [{"beta": 1.0}, {"beta": 10.0}],
    "clamp": [{"low": -0.3, "high": 0.4}, {"low": None, "high": 1.0}, {"low": -2.0, "high": None}],
    "power": [{"exponent": float(p)} for p in (2, 3, 4, 0.5, 1.5, -1, -2, -0.5)],
}
DOMAINS = OTHER_DOMAINS | {"sinc": (-3.9, 3.9)}
CASES = [(name, attrs) for name in CURVES for attrs in ATTRS.get(name, [{}])]


def interval(a, b) -> Interval:
    return Interval(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))


def ends_of(v: Interval) -> tuple[float, float]:
    return v.lo.item(), v.hi.item()


def exact(v: Interval) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, ends_of(v)))


class TestArithmetic:
    @given(p=ends, q=ends)
    def test_encloses_exact_results_of_all_ends(self, p, q):
        a, b = interval(*p), interval(*q)
        for out, f in ((a + b, lambda s, t: s + t), (a - b, lambda s, t: s - t), (a * b, lambda s, t: s * t)):
            low, high = exact(out)
            for s in p:
                for t in q:
                    assert low <= f(Fraction(s), Fraction(t)) <= high

    @given(p=ends)
    def test_centre_and_radius_cover_the_interval(self, p):
        (c,), (r,) = (v.tolist() for v in interval(*p).centred())
        assert Fraction(c) - Fraction(r) <= Fraction(p[0]) and Fraction(p[1]) <= Fraction(c) + Fraction(r)

    @given(p=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)).map(sorted))
    def test_inverse_encloses(self, p):
        low, high = exact(interval(*p).inverse())
        assert low <= 1 / Fraction(p[1]) and 1 / Fraction(p[0]) <= high

    def test_zero_infinity_and_what_is_unknown(self):
        zero = point(torch.zeros(1, dtype=torch.float64))
        for v in (zero * interval(-math.inf, math.inf), zero + zero, zero - zero):
            assert ends_of(v) == (0, 0)
        assert ends_of(interval(-1.0, 1.0).inverse()) == (-math.inf, math.inf)
        assert ends_of(interval(math.nan, math.nan).meet(interval(-1.0, 2.0))) == (-1, 2)

    def test_gamma_is_never_below_the_textbook(self):
        for n in (1, 10, 10**6):
            assert gamma(n) >= n * 2.0**-53 / (1 - n * 2.0**-53)


def test_every_elementwise_op_has_a_curve():
    assert {op.name for op in TABLE.values() if op.is_activation} == set(CURVES)


@pytest.mark.parametrize(("name", "attrs"), CASES)
def test_ranges_hold_and_are_reached(name, attrs):
    """2,000 random intervals, 400 points in each, for the function and its derivative."""
    op, g = TABLE[name], torch.Generator().manual_seed(0)
    assert op.derivative is not None
    a = 4 * torch.randn(2000, 1, generator=g, dtype=torch.float64)
    width = torch.rand(2000, 1, generator=g, dtype=torch.float64) ** 3 * 8
    if name in DOMAINS:
        low, high = DOMAINS[name]
        a = low + (high - low) * torch.rand(2000, 1, generator=g, dtype=torch.float64)
        width = torch.minimum(width, high - a)
    if name in POSITIVE or attrs.get("exponent", 1) not in (1, 2, 3, 4):
        a = a.abs() + 0.05
    t = torch.cat([torch.linspace(0, 1, 399, dtype=torch.float64), torch.tensor([1.0], dtype=torch.float64)])
    x = torch.minimum(a + width * t, a + width)
    box = Interval(a, a + width)
    step = width / 398
    for found, values in (
        (CURVES[name].image(op, box, attrs), op.torch((x,), attrs)),
        (CURVES[name].slopes(op, box, attrs), op.derivative(x, attrs)),
    ):
        low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
        assert bool((found.lo <= low).all()) and bool((high <= found.hi).all())
        size = 1e-12 * (1 + x.abs().amax(1, keepdim=True)) * (1 + values.abs().amax(1, keepdim=True))
        rise = (values[:, 1:] - values[:, :-1]).abs().amax(1, keepdim=True)  # samples miss extremes by less than a step
        jump = (1 + 2 * abs(attrs.get("slope", 0)) + attrs.get("alpha", 0)) * (step > 0)
        kinked = name in ("relu", "leaky_relu", "elu", "clamp", "abs")  # where f' jumps, one-sided values may be missed
        allowed = size + rise + (jump if kinked else 0)
        assert bool((low - found.lo <= allowed).all()) and bool((found.hi - high <= allowed).all())


@pytest.mark.parametrize("name", ["sin", "cos"])
def test_waves_far_from_zero(name):
    for a in (1e5, 3e9, -7e12):
        v = interval(a, a + 2.0)
        found, x = CURVES[name].image(TABLE[name], v, {}), torch.linspace(a, a + 2.0, 1000, dtype=torch.float64)
        y = TABLE[name].torch((x,), {})
        assert found.lo.item() <= y.min().item() and y.max().item() <= found.hi.item()


@pytest.mark.parametrize(
    ("name", "attrs"), [("log", {}), ("sqrt", {}), ("reciprocal", {}), ("power", {"exponent": 0.5})]
)
def test_outside_the_domain_nothing_is_known(name, attrs):
    assert ends_of(CURVES[name].image(TABLE[name], interval(-1.0, 1.0), attrs)) == (-math.inf, math.inf)
