"""u, u_x, u_t and u_xx of the Burgers PINN by torch's own ways, which hrt's derivatives are measured beside."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import grad

from hrt.perf.networks.burgers import load_burgers
from hrt.perf.networks.taylor_pass import by_jvp

DERIVATIVES = ("d0", "d1", "d0d0")
Way = Callable[[nn.Module, Tensor], tuple[Tensor, ...]]


def reverse(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """u, u_x, u_t, u_xx by reverse over reverse."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = net(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), x)
    return u.detach(), first[:, :1].detach(), first[:, 1:].detach(), second[:, :1]


def functional_reverse(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The same by torch.func, which torch.compile takes."""

    def value(z: Tensor) -> tuple[Tensor, Tensor]:
        u = net(z)
        return u.sum(), u

    def slope(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, u = grad(value, has_aux=True)(z)
        return first[:, 0].sum(), (u, first)

    second, (u, first) = grad(slope, has_aux=True)(x)
    return u, first[:, :1], first[:, 1:], second[:, :1]


class Differentiating(nn.Module):
    """The PINN with its derivatives, by one of these ways; parameters are frozen."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.net, self.way = load_burgers().requires_grad_(False), way

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.way(self.net, x)


def torch_ways() -> dict[str, nn.Module]:
    """By name; the first is what most people write, the last what torch.compile takes."""
    ways = {"reverse over reverse": reverse, "jvp of jvp": by_jvp, "torch.func": functional_reverse}
    return {name: Differentiating(way) for name, way in ways.items()}
