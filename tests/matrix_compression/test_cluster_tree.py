"""Cluster trees and orderings."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from hrt.matrix_compression.cluster_tree import ALIGN, block_levels, bounds, coordinate_order, gram_order, split_point
from hrt.perf.networks.operators import log_kernel


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


@given(st.integers(2, 10**6))
def test_halves_are_within_an_alignment_of_each_other(size):
    a = split_point(size)
    assert 0 < a < size and abs(2 * a - size) <= ALIGN + 1


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


def test_coordinate_order_keeps_neighbours_together():
    g = torch.Generator().manual_seed(0)
    points = torch.rand(256, 2, generator=g, dtype=torch.float64)
    leaves = points[coordinate_order(points)].reshape(16, 16, 2)
    spread = (leaves.amax(1) - leaves.amin(1)).amax(1)
    assert float(spread.max()) < 0.5, "sixteenths of the square, by a k-d tree, are at most about a quarter wide"


def test_gram_order_finds_the_line_behind_a_permuted_kernel():
    w = torch.as_tensor(log_kernel(256))
    shuffle = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    found = shuffle[gram_order(w[shuffle])]
    # halves of the found order are halves of the line, up to their order: recursively, every eighth is an interval
    for part in found.reshape(8, 32):
        assert int(part.max() - part.min()) < 64


def test_zero_vectors_do_not_disturb_gram_order():
    v = torch.zeros(40, 5)
    v[::2] = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gram_order(v).sort().values, torch.arange(40))
