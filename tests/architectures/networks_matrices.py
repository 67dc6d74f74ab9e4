"""Networks with tiny matrices in every sample, lookups in images, and routes to a few experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import mlp

MATRICES = Family("matrices")


@MATRICES.add([(6,)], derivatives=("d0",), fast=True)
class StrainEnergy(nn.Module):
    """Of a symmetric strain (3, 3): its determinant, its inverse and its trace go through a network."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 32, 32, 1)
        self.register_buffer("places", torch.tensor([0, 1, 2, 1, 3, 4, 2, 4, 5]))

    def forward(self, x: Tensor) -> Tensor:
        c = 0.3 * x[:, self.places].view(-1, 3, 3) + torch.eye(3)
        inverse = torch.linalg.inv(c)
        parts = [torch.linalg.det(c), (inverse * c.square()).sum((1, 2)), inverse.diagonal(dim1=1, dim2=2).sum(1)]
        return self.net(torch.stack(parts, 1))


@MATRICES.add([(2,), (4,)])
class MixtureDensity(nn.Module):
    """The logarithm of a mixture of two Gaussians with full covariances, given four numbers. It asks whether its
    numbers are finite.
    """

    def __init__(self):
        super().__init__()
        self.net = mlp(4, 32, 2 * (1 + 2 + 4))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        weights, means, roots = self.net(given).split((2, 4, 8), dim=1)
        roots = roots.view(-1, 2, 2, 2)
        if not torch.isfinite(roots).all():
            raise ValueError("not finite")
        covariance = roots @ roots.mT + torch.eye(2)
        factor = torch.linalg.cholesky(covariance)
        rest = (x[:, None] - means.view(-1, 2, 2))[..., None]
        distance = torch.linalg.solve_triangular(factor, rest, upper=False).square().sum((-1, -2))
        size = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return torch.logsumexp(torch.log_softmax(weights, 1) - 0.5 * distance - size, 1)


@MATRICES.add([(2,)])
class GridEncoding(nn.Module):
    """Features of a point from grids of three sizes, as in multi-resolution encodings."""

    def __init__(self):
        super().__init__()
        self.grids = nn.ParameterList(torch.rand(1, 4, n, n) for n in (4, 6, 9))
        self.net = mlp(12, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        places = (2 * x - 1)[None, :, None]  # (1, batch, 1, 2)
        features = [F.grid_sample(g, places, align_corners=True)[0, :, :, 0].T for g in self.grids]
        return self.net(torch.cat(features, 1))


@MATRICES.add([(1, 8, 8)])
class SpatialTransformer(nn.Module):
    """An image is moved as a network of itself says."""

    def __init__(self):
        super().__init__()
        self.move, self.read = mlp(64, 24, 6), mlp(64, 24, 2)

    def forward(self, x: Tensor) -> Tensor:
        theta = 0.1 * self.move(x.flatten(1)).view(-1, 2, 3) + torch.eye(2, 3)
        line = torch.linspace(-1, 1, 8)
        points = torch.stack([*torch.meshgrid(line, line, indexing="xy"), torch.ones(8, 8)], -1).view(-1, 3)
        grid = (points @ theta.mT).view(-1, 8, 8, 2)
        return self.read(F.grid_sample(x, grid, padding_mode="border", align_corners=False).flatten(1))


@MATRICES.add([(4,)])
class TopTwoExperts(nn.Module):
    """The two best of four experts, their weights scattered among zeros."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.experts = nn.ModuleList(mlp(4, 24, 2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x)
        values, places = scores.topk(2, dim=1)
        weights = torch.zeros_like(scores).scatter(1, places, values.softmax(1))
        return (weights[:, None] * torch.stack([e(x) for e in self.experts], -1)).sum(-1)
