"""Candidates on the same rows: the answers are those of a whole run, and only what changed is computed."""

import pytest
import torch
from torch import nn

from hrt.calibration import replay
from hrt.calibration.moments import evaluate
from hrt.calibration.replay import Replay
from hrt.capture.torch_export import capture
from hrt.hmatrix.hmatrix import HMatrix, Leaf


@pytest.fixture
def program():
    torch.manual_seed(0)
    layers = [nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2)]
    return capture(nn.Sequential(*layers), (torch.rand(4, 3),))


@pytest.fixture
def tanhs(monkeypatch):
    """Every tanh that is computed."""
    calls, tanh = [], torch.tanh
    monkeypatch.setattr(torch, "tanh", lambda x: calls.append(x.shape) or tanh(x))
    return calls


def inputs(rows: int = 50) -> tuple[torch.Tensor, ...]:
    return (torch.rand(rows, 3, generator=torch.Generator().manual_seed(1)),)


def compressed(w: torch.Tensor, seed: int) -> list[HMatrix]:
    """One low-rank block, and one beside a dense one in another order of rows."""
    (m, n), generator = w.shape, torch.Generator().manual_seed(seed)
    u, vt = torch.randn(m, 2, generator=generator), torch.randn(2, n, generator=generator)
    half = m // 2
    parts = Leaf(0, half, 0, n, u=u[:half], vt=vt), Leaf(half, m - half, 0, n, dense=w[half:].float())
    order = torch.randperm(m, generator=generator)
    return [HMatrix((m, n), (Leaf(0, m, 0, n, u=u, vt=vt),)), HMatrix((m, n), parts, order, None)]


def test_the_answers_are_those_of_a_whole_run(program):
    rows = inputs()
    again = Replay(program, rows)
    changes = [{}]
    for name in program.weights:
        changes += [{name: h} for h in compressed(program.constants[name], seed=len(name))]
    changes += [{**a, **b} for a in changes for b in changes[::3]]
    for changed in changes * 2:
        expected = evaluate(program.with_constants(changed), rows)
        assert torch.allclose(again.outputs(changed), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))


def test_only_what_lies_behind_a_change_is_computed(program, tanhs):
    again, (first, second, last) = Replay(program, inputs()), program.weights
    again.outputs({})
    assert len(tanhs) == 2
    for name, more in ((last, 0), (second, 1), (first, 2)):
        tanhs.clear()
        changed = {name: compressed(program.constants[name], seed=3)[0]}
        again.outputs(changed)
        assert len(tanhs) == more, name
        again.outputs(changed)
        again.outputs({})
        assert len(tanhs) == more, "what was computed before is known"


def test_equal_biases_are_the_same_bias(program, tanhs):
    again = Replay(program, inputs())
    bias = program.linear_nodes[0].inputs[2]
    for _ in range(3):
        again.outputs({bias: program.constants[bias] + 1})
    assert len(tanhs) == 2


def test_what_does_not_fit_is_computed_again(program, tanhs, monkeypatch):
    monkeypatch.setattr(replay, "KEPT", 0)
    again = Replay(program, inputs())
    assert torch.equal(again.outputs({}), again.outputs({})) and len(tanhs) == 4


def test_rows_come_in_pieces(program, monkeypatch):
    monkeypatch.setattr(replay, "CHUNK", 16)
    assert torch.allclose(Replay(program, inputs()).outputs({}), evaluate(program, inputs()), rtol=1e-12)


def test_float32_answers_are_those_of_float32_arithmetic(program):
    rows, (first, *_) = inputs(), program.weights
    for changed in ({}, *({first: h} for h in compressed(program.constants[first], seed=5))):
        exact, single = (Replay(program, rows, t).outputs(changed) for t in (torch.float64, torch.float32))
        assert single.dtype == torch.float64 and torch.equal(single, single.float().double())
        assert 0 < float((single - exact).norm() / exact.norm()) < 1e-5
