"""Interpolation to fixed sizes, pixel shuffles: what is linear along every axis of an image by itself."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.convolutions import interleaved, reordered
from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, reshaped

SIDE = 2  # numbers along the axes that are not looked at; torch has modes that take one number for no axis at all
AlongOne = Callable[[Tensor], Tensor]  # (1, n, *axes) to the same with another size of one axis, the others SIDE


def resized_by(b: Builder, x: Ref, functions: Sequence[AlongOne]) -> Ref:
    """x by a function of every one of its last axes, each a product with a matrix: what it makes of unit vectors."""
    axes = len(functions)
    if x.axis >= x.ndim - axes:
        raise b.fail(ALONG_THE_BATCH)
    for k, function in enumerate(functions):
        size, others = x.shape[k - axes], [1 if j == k else SIDE for j in range(axes)]
        unit = torch.eye(size, dtype=torch.float64).reshape(1, size, *(size if j == k else 1 for j in range(axes)))
        images = function(unit.repeat(1, 1, *others)).movedim(2 + k, 2)
        x = _along(b, x, k - axes, images.reshape(size, images.shape[2], -1)[..., 0].T)
    return x


def _along(b: Builder, x: Ref, axis: int, matrix: Tensor) -> Ref:
    """A constant matrix (m, n) times the numbers along a negative axis."""
    (m, n), place = matrix.shape, len(x.shape) + axis
    if m == n and torch.equal(matrix, torch.eye(n, dtype=matrix.dtype)):
        return x
    before, behind = x.shape[:place], x.shape[place + 1 :]
    shape = (*before, m, *behind)
    if m % n == 0 and torch.equal(matrix, torch.eye(n, dtype=matrix.dtype).repeat_interleave(m // n, 0)):
        wide = (*before, n, m // n, *behind)
        x = b.emit("expand", [reshaped(b, x, (*before, n, 1, *behind))], wide, shape=list(wide))
        return reshaped(b, x, shape)
    matrix = b.named(matrix.contiguous(), "resize")
    if axis == -1:
        return b.emit("matmul", [x, b.named(matrix.T.contiguous(), "resize")], shape)
    flat = reshaped(b, x, (*before, n, math.prod(behind)))
    return reshaped(b, b.emit("matmul", [matrix, flat], (*before, m, math.prod(behind))), shape)


def _interpolation(name: str, axes: int, aligned: bool) -> Lowering:
    """torch's own function on unit vectors gives the matrix of every axis. aligned: it has the flag align_corners."""
    function = getattr(torch.ops.aten, name).vec

    def lower(b: Builder, x: Ref, sizes: Any = None, *rest: Any, **options: Any) -> Ref:
        values = dict(zip((["align_corners"] if aligned else []) + ["scale_factors"], rest, strict=False)) | options
        scales, corners = values.get("scale_factors"), [values["align_corners"]] if aligned else []
        asked, rest_of = (sizes, SIDE) if sizes else (scales, 1.0)
        if not asked or any(v is None for v in asked):
            raise b.fail("its size depends on the input; expected a constant size or factor")

        def along(k: int) -> AlongOne:
            one = [n if j == k else rest_of for j, n in enumerate(asked)]
            return lambda basis: function(basis, one if sizes else None, *corners, None if sizes else one)

        return resized_by(b, x, [along(k) for k in range(axes)])

    return lower


def _shuffled(b: Builder, x: Ref, factor: int) -> Ref:
    return interleaved(b, x, [factor, factor])


def _unshuffled(b: Builder, x: Ref, factor: int) -> Ref:
    *lead, channels, height, width = x.shape
    y = reshaped(b, x, (*lead, channels, height // factor, factor, width // factor, factor))
    y = reordered(b, y, [-5, -3, -1, -4, -2])
    return reshaped(b, y, (*lead, channels * factor * factor, height // factor, width // factor))


INTERPOLATIONS = {
    **{
        f"{name}{axes}d": (axes, False)
        for name in ("upsample_nearest", "_upsample_nearest_exact")
        for axes in (1, 2, 3)
    },
    "upsample_linear1d": (1, True),
    "upsample_bilinear2d": (2, True),
    "upsample_trilinear3d": (3, True),
    "upsample_bicubic2d": (2, True),
    "_upsample_bilinear2d_aa": (2, True),
    "_upsample_bicubic2d_aa": (2, True),
}

RESIZING: dict[str, Lowering] = {
    **{name: _interpolation(name, axes, aligned) for name, (axes, aligned) in INTERPOLATIONS.items()},
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _unshuffled,
}
