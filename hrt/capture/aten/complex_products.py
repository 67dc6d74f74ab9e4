"""Products of complex values: place by place, and with constants by equation, which are linear nodes and stacks."""

import math
import string
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.products import dot_equation, explicit, is_stack, stacked
from hrt.capture.builder import Builder, Ref, picked, reshaped
from hrt.capture.spectra import PAIR, Complex, collected, of_pair, ordered, pair, real_part, settled


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


def complex_einsum(b: Builder, equation: str, operands: Sequence[Any], path: Any = None) -> Any:
    """Constants are multiplied into the value one after the other; those that cannot be meet each other before."""
    terms, out, operands = explicit(b, equation, operands)
    values = [(t, as_complex(x)) for t, x in zip(terms, operands, strict=True) if isinstance(x, (Ref, Complex))]
    constants = [(t, x) for t, x in zip(terms, operands, strict=True) if not isinstance(x, (Ref, Complex))]
    if len(values) != 1:
        raise b.fail("two complex values that depend on the input are multiplied; only constants are supported")
    (labels, z), batch = values[0], values[0][0][values[0][1].axis]
    if batch not in out or any(batch in t for t, _ in constants):
        raise b.fail(f"the equation {equation!r} does not keep the batch")
    labels, place = labels.replace(batch, ""), out.index(batch)
    while constants:
        k, needed = _next(labels, constants, out.replace(batch, ""))
        if k is None:
            constants = _merged(constants, labels + out)
            continue
        t, weight = constants.pop(k)
        wanted = needed if constants else out.replace(batch, "")
        y = contracted(b, z, labels, weight, t, wanted) or _place_by_place(b, z, labels, weight, t, wanted)
        if y is None:
            raise b.fail(f"the equation {equation!r} is no product of a value and constant matrices")
        z, labels = y, wanted
    return replace(z, axis=place) if b.current.meta["val"].is_complex() else real_part(b, replace(z, axis=place))


def _place_by_place(b: Builder, z: Complex, labels: str, weight: Tensor, term: str, out: str) -> Complex | None:
    """A product without a sum; None where it is none."""
    if sorted(labels) != sorted(out) or not {*term} <= {*labels} or len({*term}) < len(term):
        return None
    shape = [weight.shape[term.index(c)] if c in term else 1 for c in labels]
    aligned = weight.permute(sorted(range(len(term)), key=lambda k: labels.index(term[k]))).reshape(1, *shape)
    y = multiplied(b, z, b.named(aligned, "weight", weight), z.shape)
    order = [labels.index(c) for c in out]
    new = tuple(order.index(k) if k >= 0 else k for k in y.labels)
    return replace(y, labels=new, lines=tuple(y.lines[k] for k in order))


def _next(labels: str, constants: Sequence[tuple[str, Tensor]], out: str) -> tuple[int | None, str]:
    """The constant that can be multiplied into the value now, and the labels of what it gives."""
    for k, (t, _) in enumerate(constants):
        others = out + "".join(u for j, (u, _) in enumerate(constants) if j != k)
        result = [c for c in dict.fromkeys(labels + t) if c in others]
        lost = [c for c in labels + t if c not in result]
        stays = [c for c in t if c in labels and c in result]
        elsewhere = any(c in stays and any(c in u for j, (u, _) in enumerate(constants) if j != k) for c in t)
        if lost and all(c in t and c in labels for c in lost) and not elsewhere and (len(constants) == 1 or not stays):
            return k, "".join(result)
    return (0, out) if len(constants) == 1 else (None, "")


def _merged(constants: list[tuple[str, Tensor]], outside: str) -> list[tuple[str, Tensor]]:
    """The constants with the two of the smallest product multiplied together."""
    sizes = {c: n for t, x in constants for c, n in zip(t, x.shape, strict=True)}
    best: tuple[int, int, int, str] | None = None
    for i in range(len(constants)):
        for j in range(i):
            (t, _), (u, _) = constants[i], constants[j]
            rest = outside + "".join(v for k, (v, _) in enumerate(constants) if k not in (i, j))
            result = "".join(c for c in dict.fromkeys(t + u) if c in rest)
            cost = math.prod(sizes[c] for c in result)
            if (set(t) & set(u) or len(constants) == 2) and (best is None or cost < best[0]):
                best = cost, i, j, result
    if best is None:
        return [_outer(constants[0], constants[1]), *constants[2:]]
    _, i, j, result = best
    (t, x), (u, y) = constants[i], constants[j]
    kind = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    joint = torch.einsum(f"{t},{u}->{result}", x.to(kind), y.to(kind))
    return [*(c for k, c in enumerate(constants) if k not in (i, j)), (result, joint)]


