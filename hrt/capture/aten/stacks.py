"""Stacks of constant matrices: one linear node a matrix, so that each is planned by what it sees."""

from torch import Tensor

from hrt.capture.builder import Builder, Ref, joined, sliced

MOST_SLICES = 1024  # of one stack: every slice is three nodes, and one more matrix to plan


def is_stack(weights: Tensor) -> bool:
    """Whether the slices of (count, m, n) are worth being planned one by one: vectors have no rank to lower."""
    return weights.shape[0] <= MOST_SLICES and min(weights.shape[1:]) > 1


def stacked(b: Builder, x: Ref, weights: Tensor, biases: Tensor | None = None, axis: int = -2) -> Ref:
    """Every entry k of an axis of the samples times weights[k]^T, plus biases[k].

    x: samples (..., count, ..., n), `count` at `axis`.  weights: (count, m, n).  biases: (count, m).  Gives samples
    (..., count, ..., m). The constants are named after the stack and the place in it.
    """
    parts = []
    for k in range(len(weights)):
        part = sliced(b, x, axis, k, k + 1)
        constants = [b.entry(t, k, role) for t, role in ((weights, "weight"), (biases, "bias")) if t is not None]
        parts.append(b.emit("linear", [part, *constants], (*part.shape[:-1], weights.shape[1])))
    return parts[0] if len(parts) == 1 else joined(b, parts, axis)
