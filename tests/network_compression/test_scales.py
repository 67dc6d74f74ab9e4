"""Inputs and outputs in other units: powers of two change no choice and no byte of a network."""

import pytest
import torch
from torch import nn

import hrt

from zoo import mlp

ROWS = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
TOL = 3e-3


def compressed(inward, outward):
    """An MLP whose inputs come in units of 2^-inward and whose outputs leave in units of 2^-outward."""
    torch.manual_seed(0)
    net = mlp(3, 32, 24, 2)
    with torch.no_grad():
        net[0].weight.mul_(2.0**-inward)
        for p in (net[-1].weight, net[-1].bias):
            p.mul_(2.0**outward)
    x = ROWS * 2.0**inward
    model = hrt.compress(net, inputs=x, tol=TOL, target="bytes", progress=False)
    y = net.double()(x.double()).detach()
    assert float((model.predict(x).double() - y).norm() / y.norm()) <= TOL
    return model


def structures(model):
    return [(r.structure, r.nbytes) for r in model.certificate.layers]


@pytest.fixture(scope="module")
def plain():
    return compressed(0, 0)


@pytest.mark.parametrize(("inward", "outward"), [(5, -5), (-6, 7)])
def test_units_change_no_byte(plain, inward, outward):
    model = compressed(inward, outward)
    assert structures(model) == structures(plain) and model.nbytes == plain.nbytes


@pytest.mark.parametrize(("inward", "outward"), [(-66, 66), (66, -66)])
def test_units_beyond_float16_take_little_more(plain, inward, outward):
    """1e-20 and 1e20: layers and biases that float16 cannot hold are in other types."""
    assert compressed(inward, outward).nbytes <= 1.2 * plain.nbytes


def test_units_of_one_layer_alone():
    """Of a single matrix, held to its own norm."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    sizes = []
    for exponent in (0, 3, -70, 70):
        scaled = nn.Linear(64, 64)
        scaled.load_state_dict({k: v * 2.0**exponent for k, v in layer.state_dict().items()})
        sizes.append(hrt.compress(scaled, tol=1e-2, storage="bfloat16", progress=False).nbytes)
    assert len(set(sizes)) == 1
