"""Enclosures of what chooses among values, or weighs a whole axis: rules of `hrt.certificate.output_bound`.

For x and y = x - d: the largest entries of both differ by what some entry differs; log sum exp by a weighted mean of
the entries of d, and p = softmax by p_i (d_i - the mean of d weighted by p), for a p between.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from hrt.certificate.enclosure import Enclosure
from hrt.certificate.intervals import TINY, UNIT, Interval, down, gamma, up
from hrt.program.program import Node

Rule = Callable[[Node, Sequence[Enclosure]], Enclosure]
LIBRARY = 64 * UNIT  # what an elementary function may err by, relatively


def _widened(v: Interval, unit: float) -> Interval:
    """With an error of `unit` times the size, and of underflow."""
    return Interval(down(v.lo - unit * v.lo.abs() - TINY), up(v.hi + unit * v.hi.abs() + TINY))


def _extreme(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """The largest or smallest entries."""
    (v,), axes, keep = a, tuple(node.attrs["axes"]), node.attrs["keep"]
    x, y = (Interval(*(node.row.torch((end,), node.attrs) for end in (part.lo, part.hi))) for part in (v.x, v.y))
    return Enclosure.make(x, y, _any_of(v.d, axes, keep), math.prod(node.shape), v.norm)


def _any_of(d: Interval, axes: Sequence[int], keep: bool) -> Interval:
    """What lies between the least and the greatest entry along axes."""
    return Interval(d.lo.amin(tuple(axes), keepdim=keep), d.hi.amax(tuple(axes), keepdim=keep))


def _terms(v: Tensor, axes: Sequence[int]) -> int:
    return math.prod(v.shape[k] for k in axes)


def _log_sum_exp(v: Interval, axes: Sequence[int], keep: bool) -> Interval:
    """Rises with every entry. After the largest is taken out, the sum lies between 1 and the number of terms."""
    slack = gamma(2 * _terms(v.lo, axes)) + 2 * LIBRARY
    ends = [torch.logsumexp(end, tuple(axes), keepdim=keep) for end in (v.lo, v.hi)]
    spread = [slack * (2 + end.abs() + math.log(max(1, _terms(v.lo, axes)))) for end in ends]
    return Interval(down(ends[0] - spread[0]), up(ends[1] + spread[1]))


def _logarithm_of_sum(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    (v,), axes, keep = a, node.attrs["axes"], node.attrs["keep"]
    x, y = (_log_sum_exp(part, axes, keep) for part in (v.x, v.y))
    return Enclosure.make(x, y, _any_of(v.d, axes, keep), math.prod(node.shape), v.norm)


def _log_softmax(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    (v,), axis = a, [node.attrs["axis"]]
    x, y = (_log_shares(part, axis) for part in (v.x, v.y))
    return Enclosure.make(x, y, v.d - _any_of(v.d, axis, True), v.size)


def _log_shares(v: Interval, axis: Sequence[int]) -> Interval:
    """x - log sum exp x, which rises with the entry itself and falls with every other."""
    out = v - _log_sum_exp(v, axis, True)
    return Interval(out.lo, out.hi.clamp_max(0.0))


def _shares(v: Interval, axis: Sequence[int]) -> Interval:
    """softmax, by its logarithm."""
    logarithms = _log_shares(v, axis)
    out = _widened(Interval(logarithms.lo.exp(), logarithms.hi.exp()), LIBRARY)
    return Interval(out.lo.clamp_min(0.0), out.hi.clamp_max(1.0))


def _softmax(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """Its Jacobian diag(p) - p p^T has a norm of at most 1/2."""
    (v,), axis = a, [node.attrs["axis"]]
    x, y = _shares(v.x, axis), _shares(v.y, axis)
    d = _shares(v.x.hull(v.y), axis) * (v.d - _any_of(v.d, axis, True))
    return Enclosure.make(x, y, d, v.size, v.norm * (0.5 * (1 + 4 * UNIT)))


def _where(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """One of two values where the mask is known; the same one of them where the mask is equal in both networks."""
    mask, p, q = a
    x, y = _chosen(mask.x, p.x, q.x), _chosen(mask.y, p.y, q.y)
    both, apart = mask.x.hull(mask.y), x - y
    together = (both.lo > 0) | (both.hi <= 0) | (mask.d.magnitude == 0)  # a mask is 0 or 1
    d = _chosen(both, p.d, q.d)
    d = Interval(*(torch.where(together, s, t) for s, t in ((d.lo, apart.lo), (d.hi, apart.hi))))
    return Enclosure.make(x, y, d, math.prod(node.shape))


def _chosen(mask: Interval, first: Interval, second: Interval) -> Interval:
    left, right, either = mask.lo > 0, mask.hi <= 0, first.hull(second)
    ends = ((first.lo, second.lo, either.lo), (first.hi, second.hi, either.hi))
    return Interval(*(torch.where(left, f, torch.where(right, s, e)) for f, s, e in ends))


def _remainder(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """fmod: a shift of the first argument while the quotient stays in one cell, else anything below the second."""
    p, q = a

    def in_one_cell(v: Interval, by: Interval) -> Tensor:
        ends = [(end / by.lo * (1 + side)).trunc() for end in (v.lo, v.hi) for side in (-8 * UNIT, 8 * UNIT)]
        alike = (ends[0] == ends[1]) & (ends[1] == ends[2]) & (ends[2] == ends[3])
        return alike & (by.lo == by.hi) & (by.lo != 0)

    def image(v: Interval, by: Interval) -> Interval:
        known, limit = in_one_cell(v, by), by.magnitude
        low, high = (torch.fmod(end, by.lo) for end in (v.lo, v.hi))
        least, most = torch.maximum(-limit, v.lo.clamp_max(0.0)), torch.minimum(limit, v.hi.clamp_min(0.0))
        return Interval(torch.where(known, low, least), torch.where(known, high, most))

    x, y = image(p.x, q.x), image(p.y, q.y)
    fixed = q.d.magnitude == 0
    shifted = in_one_cell(p.x.hull(p.y), q.x) | (p.d.magnitude == 0)
    together, apart = fixed & shifted, x - y
    d = Interval(torch.where(together, p.d.lo, apart.lo), torch.where(together, p.d.hi, apart.hi))
    return Enclosure.make(x, y, d, math.prod(node.shape))


def _angle(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """atan2: extreme at the corners of a rectangle without the origin that does not cross the cut; its gradient is
    (x, -y) / (x^2 + y^2).
    """
    p, q = a
    x, y = _angles(p.x, q.x), _angles(p.y, q.y)
    rise, run = p.x.hull(p.y), q.x.hull(q.y)
    inverse = (_square(rise) + _square(run)).inverse()
    steps, apart = (run * p.d - rise * q.d) * inverse, x - y
    d = Interval(*(torch.where(_in_sight(rise, run), s, t) for s, t in ((steps.lo, apart.lo), (steps.hi, apart.hi))))
    return Enclosure.make(x, y, d, math.prod(node.shape))


def _in_sight(rise: Interval, run: Interval) -> Tensor:
    """Whether neither the origin nor the cut, where the angle jumps, is inside."""
    return (run.lo > 0) | (rise.lo > 0) | (rise.hi < 0)


def _angles(rise: Interval, run: Interval) -> Interval:
    corners = [torch.atan2(v, u) for v in (rise.lo, rise.hi) for u in (run.lo, run.hi)]
    out = _widened(Interval(reduce(torch.minimum, corners), reduce(torch.maximum, corners)), LIBRARY)
    known, most = _in_sight(rise, run), math.pi * (1 + 4 * UNIT)
    return Interval(torch.where(known, out.lo, -most), torch.where(known, out.hi, most))


def _square(v: Interval) -> Interval:
    least = torch.where((v.lo > 0) | (v.hi < 0), torch.minimum(v.lo.abs(), v.hi.abs()), 0.0)
    return Interval(down(least * least).clamp_min(0.0), up(v.magnitude * v.magnitude))


def _gathered(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    v, index = a[0], a[1].x.lo

    def moved(part: Interval) -> Interval:
        return Interval(*(node.row.torch((end, index), node.attrs) for end in (part.lo, part.hi)))

    return Enclosure.make(moved(v.x), moved(v.y), moved(v.d), math.prod(node.shape))


SELECTIONS: dict[str, Rule] = {
    **dict.fromkeys(("amax", "amin"), _extreme),
    "logsumexp": _logarithm_of_sum,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
    "where": _where,
    "fmod": _remainder,
    "atan2": _angle,
    "gather": _gathered,
}
