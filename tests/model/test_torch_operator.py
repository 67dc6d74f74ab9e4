"""The network as one torch operator: opcheck, torch.export and torch.compile see one node and the same numbers."""

import pytest
import torch

import hrt
from hrt.model.torch_operator import predict, register_model

from models import mixed_model


@pytest.fixture(scope="module")
def model():
    return mixed_model()


def inputs_of(model, batch=4):
    g = torch.Generator().manual_seed(0)
    return tuple(torch.randn(batch, *v.shape, generator=g) for v in model.program.inputs)


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_opcheck(model, batch):
    key = register_model(model)
    torch.library.opcheck(predict, (list(inputs_of(model, batch)), key))


def test_the_module_predicts(model):
    x = inputs_of(model)
    found, expected = model.module()(*x), model.predict(x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_export_holds_one_node(model):
    x = inputs_of(model)
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = (tuple({0: batch} for _ in x),)
    exported = torch.export.export(model.module("exported"), x, dynamic_shapes=shapes)
    names = [str(n.target) for n in exported.graph.nodes if n.op == "call_function"]
    assert names[0] == "hrt.predict.default" and not any("linear" in n or "mm" in n for n in names)
    other = inputs_of(model, 7)
    found = exported.module()(*other)
    assert all(torch.equal(a, b) for a, b in zip(found, model.predict(other), strict=True))


def test_compile_sees_it_whole(model):
    module = model.module()
    compiled = torch.compile(lambda *x: module(*x)[0] * 2, backend="eager", fullgraph=True)
    x = inputs_of(model)
    assert torch.equal(compiled(*x), model.predict(x)[0] * 2)


def test_a_network_that_nobody_registered():
    with pytest.raises(hrt.InputError, match="No network is registered as 'nowhere'"):
        predict([torch.zeros(1, 2)], "nowhere")
