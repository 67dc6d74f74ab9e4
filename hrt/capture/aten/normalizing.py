"""Normalisation over groups of channels: layer norm of another shape."""

import math
from typing import Any

from torch import Tensor

from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, reshaped


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


def _native(b: Builder, x: Ref, weight: Any, bias: Any, *given: Any) -> list[Ref | None]:
    """given: rows, channels, numbers of a channel, groups, eps."""
    return [_group_norm(b, x, given[3], weight, bias, *given[4:]), None, None]


NORMALIZING: dict[str, Lowering] = {
    "group_norm": _group_norm,
    "native_group_norm": _native,
    "instance_norm": _instance_norm,
}
