"""One leaf where several would be slower: only for a CPU, only where it pays, never at the cost of the bound."""

import math

import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.orderings import permute
from hrt.matrix_compression.planner import Planner
from hrt.matrix_compression.request import MatrixRequest
from hrt.perf.networks.operators import interior_grid, operator_network, reaction_diffusion_green, smooth_inputs
from hrt.runtime.onnx_costs import ANY_BATCH, compressed_form, layer_us

N = 384


def smooth(count: int, seed: int) -> Tensor:
    return torch.from_numpy(smooth_inputs(N, count, seed, points=interior_grid(N))).float()


@pytest.fixture(scope="module")
def operator() -> nn.Module:
    return operator_network(reaction_diffusion_green(N))


def compressed(net: nn.Module, target: str) -> tuple[hrt.CompressedModel, HMatrix]:
    model = hrt.compress(net, inputs=smooth(1500, 1), tol=1e-3, target=target, progress=False)
    (weight,) = (c for c in model.program.constants.values() if isinstance(c, HMatrix))
    return model, weight


def product(h: HMatrix) -> float:
    logs = [math.log(min(layer_us(h, f, b) for f in (compressed_form(h), "multiplied"))) for b in ANY_BATCH]
    return h.nbytes * math.exp(sum(logs) / len(logs))


def test_smooth_data_on_a_cpu_take_one_low_rank_layer(operator):
    (fast, one), (small, many) = compressed(operator, "cpu"), compressed(operator, "bytes")
    assert compressed_form(one) == "low rank" and compressed_form(many) == "batched"
    assert product(one) < product(many) and one.nbytes > many.nbytes
    x = smooth(800, 77)
    with torch.no_grad():
        exact = operator.double()(x.double())
    operator.float()
    for model in (fast, small):
        found = torch.as_tensor(model.predict(x)).double()
        assert float((found - exact).norm() / exact.norm()) <= 1e-3
        assert model.nbytes < 4 * N * N


def test_blocks_that_a_trainable_network_has_stay(operator):
    small, many = compressed(operator, "bytes")
    net = hrt.to_trainable(small)
    model, again = compressed(net, "cpu")
    assert compressed_form(again) == "batched" and model.nbytes < 4 * N * N
    places = [{e.place for e in h.leaves} for h in (many, again)]
    assert places[0] == places[1]


def planner_of(matrix: Tensor, rows: Tensor | None, cols: Tensor | None) -> Planner:
    tree = permute(matrix, rows, cols)
    source = BlockSource(tree, torch.eye(tree.shape[1], dtype=torch.float64), None, 0)
    request = MatrixRequest(min_leaf=16, target="cpu")
    return Planner(source, request, 1e-6 * float((matrix**2).sum()), ("float32", "float16"))


@pytest.mark.parametrize("ordered", [False, True])
def test_a_whole_leaf_stands_in_the_matrix_own_order(ordered):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (64, 96))
    matrix = u @ v.T
    rows = torch.randperm(64, generator=generator).int() if ordered else None
    cols = torch.randperm(96, generator=generator).int() if ordered else None
    planner = planner_of(matrix, rows, cols)
    budget2 = 1e-5 * float((matrix**2).sum())
    plan = planner.whole(budget2)
    assert plan is not None and plan.error2 <= budget2
    h = planner.build(plan, rows, cols)
    assert h.row_order is None and h.col_order is None and compressed_form(h) == "low rank"
    assert float((h.to_dense() - matrix).square().sum()) <= 1.05 * budget2


def test_there_is_none_where_the_rank_is_too_high():
    matrix = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert planner_of(matrix, None, None).whole(1e-8 * float((matrix**2).sum())) is None
