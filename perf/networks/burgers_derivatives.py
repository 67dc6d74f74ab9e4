"""u, u_x, u_t and u_xx of the Burgers PINN by torch's own ways, which hrt's derivatives are measured beside."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from hrt.perf.networks.burgers import load_burgers

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


def forward(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The same by jvp of jvp, and one more jvp for u_t."""
    along_x, along_t = torch.zeros_like(x), torch.zeros_like(x)
    along_x[:, 0], along_t[:, 1] = 1, 1
    (u, u_x), tangents = jvp(lambda z: jvp(net, (z,), (along_x,)), (x,), (along_x,))[:2]
    return u, u_x, jvp(net, (x,), (along_t,))[1], tangents[1]


class Differentiating(nn.Module):
    """The PINN with its derivatives, by one of these ways; parameters are frozen."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.net, self.way = load_burgers().requires_grad_(False), way

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """u, u_x, u_t, u_xx, each (batch, 1)."""
        return self.way(self.net, x)


def torch_ways() -> dict[str, nn.Module]:
    """By name; the first is what most people write, the last what torch.compile takes."""
    ways = {"reverse over reverse": reverse, "jvp of jvp": forward, "torch.func": functional_reverse}
    return {name: Differentiating(way) for name, way in ways.items()}
