"""Constants that are made from a recipe of a few integers: the matrices of discrete Fourier transforms.

A complex value is kept as real parts S_p with value = sum_p i^power_p S_p. A transform along one axis of it is one real
matrix over (part, position) to (real or imaginary, frequency), and keeps only the frequencies and positions that are
used: it is a product like any other, in every runtime.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import msgspec
import torch
from torch import Tensor

MOST_NUMBERS = 1 << 25  # of all recipes of a program: a quarter of a gigabyte in float64
LONGEST = 1 << 20  # transform; a table of its roots of unity is made
KEPT_MATRICES = 64
NOTHING = -1  # in the place of an index: a row or a column of zeros

Run = tuple[int, int]  # start and count of indices that follow each other; of NOTHING, count alone counts


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A real matrix (outputs * rows, parts * cols), outputs 1 (`real`: the real part alone) or 2.

    length: of the transform. sign: of the exponent, 0 for no transform: M[r, c] = 1 where r = c, else 0. norm: the
    matrix is over length^(norm / 2). half: the columns are the frequencies of a real signal, from 0 to length / 2.
    rows, cols: the indices that are there, in their order. powers: of i, by part.
    """

    length: int
    sign: Literal[-1, 0, 1]
    norm: Literal[0, 1, 2]
    half: bool
    rows: tuple[Run, ...]
    cols: tuple[Run, ...]
    powers: tuple[int, ...]
    real: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs * rows, parts * cols)."""
        rows, cols = (sum(count for _, count in runs) for runs in (self.rows, self.cols))
        return (1 if self.real else 2) * rows, len(self.powers) * cols

    def check(self) -> None:
        """Raise ValueError unless it can be made; nothing is allocated for it."""
        runs = (*self.rows, *self.cols)
        inside = all(count >= 0 and start >= NOTHING for start, count in runs)
        if not inside or any(start + count > self.length for start, count in runs if start != NOTHING):
            raise ValueError(f"a generated constant has indices {runs[:4]} outside its length {self.length}")
        if not 0 < self.length <= LONGEST or not all(0 <= p < 4 for p in self.powers) or not self.powers:
            raise ValueError(f"a generated constant has the length {self.length}, parts {self.powers[:8]}")

    def matrix(self) -> Tensor:
        """The matrix in float64. Equal recipes give the same tensor: it must not be changed."""
        return _made(self)


def check_recipes(recipes: Iterable[Recipe]) -> None:
    """Raise ValueError where recipes are wrong or make more numbers than a program may hold."""
    total = 0
    for recipe in recipes:
        recipe.check()
        total += math.prod(recipe.shape)
    if total > MOST_NUMBERS:
        raise ValueError(f"its generated constants have {total:,} numbers; expected at most {MOST_NUMBERS:,}")


def runs_of(indices: Sequence[int]) -> tuple[Run, ...]:
    """Indices, NOTHING among them, as runs."""
    runs: list[list[int]] = []
    for index in indices:
        start, count = runs[-1] if runs else (0, 0)
        if runs and (index == start == NOTHING or (start != NOTHING and index == start + count)):
            runs[-1][1] += 1
        else:
            runs.append([index, 1])
    return tuple((start, count) for start, count in runs)


def _indices(runs: Sequence[Run]) -> Tensor:
    parts = [torch.full((c,), NOTHING) if s == NOTHING else torch.arange(s, s + c) for s, c in runs]
    return torch.cat([torch.zeros(0, dtype=torch.int64), *parts])


def _roots(length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi j / length, exact at the multiples of a quarter turn."""
    j = torch.arange(length)
    angle = 2 * math.pi * j.to(torch.float64) / length
    cos, sin = angle.cos(), angle.sin()
    for quarter, (c, s) in enumerate(((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))):
        at = 4 * j == quarter * length
        cos[at], sin[at] = c, s
    return cos, sin


@lru_cache(maxsize=KEPT_MATRICES)
def _made(recipe: Recipe) -> Tensor:
    rows, cols, n = _indices(recipe.rows), _indices(recipe.cols), recipe.length
    if recipe.sign:
        cos, sin = _roots(n)
        turn = torch.outer(rows.clamp_min(0), cols.clamp_min(0)) % n
        re, im = cos[turn], recipe.sign * sin[turn]
        weight = torch.full((len(cols),), n ** (-recipe.norm / 2), dtype=torch.float64)
        if recipe.half:  # a frequency stands for its conjugate, too
            weight = weight * torch.where((cols == 0) | (2 * cols == n), 1.0, 2.0)
        re, im = re * weight, im * weight
    else:
        re = (rows[:, None] == cols).to(torch.float64)
        im = torch.zeros_like(re)
    there = ((rows != NOTHING)[:, None] & (cols != NOTHING)).to(torch.float64)
    re, im = re * there, im * there
    turned = [(re, im), (-im, re), (-re, -im), (im, -re)]
    parts = [turned[p] for p in recipe.powers]
    outputs = [torch.cat([part[k] for part in parts], dim=1) for k in ((0,) if recipe.real else (0, 1))]
    return torch.cat(outputs).contiguous()
