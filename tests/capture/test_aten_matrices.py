"""Tiny matrices in every sample, written out in their entries, and images that are looked up at places."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrt.capture.torch_export import capture
from hrt.errors import CaptureError

from zoo import Apply

GENERATOR = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=GENERATOR, dtype=torch.float64)


IMAGE, VOLUMES = draw(1, 3, 5, 6), draw(3, 2, 3, 4, 5)


def positive(x: Tensor) -> Tensor:
    return x @ x.mT + torch.eye(x.shape[-1], dtype=x.dtype)


def draw_once(size: int) -> Tensor:
    """The same numbers in every type."""
    return 2 * torch.eye(size) + torch.arange(size * size).reshape(size, size) / 16


MATRICES: dict[str, Callable[[Tensor], Tensor]] = {
    "det": torch.linalg.det,
    "signs": lambda x: torch.stack(torch.linalg.slogdet(x - 0.5), -1),
    "logdet": lambda x: torch.logdet(positive(x)),
    "inv": torch.linalg.inv,
    "solve": lambda x: torch.linalg.solve(x, x.mT),
    "solve_vectors": lambda x: torch.linalg.solve(x, x.sum(-1)),
    "solve_by_a_constant": lambda x: torch.linalg.solve(draw_once(x.shape[-1]).to(x.dtype), x),
    "cholesky": lambda x: torch.linalg.cholesky(positive(x)) + torch.linalg.cholesky(positive(x), upper=True).sin(),
    "triangular": lambda x: (
        torch.linalg.solve_triangular(positive(x).tril(), x, upper=False)
        + torch.linalg.solve_triangular(positive(x).triu(), x, upper=True)
    ),
}
SAMPLED: dict[str, Callable[[Tensor], Tensor]] = {
    "image": lambda g: F.grid_sample(IMAGE.to(g.dtype).expand(len(g), -1, -1, -1), g, align_corners=False),
    "nearest": lambda g: F.grid_sample(
        IMAGE.to(g.dtype).expand(len(g), -1, -1, -1), g, mode="nearest", padding_mode="border", align_corners=True
    ),
    "points": lambda g: F.grid_sample(IMAGE.to(g.dtype), g[None, :, :, 0], align_corners=True)[0].transpose(0, 1),
    "volumes": lambda g: F.grid_sample(
        VOLUMES[:1].to(g.dtype) * g[:, :1, :1, :1, None], torch.cat([g, g[..., :1]], -1)[:, None], align_corners=True
    ),
}


def agrees(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    program = capture(Apply(function).double(), [torch.zeros(3, *x.shape[1:])])
    torch.testing.assert_close(program.run([x])[0], function(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", MATRICES)
def test_of_matrices(name: str, size: int) -> None:
    agrees(MATRICES[name], draw(3, 2, size, size))


@pytest.mark.parametrize("name", SAMPLED)
def test_at_places_inside_and_outside(name: str) -> None:
    agrees(SAMPLED[name], 2.6 * draw(3, 4, 2, 2) - 1.3)


def test_large_matrices_are_refused_by_their_rows() -> None:
    with pytest.raises(CaptureError, match=r"linalg_inv.* have 5 rows; at most 4"):
        capture(Apply(torch.linalg.inv), [torch.zeros(2, 5, 5)])
