"""Random H-matrices and programs for tests, and the bound that rounding alone may reach."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import STORAGE, HMatrix, Leaf
from hrt.program.op_table import TABLE
from hrt.program.program import Program

SINGLE = (torch.float32,)
MIXED = tuple(STORAGE.values())


def random_leaves(
    generator: np.random.Generator,
    m: int,
    n: int,
    *,
    depth: int = 3,
    max_rank: int = 6,
    storages: Sequence[torch.dtype] = SINGLE,
) -> tuple[Leaf, ...]:
    """Leaves of a recursive partition of (m, n): ragged splits in one or both directions, ranks from 0."""
    leaves: list[Leaf] = []

    def numbers(rows: int, cols: int, dtype: torch.dtype) -> Tensor:
        if dtype == torch.int8:
            return torch.from_numpy(generator.integers(-127, 128, (rows, cols))).to(dtype)
        return torch.from_numpy(generator.standard_normal((rows, cols)) / max(cols, 1) ** 0.5).to(dtype)

    def scale(count: int, dtype: torch.dtype) -> Tensor | None:
        return torch.from_numpy(generator.uniform(1e-3, 2e-2, count)).bfloat16() if dtype == torch.int8 else None

    def leaf(row: int, rows: int, col: int, cols: int) -> list[Leaf]:
        place, dtype = (row, rows, col, cols), storages[generator.integers(len(storages))]
        if generator.random() < 0.4:
            return [Leaf(*place, dense=numbers(rows, cols, dtype), scale=scale(rows, dtype))]
        found = []
        for _ in range(2 if generator.random() < 0.3 else 1):  # directions of one block in storage types of their own
            dtype = storages[generator.integers(len(storages))]
            rank = int(generator.integers(0, min(max_rank, rows, cols) + 1))
            u, vt = numbers(rows, rank, dtype), numbers(rank, cols, dtype)
            found.append(Leaf(*place, u=u, vt=vt, scale=scale(rank, dtype)))
        return found

    def cut(size: int, wanted: bool) -> list[int]:
        return [0, int(generator.integers(1, size)), size] if wanted and size > 1 else [0, size]

    def divide(row: int, rows: int, col: int, cols: int, left: int) -> None:
        if left == 0 or generator.random() < 0.15:
            leaves.extend(leaf(row, rows, col, cols))
            return
        kind = generator.integers(4)  # mostly both ways, as a quadtree
        down, across = cut(rows, kind != 1), cut(cols, kind != 2)
        for a, b in pairwise(down):
            for c, d in pairwise(across):
                divide(row + a, b - a, col + c, d - c, left - 1)

    if m and n:
        divide(0, m, 0, n, depth)
    return tuple(leaves)


def random_hmatrix(
    seed: int | np.random.Generator,
    m: int,
    n: int,
    *,
    depth: int = 3,
    max_rank: int = 6,
    storages: Sequence[torch.dtype] = SINGLE,
    ordered: bool | None = None,
) -> HMatrix:
    """A random H-matrix (m, n). ordered: with random row and column orderings; None: each of them by chance."""
    generator = np.random.default_rng(seed)
    leaves = random_leaves(generator, m, n, depth=depth, max_rank=max_rank, storages=storages)

    def order(size: int) -> np.ndarray | None:
        wanted = generator.random() < 0.5 if ordered is None else ordered
        return generator.permutation(size) if wanted else None

    return HMatrix((m, n), leaves, order(m), order(n))


def hierarchical(program: Program, seed: int = 0, **options) -> Program:
    """`program` with a random H-matrix of the same shape in place of every weight."""
    generator = np.random.default_rng(seed)
    changed = {}
    for name in program.weights:
        weight = program.constants[name]
        changed[name] = random_hmatrix(generator, *weight.shape, **options)
    return program.with_constants(changed)


def densified(program: Program) -> Program:
    """`program` with every H-matrix written out as a float64 tensor: the oracle."""
    return program.with_constants({k: c.to_dense() for k, c in program.constants.items() if isinstance(c, HMatrix)})


def absolute(h: HMatrix) -> Tensor:
    """sum |U| |V^T| + |D| in the original order: what rounding in any order of summation is relative to."""

    def magnitudes(leaf: Leaf) -> Tensor:
        first, *rest = (t.abs() for t in leaf.decoded(torch.float64))
        return first @ rest[0] if rest else first

    blocks = h.blocks().items()
    leaves = tuple(Leaf(*place, dense=sum(map(magnitudes, group), torch.zeros(()))) for place, group in blocks)
    return HMatrix(h.shape, leaves, h.row_order, h.col_order).to_dense()


def rounding_bound(x: Tensor, h: HMatrix, eps: float, extra: Tensor | None = None) -> Tensor:
    """Entrywise bound on the difference of two ways to compute x h^T (+ extra) in arithmetic of precision `eps`.

    A sum of k products errs by at most k eps times the sum of their absolute values; the factors of a leaf are two
    such sums after each other, and both sides of the comparison err.
    """
    size = x.abs().double() @ absolute(h).T
    size = size if extra is None else size + extra.abs().double()
    terms = h.shape[1] + max((e.rank for e in h.leaves), default=0) + len(h.leaves) + 4
    return 4 * terms * eps * size + torch.finfo(torch.float64).tiny


def random_inputs(program: Program, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Standard normal float64 inputs (batch, *shape)."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *v.shape, generator=generator, dtype=torch.float64) for v in program.inputs)


def constants_of(**arrays) -> Mapping[str, Tensor]:
    """Named float64 tensors, for programs written by hand."""
    return {name: torch.as_tensor(a, dtype=torch.float64) for name, a in arrays.items()}


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """HOST:PORT of a server of this process that answers each request in a thread of its own."""

    class Threads(ThreadingHTTPServer):
        request_queue_size, daemon_threads, block_on_close = 256, True, False

    server = Threads(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def noise(program: Program, inputs: Sequence[Tensor], draws: int = 12) -> list[float]:
    """How far rounding of every node to float32 may move each output (L2): in float64, every node's result is moved by
    random relative amounts of half an ulp of what it sums (a product of n terms: sqrt(n + 1) times that).
    """
    exact, worst = program.run(inputs), [0.0] * len(program.outputs)
    half = torch.finfo(torch.float32).eps / 2
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        values = {k: c.double() for k, c in program.constants.items() if isinstance(c, Tensor)}
        for k, c in program.constants.items():
            values.setdefault(k, c.to_dense())  # type: ignore[union-attr]
        values |= {v.name: x.double() for v, x in zip(program.inputs, inputs, strict=True)}
        for node in program.nodes:
            a = [values[name] for name in node.inputs]
            y = node.row.torch(a, node.attrs)
            terms, size = 1, y.abs()
            if node.op in ("linear", "add", "sub"):
                terms = a[0].shape[-1] + 1 if node.op == "linear" else 1
                size = TABLE["add" if node.op != "linear" else "linear"].torch([v.abs() for v in a], node.attrs)
            move = 2 * torch.rand(y.shape, generator=generator, dtype=torch.float64) - 1
            values[node.name] = y + half * terms**0.5 * size * move
        for k, (name, e) in enumerate(zip(program.outputs, exact, strict=True)):
            worst[k] = max(worst[k], float((values[name] - e).norm()))
    return worst
