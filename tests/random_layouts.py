"""Random networks that move the batch about: every step is drawn from what the shape at hand allows."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

BATCH = 11  # no product of the other sizes
Step = Callable[[Tensor, list[Tensor]], Tensor]


class Steps(nn.Module):
    """One step after the other, then the batch back to the front. Constants are buffers."""

    def __init__(self, steps: list[Step], constants: list[Tensor]):
        super().__init__()
        self.steps, self.count = steps, len(constants)
        for k, c in enumerate(constants):
            self.register_buffer(f"c{k}", c)

    def forward(self, x: Tensor) -> Tensor:
        constants = [getattr(self, f"c{k}") for k in range(self.count)]
        for step in self.steps:
            x = step(x, constants)
        return x


class Draw:
    """Draws steps. value: what a batch of BATCH samples is by now.  fold: sizes before and after the batch that were
    merged into its dimension, innermost last, the batch itself as 0.
    """

    def __init__(self, data: st.DataObject, shape: tuple[int, ...]):
        self.data, self.generator = data, torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
        self.value, self.fold = self.numbers(BATCH, *shape), [0]
        self.steps: list[Step] = []
        self.constants: list[Tensor] = []
        self.words: list[str] = []

    def numbers(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64) - 0.4

    def constant(self, *shape: int) -> int:
        self.constants.append(self.numbers(*shape))
        return len(self.constants) - 1

    def whole(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def some(self, items) -> list:
        return [i for i in items if self.data.draw(st.booleans())]

    @property
    def sizes(self) -> list[int]:
        return list(self.value.shape)

    @property
    def place(self) -> int:
        return next(k for k, n in enumerate(self.sizes) if n % BATCH == 0)

    def free(self) -> list[int]:
        """The dimensions that are not the batch."""
        return [k for k in range(len(self.sizes)) if k != self.place]

    def do(self, words: str, step: Step) -> None:
        self.value = step(self.value, self.constants)
        self.steps.append(step)
        self.words.append(f"{words} -> {tuple(self.sizes)}")

    def step(self) -> None:
        kind = self.data.draw(st.sampled_from(KINDS))
        kind(self)

    def finish(self) -> nn.Module:
        unfold(self)
        place = self.place
        self.do(f"movedim {place}", lambda x, c: x.movedim(place, 0))
        return Steps(self.steps, self.constants)


def permute(d: Draw) -> None:
    order = d.data.draw(st.permutations(range(len(d.sizes))))
    d.do(f"permute {order}", lambda x, c: x.permute(*order))


def unsqueeze(d: Draw) -> None:
    if len(d.sizes) < 5:
        k = d.whole(-len(d.sizes) - 1, len(d.sizes))
        d.do(f"unsqueeze {k}", lambda x, c: x.unsqueeze(k))


def squeeze(d: Draw) -> None:
    ones = [k for k in d.free() if d.sizes[k] == 1]
    if ones:
        k = d.data.draw(st.sampled_from(ones))
        d.do(f"squeeze {k}", lambda x, c: x.squeeze(k))


def fold(d: Draw) -> None:
    """A neighbour of the batch is merged with it."""
    p, n = d.place, d.sizes
    sides = [s for s in (-1, 1) if 0 <= p + s < len(n) and math.prod(d.fold[0:0] or [n[p + s]]) * n[p] <= 40 * BATCH]
    if sides:
        side = d.data.draw(st.sampled_from(sides))
        d.fold = [n[p - 1], *d.fold] if side < 0 else [*d.fold, n[p + 1]]
        first = p - (side < 0)
        d.do(f"flatten {first}", lambda x, c: x.flatten(first, first + 1))


def copies(d: Draw) -> None:
    """Batches one after the other, or every sample more than once."""
    p, count = d.place, d.whole(2, 3)
    if d.sizes[p] * count <= 40 * BATCH:
        times = [count if k == p else 1 for k in range(len(d.sizes))]
        kinds: list[tuple[str, Step, list[int]]] = [
            (f"repeat {times}", lambda x, c: x.repeat(times), [count, *d.fold]),
            (f"repeat_interleave {count}", lambda x, c: x.repeat_interleave(count, p), [*d.fold, count]),
            (f"cat batches {p}", lambda x, c: torch.cat([x, x.sin()], p), [2, *d.fold]),
        ]
        words, step, d.fold = d.data.draw(st.sampled_from(kinds))
        d.do(words, step)


def half(d: Draw) -> None:
    """The first part of batches that stand one after the other."""
    if d.fold[0] > 1:
        p, count, first = d.place, d.fold[0], d.whole(0, d.fold[0] - 1)
        d.fold = [count - first, *d.fold[1:]]
        d.do(
            f"batches {first}",
            lambda x, c: x.narrow(p, x.shape[p] // count * first, x.shape[p] // count * (count - first)),
        )


def unfold(d: Draw) -> None:
    if len(d.fold) > 1:
        p, sizes = d.place, d.sizes
        shape = [*sizes[:p], *(-1 if n == 0 else n for n in d.fold), *sizes[p + 1 :]]
        d.fold = [0]
        d.do(f"reshape {shape}", lambda x, c: x.reshape(shape))


def merge(d: Draw) -> None:
    pairs = [k for k in d.free() if k + 1 in d.free()]
    if pairs:
        k = d.data.draw(st.sampled_from(pairs))
        d.do(f"merge {k}", lambda x, c: x.flatten(k, k + 1))


def split(d: Draw) -> None:
    even = [k for k in d.free() if d.sizes[k] % 2 == 0]
    if even and len(d.sizes) < 5:
        k = d.data.draw(st.sampled_from(even))
        d.do(f"unflatten {k}", lambda x, c: x.unflatten(k, (2, -1)))


def take(d: Draw) -> None:
    if len(d.sizes) > 1:
        k = d.data.draw(st.sampled_from(d.free()))
        n = d.sizes[k]
        i, order = d.whole(-n, n - 1), torch.randperm(n, generator=d.generator)
        kinds: list[tuple[str, Step]] = [
            (f"select {k} {i}", lambda x, c: x.select(k, i)),
            (f"unbind {k}", lambda x, c: sum(x.unbind(k)[1:], x.unbind(k)[0])),
            (f"narrow {k}", lambda x, c: x.narrow(k, i % n, n - i % n)),
            (f"flip {k}", lambda x, c: x.flip(k)),
            (f"roll {k}", lambda x, c: x.roll(1, k)),
            (f"index {k}", lambda x, c: x.index_select(k, order)),
            (f"cat {k}", lambda x, c: torch.cat([x, x.sin()], k) if n < 5 else x),
            (f"chunk {k}", lambda x, c: torch.cat(x.chunk(2, k)[::-1], k)),
        ]
        d.do(*d.data.draw(st.sampled_from(kinds)))


def expand(d: Draw) -> None:
    ones = [k for k in d.free() if d.sizes[k] == 1]
    count = d.whole(2, 3)
    if ones:
        times = [count if k == ones[0] else -1 for k in range(len(d.sizes))]
        d.do(f"expand {times}", lambda x, c: x.expand(*times))
    elif len(d.sizes) < 4:
        k, lead = d.whole(0, len(d.sizes)), d.data.draw(st.booleans())
        if lead:
            d.do(f"repeat {count}", lambda x, c: x.repeat(count, *[1] * x.ndim))
        else:
            d.do(f"stack {k}", lambda x, c: torch.stack([x, x.sin(), 2 * x], k))


def broadcast(d: Draw) -> None:
    first = d.whole(0, len(d.sizes) - 1)
    ones = d.some(range(len(d.sizes)))
    shape = [1 if k == d.place or k in ones else n for k, n in enumerate(d.sizes)][first:]
    k = d.constant(*shape)
    if d.data.draw(st.booleans()):
        d.do(f"times {shape}", lambda x, c: x * c[k])
    else:
        d.do(f"minus from {shape}", lambda x, c: c[k] - x)


def widen(d: Draw) -> None:
    """A constant of more dimensions than the value."""
    if len(d.sizes) < 4:
        k = d.constant(2, *(1 for _ in d.sizes))
        d.do("plus wider", lambda x, c: x + c[k])


def reduce(d: Draw) -> None:
    dims, keep = d.some(d.free()), d.data.draw(st.booleans())
    if dims:
        d.do(f"mean {dims} {keep}", lambda x, c: x.mean(dims, keep))


def centre(d: Draw) -> None:
    """Values of different dimensions meet: one has lost leading ones."""
    if d.place > 0:
        d.do("minus first", lambda x, c: x - x[0].tanh())
    elif len(d.sizes) > 1:
        d.do("minus mean", lambda x, c: x - x.mean(-1, keepdim=True))


def linear(d: Draw) -> None:
    if d.place < len(d.sizes) - 1:
        m = d.whole(1, 4)
        w, bias = d.constant(m, d.sizes[-1]), d.constant(m)
        d.do(f"linear {m}", lambda x, c: F.linear(x, c[w], c[bias]))


def from_left(d: Draw) -> None:
    if len(d.sizes) > 1 and d.place != len(d.sizes) - 2:
        w = d.constant(d.whole(1, 4), d.sizes[-2])
        d.do("matmul from left", lambda x, c: c[w] @ x)


def pairs(d: Draw) -> None:
    if d.place < len(d.sizes) - 2:
        d.do("gram", lambda x, c: x @ x.transpose(-1, -2))


def stack_of_matrices(d: Draw) -> None:
    n = d.sizes
    if len(n) > 1 and d.place < len(n) - 1:
        shared = d.some(range(len(n) - 2))
        lead = [1 if k == d.place or k in shared else n[k] for k in range(len(n) - 2)]
        lead = lead if not d.data.draw(st.booleans()) or len(lead) > 2 else [2, *[1] * len(lead)]
        w = d.constant(*lead, n[-1], d.whole(1, 3))
        d.do(f"matmul {lead}", lambda x, c: x @ c[w])
    elif len(n) > 2:
        w = d.constant(n[0] if d.place else 1, 3, n[-2]) if d.place != len(n) - 2 else None
        if w is not None and len(n) == 3:
            d.do("matmul stack from left", lambda x, c: c[w] @ x)


def equation(d: Draw) -> None:
    labels = "abcdefgh"[: len(d.sizes)]
    shared = d.some(d.free())
    summed = d.some(shared)
    lost = d.some([k for k in d.free() if k not in shared]) if d.data.draw(st.booleans()) else []
    size = d.whole(1, 3)
    weight = "".join(labels[k] for k in d.data.draw(st.permutations(shared))) + "z"
    out = "".join(
        d.data.draw(st.permutations([labels[k] for k in range(len(labels)) if k not in summed + lost] + ["z"]))
    )
    if len(out) <= 5:
        w = d.constant(*(d.sizes[labels.index(c)] for c in weight[:-1]), size)
        text = f"{labels},{weight}->{out}" if d.data.draw(st.booleans()) else f"{weight},{labels}->{out}"
        d.do(text, lambda x, c: torch.einsum(text, *((x, c[w]) if text.startswith(labels) else (c[w], x))))


def norm(d: Draw) -> None:
    if d.place < len(d.sizes) - 1 and d.sizes[-1] > 1:
        n = d.sizes[-1]
        d.do("layer norm", lambda x, c: F.layer_norm(x, (n,)))


def along(d: Draw) -> None:
    """What looks at a whole axis."""
    if len(d.sizes) > 1:
        k = d.data.draw(st.sampled_from(d.free()))
        many = d.sizes[k] > 1
        kinds: list[tuple[str, Step]] = [
            (f"softmax {k}", lambda x, c: torch.softmax(x, k)),
            (f"cumsum {k}", lambda x, c: x.cumsum(k)),
            (f"amax {k}", lambda x, c: x.amax(k, keepdim=True)),
            (f"var {k}", lambda x, c: x - x.var(k, keepdim=True) if many else x),
            (f"logsumexp {k}", lambda x, c: x.logsumexp(k)),
            (f"norm {k}", lambda x, c: (x.exp()).norm(dim=k, keepdim=True)),
            (f"normalize {k}", lambda x, c: F.normalize(x.exp(), dim=k)),
            (f"where {k}", lambda x, c: torch.where(x > 0.1, x, x.mean(k, keepdim=True))),
        ]
        d.do(*d.data.draw(st.sampled_from(kinds)))


def activate(d: Draw) -> None:
    d.do("tanh", lambda x, c: torch.tanh(x))


MOVES = [permute, permute, unsqueeze, squeeze, fold, copies, half, unfold, merge, split, expand]
WORK = [
    take,
    take,
    broadcast,
    widen,
    reduce,
    centre,
    linear,
    from_left,
    pairs,
    stack_of_matrices,
    equation,
    norm,
    activate,
    along,
    along,
]
KINDS = MOVES + WORK
