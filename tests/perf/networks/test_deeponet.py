"""The DeepONet learns, the same for the same seed."""

import pytest
import torch

from hrt.perf.networks.deeponet import SENSORS, deeponet_inputs, train_deeponet


@pytest.mark.slow
def test_it_learns():
    _, before = train_deeponet(steps=1)
    net, after = train_deeponet(steps=150)
    assert after < 0.5 * before and after < 0.3
    f, y = deeponet_inputs(4, 0)
    assert net(f, y).shape == (4, 1) and f.shape == (4, SENSORS)
    with torch.no_grad():
        assert torch.allclose(net(f, y)[:, 0], net.on_grid(f, y).diagonal(), atol=1e-5)


def test_a_seed_fixes_it():
    a, b, c = (train_deeponet(seed, steps=3)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["branch.0.weight"], c["branch.0.weight"])
