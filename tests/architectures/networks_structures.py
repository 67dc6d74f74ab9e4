"""Networks that take and give lists, dictionaries and dataclasses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.checked import Family
from architectures.networks_operators import DeepONet
from zoo_pinns import mlp

STRUCTURES = Family("structures")


def functions_and_points(rows: int, generator: torch.Generator) -> list[Tensor]:
    return [torch.rand(rows, 20, generator=generator), torch.rand(rows, 2, generator=generator)]


@STRUCTURES.add(functions_and_points, fast=True, call=lambda net, x: net(x))
class DeepXDEOperator(DeepONet):
    """The forward of DeepXDE's operator networks takes one list."""

    def forward(self, inputs) -> Tensor:
        return torch.einsum("bi,bi->b", self.branch(inputs[0]), self.trunk(inputs[1]))[:, None] + self.bias


@STRUCTURES.add(
    lambda rows, generator: dict(zip(("f", "x"), functions_and_points(rows, generator), strict=True)),
    call=lambda net, x: net(x),
)
class DictionaryOfFields(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(22, 32, 32, 3)

    def forward(self, batch):
        u, v, p = self.net(torch.cat([batch["f"], batch["x"]], dim=-1)).split(1, dim=-1)
        return {"velocity": {"u": u, "v": v}, "pressure": p}


@STRUCTURES.add(
    lambda rows, g: {"x": torch.rand(rows, 3, generator=g), "t": torch.rand(rows, 1, generator=g)},
    call=lambda net, x: net(**x),
    derivatives=("d3",),
)
class KeywordOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(4, 32, 32, 1)

    def forward(self, *, t: Tensor, x: Tensor) -> Tensor:
        return self.net(torch.cat([x, t], dim=-1))


@STRUCTURES.add(lambda rows, g: (torch.rand(rows, 2, generator=g), torch.rand(rows, generator=g)))
class FlowMatching(nn.Module):
    """Time has the shape (batch,)."""

    def __init__(self):
        super().__init__()
        self.net = mlp(10, 32, 32, 2, activation=nn.SiLU)
        self.register_buffer("frequencies", torch.tensor([1.0, 2.0, 4.0, 8.0]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = t[:, None] * self.frequencies
        return self.net(torch.cat([x, torch.sin(phase), torch.cos(phase)], dim=-1))
