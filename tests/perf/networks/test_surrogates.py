"""Surrogates: their data solve their equation, and networks learn from them, the same for the same seed."""

import pytest
import torch

from hrt.perf.networks.surrogates import (
    DURATION,
    FRICTION,
    PARAMETERS,
    TIMES,
    VALUES,
    angles,
    forces,
    parameters,
    train_emulator,
    train_transformer,
)


def test_it_learns_and_repeats():
    before, after = train_emulator(steps=0), train_emulator(steps=2)
    x = parameters(8, 1)
    assert after(x).shape == (8, VALUES) and x.shape == (8, PARAMETERS)
    assert not torch.equal(before(x), after(x))
    assert torch.equal(after(x), train_emulator(steps=2)(x))
    assert not after.training and torch.equal(x, parameters(8, 1))


def test_angles_solve_the_equation_of_the_pendulum():
    """Central differences of the second order on 32 times: what they leave is of the size of the step squared."""
    f, x, h = forces(50, 3).double(), angles(50, 3).double(), DURATION / TIMES
    slope, second = (x[:, 2:] - x[:, :-2]) / (2 * h), (x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2]) / h**2
    left = second + FRICTION * slope + x[:, 1:-1].sin() - f[:, 1:-1]
    assert float(left.norm() / f.norm()) < 0.1
    assert 0.2 < float(f.std()) < 0.4 and float(x.std()) > 0.2 and float(x.abs().max()) < 3


@pytest.mark.slow
def test_the_transformer_starts_to_learn_and_repeats():
    (first, start), (_, later), (again, _) = (train_transformer(steps=steps) for steps in (1, 6, 1))
    assert later < start and not first.training
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.slow  # a quarter of its steps
def test_the_transformer_learns():
    assert train_transformer(steps=300)[1] < 0.3
