"""Derivatives by torch.func in float64: the oracle of every test of derivatives."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jacrev, jvp, vmap

Function = Callable[[Tensor], tuple[Tensor, ...]]


def numbers_of(text: str) -> list[int]:
    return [int(k) for k in text[1:].split("d")]


def reference(f: Function, flat: Tensor, text: str) -> list[Tensor]:
    """A derivative of every output of f(flat sample), by reverse mode and then forward mode."""
    first, *rest = numbers_of(text)
    g = lambda z: tuple(j[..., first] for j in jacrev(f)(z))  # noqa: E731
    for k in rest:
        g = along(g, k)
    return list(vmap(g)(flat))


def along(g: Function, k: int) -> Function:
    unit = lambda z: torch.zeros_like(z).index_fill(0, torch.tensor([k]), 1.0)  # noqa: E731
    return lambda z: jvp(g, (z,), (unit(z),))[1]
