"""Networks that differentiate inside their forward: forces of energies, Hamiltonians."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import mlp

INSIDE = Family("inside")


@INSIDE.add([(6,)], fast=True)
class Forces(nn.Module):
    """The energy and minus its gradient, as potentials of molecules give them."""

    def __init__(self):
        super().__init__()
        self.energy = mlp(6, 32, 32, 1, activation=nn.SiLU)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.energy(x)
            (slope,) = torch.autograd.grad(energy.sum(), x)
        return energy, -slope


def with_slopes(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        return tuple(y.detach() for y in net(x.clone()))


@INSIDE.add([(6,)], call=with_slopes)
class ForcesWhereGradientsAreOn(Forces):
    """It leaves that to whoever calls it."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        energy = self.energy(x)
        (slope,) = torch.autograd.grad(energy.sum(), x)
        return energy, -slope


class Hamiltonian(nn.Module):
    def __init__(self):
        super().__init__()
        self.energy = mlp(2, 32, 32, 1)

    def flow(self, slope: Tensor) -> Tensor:
        return torch.stack([slope[:, 1], -slope[:, 0]], dim=-1)


@INSIDE.add([(2,)])
class HamiltonianOfRows(Hamiltonian):
    def forward(self, x: Tensor) -> Tensor:
        return self.flow(torch.func.vmap(torch.func.grad(lambda z: self.energy(z).squeeze(-1)))(x))


@INSIDE.add([(2,)], derivatives=("d0",))
class HamiltonianOfSums(Hamiltonian):
    def forward(self, x: Tensor) -> Tensor:
        return self.flow(torch.func.grad(lambda z: self.energy(z).sum())(x))
