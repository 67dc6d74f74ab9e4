"""Complex values at capture: real values with a part or two more, and what is still to be done along each axis.

A complex value is sum_p i^power_p S_p of a real source S. Along every axis a `Line` waits: which of its numbers stand
where, zeros between them, a discrete Fourier transform of what stands there, and which frequencies of it are
used. So slices of a spectrum and zeros around one cost nothing: when the value is needed, each axis takes one product
with a truncated matrix that is generated (`hrt.program.generated`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from hrt.capture.builder import Builder, Ref, moved, picked, reshaped
from hrt.program.generated import NOTHING, Recipe, runs_of

Part = tuple[int, tuple[int, ...]]  # an axis of the source that is summed over: its label, and the powers of i
PAIR = (0, 1)  # real part, imaginary part


@dataclass(frozen=True)
class Line:
    """Along one axis: the source's number j stands at cols[j]; a transform, if sign is not 0; then rows of it."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]
    length: int
    sign: int = 0
    norm: int = 0
    half: bool = False

    @staticmethod
    def plain(size: int) -> "Line":
        """The numbers as they are."""
        return Line(tuple(range(size)), tuple(range(size)), size)

    @property
    def is_plain(self) -> bool:
        return not self.sign and self.rows == self.cols

    @property
    def grows(self) -> bool:
        return len(self.rows) > len(self.cols)

    def recipe(self, powers: Sequence[int], real: bool) -> Recipe:
        """The matrix of all this."""
        rows, cols = runs_of(self.rows), runs_of(self.cols)
        return Recipe(self.length, self.sign, self.norm, self.half, rows, cols, tuple(powers), real)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Complex:
    """A complex value that depends on the input. source: real, None for zeros. labels: of its sample's axes, the number
    of the axis here, or of a part. lines: of every axis. axis: the author's dimension that is the batch.
    """

    source: Ref | None
    labels: tuple[int, ...]
    parts: tuple[Part, ...]
    lines: tuple[Line, ...]
    axis: int = 0

    @staticmethod
    def zeros(shape: Sequence[int], axis: int = 0) -> "Complex":
        return Complex(None, (), (), tuple(Line.plain(n) for n in shape), axis)

    @staticmethod
    def of(value: Ref, parts: Sequence[Part] = (), labels: Sequence[int] | None = None) -> "Complex":
        """A real value, some of whose axes are parts."""
        labels = tuple(range(len(value.shape))) if labels is None else tuple(labels)
        sizes = dict(zip(labels, value.shape, strict=True))
        lines = tuple(Line.plain(sizes[k]) for k in sorted(labels) if k >= 0)
        return Complex(replace(value, axis=0), labels, tuple(parts), lines, value.axis)

    @property
    def there(self) -> Ref:
        """The source of what is not known to be zero."""
        if self.source is None:
            raise TypeError("zeros have no source")
        return self.source

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(len(line.rows) for line in self.lines)

    @property
    def ndim(self) -> int:
        """The author's dimensions, the batch included."""
        return 1 + len(self.lines)

    @property
    def powers(self) -> tuple[int, ...]:
        """Of i, over all parts in their order."""
        return tuple(sum(p) % 4 for p in product(*(powers for _, powers in self.parts)))

    def along(self, dim: int, b: Builder) -> int:
        """The sample's axis that is the author's dimension `dim`. Raises CaptureError where that is the batch."""
        dim %= self.ndim
        if dim == self.axis:
            raise b.fail("it works along the batch, so that samples would depend on each other")
        return dim - (dim > self.axis)

    def with_line(self, axis: int, line: Line) -> "Complex":
        return replace(self, lines=(*self.lines[:axis], line, *self.lines[axis + 1 :]))

    def taken(self, axis: int, places: Sequence[int]) -> "Complex":
        """The entries `places` of an axis, zeros where a place is NOTHING."""
        rows = self.lines[axis].rows
        rows = tuple(NOTHING if p == NOTHING else rows[p] for p in places)
        if self.source is None or all(r == NOTHING for r in rows):
            return Complex.zeros([len(rows) if k == axis else n for k, n in enumerate(self.shape)], self.axis)
        return self.with_line(axis, replace(self.lines[axis], rows=rows))

    def conjugate(self) -> "Complex":
        parts = tuple((label, tuple(-p % 4 for p in powers)) for label, powers in self.parts)
        return replace(self, parts=parts, lines=tuple(replace(x, sign=-x.sign) for x in self.lines))


