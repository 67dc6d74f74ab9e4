"""Interpolation, to fixed sizes and at given places, and pixel shuffles: what is linear along every axis of an image
by itself.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.convolutions import interleaved, reordered
from hrt.capture.aten.masks import saying
from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, moved, reshaped, resized, sliced
from hrt.capture.compositions import equal

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


BILINEAR, NEAREST = 0, 1  # torch's numbers of modes
ZEROS, BORDER = 0, 1  # and of what stands outside


def _grid_sampled(b: Builder, image: Any, grid: Any, mode: int = 0, outside: int = 0, corners: bool = False) -> Ref:
    """An image (batch or 1, channels, *sizes) at places in (-1, 1): along every axis a product with the weights that
    the axis's pixels have in a place, first the last axis. Those of a constant image are planned.
    """
    if mode not in (BILINEAR, NEAREST) or outside not in (ZEROS, BORDER):
        raise b.fail("it interpolates cubically, or reflects places; expected bilinear or nearest, zeros or border")
    if not isinstance(grid, Ref):
        raise b.fail("its grid holds no batch; expand it to x.shape[0] grids")
    _, channels, *sizes = (1, *image.shape) if isinstance(image, Ref) else image.shape
    if isinstance(image, Ref) and (image.axis or grid.axis or len(image.shape) != len(sizes) + 1):
        raise b.fail(ALONG_THE_BATCH)
    if isinstance(image, Tensor) and len(image) != 1:
        raise b.fail(f"its constant images are {len(image)}; expected one for the whole batch")
    out = b.result_shape()
    places = reshaped(b, grid, (math.prod(grid.shape[:-1]), len(sizes)))
    weights = [_weights(b, places, k, n, (mode, outside, corners)) for k, n in enumerate(reversed(sizes))]
    points, last = places.shape[0], sizes[-1]
    lines = channels * math.prod(sizes[:-1])
    if isinstance(image, Ref):
        spread = moved(b, reshaped(b, image, (lines, last)), [-1, -2])
        y = b.emit("matmul", [weights[0], spread], (points, lines))
    else:
        y = b.emit("linear", [weights[0], b.named(image.reshape(lines, last), "image", image)], (points, lines))
    for size, weight in zip(reversed(sizes[:-1]), weights[1:], strict=True):
        y = reshaped(b, y, (points, y.shape[-1] // size, size))
        y = b.emit("mul", [y, reshaped(b, weight, (points, 1, size))], y.shape)
        y = b.emit("sum", [y], y.shape[:-1], axes=[-1], keep=False)
    return reshaped(b, moved(b, y, [-1, -2]), out)


def _weights(b: Builder, places: Ref, k: int, size: int, how: tuple[int, int, bool]) -> Ref:
    """(points, size): how much of every pixel of an axis there is in a place, whose coordinate k is in (-1, 1)."""
    mode, outside, corners = how
    say = saying(b)
    x = say("mul", say("add", sliced(b, places, -1, k, k + 1), 1.0), (size - 1 if corners else size) / 2)
    x = x if corners else say("sub", x, 0.5)
    x = say("clamp", x, low=0.0, high=float(size - 1)) if outside == BORDER else x
    pixels, wide = torch.arange(size, dtype=torch.float64), resized(x, -1, size)
    if mode == NEAREST:
        return equal(lambda op, *v, **t: b.emit(op, list(v), wide, **t), say("round", x), pixels)
    distance = b.emit("abs", [b.emit("sub", [x, pixels], wide)], wide)
    return b.emit("relu", [b.emit("sub", [1.0, distance], wide)], wide)


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
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), _grid_sampled),
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _unshuffled,
}
