"""What the planner leaves out, because it cannot pay, changes no plan; what it only glances at is known well enough."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hrt.matrix_compression import planner as planner_module
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.block_spectra import batch_spectra, cut_columns
from hrt.matrix_compression.orderings import is_symmetric
from hrt.matrix_compression.planner import Planner, always_above
from hrt.matrix_compression.request import MatrixRequest
from hrt.perf.networks.operators import log_kernel

ALL = ("float32", "float16", "bfloat16", "int8")


def nowhere(options, finer):
    """`least_tails` that knows nothing: no block is left out."""
    return np.zeros((*options.grid, options.tail.shape[1]))


@given(
    shape=st.sampled_from([(128, 128), (256, 128), (160, 200)]),
    width=st.sampled_from([1e-3, 1e-2, 0.3]),
    power=st.sampled_from([0.5, 1.0, 2.0]),
    noise=st.sampled_from([0.0, 1e-3, 1.0]),
    tol=st.sampled_from([1e-1, 1e-2, 1e-4]),
    storages=st.sampled_from([("float32",), ALL]),
    seed=st.integers(0, 100),
)
@example((128, 128), 1e-3, 2.0, 0.0, 1e-2, ALL, 28)  # a rank that pays between two multipliers
@settings(max_examples=25, deadline=None)
def test_blocks_left_out_change_no_plan(shape, width, power, noise, tol, storages, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.rand(n, dtype=torch.float64, generator=generator).sort().values for n in shape)
    matrix = (width + (x[:, None] - y).abs()) ** -power
    matrix += noise * torch.randn(shape, dtype=torch.float64, generator=generator)
    budget2 = tol**2 * float(matrix.square().sum())
    request = MatrixRequest(min_leaf=8)
    pruned = Planner(BlockSource(matrix), request, budget2, storages)
    with mock.patch.object(planner_module, "least_tails", nowhere):
        full = Planner(BlockSource(matrix), request, budget2, storages)
    for factor in (0.25, 1.0, 4.0):
        plan, expected = (p.solve_budget(factor * budget2) for p in (pruned, full))
        assert plan.leaves == expected.leaves
        assert (plan.cost, plan.error2) == pytest.approx((expected.cost, expected.error2), rel=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 2.0))
@settings(max_examples=100)
def test_what_is_always_above_is_so_everywhere(seed, raised):
    """Minima of five lines each, by their values and slopes at four multipliers, beside their values in between."""
    rng = np.random.default_rng(seed)
    lams = [8.0, 4.0, 2.0, 1.0]
    costs, slopes = rng.uniform(0, 10, (2, 200, 5)), rng.uniform(0, 3, (2, 200, 5))

    def lowest(k: int, lam: float) -> tuple[np.ndarray, np.ndarray]:
        lines = costs[k] + lam * slopes[k]
        return lines.min(1), slopes[k][np.arange(200), lines.argmin(1)]

    above = always_above(lams, [raised * lowest(0, lam)[0] for lam in lams], [lowest(1, lam) for lam in lams])
    everywhere = np.all([raised * lowest(0, v)[0] > lowest(1, v)[0] for v in np.linspace(1, 8, 200)], axis=0)
    assert not (above & ~everywhere).any()
    assert always_above(lams, [np.full(200, 100.0)] * 4, [lowest(1, lam) for lam in lams]).all()


def test_the_whole_of_a_kernel_is_left_out_and_its_corner_is_not():
    matrix = torch.as_tensor(log_kernel(512))
    planner = Planner(BlockSource(matrix), MatrixRequest(), 1e-6 * float(matrix.square().sum()))
    assert planner.options[0].ranks.tolist() == [0]
    corner = planner.options[1].ranks.reshape(2, 2)
    assert corner[0, 1] > 0
    assert corner[1, 0] > 0


@pytest.mark.parametrize("side", [16, 24, 32, 64])
def test_a_glance_misses_less_than_the_floor(side):
    generator = torch.Generator().manual_seed(side)
    blocks = torch.randn(12, side, 12, dtype=torch.float64, generator=generator)
    blocks = blocks * 100.0 ** -torch.arange(12) @ torch.randn(12, 12, side, dtype=torch.float64, generator=generator)
    blocks[6:] += 0.1 * torch.randn(6, side, side, dtype=torch.float64, generator=generator)  # of full rank
    blocks[5] = 0.0
    floors = 1e-7 * blocks.square().sum((1, 2))
    s2, norm2 = batch_spectra(blocks, floors, torch.full((12,), torch.inf), 0)
    true = torch.linalg.svdvals(blocks) ** 2
    padded = torch.nn.functional.pad(s2, (0, side - s2.shape[1]))
    assert bool((true[:5].cumsum(1) - padded[:5].cumsum(1) <= 1.02 * floors[:5, None]).all())
    assert int((s2[:5] > 0).sum(1).max()) <= 4
    assert bool((s2[5] == 0).all())
    assert bool(((norm2 - padded.sum(1))[6:] <= 1.02 * floors[6:]).all())


@pytest.mark.parametrize("cols", [(0, 8, 16, 24), (0, 8, 16, 25), (0, 16, 20, 28), (4, 20)])
def test_blocks_of_a_strip_are_its_columns(cols):
    strip = torch.randn(5, 40)[:, : cols[-1]]
    blocks = cut_columns(strip, cols)
    for block, a, b in zip(blocks, cols, cols[1:], strict=False):
        assert torch.equal(block[:, : b - a], strip[:, a:b])
        assert not block[:, b - a :].any()


def test_symmetry_is_seen_to_the_last_entry():
    a = torch.randn(300, 300, dtype=torch.float64)
    a = a + a.mT
    assert is_symmetric(a)
    a[299, 130] += 1e-15 * a[299, 130].abs() + 1e-15
    assert not is_symmetric(a)
    assert not is_symmetric(a[:, :299])


def planner_of(matrix: torch.Tensor, right: torch.Tensor, tol: float) -> Planner:
    """Of a matrix whose errors count as its inputs vary."""
    source = BlockSource(matrix, right)
    return Planner(source, MatrixRequest(min_leaf=8, target="cpu"), tol**2 * source.norm2(), ALL)


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("name", ["kernel", "corner", "low rank", "noise"])
def test_parts_that_no_split_pays_for_are_not_looked_at(name, tol):
    """The plans are those of all levels; of a layer without geometry only the undivided matrix is known."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(128, 128, dtype=torch.float64, generator=generator)
    x = torch.arange(128, dtype=torch.float64)
    fading = noise * 0.8**x  # of a rank that grows as tol falls
    corner = torch.zeros_like(noise)
    corner[:16, :16] = noise[:16, :16]
    kernel = torch.as_tensor(log_kernel(128))
    matrix = {"kernel": kernel, "corner": corner, "low rank": fading @ noise, "noise": noise}[name]
    inputs = torch.randn(400, 128, dtype=torch.float64, generator=generator)
    right = inputs.mT @ inputs / 400
    pruned = planner_of(matrix, right, tol)
    with mock.patch.object(planner_module, "PAYS", np.inf):
        full = planner_of(matrix, right, tol)
    assert len(full.levels) == 5
    for factor in (0.01, 0.1, 1.0):
        budget2 = factor * tol**2 * pruned.source.norm2()
        assert pruned.solve_budget(budget2).cost <= 1.001 * full.solve_budget(budget2).cost
    if name in ("kernel", "low rank"):
        assert (len(pruned.levels) == 1) == (name == "low rank")