def transformed(b: Builder, z: Complex, axis: int, line: Line) -> Complex:
    """A transform along an axis that has one number for every position or frequency that `line` reads."""
    if z.source is None:
        return Complex.zeros([len(line.rows) if k == axis else n for k, n in enumerate(z.shape)], z.axis)
    rows = [r for r in z.lines[axis].rows if r != NOTHING]
    if z.lines[axis].sign or len({*rows}) < len(rows):
        z = settled(b, z, [axis])
        rows = list(z.lines[axis].rows)
    places = {row: t for t, row in enumerate(z.lines[axis].rows) if row != NOTHING}
    used = sorted(places)
    if len(used) < len(z.lines[axis].cols):
        z = replace(z, source=picked(b, z.there, z.labels.index(axis) - len(z.labels), used))
    return z.with_line(axis, replace(line, cols=tuple(places[j] for j in used)))


def settled(b: Builder, z: Complex, axes: Sequence[int] | None = None, real: bool = False) -> Complex:
    """The value with nothing left to do along `axes` (all by default). real: only its real part, without parts.

    What shrinks comes first, from the last axis on, so that products are small, and slices of one spectrum share them.
    """
    waiting = [k for k in (range(len(z.lines)) if axes is None else axes) if not z.lines[k].is_plain]
    waiting = [k for k in reversed(waiting) if not z.lines[k].grows] + [k for k in waiting if z.lines[k].grows]
    for axis in waiting if z.source is not None else ():
        line = z.lines[axis]
        if line.sign or NOTHING in line.rows:
            z = _multiplied(b, z, axis, real and axis == waiting[-1])
        else:
            source = picked(b, z.there, z.labels.index(axis) - len(z.labels), line.rows)
            z = replace(z, source=source).with_line(axis, Line.plain(len(line.rows)))
    return collected(b, z, real=True) if real else z


def real_part(b: Builder, z: Complex) -> Ref:
    """Of one sample in the order of its axes."""
    if z.source is None:
        return _zeros(b, z.shape)
    z = settled(b, z, real=True)
    return replace(ordered(b, z, range(len(z.lines))), axis=z.axis)


def imaginary_part(b: Builder, z: Complex) -> Ref:
    """The real part of -i z."""
    if z.source is None or not z.powers:
        return _zeros(b, z.shape)
    if not z.parts:
        z = replace(z, source=reshaped(b, z.there, (1, *z.there.shape)), labels=(-1, *z.labels), parts=((-1, (0,)),))
    (label, powers), *rest = z.parts
    return real_part(b, replace(z, parts=((label, tuple((p + 3) % 4 for p in powers)), *rest)))


def pair(b: Builder, z: Complex) -> Ref:
    """Both parts of one sample as a real value (2, *shape)."""
    if z.source is None:
        return _zeros(b, (2, *z.shape))
    z = collected(b, settled(b, z))
    return ordered(b, z, (z.parts[0][0], *range(len(z.lines))))


def of_pair(b: Builder, value: Ref, axis: int = 0) -> Complex:
    """The inverse of `pair`."""
    return Complex.of(replace(value, axis=axis), [(-1, PAIR)], (-1, *range(len(value.shape) - 1)))


def joined_pair(b: Builder, re: Ref, im: Ref) -> Complex:
    """A complex value of its two parts, of one shape."""
    sides = [reshaped(b, replace(x, axis=0), (1, *x.shape)) for x in (re, im)]
    return of_pair(b, b.emit("concat", sides, (2, *re.shape), axis=-1 - len(re.shape)), re.axis)


