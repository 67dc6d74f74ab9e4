"""How jets pass what looks at a whole axis: the largest and smallest entry, and the family of softmax.

With y = softmax(x) at the point, log sum exp(x + h) - log sum exp(x) = log(sum y exp(h)), whose series needs no value
but y: the softmax itself is y exp(h - log sum y exp(h)).
"""

from collections.abc import Sequence

from hrt.derivatives.jets import Jet, elementwise, summed
from hrt.derivatives.step import Rule, Step
from hrt.derivatives.symbols import Symbol
from hrt.program.taylor_table import Series, ratios


def _kept(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """The shape with ones for the axes."""
    places = {len(shape) + k for k in axes}
    return tuple(1 if k in places else n for k, n in enumerate(shape))


def _total(x: Jet, value: Symbol, axes: Sequence[int], keep: bool) -> Jet:
    """The parts of `x` summed over axes, under another value."""
    return x.mapped(value, lambda p: p.linearly("sum", (p.shape[0], *value.shape), axes=list(axes), keep=keep))


def _extreme(sign: float) -> Rule:
    """The largest (sign 1) or smallest entry: the derivatives of it, the mean of them where several are equal."""

    def rule(s: Step) -> Jet:
        (x,), axes = s.jets, s.node.attrs["axes"]
        shape = _kept(x.value.shape, axes)
        equal = ((x.value - s.value.reshaped(*shape)) * sign).apply("step", at_zero=1.0)
        share = equal * equal.apply("sum", shape, axes=axes, keep=True).apply("reciprocal")
        return _total(s.times(Jet(share, {}), x, x.value), s.value, axes, s.node.attrs["keep"])

    return rule


def _exponential(s: Step, x: Jet, y: Symbol) -> Jet:
    """y exp(h) for the parts h of `x`."""
    return elementwise(x, y, ratios(y, 0.5, 1 / 6), s.needed)


def _logarithm(s: Step, x: Jet, y: Symbol, axes: Sequence[int]) -> Jet:
    """log(sum of y exp(h) over axes), the axes kept. Its value is meant to be read by nobody."""
    s.check_order()
    total = _total(_exponential(s, x, y), y.apply("sum", _kept(y.shape, axes), axes=list(axes), keep=True), axes, True)
    return elementwise(total, total.value, Series(1.0, (-0.5, 1 / 3)), s.needed)


def _softmax(s: Step) -> Jet:
    (x,), y = s.jets, s.value
    return _exponential(s, summed(x, _logarithm(s, x, y, [s.node.attrs["axis"]]), y, -1.0), y)


def _log_softmax(s: Step) -> Jet:
    (x,) = s.jets
    return summed(x, _logarithm(s, x, s.value.apply("exp"), [s.node.attrs["axis"]]), s.value, -1.0)


def _log_sum_exp(s: Step) -> Jet:
    (x,), axes = s.jets, s.node.attrs["axes"]
    y = (x.value - s.value.reshaped(*_kept(x.value.shape, axes))).apply("exp")
    return _logarithm(s, x, y, axes).mapped(s.value, lambda p: p.reshaped(p.shape[0], *s.node.shape))


REDUCTIONS: dict[str, Rule] = {
    "amax": _extreme(1.0),
    "amin": _extreme(-1.0),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "logsumexp": _log_sum_exp,
}
