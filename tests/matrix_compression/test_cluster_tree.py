"""Cluster trees and orderings."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from hrt.matrix_compression.cluster_tree import ALIGN, block_levels, bounds, coordinate_order, gram_order


@given(st.integers(2, 5000), st.integers(0, 6))
def test_cuts_are_ordered_and_nearly_equal(size, depth):
    if size < 2**depth:
        return
    cuts = bounds(size, depth)
    widths = [b - a for a, b in itertools.pairwise(cuts)]
    assert cuts[0] == 0 and cuts[-1] == size and len(widths) == 2**depth
    assert min(widths) >= 1
    if min(widths) >= 4 * ALIGN:
        assert all(c % ALIGN == 0 for c in cuts[:-1])
        assert max(widths) - min(widths) <= 2 * ALIGN * depth


@given(st.integers(1, 600), st.integers(1, 600), st.integers(1, 64))
def test_levels_refine_and_respect_min_leaf(m, n, min_leaf):
    levels = block_levels(m, n, min_leaf)
    assert levels[0].grid == (1, 1)
    for coarse, fine in itertools.pairwise(levels):
        assert set(coarse.rows) <= set(fine.rows) and set(coarse.cols) <= set(fine.cols)
        assert fine.grid[0] % coarse.grid[0] == 0 and fine.grid[1] % coarse.grid[1] == 0
    for cuts, side in ((levels[-1].rows, m), (levels[-1].cols, n)):
        widths = [b - a for a, b in itertools.pairwise(cuts)]
        assert min(widths) >= min(side, min_leaf // 2)


@given(st.integers(1, 200), st.integers(1, 3), st.integers(0, 1000))
def test_orders_are_permutations(count, dims, seed):
    points = torch.randn(count, dims, generator=torch.Generator().manual_seed(seed))
    for order in (coordinate_order(points), gram_order(points)):
        assert torch.equal(order.sort().values, torch.arange(count))
