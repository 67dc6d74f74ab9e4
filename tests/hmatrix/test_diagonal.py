"""Equal blocks along a diagonal, recognised in the leaves of a matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.hmatrix.diagonal import diagonal_blocks
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.program.parallel_linears import beside

from helpers import MIXED, random_hmatrix


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_the_blocks_are_the_matrices_that_were_put_beside_each_other(seed, count, m, n, ordered):
    generator = np.random.default_rng(seed)
    parts = [random_hmatrix(generator, m, n, storages=MIXED, ordered=ordered) for _ in range(count)]
    blocks = diagonal_blocks(beside(parts, [n * k for k in range(count)], n * count))
    if not blocks:  # one part alone is not empty, as are all that are drawn with rank 0
        assert all(not p.to_dense().any() for p in parts)
        return
    assert len(blocks) >= count  # a part may be block-diagonal itself
    whole = torch.block_diag(*(b.to_dense(torch.float64) for b in blocks))
    assert torch.equal(whole, torch.block_diag(*(p.to_dense(torch.float64) for p in parts)))


def low_rank(m: int, n: int, row: int = 0, col: int = 0) -> Leaf:
    return Leaf(row, m, col, n, u=torch.ones(m, 1), vt=torch.ones(1, n))


@pytest.mark.parametrize(
    "matrix",
    [
        HMatrix.from_dense(torch.eye(4)),
        HMatrix((4, 4), (low_rank(4, 4),)),
        HMatrix((4, 6), (low_rank(2, 3), low_rank(2, 3, 0, 3), low_rank(2, 6, 2))),
        HMatrix((4, 4), (low_rank(1, 4), low_rank(3, 4, 1))),
        HMatrix((0, 4), ()),
    ],
    ids=repr,
)
def test_other_matrices_have_none(matrix):
    assert diagonal_blocks(matrix) == ()


def test_leaves_of_rank_0_may_reach_across_blocks():
    zero = Leaf(0, 3, 0, 3, u=torch.zeros(3, 0), vt=torch.zeros(0, 3))
    block = HMatrix((3, 3), (Leaf(0, 3, 0, 3, dense=torch.diag(torch.tensor([0.0, 1.0, 2.0]))),))
    empty = HMatrix((3, 3), (zero,))
    for parts in ([empty, HMatrix((3, 3), (low_rank(1, 1), *rest_of(3)))], [empty, block]):
        whole = beside(parts, [0, 3], 6)
        blocks = diagonal_blocks(whole)
        assert torch.equal(torch.block_diag(*(b.to_dense() for b in blocks)), whole.to_dense())


def rest_of(n: int) -> list[Leaf]:
    """Leaves of rank 0 that fill an n x n matrix beside its first entry."""
    sides = ((0, 1, 1, n - 1), (1, n - 1, 0, n))
    return [Leaf(r, h, c, w, u=torch.zeros(h, 0), vt=torch.zeros(0, w)) for r, h, c, w in sides]


def test_an_order_across_blocks_leaves_none():
    parts = [HMatrix.from_dense(torch.randn(2, 2)) for _ in range(3)]
    whole = beside(parts, [0, 2, 4], 6)
    assert len(diagonal_blocks(whole)) == 3
    for order, count in (([1, 0, 2, 3, 4, 5], 3), ([2, 1, 0, 3, 4, 5], 0)):
        mixed = HMatrix(whole.shape, whole.leaves, torch.tensor(order))
        assert len(diagonal_blocks(mixed)) == count
