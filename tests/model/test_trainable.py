"""A compressed network as a module: the same function, trained, and compressed again without losing its structure."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import hrt
from hrt.certificate.layer_records import block_ranks
from hrt.errors import InputError
from hrt.model.trainable import to_trainable
from hrt.perf.networks.operators import log_kernel
from hrt.program.op_table import Op
from hrt.program.program import Node, Program, Value

from helpers import hierarchical
from op_cases import ACTIVATIONS
from trained import inputs, made


@pytest.fixture(scope="module")
def model() -> hrt.CompressedModel:
    return hrt.compress(made(), inputs=inputs(), tol=1e-2, target="bytes", progress=False)


def test_it_is_the_same_function(model: hrt.CompressedModel) -> None:
    net, x = to_trainable(model, dtype=torch.float64), inputs(50).double()
    (expected,) = model.program.run([x])
    assert torch.allclose(net(x), expected, rtol=1e-11, atol=1e-11)
    x32 = x.float()
    assert torch.allclose(to_trainable(model)(x32), model.predict(x32), rtol=1e-4, atol=1e-5)


def test_what_is_a_parameter(model: hrt.CompressedModel) -> None:
    net = to_trainable(model)
    assert set(net.layers) == set(model.program.weights)
    assert {k for k in net.program.constants if net.is_parameter(k)} >= {"first.bias", "norm.weight", "norm.bias"}
    assert not net.is_parameter("mean")
    assert "fixed.mean" in dict(net.named_buffers())


def test_trains_and_saves(model: hrt.CompressedModel) -> None:
    net, x = to_trainable(model), inputs(64)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    target, losses = torch.sin(x[:, :2]), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    other = to_trainable(model)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))
    assert torch.equal(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def test_compress_takes_it_back(model: hrt.CompressedModel) -> None:
    net, tol = to_trainable(model), 1e-3
    again = hrt.compress(net, inputs=inputs(), tol=tol, target="bytes", progress=False)
    fresh = inputs(4000, 3) * 0.99
    expected = net(fresh).detach()
    assert float((again.predict(fresh) - expected).norm() / expected.norm()) <= tol
    assert again.nbytes < again.dense_nbytes == sum(4 * p.numel() for p in made().parameters()) + 4 * 4
    for name in model.program.weights:
        old, new = model.program.constants[name], again.program.constants[name]
        if not new.is_dense and not old.is_dense:
            ranks, before = block_ranks(new), block_ranks(old)
            assert set(ranks) <= set(before)
            assert all(ranks[place] <= before[place] for place in ranks)


def test_partition_and_orderings_of_an_operator_stay_without_inputs() -> None:
    layer = nn.Linear(256, 256)
    shuffled = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    layer.weight.data = torch.as_tensor(log_kernel(256)).float()[shuffled]
    model = hrt.compress(layer, tol=1e-4, target="bytes", progress=False)
    (name,) = model.program.weights
    old = model.program.constants[name]
    assert old.row_order is not None and len(block_ranks(old)) > 3
    again = hrt.compress(to_trainable(model), tol=1e-3, target="bytes", progress=False)
    new = again.program.constants[name]
    assert torch.equal(new.row_order, old.row_order)
    assert {e.place for e in new.leaves} == {e.place for e in old.leaves}
    assert new.error(old.to_dense()) <= 1e-3
    assert again.nbytes < model.nbytes


def test_nothing_is_ever_larger_than_dense() -> None:
    """Random blocks of full rank: a partition that does not pay ends up as an ordinary matrix."""
    program = hrt.compress(made(), tol=1e-6, storage="float32", progress=False).program
    net = to_trainable(hierarchical(program, depth=2, max_rank=40))
    again = hrt.compress(net, inputs=inputs(), tol=1e-5, storage="float32", target="bytes", progress=False)
    assert again.nbytes <= again.dense_nbytes


def test_modules_with_h_layers_among_others_keep_them_too(model: hrt.CompressedModel) -> None:
    net = made()
    partition = model.program.constants["second.weight"]
    net.second = hrt.HLinear.from_linear(net.second, partition=partition)  # type: ignore[assignment]
    again = hrt.compress(net, inputs=inputs(), tol=1e-3, target="bytes", progress=False)
    fresh = inputs(3000) * 0.99
    expected = net(fresh).detach()
    assert float((again.predict(fresh) - expected).norm() / expected.norm()) <= 1e-3
    new, old = block_ranks(again.program.constants["second.weight"]), block_ranks(partition)
    assert set(new) <= set(old) and all(new[place] <= old[place] for place in new)
    assert isinstance(net.second, hrt.HLinear)  # the user's module is as it was


def test_bad_input(model: hrt.CompressedModel) -> None:
    with pytest.raises(InputError, match="CompressedModel"):
        to_trainable(made())  # type: ignore[arg-type]
    net = to_trainable(model)
    with pytest.raises(InputError, match="shape"):
        net(torch.zeros(2, 4))
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        hrt.compress(net, inputs=inputs(), progress=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"])
@pytest.mark.parametrize("op, attrs", ACTIVATIONS)
def test_it_can_be_copied_and_pickled_with_every_activation(
    op: Op, attrs: dict[str, Any], again: Callable[[Any], Any]
) -> None:
    nodes = (Node("h", "linear", ("x", "w"), (4,), {}), Node("y", op.name, ("h",), (4,), attrs))
    net = to_trainable(Program((Value("x", (3,)),), nodes, ("y",), {"w": torch.rand(4, 3)}))
    x = torch.rand(5, 3) + 0.1
    net(x).sum().backward()
    other = again(net)
    torch.testing.assert_close(other(x), net(x), rtol=0, atol=0, equal_nan=True)  # NaN where an op has no value
    assert other.to_program().nodes == net.to_program().nodes
    other(x).sum().backward()


def test_a_copy_of_compressed_layers_is_trained_apart(model: hrt.CompressedModel) -> None:
    net, x = to_trainable(model), inputs(8)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x)) and other.layers.keys() == net.layers.keys()
        with torch.no_grad():
            for p in other.parameters():
                p += 1.0
        assert not torch.equal(other(x), net(x))
