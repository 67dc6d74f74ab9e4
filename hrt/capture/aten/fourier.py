"""Discrete Fourier transforms of fixed length. Every axis waits as a line (`hrt.capture.spectra`)."""

from collections.abc import Sequence
from typing import Any

from hrt.capture.aten.complex_products import as_complex
from hrt.capture.builder import Builder, Lowering, Ref
from hrt.capture.spectra import Complex, Line, real_part, transformed
from hrt.program.generated import NOTHING

FORWARD, INVERSE = -1, 1  # signs of the exponent
NORMS = {  # by how much a transform is divided: length^(norm / 2)
    (None, FORWARD): 0, ("backward", FORWARD): 0, ("ortho", FORWARD): 1, ("forward", FORWARD): 2,
    (None, INVERSE): 2, ("backward", INVERSE): 2, ("ortho", INVERSE): 1, ("forward", INVERSE): 0,
}  # fmt: skip
VARIES = (
    "its length depends on the input; a transform must have a fixed length: export with the grid that it is used on, "
    "and give n (or s) as a number"
)


def fitted(z: Complex, axis: int, size: int) -> Complex:
    """An axis cropped, or with zeros behind it, to a size."""
    have = z.shape[axis]
    return z if have == size else z.taken(axis, [k if k < have else NOTHING for k in range(size)])


def along(b: Builder, z: Complex, axis: int, length: int, sign: int, norm: int, kind: str) -> Complex:
    """kind: "r2c" keeps the frequencies of a real signal, "c2r" reads them, "c2c" has all."""
    half = length // 2 + 1
    z = fitted(z, axis, half if kind == "c2r" else length)
    rows = tuple(range(half if kind == "r2c" else length))
    return transformed(b, z, axis, Line(rows, (), length, sign, norm, kind == "c2r"))


def _axes(b: Builder, z: Complex, sizes: Any, dims: Any) -> list[tuple[int, int | None]]:
    """The sample's axes, and the sizes that were given, in the author's order."""
    if dims is None:
        dims = list(range(z.ndim))[-len(sizes) :] if sizes is not None else list(range(z.ndim))
    dims = [dims] if isinstance(dims, int) else list(dims)
    given = [None] * len(dims) if sizes is None else [None if n == -1 else n for n in sizes]
    return [(z.along(d, b), n) for d, n in zip(dims, given, strict=True)]


def _transform(kind: str, sign: int, default: Sequence[int] | None) -> Lowering:
    """fft, rfft, irfft and so on. default: the dims of the 2-D forms; None for all."""

    def lower(b: Builder, x: Any, sizes: Any = None, dims: Any = default, norm: str | None = None) -> Any:
        z = as_complex(x)
        sizes = [sizes] if isinstance(sizes, int) else sizes
        if sum(not isinstance(n, int) for n in b.current.meta["val"].shape) > 1:
            raise b.fail(VARIES)
        axes, code = _axes(b, z, sizes, dims), NORMS[norm, sign]
        for k, (axis, size) in enumerate(axes):
            last = k == len(axes) - 1 and kind != "c2c"
            length = size if size is not None else 2 * (z.shape[axis] - 1) if last and kind == "c2r" else z.shape[axis]
            z = along(b, z, axis, length, sign, code, kind if last else "c2c")
        return real_part(b, z) if kind == "c2r" else z

    return lower


def _r2c(b: Builder, x: Ref, dims: Sequence[int], norm: int, onesided: bool) -> Complex:
    z = as_complex(x)
    for k, axis in enumerate(z.along(d, b) for d in dims):
        kind = "r2c" if onesided and k == len(dims) - 1 else "c2c"
        z = along(b, z, axis, z.shape[axis], FORWARD, norm, kind)
    return z


def _c2c(b: Builder, z: Complex, dims: Sequence[int], norm: int, forward: bool) -> Complex:
    for axis in [z.along(d, b) for d in dims]:
        z = along(b, z, axis, z.shape[axis], FORWARD if forward else INVERSE, norm, "c2c")
    return z


def _c2r(b: Builder, z: Complex, dims: Sequence[int], norm: int, size: int) -> Ref:
    axes = [z.along(d, b) for d in dims]
    for axis in axes[:-1]:
        z = along(b, z, axis, z.shape[axis], INVERSE, norm, "c2c")
    return real_part(b, along(b, z, axes[-1], size, INVERSE, norm, "c2r"))


def _shift(back: bool) -> Lowering:
    def lower(b: Builder, z: Complex, dims: Any = None) -> Complex:
        for axis, _ in _axes(b, z, None, dims if dims is not None else [d for d in range(z.ndim) if d != z.axis]):
            size = z.shape[axis]
            by = size // 2 if not back else -(size // 2)
            z = z.taken(axis, [(k - by) % size for k in range(size)])
        return z

    return lower


FOURIER: dict[str, Lowering] = {
    "fft_fft": _transform("c2c", FORWARD, (-1,)),
    "fft_ifft": _transform("c2c", INVERSE, (-1,)),
    "fft_rfft": _transform("r2c", FORWARD, (-1,)),
    "fft_irfft": _transform("c2r", INVERSE, (-1,)),
    **{f"fft_fft{s}": _transform("c2c", FORWARD, dims) for s, dims in (("2", (-2, -1)), ("n", None))},
    **{f"fft_ifft{s}": _transform("c2c", INVERSE, dims) for s, dims in (("2", (-2, -1)), ("n", None))},
    **{f"fft_rfft{s}": _transform("r2c", FORWARD, dims) for s, dims in (("2", (-2, -1)), ("n", None))},
    **{f"fft_irfft{s}": _transform("c2r", INVERSE, dims) for s, dims in (("2", (-2, -1)), ("n", None))},
    "_fft_r2c": _r2c,
    "_fft_c2c": _c2c,
    "_fft_c2r": _c2r,
    "fft_fftshift": _shift(False),
    "fft_ifftshift": _shift(True),
}
