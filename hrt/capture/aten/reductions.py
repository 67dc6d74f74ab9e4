"""What looks at a whole axis of a sample: extremes, moments, norms, products, softmax, attention and distances."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.masks import mask_of, saying, topk
from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, axis_of, moved, reshaped
from hrt.capture.compositions import LARGEST

OVER_THE_BATCH = "it reduces over the batch, so that samples would depend on each other"


def axes_of(b: Builder, x: Ref, dim: Any) -> list[int]:
    """Dimensions, or one, as negative axes. Raises CaptureError where they are all, or hold the batch."""
    if dim is None or dim == [] or isinstance(dim, bool):
        raise b.fail(OVER_THE_BATCH)
    return [axis_of(x, d, b) for d in ([dim] if isinstance(dim, int) else dim)]


def kept(x: Ref, axes: Sequence[int], *, keep: bool = True) -> tuple[int, ...]:
    """The shape after a reduction over axes."""
    places = {k + len(x.shape) for k in axes}
    return tuple(1 if k in places else n for k, n in enumerate(x.shape) if keep or k not in places)


def reduced(b: Builder, op: str, x: Ref, axes: Sequence[int], *, keep: bool = True) -> Ref:
    """A row of the table that reduces."""
    return b.emit(op, [x], kept(x, axes, keep=keep), axes=list(axes), keep=keep)


def _reduction(op: str) -> Lowering:
    def lower(b: Builder, x: Ref, dim: Any = None, keepdim: bool = False) -> Ref:
        return reduced(b, op, x, axes_of(b, x, dim), keep=keepdim)

    return lower


def _extreme(largest: bool) -> Lowering:
    """max and min: of two values; or along an axis, with the places."""

    def lower(b: Builder, x: Any, other: Any = None, keepdim: bool = False) -> Any:
        if isinstance(other, (Ref, Tensor)):
            return b.emit("maximum" if largest else "minimum", [x, other], b.result_shape())
        axes = axes_of(b, x, other)
        value = reduced(b, "amax" if largest else "amin", x, axes, keep=keepdim)
        _, place = topk(b, x, 1, axes[0], largest)
        return [value, reshaped(b, place, kept(x, axes, keep=keepdim))]

    return lower


def _any(op: str) -> Lowering:
    def lower(b: Builder, x: Ref, dim: Any = None, keepdim: bool = False) -> Ref:
        return reduced(b, op, mask_of(b, x, 0), axes_of(b, x, dim), keep=keepdim)

    return lower


def _moments(b: Builder, x: Ref, dim: Any, correction: float, keep: bool) -> list[Ref]:
    """Variance and mean over axes."""
    axes = axes_of(b, x, dim)
    count = math.prod(x.shape[k] for k in axes)
    mean = reduced(b, "mean", x, axes)
    centred = b.emit("sub", [x, mean], x.shape)
    squares = b.emit("power", [centred], x.shape, exponent=2.0)
    variance = reduced(b, "mean", squares, axes, keep=keep)
    if correction:
        variance = b.emit("mul", [variance, count / max(0.0, count - correction)], variance.shape)
    return [variance, reshaped(b, mean, kept(x, axes, keep=keep))]


def _variance(*, root: bool, with_mean: bool) -> Lowering:
    def lower(
        b: Builder, x: Ref, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None
    ) -> Any:
        correction = float(unbiased) if correction is None else float(correction)
        variance, mean = _moments(b, x, dim, correction, keepdim)
        first = b.emit("sqrt", [variance], variance.shape) if root else variance
        return [first, mean] if with_mean else first

    return lower


def _norm(b: Builder, x: Ref, order: float = 2.0, dim: Any = None, keepdim: bool = False) -> Ref:
    axes, say = axes_of(b, x, dim), saying(b)
    if order == 2:
        total = reduced(b, "sum", say("power", x, exponent=2.0), axes, keep=keepdim)
        return b.emit("sqrt", [total], total.shape)
    size = say("abs", x)
    if math.isinf(order):
        return reduced(b, "amax" if order > 0 else "amin", size, axes, keep=keepdim)
    if order == 1:
        return reduced(b, "sum", size, axes, keep=keepdim)
    if order <= 0:
        raise b.fail(f"its order is {order}, not positive")
    total = reduced(b, "sum", say("power", size, exponent=float(order)), axes, keep=keepdim)
    return b.emit("power", [total], total.shape, exponent=1 / float(order))


def _product(b: Builder, x: Ref, dim: Any = None, keepdim: bool = False) -> Ref:
    """Halves times halves, which rounds less than one after the other."""
    (axis,) = axes = axes_of(b, x, dim)

    def part(v: Ref, start: int, stop: int) -> Ref:
        shape = tuple(stop - start if k == axis + len(v.shape) else n for k, n in enumerate(v.shape))
        return v if shape == v.shape else b.emit("slice", [v], shape, axis=axis, start=start, stop=stop, step=1)

    left: list[Ref] = []
    while (size := x.shape[axis]) > 1:
        half = size // 2
        left += [part(x, size - 1, size)] if size % 2 else []
        first, second = part(x, 0, half), part(x, half, 2 * half)
        x = b.emit("mul", [first, second], first.shape)
    for other in left:
        x = b.emit("mul", [x, other], x.shape)
    return reshaped(b, x, kept(x, axes, keep=keepdim))


def _along(op: str) -> Lowering:
    def lower(b: Builder, x: Ref, dim: int, *args: Any) -> Ref:
        return b.emit(op, [x], x.shape, axis=axis_of(x, dim, b))

    return lower


def _rms_norm(b: Builder, x: Ref, shape: Sequence[int], weight: Any = None, eps: Any = None) -> Ref:
    axes, say = axes_of(b, x, list(range(-len(shape), 0))), saying(b)
    mean = reduced(b, "mean", say("power", x, exponent=2.0), axes)
    least = torch.finfo(b.current.meta["val"].dtype).eps if eps is None else eps
    root = b.emit("sqrt", [b.emit("add", [mean, least], mean.shape)], mean.shape)
    y = b.emit("mul", [x, b.emit("reciprocal", [root], root.shape)], x.shape)
    return y if weight is None else b.emit("mul", [y, weight], x.shape)


def attention(b: Builder, query: Ref, key: Ref, value: Ref, bias: Any, scale: float | None) -> Ref:
    """softmax(query key^T scale + bias) value, for samples (..., rows, width). bias: a constant or a value, or None."""
    factor = float(query.shape[-1] ** -0.5 if scale is None else scale)
    shape = (*query.shape[:-1], key.shape[-2])
    swapped = moved(b, key, [*range(-len(key.shape), -2), -1, -2])
    scores = b.emit("matmul", [b.emit("mul", [query, factor], query.shape), swapped], shape)
    if bias is not None:
        scores = b.emit("add", [scores, bias], shape)
    weights = b.emit("softmax", [scores], shape, axis=-1)
    return b.emit("matmul", [weights, value], (*shape[:-1], value.shape[-1]))


def _scaled_dot_product_attention(
    b: Builder,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Ref:
    values = (query, key, value)
    if not all(isinstance(v, Ref) for v in values) or len({v.shape[:-2] for v in values}) > 1:
        raise b.fail("its query, key and value are not of the same heads; expand them")
    for v in values:
        axes_of(b, v, [-1, -2])
    if dropout:
        raise b.fail("it drops values at random; call net.eval()")
    if isinstance(mask, Ref):
        hidden = b.emit("sub", [1.0, mask_of(b, mask, 3)], mask.shape) if _is_mask(b) else mask
        mask = b.emit("mul", [hidden, -LARGEST], mask.shape) if _is_mask(b) else mask
    elif isinstance(mask, Tensor):
        mask = torch.zeros(()).double().where(mask, -LARGEST) if mask.dtype == torch.bool else mask.clamp_min(-LARGEST)
    if is_causal:
        seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
        mask = torch.zeros(()).double().where(seen, -LARGEST)
    return attention(b, query, key, value, mask, kwargs.get("scale"))


def _is_mask(b: Builder) -> bool:
    argument = b.current.args[3] if len(b.current.args) > 3 else b.current.kwargs["attn_mask"]
    return argument.meta["val"].dtype == torch.bool


def _cdist(b: Builder, x: Any, y: Any, order: float = 2.0, *args: Any) -> Ref:
    """By differences, which keep the digits of what is near. The rows of `x` may be the batch."""
    if isinstance(y, Ref):
        axes_of(b, y, [-1, -2])
    (*lead, width), (*_, columns, _) = x.shape, y.shape
    rows_are_batch = isinstance(x, Ref) and x.axis == x.ndim - 2
    first = reshaped(b, x, (*lead, 1, width)) if isinstance(x, Ref) else x.unsqueeze(-2)
    if not rows_are_batch:
        y = reshaped(b, y, (*y.shape[:-2], 1, columns, width)) if isinstance(y, Ref) else y.unsqueeze(-3)
    return _norm(b, b.emit("sub", [first, y], (*lead, columns, width)), float(order), -1)


def _group_norm(
    b: Builder,
    x: Ref,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Ref:
    if x.axis:
        raise b.fail(ALONG_THE_BATCH)
    channels = len(x.shape) - x.ndim + 1  # in which place they stand, behind what is merged with the batch
    lead, inner = x.shape[:channels], x.shape[channels:]
    flat = (*lead, groups, math.prod(inner) // groups)
    y = b.emit("layer_norm", [reshaped(b, x, flat)], flat, shape=[flat[-1]], eps=eps)
    y = reshaped(b, y, x.shape)
    side = (-1, *(1,) * (len(inner) - 1))
    if weight is not None:
        y = b.emit("mul", [y, b.named(weight.reshape(side), "weight", weight)], y.shape)
    return y if bias is None else b.emit("add", [y, b.named(bias.reshape(side), "bias", bias)], y.shape)


def _instance_norm(b: Builder, x: Ref, weight: Any, bias: Any, *given: Any) -> Ref:
    """given: running mean and variance, whether those of the input count instead, momentum, eps."""
    mean, variance, of_input, _, eps, *_ = given
    if of_input:
        return _group_norm(b, x, x.shape[len(x.shape) - x.ndim + 1], weight, bias, eps)
    if mean is None or variance is None:
        raise b.fail("it has no running statistics; keep track_running_stats=True")
    side = (-1, *(1,) * (x.ndim - 2))
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    y = b.emit("mul", [x, b.named(scale.reshape(side), "scale")], x.shape)
    return b.emit("add", [y, b.named(shift.reshape(side), "shift")], x.shape)


def _native_group_norm(b: Builder, x: Ref, weight: Any, bias: Any, *given: Any) -> list[Ref | None]:
    """given: rows, channels, numbers of a channel, groups, eps."""
    return [_group_norm(b, x, given[3], weight, bias, *given[4:]), None, None]


REDUCTIONS: dict[str, Lowering] = {
    **{name: _reduction(name) for name in ("sum", "mean", "amax", "amin", "logsumexp")},
    "max": _extreme(True),
    "min": _extreme(False),
    "any": _any("amax"),
    "all": _any("amin"),
    "var": _variance(root=False, with_mean=False),
    "std": _variance(root=True, with_mean=False),
    "var_mean": _variance(root=False, with_mean=True),
    "std_mean": _variance(root=True, with_mean=True),
    "prod": _product,
    **{
        name: _along(name.removeprefix("_"))
        for name in ("cumsum", "softmax", "_softmax", "log_softmax", "_log_softmax")
    },
    "linalg_vector_norm": _norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "native_group_norm": _native_group_norm,
    "instance_norm": _instance_norm,
    "scaled_dot_product_attention": _scaled_dot_product_attention,
    **dict.fromkeys(("cdist", "_cdist_forward"), _cdist),
}
