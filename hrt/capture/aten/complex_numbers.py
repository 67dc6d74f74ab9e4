"""Complex values: what ATen's operators do to them, by name."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.complex_products import (
    as_complex,
    complex_einsum,
    complex_matmul,
    complex_tensordot,
    depends,
    expanded,
    is_real,
    multiplied,
    scaled,
    side,
)
from hrt.capture.aten.complex_shapes import COMPLEX_SHAPES, operand
from hrt.capture.aten.elementwise import ELEMENTWISE
from hrt.capture.aten.fourier import FOURIER
from hrt.capture.aten.reductions import REDUCTIONS
from hrt.capture.aten.shapes import SHAPES
from hrt.capture.builder import Builder, Lowering, Ref, moved
from hrt.capture.spectra import Complex, imaginary_part, joined_pair, of_pair, pair, real_part


def is_complex(values: Sequence[Any]) -> bool:
    """Whether there are complex values, constants or numbers among arguments or results."""
    return any(isinstance(v, (Complex, complex)) or (isinstance(v, Tensor) and v.is_complex()) for v in values)


def lower_complex(b: Builder, name: str, arguments: Sequence[Any], keywords: dict[str, Any]) -> Any:
    """A call with complex numbers among its arguments or results. Raises CaptureError where it has no rule."""
    if name not in COMPLEX:
        raise b.fail("it computes with complex numbers, for which it has no rule; take the real and imaginary parts")
    return _placed(b, COMPLEX[name](b, *arguments, **keywords), b.current.meta["val"])


def _placed(b: Builder, value: Any, fake: Any) -> Any:
    """Complex results with the batch where their shapes say."""
    if isinstance(value, list):
        return [_placed(b, v, f) for v, f in zip(value, fake, strict=True)]
    if not isinstance(value, Complex):
        return value
    place, count = b.batch_place(fake)
    if count != 1 or value.shape != (*fake.shape[:place], *fake.shape[place + 1 :]):
        raise b.fail(f"its result has shape {tuple(fake.shape)}, said in the table {value.shape}")
    return replace(value, axis=place)


def _copied(b: Builder, target: Any, source: Any, *_: Any) -> Complex:
    """What takes the place of `target`; broadcast where it is smaller."""
    z = operand(b, source)
    if z.shape == as_complex(target).shape:
        return z
    return _added(b, Complex.zeros(as_complex(target).shape, as_complex(target).axis), z)


def _divided(b: Builder, x: Any, y: Any, **_: Any) -> Complex:
    if isinstance(y, (Tensor, complex)) and not is_real(y):
        return multiplied(b, x, 1 / torch.as_tensor(y, dtype=torch.complex128))
    if not is_real(y):
        raise b.fail("it divides by a complex value that depends on the input")
    return scaled(b, "div", as_complex(x), y, b.result_shape())


def _added(b: Builder, x: Any, y: Any, alpha: float = 1, op: str = "add") -> Complex:
    y = y if alpha == 1 else scaled(b, "mul", y, alpha, y.shape) if isinstance(y, Complex) else y * alpha
    shape = (2, *b.result_shape())

    def part(v: Any) -> Any:
        if depends(v):
            return expanded(b, v, len(shape) - 1)
        c = torch.as_tensor(v, dtype=torch.complex128)
        c = side(b, c, shape) if c.ndim else c
        return torch.stack([c.real, c.imag]).reshape(2, *(1,) * (len(shape) - 1 - c.ndim), *c.shape)

    if isinstance(y, Complex) and y.source is None and isinstance(x, Complex) and x.shape == shape[1:]:
        return x
    if isinstance(x, Complex) and x.source is None and op == "add" and depends(y) and as_complex(y).shape == shape[1:]:
        return as_complex(y)
    return of_pair(b, b.emit(op, [part(x), part(y)], shape))


def _negated(b: Builder, z: Complex) -> Complex:
    return scaled(b, "mul", z, -1.0, z.shape)


def _abs(b: Builder, z: Complex) -> Ref:
    x = pair(b, z)
    squares = b.emit("power", [x], x.shape, exponent=2.0)
    total = b.emit("sum", [squares], x.shape[1:], axes=[-len(x.shape)], keep=False)
    return replace(b.emit("sqrt", [total], total.shape), axis=z.axis)


def _angle(b: Builder, z: Complex) -> Ref:
    return ELEMENTWISE["atan2"](b, imaginary_part(b, z), real_part(b, z))


def _polar(b: Builder, size: Any, angle: Ref) -> Complex:
    turned = [b.emit(op, [angle], angle.shape) for op in ("cos", "sin")]
    shape = b.result_shape()
    return joined_pair(b, *(b.emit("mul", [v, size], shape) for v in turned))


def _of_parts(b: Builder, re: Any, im: Any) -> Complex:
    if not (isinstance(re, Ref) and isinstance(im, Ref)):
        raise b.fail("one of its parts is a constant")
    return joined_pair(b, re, im)


def _view_as_complex(b: Builder, x: Ref) -> Complex:
    return Complex.of(x, [(-1, (0, 1))], (*range(len(x.shape) - 1), -1))


def _view_as_real(b: Builder, z: Complex) -> Ref:
    x = pair(b, z)
    return replace(moved(b, x, [*range(1 - len(x.shape), 0), -len(x.shape)]), axis=z.axis)


def _partwise(name: str) -> Lowering:
    """A real linear operator, on both parts alike."""
    lowering = {**SHAPES, **REDUCTIONS}[name]

    def lower(b: Builder, z: Complex, *args: Any, **kwargs: Any) -> Complex:
        return joined_pair(b, *(lowering(b, part(b, z), *args, **kwargs) for part in (real_part, imaginary_part)))

    return lower


def _same(b: Builder, z: Any, *args: Any, **kwargs: Any) -> Any:
    return as_complex(z) if depends(z) else z


COMPLEX: dict[str, Lowering] = {
    **FOURIER,
    **COMPLEX_SHAPES,
    "copy": _copied,
    **{name: _partwise(name) for name in ("sum", "mean", "expand", "repeat")},
    "add": _added,
    "sub": lambda b, x, y, alpha=1: _added(b, x, y, alpha, "sub"),
    "mul": multiplied,
    "div": _divided,
    "neg": _negated,
    "abs": _abs,
    "angle": _angle,
    "polar": _polar,
    "complex": _of_parts,
    "real": real_part,
    "imag": imaginary_part,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    **{name: lambda b, z: z.conjugate() for name in ("conj", "_conj", "conj_physical", "_conj_physical")},
    "einsum": complex_einsum,
    "tensordot": complex_tensordot,
    **{name: complex_matmul for name in ("matmul", "mm", "bmm")},
    **{
        name: _same
        for name in ("clone", "contiguous", "detach", "alias", "to", "_to_copy", "resolve_conj", "resolve_neg",
                     "lift_fresh_copy", "view_as", "type_as")
    },
}  # fmt: skip
