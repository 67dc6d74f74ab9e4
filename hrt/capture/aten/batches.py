"""Batches side by side in one dimension: joined, taken apart, repeated. What tells them apart is an axis of the samples
that stands before the batch, or behind it, and is merged with it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hrt.capture.builder import ALONG_THE_BATCH, Builder, Ref, joined, reshaped, sliced

ENDLESS = 2**40  # torch's "to the end" is beyond


def in_batches(b: Builder, arguments: Sequence[Any], place: int) -> int | None:
    """An argument of the current call that counts rows, in batches; None for one that is missing, or the end."""
    argument = arguments[place] if len(arguments) > place else None
    value = argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument
    if value is None or (isinstance(value, int) and (value == 0 or value > ENDLESS)):
        return 0 if value == 0 else None
    count, symbol = (0, None) if isinstance(value, int) else value.node.expr.as_coeff_Mul()
    if str(symbol) != b.batch:
        raise b.fail("it slices the batch")
    return int(count)


def _opened(b: Builder, x: Ref) -> Ref:
    """`x` with an axis for what stands before the batch in its dimension, also where that is one batch alone."""
    return reshaped(b, x, (*x.shape[: x.axis], x.fold[0], *x.shape[x.axis + x.before :]))


def _closed(b: Builder, x: Ref, like: Ref) -> Ref:
    """The inverse."""
    before = int(x.shape[like.axis] > 1)
    y = x if before else reshaped(b, x, (*x.shape[: like.axis], *x.shape[like.axis + 1 :]))
    return replace(y, axis=like.axis, before=before, after=like.after)


def join_batches(b: Builder, parts: Sequence[Ref]) -> Ref:
    """One batch after the other."""
    first = parts[0]
    if len({(p.ndim - p.axis, p.fold[1]) for p in parts}) > 1:
        raise b.fail(ALONG_THE_BATCH)
    opened = [_opened(b, p) for p in parts]
    return _closed(b, joined(b, opened, first.axis - len(opened[0].shape)), first)


def slice_batches(b: Builder, x: Ref, start: int | None, stop: int | None, step: int = 1) -> Ref:
    """Some of the batches that stand one after the other."""
    count = x.fold[0] * x.fold[1]
    start, stop = start or 0, count if stop is None else stop
    if (start, stop, step) == (0, count, 1):
        return x
    if step != 1 or start % x.fold[1] or stop % x.fold[1]:
        raise b.fail("it slices the batch")
    opened = _opened(b, x)
    part = sliced(b, opened, x.axis - len(opened.shape), start // x.fold[1], stop // x.fold[1])
    return _closed(b, part, x)


def copy_batches(b: Builder, x: Ref, count: int, *, inner: bool) -> Ref:
    """Every row `count` times, one after the other; or, where not inner, the whole batch so often."""
    at = x.axis + (x.before + x.after if inner else 0)
    thin = reshaped(b, x, (*x.shape[:at], 1, *x.shape[at:]))
    wide = (*x.shape[:at], count, *x.shape[at:])
    y = b.emit("expand", [thin], wide, shape=list(wide))
    before, after = x.fold[0] * (1 if inner else count), x.fold[1] * (count if inner else 1)
    merged = (n for n in (before, after) if n > 1)
    y = reshaped(b, y, (*x.shape[: x.axis], *merged, *x.shape[x.axis + x.before + x.after :]))
    return replace(y, axis=x.axis, before=int(before > 1), after=int(after > 1))
