"""Epilogues with functions that are off by all that a GPU's documentation allows (`approximations`), against what the
certificate and the card's tests assume. The comparison is printed as a table (-s).

`hrt.schedule.precision` leaves the functions' errors out: they have to be small beside the least rounding that it
counts, 2^-12 of float16.
"""

import pytest
import torch

from hrt.kernels.derivative_streams import Streams
from hrt.kernels.launch import Config, TileList
from hrt.kernels.precisions import NAMES, epilogue_of
from hrt.kernels.step_tables import NONE, StepTables

from approximations import approximated
from step_cases import OPS, exact_epilogue

LEFT_OUT = 2.0**-18  # a 64th of the least rounding that is counted
POSITIVE = ("log", "sqrt", "reciprocal")
THIRD = Streams(((), (0,), (0, 0), (0, 0, 0)))


def epilogue_alone(name, z, streams):
    """z (points, streams, 16) float32 to the epilogue's streams, the same shape."""
    epilogue = epilogue_of(*OPS[name])
    assert epilogue is not None
    tiles = torch.tensor([[16, 16, 0, 1, NONE, 0]], dtype=torch.int32)
    steps = torch.tensor([[0, 16, 0, 0, NONE]], dtype=torch.int32)
    tables = StepTables(tiles, steps, (torch.eye(16).reshape(-1),), torch.zeros(0), 16, 16, 8)
    workspace = torch.zeros(len(z), streams.rows, 32)
    workspace[:, : z.shape[1], :16] = z
    TileList.build(tables, [0], epilogue, 0, streams=streams).run(workspace.view(-1, 32), Config("swapped", 16))
    return workspace[:, : z.shape[1], 16:]


def arguments(name):
    """Where functions are used, and where they are hard: next to the changes of formula, far out, very small."""
    g = torch.Generator().manual_seed(NAMES.index(name))
    spread = torch.cat([torch.randn(60, generator=g) * s for s in (0.3, 1.0, 4.0)])
    edges = torch.tensor([s * v for s in (1.0, -1.0) for v in (0.5, 0.625, 1.0, 2.4, 8.0, 1e-3, 1e-6, 1e-30)])
    near = torch.cat([edges + k * 2.0**-24 for k in range(-2, 3)])
    v = torch.cat([spread, edges, near])
    v = v.abs() + 2.0**-6 if name in POSITIVE else v.clamp(-20, 20)
    return torch.nn.functional.pad(v, (0, -len(v) % 16), value=0.75)


def derivatives_of(name, v, order):
    v = v.clone().requires_grad_()
    orders = [exact_epilogue(name, v)]
    for _ in range(order):
        last = orders[-1]
        known = last.requires_grad
        orders.append(torch.autograd.grad(last.sum(), v, create_graph=True)[0] if known else torch.zeros_like(v))
    return [f.detach() for f in orders]


@pytest.mark.parametrize("name", NAMES)
def test_approximated_functions_err_less_than_is_assumed(name):
    """The value beside itself and what a rounded argument moves it by; derivatives beside their size or 1."""
    v = arguments(name)
    z = torch.zeros(len(v) // 16, 4, 16)
    z[:, 0], z[:, 1] = v.view(-1, 16), 1.0
    f = [d.view(-1, 16) for d in derivatives_of(name, v.double(), 3)]
    size = f[0].abs() + (v.double().view(-1, 16) * f[1]).abs()
    if name in ("gelu", "gelu_tanh"):
        size = size + v.double().view(-1, 16).abs()  # 1 + erf in the far tail keeps few digits, in torch too
    worst, others = 0.0, 0.0
    for seed in range(2):
        with approximated(seed):
            value = epilogue_alone(name, z[:, :1], Streams())[:, 0].double()
            streams = epilogue_alone(name, z, THIRD).double()
        worst = max(worst, float(((value - f[0]).abs() / size.clamp_min(1e-37)).max()))
        errors = [((streams[:, k] - f[k]).abs() / (f[k].abs() + 1)).max() for k in range(1, 4)]
        others = max(others, float(torch.stack(errors).nan_to_num(0.0).max()))
    row = f"value {worst * 2**24:5.1f}, derivatives {others * 2**24:5.1f} of {LEFT_OUT * 2**24:g} units of 2^-24"
    print(f"\n{name:12} {row}", end="")
    assert max(worst, others) <= LEFT_OUT
