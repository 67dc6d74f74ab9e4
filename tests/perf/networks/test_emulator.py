"""The emulator: long smooth outputs of few parameters, the same from the same seed."""

import torch

from hrt.perf.networks.emulator import PARAMETERS, VALUES, parameters, train_emulator


def test_it_learns_and_repeats():
    before, after = train_emulator(steps=0), train_emulator(steps=2)
    x = parameters(8, 1)
    assert after(x).shape == (8, VALUES) and x.shape == (8, PARAMETERS)
    assert not torch.equal(before(x), after(x))
    assert torch.equal(after(x), train_emulator(steps=2)(x))
    assert not after.training and torch.equal(x, parameters(8, 1))
