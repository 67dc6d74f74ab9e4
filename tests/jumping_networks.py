"""Networks whose values jump, one of every kind, with weights that compress: python tests/jumping_networks.py [COUNT].

Prints for every network its error on fresh rows over the tolerance.
"""

import sys
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrt

TOL = 1e-2
FRESH = 20_000
ROWS = (200, 400, 1000, 4000)


class Jumping(nn.Module):
    """Two tanh layers; `kind` says what becomes of their four outputs z (rows, 4) and of heads on the last layer."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)
        self.kind, self.inputs = KINDS[kind], self.whole(3, 7)
        width = self.whole(16, 49)
        self.first, self.second, self.z = self.layer(self.inputs, width), self.layer(width, width), self.layer(width, 4)
        self.heads = nn.ModuleList([self.layer(width, 3) for _ in range(4)])
        self.table = nn.Parameter(torch.randn(4, 3, generator=self.generator))

    def whole(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=self.generator))

    def layer(self, inputs: int, outputs: int) -> nn.Linear:
        """One whose singular values fall."""
        g, layer = self.generator, nn.Linear(inputs, outputs)
        u, s, v = torch.linalg.svd(torch.randn(outputs, inputs, generator=g), full_matrices=False)
        s = torch.exp(-torch.arange(len(s)) * float(torch.rand(1, generator=g)) * 0.6)
        with torch.no_grad():
            layer.weight.copy_((u * s) @ v * 2)
            layer.bias.copy_(torch.randn(outputs, generator=g) * 0.3)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.kind(self, y, self.z(y))


def one_hot(z: Tensor) -> Tensor:
    return F.one_hot(z.argmax(-1), 4).float()


def chain(net: Jumping, y: Tensor, z: Tensor) -> Tensor:
    mask = (z > 0.2).float()
    return torch.atan2(net.heads[0](y)[:, :2] + mask[:, :2], net.heads[1](y)[:, :2] - mask[:, 2:])


KINDS: dict[str, Callable[[Jumping, Tensor, Tensor], Tensor]] = {
    "atan2": lambda net, y, z: torch.atan2(z[:, :2], z[:, 2:]),
    "one_hot": lambda net, y, z: one_hot(z) @ net.table,
    "step": lambda net, y, z: net.heads[0](y) * (z[:, :1] > 0) + 0.1 * z[:, 1:],
    "floor": lambda net, y, z: torch.floor(3 * z) + 0.2 * z,
    "round": lambda net, y, z: torch.round(2 * z),
    "fmod": lambda net, y, z: torch.fmod(5 * z, 1.0),
    "route": lambda net, y, z: (torch.stack([e(y) for e in net.heads], -1) * one_hot(z)[:, None]).sum(-1),
    "sign": lambda net, y, z: torch.sign(z),
    "saturated": lambda net, y, z: torch.tanh(200 * z),
    "chain": chain,
}


def error_over_tol(kind: str, seed: int, tol: float = TOL) -> tuple[float, hrt.CompressedModel]:
    """On fresh rows, of a network compressed by some hundreds or thousands of rows."""
    net, g = Jumping(kind, seed).eval(), torch.Generator().manual_seed(1000 + seed)
    x, fresh = (torch.randn(n, net.inputs, generator=g) for n in (ROWS[seed % 4], FRESH))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hrt.compress(net, inputs=x, tol=tol, progress=False)
    exact = net(fresh).detach().double()
    return float((model.predict(fresh).double() - exact).norm() / exact.norm()) / tol, model


if __name__ == "__main__":
    over = 0
    for k in range(int(sys.argv[1]) if len(sys.argv) > 1 else 30):
        name = list(KINDS)[k % len(KINDS)]
        error, model = error_over_tol(name, k)
        over += error > 1
        limit = model.certificate.estimated["output_error_upper_99"] / TOL
        print(f"{k:3d} {name:9s} {error:5.2f} of tol, limit {limit:4.2f}, {model.dense_nbytes / model.nbytes:5.2f}x")
    print(f"{over} exceed tol")