def concatenated(b: Builder, values: Sequence[Complex], axis: int) -> Complex:
    """Values side by side along an axis; zeros among them stay unwritten."""
    rows: list[int] = []
    there = [z for z in values if z.source is not None]
    if not there:
        size = sum(z.shape[axis] for z in values)
        return Complex.zeros([size if k == axis else n for k, n in enumerate(values[0].shape)], values[0].axis)
    there = _alike(b, [settled(b, z, [axis]) if z.lines[axis].sign else z for z in there], axis)
    given, start = iter(there), 0
    for z in values:
        if z.source is None:
            rows += [NOTHING] * z.shape[axis]
            continue
        line = next(given).lines[axis]
        rows += [r if r == NOTHING else start + r for r in line.rows]
        start += len(line.cols)
    first = there[0]
    place, source = first.labels.index(axis), first.there
    if len(there) > 1:
        shape = [start if k == place else n for k, n in enumerate(source.shape)]
        source = b.emit("concat", [z.there for z in there], shape, axis=place - len(shape))
    line = Line(tuple(rows), tuple(range(start)), start)
    return replace(first, source=source).with_line(axis, line)


def _alike(b: Builder, values: Sequence[Complex], axis: int) -> list[Complex]:
    """The values with sources of one layout, and the same still to do along all other axes."""
    first = values[0]

    def others(z: Complex) -> tuple:
        return z.parts, tuple(line for k, line in enumerate(z.lines) if k != axis)

    if any(others(z) != others(first) for z in values):
        rest = [k for k in range(len(first.lines)) if k != axis]
        values = [collected(b, settled(b, z, rest)) for z in values]
        first = values[0]
    return [replace(z, source=ordered(b, z, first.labels), labels=first.labels) for z in values]


def _multiplied(b: Builder, z: Complex, axis: int, real: bool) -> Complex:
    """The product along an axis, over all parts, which become two, or one for the real part."""
    source, recipe = z.there, z.lines[axis].recipe(z.powers, real)
    others = [k for k in z.labels if k >= 0 and k != axis]
    labels = (*others, *(label for label, _ in z.parts), axis)
    key = (source.name, z.labels, labels, recipe)
    if key not in b.shared:
        flat = ordered(b, z, labels)
        lead = flat.shape[: len(others)]
        y = _product(b, reshaped(b, flat, (*lead, recipe.shape[1])), recipe)
        outs = () if real else (2,)
        b.shared[key] = reshaped(b, y, (*lead, *outs, len(z.lines[axis].rows)))
    new = (*others, *(() if real else (-1,)), axis)
    parts: tuple[Part, ...] = () if real else ((-1, PAIR),)
    return replace(z, source=b.shared[key], labels=new, parts=parts).with_line(
        axis, Line.plain(len(z.lines[axis].rows))
    )


def collected(b: Builder, z: Complex, real: bool = False) -> Complex:
    """The same with one part of two, real and imaginary, or with the real part alone."""
    if z.source is None or (len(z.parts) == 1 and z.powers == PAIR and not real) or (real and not z.parts):
        return z
    others = [k for k in z.labels if k >= 0]
    if real and len(z.parts) == 1 and [p for p in z.powers if p != 3 and p != 1] == [0]:
        place = z.labels.index(z.parts[0][0])
        one = picked(b, z.there, place - len(z.labels), [z.powers.index(0)])
        one = reshaped(b, one, (*one.shape[:place], *one.shape[place + 1 :]))
        return replace(z, source=one, labels=tuple(others), parts=())
    recipe = Line.plain(1).recipe(z.powers, real)
    flat = ordered(b, z, (*others, *(label for label, _ in z.parts)))
    lead = flat.shape[: len(others)]
    y = _product(b, reshaped(b, flat, (*lead, len(z.powers))), recipe)
    if real:
        return replace(z, source=reshaped(b, y, lead), labels=tuple(others), parts=())
    return replace(z, source=y, labels=(*others, -1), parts=((-1, PAIR),))


def ordered(b: Builder, z: Complex, labels: Sequence[int]) -> Ref:
    """The source with its axes in this order."""
    return moved(b, z.there, [z.labels.index(k) - len(z.labels) for k in labels])


def _product(b: Builder, x: Ref, recipe: Recipe) -> Ref:
    name = b.generate(recipe)
    return b.emit("linear", [x, Ref(name, recipe.shape)], (*x.shape[:-1], recipe.shape[0]))


def _zeros(b: Builder, shape: Sequence[int]) -> Ref:
    return b.emit("repeat", [torch.zeros((), dtype=torch.float64), b.batch_ref()], shape, shape=list(shape))
