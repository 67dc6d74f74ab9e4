"""The cost model of generated C: it grows with the work, knows the blocks, and is careful."""

import pytest
import torch
from torch import nn

from hrt.capture.torch_export import capture
from hrt.program.program import Node, Program, Value
from hrt.runtime import native_costs
from hrt.runtime.native_costs import BATCHES, EVERY, FEW, LARGE, SMALL, faster_up_to, native_us, onnx_us

from models import linear_program


def mlp(width: int, act: type[nn.Module] = nn.Tanh) -> Program:
    net = nn.Sequential(nn.Linear(2, width), act(), nn.Linear(width, width), act(), nn.Linear(width, 1))
    return capture(net, [torch.rand(2, 2)])


@pytest.fixture(scope="module")
def small() -> Program:
    return mlp(32)


def test_time_grows_with_the_work(small):
    wide = mlp(64)
    for rows in (1, FEW, SMALL, LARGE, 100, 1000):
        assert 0 < native_us(small, rows) < native_us(wide, rows)
        assert 0 < onnx_us(small, rows) < onnx_us(wide, rows)
        assert native_us(small, rows) <= native_us(small, rows + LARGE)


def test_blocks_are_paid_as_a_whole(small):
    assert native_us(small, FEW) == native_us(small, SMALL) < native_us(small, SMALL + 1) == native_us(small, LARGE)
    assert native_us(small, 3 * LARGE) == pytest.approx(3 * native_us(small, LARGE))


def test_a_small_network_is_faster_in_c(small):
    assert faster_up_to(small) == EVERY


@pytest.mark.parametrize(
    ("shares", "most"),
    [
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5), EVERY),
        ((0.5, 0.5, 0.7, 0.98, 0.5, 0.5, 0.5, 0.5, 0.5), EVERY),  # just before rows go by blocks
        ((0.5, 0.5, 0.7, 1.01, 0.5, 0.5, 0.5, 0.5, 0.5), 4),
        ((0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.95, 0.95), 64),
        ((0.95, 0.95, 0.95, 0.95, 1.1, 0.5, 0.5, 0.5, 0.5), 0),
    ],
)
def test_it_is_taken_up_to_where_it_is_clearly_faster_and_nowhere_slower(small, monkeypatch, shares, most):
    monkeypatch.setattr(native_costs, "native_us", lambda program, rows: shares[BATCHES.index(rows)])
    monkeypatch.setattr(native_costs, "onnx_us", lambda program, rows: 1.0)
    assert faster_up_to(small) == most


def test_products_of_values_are_left_to_onnx_runtime():
    nodes = (Node("y", "matmul", ("x", "x"), (8, 8), {}),)
    assert not faster_up_to(Program((Value("x", (8, 8)),), nodes, ("y",), {}))


def test_many_rows_of_a_large_dense_layer_are_left_to_onnx_runtime():
    assert 0 < faster_up_to(linear_program(torch.ones(512, 512))) < 64
