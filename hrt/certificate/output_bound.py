"""A rigorous bound of what compression does to a network's output, for every input of a box.

What the original network computes (x), what the compressed one does (y) and d = x - y, entry by entry and in the 2-norm
of one sample, are enclosed together. Each op has one rule; RULES is keyed like the op table. With E = W - H,

    linear      W x - H y = E x + H d,  ||.||_2 <= ||E x||_2 + ||H||_2 ||d||_2,  |H_i d| <= ||H_i||_2 ||d||_2
    elementwise f(x) - f(y) = f'(xi) d (mean value theorem), xi between x and y
    products    x1 x2 - y1 y2 = d1 x2 + y1 d2

and the box is bisected where its bound is worst, as often as WORK allows. Arithmetic rounds outwards, so that the bound
holds for the stored numbers in exact arithmetic. The rounding of a float32 or tf32 runtime is not in it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.samples import Box
from hrt.certificate.enclosure import Enclosure, like
from hrt.certificate.intervals import CURVES, TINY, UNIT, Interval, around, gamma, point, up, where
from hrt.certificate.norms import FAINT, MAX_SIDE, Weight, length
from hrt.certificate.selection_rules import SELECTIONS
from hrt.program.carried import CARRIED
from hrt.program.dense_view import DenseView
from hrt.program.op_table import TABLE
from hrt.program.patches import Window
from hrt.program.program import Node

WORK = 4e9  # floating-point operations that bisecting the box may cost
MAX_BOXES = 4096


def _linear(node: Node, a: Sequence) -> Enclosure:
    value, w, size = a[0], a[1], math.prod(node.shape)
    x, y, error = w.original.times(value.x), w.compressed.times(value.y), w.error.times(value.x)
    c, r = value.x.centred()
    middle = w.error.times(point(c))
    if len(a) == 3:
        x, y, error, middle = x + a[2].x, y + a[2].y, error + a[2].d, middle + a[2].d
    spread = w.error.norm * length(r, value.size)
    error_norm = torch.fmin(length(error.magnitude, size), length(middle.magnitude, size) + spread * (1 + 8 * UNIT))
    carried = w.compressed.times(value.d)
    limit = (w.compressed.rows + w.compressed.loose) * like(value.norm, x.lo) * (1 + 8 * UNIT)
    d = error + carried.meet(Interval(-limit, limit))
    return Enclosure.make(x, y, d, size, (error_norm + w.compressed.norm * value.norm) * (1 + 8 * UNIT))


def _curve(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    (v,), curve = a, CURVES[node.op]
    x, y = (curve.image(node.row, part, node.attrs) for part in (v.x, v.y))
    slopes = curve.slopes(node.row, v.x.hull(v.y), node.attrs)
    steepest = slopes.magnitude.reshape(-1, v.size).amax(1) if v.size else torch.zeros(1, dtype=torch.float64)
    return Enclosure.make(x, y, slopes * v.d, v.size, torch.nan_to_num(steepest * v.norm, math.inf) * (1 + 4 * UNIT))


def _added(node: Node, a: Sequence[Enclosure], sign: int) -> Enclosure:
    (p, q), size = a, math.prod(node.shape)
    x, y, d = (s + t if sign > 0 else s - t for s, t in ((p.x, q.x), (p.y, q.y), (p.d, q.d)))
    p_norm, q_norm = (v.norm * math.sqrt(size / max(1, v.size)) for v in a)
    return Enclosure.make(x, y, d, size, (p_norm + q_norm) * (1 + 8 * UNIT))


def _multiplied(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    (p, q), size = a, math.prod(node.shape)
    if p is q:
        square, exponent = CURVES["power"], {"exponent": 2.0}
        x, y = (square.image(TABLE["power"], part, exponent) for part in (p.x, p.y))
        return Enclosure.make(x, y, (p.x + p.y) * p.d, size)
    d = (p.x * q.d + q.y * p.d).meet(p.y * q.d + q.x * p.d)
    return Enclosure.make(p.x * q.x, p.y * q.y, d, size)


def _divided(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    p, q = a
    quotient = p.y * q.y.inverse()
    d = (p.d - quotient * q.d) * q.x.inverse()  # p.x / q.x - r = (p.x - p.y + r q.y - r q.x) / q.x with r = p.y / q.y
    return Enclosure.make(p.x * q.x.inverse(), quotient, d, math.prod(node.shape))


def _ends(node: Node, parts: Sequence[Interval]) -> Interval:
    """A monotone op at both ends of its arguments."""
    return Interval(*(node.row.torch(ends, node.attrs) for ends in ([v.lo for v in parts], [v.hi for v in parts])))


def _monotone(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """Maximum, minimum: a common shift of both arguments shifts the result. Steps: equal on one side of a jump."""
    x, y = _ends(node, [v.x for v in a]), _ends(node, [v.y for v in a])
    same, apart = a[0].d.magnitude == 0, x - y
    jump = Interval(torch.where(same, 0.0, apart.lo), torch.where(same, 0.0, apart.hi))
    return Enclosure.make(x, y, a[0].d.hull(a[1].d) if len(a) > 1 else jump, math.prod(node.shape))


def _moved(node: Node, a: Sequence[Enclosure], keeps_norm: bool = True) -> Enclosure:
    """Entries go to other places, none changes; keeps_norm: none is repeated."""
    norm = torch.stack(torch.broadcast_tensors(*(v.norm for v in a))).sum(0) * (1 + gamma(len(a) + 4))
    x, y, d = (_ends(node, [getattr(v, part) for v in a]) for part in ("x", "y", "d"))
    return Enclosure.make(x, y, d, math.prod(node.shape), norm if keeps_norm else None)


def _patches(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """Entries go to several places, so often that the norm can grow by the root of that."""
    moved = _moved(node, a, keeps_norm=False)
    norm = a[0].norm * (math.sqrt(Window.of(node.attrs).repeats) * (1 + 8 * UNIT))
    return Enclosure.make(moved.x, moved.y, moved.d, moved.size, norm)


def _multilinear(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """Linear in each argument with weights >= 0: f(c + r) lies within f(|c| + r) - f(|c|) of f(c) for |r| <= r."""

    def f(parts: Sequence[Tensor]) -> Tensor:
        return node.row.torch(list(parts), node.attrs)

    terms = float(f([torch.ones_like(v.x.lo) for v in a]).amax()) if all(v.x.lo.numel() for v in a) else 0.0
    terms = 8 * (terms + max(v.size for v in a) + 8)

    def product(parts: Sequence[Interval]) -> Interval:
        pairs = [v.centred() for v in parts]
        sizes = f([c.abs() + r for c, r in pairs])
        some = f([((c != 0) | (r != 0)).to(torch.float64) for c, r in pairs]) > 0
        spread = sizes - f([c.abs() for c, _ in pairs]) + gamma(terms) * sizes + where(some, TINY)
        return around(f([c for c, _ in pairs]), up(spread.clamp_min(0)))

    xs, ys = [v.x for v in a], [v.y for v in a]
    d = product([a[0].d, *ys[1:]])
    for k in range(1, len(a)):
        d = d + product([*xs[:k], a[k].d, *ys[k + 1 :]])
    return Enclosure.make(product(xs), product(ys), d, math.prod(node.shape))


def _layer_norm(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """z / s with z = x - mean, s^2 = mean z^2 + eps, then the affine part by the rules of mul and add.

    Its Jacobian (I - z z^T / (n s^2)) / s after centring has norm at most 1 / s, and |z_i| / s <= sqrt(n - 1).
    """
    v, n = a[0], math.prod(node.attrs["shape"])
    axes = tuple(range(-len(node.attrs["shape"]), 0))
    slack = gamma(8 * n + 64)

    def centred(part: Interval) -> Interval:
        c, r = part.centred()
        size = c.abs() + r
        radius = r * (1 - 2 / n) + r.mean(axes, keepdim=True) if n > 1 else torch.zeros_like(r)
        total = slack * (size + size.mean(axes, keepdim=True))
        return around(c - c.mean(axes, keepdim=True), up(radius.clamp_min(0) + total + TINY))

    def scale(z: Interval) -> Interval:
        least = torch.where((z.lo > 0) | (z.hi < 0), torch.minimum(z.lo.abs(), z.hi.abs()), 0.0)
        low, high = ((t * t).mean(axes, keepdim=True) + node.attrs["eps"] for t in (least, z.magnitude))
        return Interval(low.sqrt() * (1 - slack), high.sqrt() * (1 + slack) + TINY)

    def normal(z: Interval) -> Interval:
        s = scale(z)
        limit = torch.where(s.lo > 0, math.sqrt(max(0, n - 1)) * (1 + 4 * UNIT), math.inf).expand_as(z.lo)
        return (z * s.inverse()).meet(Interval(-limit, limit))

    hull = centred(v.x.hull(v.y))
    s, dz = scale(hull).lo, centred(v.d).magnitude
    group = torch.fmin((dz * dz).sum(axes, keepdim=True).sqrt() * (1 + slack) + FAINT, like(v.norm, dz))
    shared = normal(hull).magnitude * group / math.sqrt(max(1, n))
    entry = torch.fmin(group, dz + shared) / s * (1 + slack) + where(group > 0, TINY)
    norm = v.norm / s.reshape(s.shape[0], -1).amin(1) * (1 + slack) if v.size else None
    out = Enclosure.make(normal(centred(v.x)), normal(centred(v.y)), Interval(-entry, entry), v.size, norm)
    for affine, rule in zip(a[1:], (_multiplied, partial(_added, sign=1)), strict=False):
        out = rule(node, [out, affine])
    return out


def _unknown(node: Node, a: Sequence[Enclosure]) -> Enclosure:
    """Anything at all."""
    anything = torch.full((len(a[0].x.lo), *node.shape), math.inf, dtype=torch.float64)
    whole = Interval(-anything, anything)
    return Enclosure.make(whole, whole, whole, math.prod(node.shape))


RULES: dict[str, Callable[[Node, Sequence], Enclosure]] = {
    "linear": _linear,
    **dict.fromkeys(CURVES, _curve),
    "add": partial(_added, sign=1),
    "sub": partial(_added, sign=-1),
    "mul": _multiplied,
    "div": _divided,
    **dict.fromkeys(("maximum", "minimum", "step", "floor", "round"), _monotone),
    **dict.fromkeys(("concat", "slice", "reshape", "transpose"), _moved),
    **dict.fromkeys(("expand", "repeat"), partial(_moved, keeps_norm=False)),
    "patches": _patches,
    **dict.fromkeys(("sum", "mean", "cumsum", "matmul", "einsum"), _multilinear),
    "layer_norm": _layer_norm,
    CARRIED: _unknown,
    **SELECTIONS,
}


@dataclass(frozen=True)
class OutputBound:
    """per_output: what |f - f_h| of every column is at most on the whole box, or None with a reason.  boxes: parts."""

    per_output: tuple[float, ...] | None
    reason: str = ""
    boxes: int = 0


def output_bound(original: DenseView, compressed: DenseView, boxes: Sequence[Box] | None) -> OutputBound:
    """A bound of |f - f_h| over `boxes`, one per input: f is `original` as captured, f_h `compressed` as stored."""
    program = original.program
    if boxes is None:
        return OutputBound(None, "the inputs are samples, not hrt.Box: nothing says where else the network is used")
    if [v.shape for v in program.inputs] != [(b.width,) for b in boxes]:
        return OutputBound(None, "the boxes do not have the shapes of the inputs")
    for node in program.nodes:
        if node.op not in RULES:
            return OutputBound(None, f"no rule for op {node.op}")
    for name in program.weights:
        if max(shape := program.constants[name].shape) > MAX_SIDE:
            return OutputBound(None, f"{name} is {shape[0]} x {shape[1]}, larger than {MAX_SIDE}: skipped to save time")
    with torch.no_grad():
        return _Search(original, compressed, boxes).run()


class _Search:
    """Bisects the box where its bound is worst."""

    def __init__(self, original: DenseView, compressed: DenseView, boxes: Sequence[Box]):
        program, w, h = original.program, original.constants, compressed.constants
        self.program, self.boxes, self.trouble = program, boxes, ""
        names = (*program.weights, *program.generated)
        made = {k: Weight.make(w[k], h[k], compressed.program.constants[k]) for k in names}
        self.weights = {n.name: made[n.inputs[1]] for n in program.linear_nodes}
        plain = {name for n in program.nodes for k, name in enumerate(n.inputs) if k != 1 or n.name not in self.weights}
        self.known = {k: _constant(w[k], h[k]) for k in w if k in plain or k in program.outputs}
        # two products each with W, H, E, for d and for the centre; some hundred operations an entry for the rest
        sizes = {name: math.prod(program.constants[name].shape) for name in made}
        work = 20.0 * sum(sizes[n.inputs[1]] * math.prod(n.shape[:-1]) for n in program.linear_nodes)
        work += 400.0 * sum(math.prod(n.shape) for n in program.nodes)
        self.parts = int(min(MAX_BOXES, max(1.0, WORK / max(work, 1.0))))

    def run(self) -> OutputBound:
        """Every round halves the worse half of the boxes along their relatively longest side."""
        sides = [b.low for b in self.boxes], [b.high for b in self.boxes]
        low, high = (torch.tensor([[*chain(*side)]], dtype=torch.float64) for side in sides)
        whole = (high - low).clamp_min(TINY)
        bounds = self._evaluate(low, high)
        spent = 1
        while spent + 2 <= self.parts and bool((bounds > 0).any()) and bool((high > low).any()):
            scale = bounds.amax(0).clamp(TINY, 1e300)
            order = (bounds / scale).nan_to_num(math.inf).amax(1).argsort(descending=True, stable=True)
            count = min((len(low) + 1) // 2, (self.parts - spent) // 2)
            worst, rest = order[:count], order[count:]
            a, b, old = low[worst], high[worst], bounds[worst]
            axis = ((b - a) / whole).argmax(1)
            rows = torch.arange(count)
            middle = (a + b) / 2
            new_low, new_high = torch.cat([a, a]), torch.cat([b, b])
            new_low[count + rows, axis] = new_high[rows, axis] = middle[rows, axis]
            new = torch.minimum(self._evaluate(new_low, new_high), torch.cat([old, old]))  # a part is no worse
            low, high = torch.cat([low[rest], new_low]), torch.cat([high[rest], new_high])
            bounds = torch.cat([bounds[rest], new])
            spent += 2 * count
        per_output = tuple(bounds.amax(0).tolist())
        known = all(map(math.isfinite, per_output))
        return OutputBound(per_output if known else None, "" if known else self.trouble, len(low))

    def _evaluate(self, low: Tensor, high: Tensor) -> Tensor:
        """(boxes, outputs) bounds of |f - f_h|; infinite where nothing is known."""
        widths = [b.width for b in self.boxes]
        values = dict(self.known)
        for v, lo, hi in zip(self.program.inputs, low.split(widths, 1), high.split(widths, 1), strict=True):
            x, zero = Interval(lo, hi), torch.zeros_like(lo)
            values[v.name] = Enclosure(x, x, point(zero), zero.sum(1), lo.shape[1])
        for node in self.program.nodes:
            arguments: list[Any] = [values.get(name) for name in node.inputs]
            if node.name in self.weights:
                arguments[1] = self.weights[node.name]
            out = RULES[node.op](node, arguments)
            values[node.name] = out
            if not self.trouble and not bool(torch.isfinite(out.d.magnitude).all()):
                self.trouble = f"no finite range after {node.op} ({node.name})"
        outs = [values[name].d.magnitude for name in self.program.outputs]
        flat = [v.reshape(v.shape[0], -1).expand(len(low), -1) for v in outs]
        return torch.cat(flat, 1).nan_to_num(math.inf, math.inf)


def _constant(original: Tensor, compressed: Tensor) -> Enclosure:
    x, y = point(original), point(compressed)
    d = x - y
    return Enclosure(x, y, d, length(d.magnitude, d.lo.numel()), d.lo.numel())
