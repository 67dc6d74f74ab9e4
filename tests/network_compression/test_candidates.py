"""Layers are planned in the better of their orders, or in the one that is given."""

from dataclasses import replace
from unittest import mock

import torch

from hrt.matrix_compression import planner as planner_module
from hrt.matrix_compression.block_spectra import level_spectra
from hrt.matrix_compression.orderings import ORDERING_SIDE
from hrt.matrix_compression.request import MatrixRequest
from hrt.network_compression.candidates import LayerTask, plan_layer
from hrt.perf.networks.operators import log_kernel

SIDE = ORDERING_SIDE


def test_orders_share_the_spectra_of_the_undivided_matrix_and_one_that_is_given_stays():
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(SIDE, generator=generator)
    matrix = torch.as_tensor(log_kernel(SIDE))[shuffled][:, shuffled]
    right = torch.eye(SIDE, dtype=torch.float64)
    budget2 = 1e-4 * float(matrix.square().sum())
    task = LayerTask("layer", matrix, right, None, None, None, budget2, MatrixRequest(storage="auto"))
    grids = []

    def noted(source, level, *rest):
        grids.append(level.grid)
        return level_spectra(source, level, *rest)

    with mock.patch.object(planner_module, "level_spectra", noted):
        layer = plan_layer(task)
    assert grids.count((1, 1)) == 1
    assert grids.count((2, 2)) == 2
    assert layer.rows is not None, "the shuffled kernel is smaller in the order of its angles"
    assert layer.cols is not None
    again = plan_layer(replace(task, order=(layer.rows, layer.cols)))
    assert again.rows is layer.rows
    assert again.planner.solve_budget(budget2) == layer.planner.solve_budget(budget2)
    natural = plan_layer(replace(task, order=(None, None)))
    assert natural.rows is None
    assert natural.planner.solve_budget(budget2).cost > layer.planner.solve_budget(budget2).cost