def _outer(first: tuple[str, Tensor], second: tuple[str, Tensor]) -> tuple[str, Tensor]:
    (t, x), (u, y) = first, second
    kind = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
    return t + u, torch.einsum(f"{t},{u}->{t + u}", x.to(kind), y.to(kind))


def complex_tensordot(b: Builder, x: Any, y: Any, dims: Sequence[int], others: Sequence[int]) -> Any:
    """Said as an equation."""
    return complex_einsum(b, dot_equation(x.ndim, y.ndim, dims, others), [x, y])


def complex_matmul(b: Builder, x: Any, y: Any) -> Any:
    """Said as an equation."""
    letters = string.ascii_lowercase
    sizes = [v.ndim for v in (x, y)]
    if min(sizes) < 2:
        raise b.fail("a complex vector is multiplied; give it a second axis")
    rank = max(sizes)
    lead = letters[: rank - 2]
    terms = [lead[rank - n :] + tail for n, tail in zip(sizes, ("xy", "yz"), strict=True)]
    return complex_einsum(b, f"{terms[0]},{terms[1]}->{lead}xz", [x, y])


def contracted(b: Builder, z: Complex, labels: str, weight: Tensor, weight_labels: str, out: str) -> Complex | None:
    """A sum over axes of a value and a constant, labels without the batch: linear where no axis is in all three, else
    a stack of matrices. A complex weight A + iB is one real matrix [A; B]. None where it is neither.
    """
    stack = [c for c in weight_labels if c in labels and c in out]
    summed = [c for c in weight_labels if c in labels and c not in out]
    new = [c for c in weight_labels if c not in labels]
    lasting = [c for c in labels if c not in weight_labels]
    complete = sorted([*lasting, *stack, *new]) == sorted(out)
    if not summed or not complete or any(len({*x}) < len(x) for x in (labels, weight_labels)):
        return None
    z = settled(b, z)
    if len(z.parts) > 1:
        z = collected(b, z)
    axes = [[labels.index(c) for c in group] for group in (lasting, stack, summed)]
    parts = [label for label, _ in z.parts]
    x = ordered(b, z, [*axes[0], *parts, *axes[1], *axes[2]])
    lead, sizes = x.shape[: len(lasting) + len(parts)], dict(zip(weight_labels, weight.shape, strict=True))
    count, width, height = (math.prod(sizes[c] for c in group) for group in (stack, summed, new))
    matrices = weight.permute([weight_labels.index(c) for c in [*stack, *new, *summed]]).reshape(count, height, width)
    if weight.is_complex():
        matrices = torch.cat([matrices.real, matrices.imag], dim=1)
        height *= 2
    matrices = b.named(matrices if stack else matrices[0], "weight", weight)
    if not stack:
        y = b.emit("linear", [reshaped(b, x, (*lead, width)), matrices], (*lead, height))
    elif is_stack(matrices):
        y = stacked(b, reshaped(b, x, (*lead, count, width)), matrices)
    else:
        free = string.ascii_uppercase[: len(lead)]
        rows, shape = reshaped(b, x, (*lead, count, width)), (*lead, count, height)
        y = b.emit("einsum", [rows, matrices], shape, equation=f"b{free}tn,tmn->b{free}tm")
    fresh = [(-1 - len(parts), PAIR)] if weight.is_complex() else []
    y = reshaped(b, y, (*lead, *(sizes[c] for c in stack), *((2,) if fresh else ()), *(sizes[c] for c in new)))
    places = {c: k for k, c in enumerate(out)}
    order = [*(places[c] for c in lasting), *parts, *(places[c] for c in stack), *(label for label, _ in fresh)]
    return Complex.of(replace(y, axis=z.axis), [*z.parts, *fresh], [*order, *(places[c] for c in new)])
