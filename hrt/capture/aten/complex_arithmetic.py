"""Products of complex values place by place."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.capture.builder import Builder, Ref, picked, reshaped
from hrt.capture.spectra import Complex, of_pair, pair


def as_complex(value: Any) -> Complex:
    """A value with what waits along its axes."""
    return value if isinstance(value, Complex) else Complex.of(value)


def depends(value: Any) -> bool:
    """Whether an argument depends on the input."""
    return isinstance(value, (Ref, Complex))


def side(b: Builder, value: Any, shape: Sequence[int]) -> Any:
    """A real operand that broadcasts with a pair of `shape`: a number, a constant without the batch, or a value."""
    if isinstance(value, Ref):
        return reshaped(b, replace(value, axis=0), (1,) * (len(shape) - len(value.shape)) + value.shape)
    if isinstance(value, Tensor) and value.ndim == len(shape):  # the pair's first axis stands where its batch is
        if value.shape[0] != 1:
            raise b.fail("a constant has numbers of its own for every sample of a batch")
        return value[0]
    return value


def expanded(b: Builder, z: Any, rank: int) -> Ref:
    """A pair whose samples have so many axes behind it."""
    x = pair(b, as_complex(z))
    return reshaped(b, x, (2, *(1,) * (rank + 1 - len(x.shape)), *x.shape[1:]))


def scaled(b: Builder, op: str, z: Complex, factor: Any, shape: Sequence[int]) -> Complex:
    """z times or over what is real."""
    if z.source is None:
        return z
    if isinstance(factor, Tensor) and factor.numel() == 1:
        factor = float(factor.real)
    if isinstance(factor, (int, float)):
        return replace(z, source=b.emit(op, [z.source, float(factor)], z.source.shape))
    x = expanded(b, z, len(shape))
    return of_pair(b, b.emit(op, [x, side(b, factor, x.shape)], (2, *shape)))


def is_real(value: Any) -> bool:
    """Whether a value, constant or number is real."""
    return not isinstance(value, (complex, Complex)) and not (isinstance(value, Tensor) and value.is_complex())


def multiplied(b: Builder, x: Any, y: Any, shape: Sequence[int] | None = None) -> Complex:
    """x y, of one sample's `shape`, by default that of the call at hand."""
    shape = b.result_shape() if shape is None else shape
    if not depends(x) or (isinstance(y, Complex) and not isinstance(x, Complex)):
        x, y = y, x
    x = as_complex(x)
    if x.source is None or (isinstance(y, Complex) and y.source is None):
        return Complex.zeros(shape, x.axis)
    if is_real(y):
        return scaled(b, "mul", x, y, shape)
    z, wide = expanded(b, x, len(shape)), (2, *shape)
    if isinstance(y, Complex):
        w = expanded(b, y, len(shape))
        re, im = (picked(b, w, -len(w.shape), [k]) for k in (0, 1))
    else:
        c = torch.as_tensor(y, dtype=torch.complex128)
        c = side(b, c, z.shape) if c.ndim else c
        re, im = c.real.clone(), c.imag.clone()
    turned = picked(b, z, -len(z.shape), [1, 0])
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, *(1,) * (len(z.shape) - 1))
    im = b.emit("mul", [im, sign], (2, *im.shape[1:])) if isinstance(im, Ref) else im * sign
    return of_pair(b, b.emit("add", [b.emit("mul", [z, re], wide), b.emit("mul", [turned, im], wide)], wide))
