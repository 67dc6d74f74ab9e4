"""The images: solved to rounding, and networks that learn from them, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hrt.perf.networks.images import fluxes, solutions, sources, train_images


def test_solutions_satisfy_the_five_point_formula() -> None:
    f = sources(4, 3, side=12)
    u = F.pad(solutions(f).double() / 20, (1, 1, 1, 1))
    left, right, above, below = u[..., 1:-1, :-2], u[..., 1:-1, 2:], u[..., :-2, 1:-1], u[..., 2:, 1:-1]
    residual = (4 * u[..., 1:-1, 1:-1] - left - right - above - below) * 13**2 - f
    assert float(residual.norm() / f.norm()) < 1e-4  # of float32
    assert float(f.square().mean().sqrt()) == pytest.approx(1, rel=0.3)


def test_what_comes_in_flows_out() -> None:
    f = sources(3, 5)
    inside = f.double().sum((1, 2, 3)) * 20 / 33**2
    torch.testing.assert_close(fluxes(f).double().sum(1), inside, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [pytest.param("unet", marks=pytest.mark.slow), "cnn"])
def test_training_starts_to_learn_and_is_repeatable(kind: str) -> None:
    (first, start), (_, later), (again, _) = (train_images(kind, steps=steps) for steps in (1, 12, 1))
    assert later < start
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
