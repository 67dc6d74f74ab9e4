"""Values made larger or smaller at their ends: zeros, other numbers, reflections, copies of the edge, circles."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, joined, resized, runs, sliced

Pads = Sequence[tuple[int, int]]  # per axis of one sample, the first first: how many before and behind


def flat_padding(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Paddings of the last axes, first all before and then all behind, as pairs."""
    half = len(numbers) // 2
    return list(zip(numbers[:half], numbers[half:], strict=True))


def joined_ranges(b: Builder, x: Ref, axis: int, ranges: Sequence[tuple[int, int]]) -> Ref:
    """The ranges (start, stop) of an axis next to each other; equal ones are taken once."""
    pieces = {pair: sliced(b, x, axis, *pair) for pair in dict.fromkeys(ranges)}
    return pieces[ranges[0]] if len(ranges) == 1 else joined(b, [pieces[pair] for pair in ranges], axis)


def padded(b: Builder, x: Ref, pads: Pads, value: float = 0.0) -> Ref:
    """`value` at the ends of the last axes, as many of them as pads; fewer numbers where a padding is negative."""
    source = x
    for axis, (before, behind) in enumerate(pads, -len(pads)):
        size = x.shape[axis]
        start, stop = max(0, -before), size - max(0, -behind)
        if stop <= start:
            raise b.fail(f"it leaves nothing of an axis of {size}")
        x = sliced(b, x, axis, start, stop)
        ends = [_filled(b, x, axis, n, value) if n > 0 else None for n in (before, behind)]
        parts = [p for p in (ends[0], x, ends[1]) if p is not None]
        x = joined(b, parts, axis) if len(parts) > 1 else x
    if value == 0 and x is not source and min(n for pair in pads for n in pair) >= 0:
        b.zero_padded[x.name] = source, tuple(pads)
    return x


def zero_padded(b: Builder, x: Ref, padding: Sequence[int]) -> tuple[Ref, list[int]]:
    """What zeros were put around, and all zeros around it, those of `padding` (all before, all behind) included."""
    axes = len(padding) // 2
    source, pads = b.zero_padded.get(x.name, (x, ()))
    if len(pads) > axes and any(n for pair in pads[: len(pads) - axes] for n in pair):
        source, pads = x, ()
    inner = [(0, 0)] * (axes - len(pads)) + list(pads[max(0, len(pads) - axes) :])
    pairs = [(a + c, d + e) for (a, d), (c, e) in zip(inner, flat_padding(padding), strict=True)]
    return source, [*(a for a, _ in pairs), *(e for _, e in pairs)]


def _filled(b: Builder, x: Ref, axis: int, count: int, value: float) -> Ref:
    shape = resized(x, axis, count)
    filled = b.emit("repeat", [torch.full((), value, dtype=torch.float64), b.batch_ref()], shape, shape=list(shape))
    return replace(x, name=filled.name, shape=filled.shape)


def _reflected(size: int, before: int, behind: int) -> list[int]:
    return [*range(before, 0, -1), *range(size), *range(size - 2, size - 2 - behind, -1)]


def _repeated(size: int, before: int, behind: int) -> list[int]:
    return [*[0] * before, *range(size), *[size - 1] * behind]


def _circular(size: int, before: int, behind: int) -> list[int]:
    return [*range(size - before, size), *range(size), *range(behind)]


MODES = {"reflect": _reflected, "replicate": _repeated, "circular": _circular}


def extended(b: Builder, x: Ref, pads: Pads, mode: str) -> Ref:
    """The last axes continued by numbers of their own."""
    for axis, (before, behind) in enumerate(pads, -len(pads)):
        size = x.shape[axis]
        inside = range(max(0, -before), size - max(0, -behind))
        of = inside if mode == "circular" else range(size)  # torch wraps what negative pads leave, reflects what was
        line = MODES[mode](len(of), max(0, before), max(0, behind))
        if any(not 0 <= k < len(of) for k in line):
            raise b.fail(f"it continues an axis of {size} by {max(before, behind)}")
        if of is not inside:
            line = line[max(0, -before) : len(line) - max(0, -behind)]
        x = joined_ranges(b, x, axis, runs([of[k] for k in line]))
    return x


def _pad(b: Builder, x: Any, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Ref:
    axes = len(pad) // 2
    if not isinstance(x, Ref) or axes > x.ndim - 1 - x.axis:
        raise b.fail(ALONG_THE_BATCH)
    pads = [(pad[2 * k], pad[2 * k + 1]) for k in reversed(range(axes))]
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if mode == "constant":
        return padded(b, x, pads, float(value or 0.0))
    if mode not in MODES:
        raise b.fail(f"its mode is {mode!r}; expected constant or one of {', '.join(MODES)}")
    return extended(b, x, pads, mode)


def _in_mode(mode: str) -> Lowering:
    return lambda b, x, pad: _pad(b, x, pad, mode)


PADDING: dict[str, Lowering] = {
    "pad": _pad,
    "constant_pad_nd": lambda b, x, pad, value=0.0: _pad(b, x, pad, "constant", value),
    **{f"reflection_pad{axes}d": _in_mode("reflect") for axes in (1, 2, 3)},
    **{f"replication_pad{axes}d": _in_mode("replicate") for axes in (1, 2, 3)},
    "_pad_circular": _in_mode("circular"),
}
