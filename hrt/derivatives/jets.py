"""Jets: a value with some of its derivatives by the input, and how every op of the table carries them.

A part holds all derivatives of one order r that are not zero, each divided by r!, as one symbol (count, *shape) with a
leading axis of its own: one product or one activation then serves all of them. Elementwise ops follow Faa di Bruno's
formula, products Leibniz' rule; with D_S for the derivative by the coordinates S over |S|!, both become sums over
partitions of S with few factors left:

    (f(z))_S = sum over partitions S = S_1 + ... + S_m of  f^(m)/m!  m! |S_1|! ... |S_m|! / |S|!  z_(S_1) ... z_(S_m)
    (a b)_S  = sum over subsets T of S of                  |T|! |S - T|! / |S|!                    a_T b_(S - T)

Coordinates of S may repeat; equal terms are collected. (Griewank and Walther, Evaluating Derivatives, 2008, ch. 13.)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from math import factorial, prod
from operator import mul

import torch

from hrt.derivatives.symbols import Symbol, Writer
from hrt.kernels.derivative_streams import Index, partitions
from hrt.program.taylor_table import Series, Term

Addend = tuple[tuple[Index, ...], float]  # indices of the factors, and the number in front of their product


@dataclass(frozen=True, eq=False)
class Part:
    """Derivatives of one order: `symbol` is (len(indices), *shape)."""

    indices: tuple[Index, ...]
    symbol: Symbol

    @staticmethod
    def make(indices: Sequence[Index], symbol: Symbol) -> "Part | None":
        """Without what is known to be zero; None where nothing is left."""
        numbers = symbol.constant
        if numbers is not None:
            nonzero = [k for k in range(len(indices)) if bool((numbers[:, k] != 0).any())]
            if not nonzero:
                return None
            indices, symbol = [indices[k] for k in nonzero], symbol.writer.picked(symbol, nonzero)
        return Part(tuple(indices), symbol)


@dataclass(frozen=True, eq=False)
class Jet:
    """A value and the parts of its derivatives, by order; an order that is missing is zero."""

    value: Symbol
    parts: Mapping[int, Part]

    def has(self, index: Index) -> bool:
        """Whether this derivative is not known to be zero."""
        return not index or (len(index) in self.parts and index in self.parts[len(index)].indices)

    def take(self, indices: Sequence[Index]) -> Symbol:
        """Derivatives of one order (len(indices), *shape); for order 0 the value as (1, *shape)."""
        if not indices[0]:
            return self.value.reshaped(1, *self.value.shape)
        part = self.parts[len(indices[0])]
        return self.value.writer.picked(part.symbol, [part.indices.index(i) for i in indices])

    def mapped(self, value: Symbol, function: Callable[[Symbol], Symbol]) -> "Jet":
        """What a linear function makes of it: `function` takes parts (count, *shape)."""
        parts = {r: Part.make(p.indices, function(p.symbol)) for r, p in self.parts.items()}
        return Jet(value, {r: p for r, p in parts.items() if p is not None})


def assignments(index: Index, factors: int) -> Counter[tuple[Index, ...]]:
    """Every way to give the coordinates to so many factors, and how often it occurs."""
    counts = Counter[tuple[Index, ...]]()
    for places in product(range(factors), repeat=len(index)):
        counts[tuple(tuple(c for c, p in zip(index, places, strict=True) if p == k) for k in range(factors))] += 1
    return counts


def derived(
    needed: Sequence[Index],
    terms: Callable[[Index], list[Addend]],
    build: Callable[[list[list[Addend]]], Symbol | None],
) -> dict[int, Part]:
    """Parts from the terms of every index. Those that look alike are built together, in a symbol (count, *shape)."""
    alike: dict[tuple, list[tuple[Index, list[Addend]]]] = {}
    for index in needed:
        addends = sorted(terms(index), key=lambda t: ([len(f) for f in t[0]], t))
        if addends:
            look = (len(index), *((tuple(map(len, f)), c) for f, c in addends))
            alike.setdefault(look, []).append((index, addends))
    pieces: dict[int, list[Part]] = {}
    for (order, *_), members in alike.items():
        symbol = build([addends for _, addends in members])
        part = None if symbol is None else Part.make([index for index, _ in members], symbol)
        if part is not None:
            pieces.setdefault(order, []).append(part)
    return {order: joined(parts) for order, parts in pieces.items()}


def joined(parts: Sequence[Part]) -> Part:
    """Parts of one order as one."""
    symbol = parts[0].symbol.writer.concat([p.symbol for p in parts], -len(parts[0].symbol.shape))
    return Part(tuple(i for p in parts for i in p.indices), symbol)


def columns(members: Sequence[Sequence[Addend]]) -> Iterator[tuple[list[tuple[Index, ...]], float]]:
    """The k-th term of all members: its factors in each of them, and its number, for every k."""
    for k in range(len(members[0])):
        yield [m[k][0] for m in members], members[0][k][1]


def elementwise(z: Jet, value: Symbol, series: Series, needed: Sequence[Index], steep: bool = True) -> Jet:
    """f(z) with the Taylor coefficients of f at z.

    steep: derivatives of z may overflow float32 when squared; a coefficient then multiplies one of them first, so that
    what it makes zero is no infinity times zero. It costs a copy of a part.
    """
    outer: list[Term] = [series.first, *series.higher]
    if series.scale is not None:
        z = z.mapped(z.value, lambda p: p * _stacked(series.scale))

    def terms(index: Index) -> list[Addend]:
        addends: list[Addend] = []
        for blocks, count in partitions(index).items():
            if outer[len(blocks) - 1] is not None and all(map(z.has, blocks)):
                number = count * factorial(len(blocks)) * prod(factorial(len(b)) for b in blocks)
                addends.append((blocks, number / factorial(len(index))))
        return addends

    first = _stacked(series.first)
    sloped = z.mapped(z.value, lambda p: first * p) if steep and series.ratio else z  # shared by all with the factor f'

    def build(members: list[list[Addend]]) -> Symbol | None:
        sums: dict[int, Symbol] = {}
        for blocks, number in columns(members):
            chain = [z.take(list(b)) for b in zip(*blocks, strict=True)]
            term, m = reduce(mul, chain) * number, len(chain)
            sums[m] = sums[m] + term if m in sums else term
        if not series.ratio:
            return _total([_stacked(outer[m - 1]) * s for m, s in sums.items()])
        return first * _total([s if m == 1 else _stacked(outer[m - 1]) * s for m, s in sums.items()])

    def careful(members: list[list[Addend]]) -> Symbol | None:
        chains = []
        for blocks, number in columns(members):
            *chain, last = (list(b) for b in zip(*blocks, strict=True))
            factors = [sloped.take(last), *(z.take(b) for b in chain)]
            coefficient = [_stacked(outer[len(chain)])] if chain or not series.ratio else []
            chains.append(reduce(mul, [*coefficient, *factors]) * number)
        return _total(chains)

    return Jet(value, derived(needed, terms, careful if steep else build)) if z.parts else Jet(value, {})


def multilinear(
    factors: Sequence[Jet], value: Symbol, multiply: Callable[[list[Symbol]], Symbol], needed: Sequence[Index]
) -> Jet:
    """What is linear in each factor. multiply: symbols (count or 1, *shape of the factor) to (count, *shape)."""

    def terms(index: Index) -> list[Addend]:
        addends: list[Addend] = []
        for subsets, count in assignments(index, len(factors)).items():
            if all(f.has(s) for f, s in zip(factors, subsets, strict=True)):
                addends.append((subsets, count * prod(factorial(len(s)) for s in subsets) / factorial(len(index))))
        return addends

    def build(members: list[list[Addend]]) -> Symbol:
        products = []
        for subsets, number in columns(members):
            chosen = [f.take(list(s)) for f, s in zip(factors, zip(*subsets, strict=True), strict=True)]
            products.append(multiply(chosen) * number)
        return _total(products)

    return Jet(value, derived(needed, terms, build))


def summed(x: Jet, y: Jet, value: Symbol, sign: float = 1.0) -> Jet:
    """x + sign y, broadcast to the shape of the value."""
    parts: dict[int, Part] = {}
    rank = len(value.shape)
    for order in sorted({*x.parts, *y.parts}):
        indices = [list(j.parts[order].indices) if order in j.parts else [] for j in (x, y)]
        both = [i for i in indices[0] if i in indices[1]]
        groups = [
            (both, lambda i: aligned(x.take(i), rank) + aligned(y.take(i), rank) * sign),
            ([i for i in indices[0] if i not in both], lambda i: _spread(x.take(i), value.shape)),
            ([i for i in indices[1] if i not in both], lambda i: _spread(y.take(i), value.shape) * sign),
        ]
        made = [Part.make(group, make(group)) for group, make in groups if group]
        if any(made):
            parts[order] = joined([p for p in made if p is not None])
    return Jet(value, parts)


def joint(jets: Sequence[Jet], value: Symbol, axis: int) -> Jet:
    """Values next to each other along a negative axis."""
    writer, parts = value.writer, {}
    for order in sorted({r for j in jets for r in j.parts}):
        indices = list(dict.fromkeys(i for j in jets if order in j.parts for i in j.parts[order].indices))
        part = Part.make(indices, writer.concat([_filled(writer, j, indices) for j in jets], axis))
        if part is not None:
            parts[order] = part
    return Jet(value, parts)


def _filled(writer: Writer, jet: Jet, indices: Sequence[Index]) -> Symbol:
    """Derivatives (len(indices), *shape), zeros where there are none."""
    shape, pieces = jet.value.shape, []
    for k, index in enumerate(indices):
        if k and jet.has(index) == jet.has(indices[k - 1]):
            pieces[-1].append(index)
        else:
            pieces.append([index])
    zeros = [torch.zeros(1, len(p), *shape, dtype=torch.float64) for p in pieces]
    symbols = [jet.take(p) if jet.has(p[0]) else writer.tensor(z) for p, z in zip(pieces, zeros, strict=True)]
    return writer.concat(symbols, -1 - len(shape))


def aligned(x: Symbol, rank: int) -> Symbol:
    """A part (count, *shape) with ones before the shape, so that it has so many dimensions behind the count."""
    return x.reshaped(x.shape[0], *(1,) * (rank + 1 - len(x.shape)), *x.shape[1:])


def _spread(x: Symbol, shape: Sequence[int]) -> Symbol:
    """A part (count, *own shape) broadcast to (count, *shape)."""
    same, wide = aligned(x, len(shape)), (x.shape[0], *shape)
    return same if same.shape == wide else same.linearly("expand", wide, shape=list(wide))


def _stacked(x: Term) -> Term:
    return x.reshaped(1, *x.shape) if isinstance(x, Symbol) else x


def _total(terms: Sequence[Symbol]) -> Symbol:
    return sum(terms[1:], terms[0])
