"""Every rule of the output bound on its own: what it encloses, drawn at random inside its arguments' enclosures."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hrt.certificate.enclosure import Enclosure
from hrt.certificate.intervals import Interval, point
from hrt.certificate.output_bound import RULES
from hrt.program.op_table import TABLE
from hrt.program.program import Node

from op_cases import CASES, A

BATCH = len(A)
ALONE = [(name, arguments, attrs) for name, arguments, attrs, _ in CASES if name not in ("linear", "carried")]
MASKED = {"where": 0}  # the place of an argument that is 0 or 1


def enclosed(a: Tensor, width: float, error: float, g: torch.Generator, *, mask: bool) -> Enclosure:
    """Intervals of about `width` around numbers, those of two networks `error` apart; a constant is a point."""
    if not a.ndim or len(a) != BATCH:
        return Enclosure(point(a), point(a), point(torch.zeros_like(a)), torch.zeros(1, dtype=a.dtype), a.numel())
    shift, spread = (torch.rand(a.shape, generator=g, dtype=a.dtype) for _ in range(2))
    low, wide = a - width * shift, width * spread
    if mask:
        low, high = (low > 0.5).to(a.dtype), (low + wide > 0.5).to(a.dtype)
        d = Interval(torch.zeros_like(a), torch.zeros_like(a)) if error == 0 else Interval(low - high, high - low)
        return Enclosure(Interval(low, high), Interval(low, high), d, torch.full((BATCH,), math.inf), a[0].numel())
    d = error * torch.rand(a.shape, generator=g, dtype=a.dtype)
    x, y = Interval(low, low + wide), Interval(low - d, low + wide + d)
    norm = d.reshape(BATCH, -1).norm(dim=1) * (1 + 1e-12)
    return Enclosure(x, y, Interval(-d, d), norm, a[0].numel())


def inside(v: Enclosure, g: torch.Generator, corner: bool) -> tuple[Tensor, Tensor]:
    """A value of the first network and one of the second, as far apart as they may be."""

    def between(part: Interval) -> Tensor:
        t = torch.rand(part.lo.shape, generator=g, dtype=part.lo.dtype)
        return torch.where(t.round() > 0, part.hi, part.lo) if corner else part.lo + (part.hi - part.lo) * t

    x = between(v.x)
    y = x - between(v.d)
    return x, torch.minimum(torch.maximum(y, v.y.lo), v.y.hi)


def masks(v: Enclosure, g: torch.Generator) -> tuple[Tensor, Tensor]:
    draws = [torch.where(torch.rand(v.x.lo.shape, generator=g) > 0.5, v.x.hi, v.x.lo) for _ in range(2)]
    return draws[0], draws[0] if bool((v.d.hi == 0).all()) else draws[1]


def check(op: str, arguments: Sequence[Tensor], attrs: dict[str, Any], width: float, error: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    out = TABLE[op].torch(arguments, attrs)
    node = Node("y", op, tuple("abcdef"[: len(arguments)]), tuple(out.shape[1:]), attrs)
    given = [enclosed(a, width, error, g, mask=MASKED.get(op) == k) for k, a in enumerate(arguments)]
    result = RULES[op](node, given)
    for k in range(12):
        pairs = [masks(v, g) if MASKED.get(op) == p else inside(v, g, k % 2 == 0) for p, v in enumerate(given)]
        x, y = (TABLE[op].torch([pair[side] for pair in pairs], attrs) for side in (0, 1))
        slack = 1e-13 * (1 + x.abs() + y.abs())
        for value, part in ((x, result.x), (y, result.y), (x - y, result.d)):
            assert bool((value >= part.lo - slack).all()) and bool((value <= part.hi + slack).all())
        size = (x - y).reshape(BATCH, -1).norm(dim=1)
        assert bool((size <= result.norm + 1e-13 * (1 + x.abs().max())).all())


@pytest.mark.parametrize(("op", "arguments", "attrs"), ALONE, ids=[f"{n}-{k}" for k, (n, *_) in enumerate(ALONE)])
@given(
    width=st.sampled_from([0.0, 1e-3, 0.3, 3.0]), error=st.sampled_from([0.0, 1e-6, 0.1]), seed=st.integers(0, 10**6)
)
@settings(max_examples=6, deadline=None)
def test_what_a_rule_encloses_is_inside(op, arguments, attrs, width, error, seed):
    check(op, arguments, attrs, width, error, seed)


SHARP = [case for case in ALONE if case[0] not in ("floor", "round", "step", "fmod", "where")]


@pytest.mark.parametrize(("op", "arguments", "attrs"), SHARP, ids=[f"{n}-{k}" for k, (n, *_) in enumerate(SHARP)])
def test_at_a_point_a_difference_is_of_the_size_of_its_cause(op, arguments, attrs):
    """Not that of two ranges, of which nothing is known but that each holds a value."""
    g = torch.Generator().manual_seed(3)
    error, arguments = 1e-6, [a + 1 for a in arguments] if op == "atan2" else arguments  # away from its cut
    node = Node("y", op, tuple("abcdef"[: len(arguments)]), tuple(TABLE[op].torch(arguments, attrs).shape[1:]), attrs)
    result = RULES[op](node, [enclosed(a, 0.3, error, g, mask=False) for a in arguments])
    assert float(result.d.magnitude.max()) <= 1e3 * error


def test_what_jumps_is_known_where_nothing_moves():
    """The same input in both networks falls on the same side of every jump."""
    g = torch.Generator().manual_seed(0)
    for op, attrs in (("step", {"at_zero": 0.0}), ("floor", {}), ("round", {})):
        (result,) = [RULES[op](Node("y", op, ("x",), (3, 4), attrs), [enclosed(A, 3.0, 0.0, g, mask=False)])]
        assert bool((result.d.magnitude == 0).all()) and bool((result.x.lo < result.x.hi).any())
    period = point(torch.tensor(0.7, dtype=torch.float64))
    constant = Enclosure(period, period, point(torch.zeros(()).double()), torch.zeros(1).double(), 1)
    node = Node("y", "fmod", ("x", "m"), (3, 4), {})
    assert bool((RULES["fmod"](node, [enclosed(A, 3.0, 0.0, g, mask=False), constant]).d.magnitude == 0).all())
    small = RULES["fmod"](node, [enclosed(torch.full_like(A, 1.0), 1e-3, 1e-6, g, mask=False), constant])
    assert float(small.d.magnitude.max()) <= 1e-5 and float((small.x.hi - small.x.lo).max()) <= 2e-3
    p, q = enclosed(A, 0.3, 1e-6, g, mask=False), enclosed(A + 5, 0.3, 1e-6, g, mask=False)
    chosen = RULES["where"](
        Node("y", "where", ("m", "p", "q"), (3, 4), {}), [enclosed(A, 2.0, 0.0, g, mask=True), p, q]
    )
    assert float(chosen.d.magnitude.max()) <= 1e-5 and float((chosen.x.hi - chosen.x.lo).max()) >= 5
