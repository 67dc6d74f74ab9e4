"""Epilogues of streams on Triton's interpreter: every activation to the third order, against autograd in float64."""

from dataclasses import replace

import pytest
import torch

from hrt.derivatives.differentiate import differentiate
from hrt.kernels.derivative_streams import Streams, partitions
from hrt.kernels.launch import Config, TileList
from hrt.kernels.precisions import NAMES, epilogue_of
from hrt.kernels.reference import run_steps
from hrt.kernels.step_tables import NONE, StepTables
from hrt.program.program import Node, Program, Value

from step_cases import NO_EPILOGUE, OPS, exact_epilogue, random_tables, with_epilogue

MIXED = Streams(((), (0,), (1,), (0, 0), (0, 1), (0, 0, 1)))
SECOND = Streams(((), (0,), (1,), (0, 0)))
POSITIVE = ("log", "sqrt", "reciprocal")
CONFIG = Config("swapped", 16)


def identity_tables(epilogue) -> StepTables:
    """One tile of one step that takes columns 0 to 15 to columns 16 to 31 as they are, and applies its epilogue."""
    tiles = torch.tensor([[16, 16, 0, 1, NONE, 0]], dtype=torch.int32)
    steps = torch.tensor([[0, 16, 0, 0, NONE]], dtype=torch.int32)
    return StepTables(tiles, steps, (torch.eye(16).reshape(-1),), torch.zeros(0), 16, 16, 8)


def epilogue_alone(name, z, streams):
    """z (points, streams, 16) float32 to the epilogue's streams, the same shape."""
    epilogue = epilogue_of(*OPS[name])
    workspace = torch.zeros(len(z), streams.rows, 32)
    workspace[:, : z.shape[1], :16] = z
    launch = TileList.build(identity_tables(epilogue), [0], epilogue, 0, streams=streams)
    launch.run(workspace.view(-1, 32), CONFIG)
    return workspace[:, : z.shape[1], 16:]


def derivatives_of(name, v, order):
    """f, f', ... at v (float64), by autograd."""
    v = v.clone().requires_grad_()
    orders = [exact_epilogue(name, v)]
    for _ in range(order):
        last = orders[-1]
        orders.append(
            torch.autograd.grad(last.sum(), v, create_graph=True)[0] if last.requires_grad else torch.zeros_like(v)
        )
    return [f.detach() for f in orders]


def faa_di_bruno(f, z, streams):
    """Streams of f(z), and the sums of their terms' absolute values with every derivative of f larger by 1."""
    out, size = [f[0]], [f[0].abs() + 1]
    for index in streams.indices[1:]:
        terms = []
        for blocks, count in partitions(index).items():
            chain = torch.stack([z[:, streams.indices.index(b)] for b in blocks]).prod(0)
            terms.append((f[len(blocks)], count * chain))
        out.append(sum(d * c for d, c in terms))
        size.append(sum((d.abs() + 1) * c.abs() for d, c in terms))
    return torch.stack(out, 1), torch.stack(size, 1)


@pytest.mark.parametrize(("name", "streams"), [*((name, MIXED) for name in NAMES), ("tanh", SECOND)])
def test_every_activation(name, streams):
    """Each derivative of f within 32 units in the last place of its own size or of 1, whichever is larger: what a few
    operations and functions of a couple of ulps may lose; the sums and products behind it add little to that.
    """
    g = torch.Generator().manual_seed(len(name))
    z = torch.randn(9, len(streams.indices), 16, generator=g)
    z[:, 0] = torch.rand(9, 16, generator=g) * 2 + 0.5 if name in POSITIVE else z[:, 0] * 3
    f = derivatives_of(name, z[:, 0].double(), max(map(len, streams.indices)))
    expected, size = faa_di_bruno(f, z.double(), streams)
    error = (epilogue_alone(name, z, streams).double() - expected).abs()
    assert bool((error <= 32 * 2.0**-24 * size).all()), float((error / size).max() * 2.0**24)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "softplus", "mish"])
def test_slopes_keep_their_relative_accuracy_in_the_tails(name):
    """Where 1 - tanh(v)^2 has nothing left: the slope still is right to a few units in the last place."""
    z = torch.zeros(2, 2, 16)
    z[0, 0], z[1, 0] = torch.linspace(-30, -5, 16), torch.linspace(5, 30, 16)
    z[:, 1] = 1.0
    (_, slope) = derivatives_of(name, z[:, 0].double(), 1)
    keep = slope.abs() > 1e-30
    if name in ("tanh", "sigmoid"):  # autograd's own float64 forms y (1 - y) have lost all there
        v = z[:, 0].double()
        slope = 1 / (2 * torch.cosh(v / 2)) ** 2 if name == "sigmoid" else 1 / torch.cosh(v) ** 2
    found = epilogue_alone(name, z, Streams(((), (0,))))[:, 1].double()
    assert float(((found - slope).abs() / slope.abs())[keep].max()) <= 64 * 2.0**-24


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "elu", "clamp"])
def test_kinks_are_those_of_the_op_table(name):
    op, attrs = OPS[name]
    at = 0.5 if name == "clamp" else 0.0
    program = Program((Value("x", (1,)),), (Node("y", op, ("x",), (1,), attrs),), ("y",), {})
    expected = torch.stack(differentiate(program, ["d0", "d0d0"]).program.run([torch.full((1, 1), at)]), 1)
    z = torch.zeros(1, 3, 16)
    z[:, 0], z[:, 1] = at, 1.0
    found = epilogue_alone(name, z, Streams(((), (0,), (0, 0))))
    assert torch.allclose(found.double(), expected.expand(1, 3, 16), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["relu", "clamp", "neg", "elu", "tanh", "gelu_tanh", "mish", "softplus"])
def test_nan_stays_in_its_point(name):
    z = torch.rand(5, len(MIXED.indices), 16) + 0.25
    clean = epilogue_alone(name, z, MIXED)
    z[2, 0] = float("nan")
    found, others = epilogue_alone(name, z, MIXED), torch.arange(5) != 2
    assert bool(found[2, 0].isnan().all()) and torch.equal(found[others], clean[others])
    assert bool(found[2, 1:3].isnan().all()) == (name != "neg")


@pytest.mark.parametrize("seed", range(6))
def test_random_tables(seed):
    """Tiles with and without bias and activation, whole and cut along their steps: by the reference executor's sums."""
    form = ("swapped", "batch")[seed // 2 % 2]
    streams, storages = (SECOND, MIXED)[seed % 2], ((torch.float32,), (torch.int8, torch.float16))[seed % 3 > 0]
    tables, epilogue = random_tables(seed, storages, longest=14), epilogue_of("tanh", {})
    marked = with_epilogue(tables, epilogue)
    some = marked.tiles.clone()
    some[seed % len(some), 5] = NONE
    marked = replace(marked, tiles=some)
    points = (1, 5, 12)[seed % 3]
    start = torch.randn(points, streams.rows, 136, generator=torch.Generator().manual_seed(seed))
    start[:, len(streams.indices) :] = 0
    # The sums by the reference, in float64: with the bias for the value, without it for the derivatives.
    plain = with_epilogue(tables, NO_EPILOGUE)
    z, size = start.double(), start.double().abs()
    for at, t in ((slice(0, 1), plain), (slice(1, None), replace(plain, biases=torch.zeros_like(plain.biases)))):
        rows, absolute = z[:, at].reshape(-1, 136).clone(), size[:, at].reshape(-1, 136).clone()
        run_steps(rows, t, 0, len(t.tiles))
        run_steps(absolute, positive(t), 0, len(t.tiles))
        z[:, at], size[:, at] = rows.view(points, -1, 136), absolute.view(points, -1, 136)
    workspace = start.clone()
    launch = TileList.build(marked, range(len(marked.tiles)), epilogue, 8 * (seed % 2), streams=streams)
    launch.run(workspace.view(-1, 136), Config(form, 64 if form == "batch" else 16))
    terms = 16 * int((tables.tiles[:, 3] - tables.tiles[:, 2]).max()) + 4
    sums = z[:, : len(streams.indices)]
    moved = size[:, : len(streams.indices)] * terms * 2.0**-24  # what the sums may be off by
    for out, length, _, _, _, active in marked.tiles.tolist():
        at = slice(out, out + length)
        expected, allowed = sums[..., at], moved[..., at]
        if active != NONE:
            f = derivatives_of("tanh", sums[:, 0, at], max(map(len, streams.indices)))
            expected, size_of = faa_di_bruno(f, sums[..., at], streams)
            # |f^(m)| <= 8 up to the fourth: sums that are off move every product, and f^(m) by 8 times as much
            ones = [torch.ones_like(f[0])] * 4
            base = faa_di_bruno(ones, sums[..., at].abs(), streams)[0]
            reach = faa_di_bruno(ones, sums[..., at].abs() + moved[..., at], streams)[0]
            allowed = 8 * (reach - base) + 8 * moved[:, :1, at] * reach + 32 * 2.0**-24 * size_of
        error = (workspace[:, : len(streams.indices), at].double() - expected).abs()
        assert bool((error <= allowed + 2.0**-24 * expected.abs()).all()), float((error / allowed).max())
        assert not bool(workspace[:, len(streams.indices) :, at].any())


def positive(t: StepTables) -> StepTables:
    return replace(t, weights=tuple(w.abs() for w in t.weights), biases=t.biases.abs(), scales=t.scales.abs())


def test_what_would_part_a_point_is_refused():
    tables, epilogue = random_tables(3, (torch.float32,)), epilogue_of("tanh", {})
    launch = TileList.build(tables, [0], epilogue, 0, streams=SECOND)
    with pytest.raises(ValueError, match="multiples of the 4 rows of a point"):
        launch.run(torch.zeros(6, 136), CONFIG)
    with pytest.raises(ValueError, match="multiples of the 4 rows of a point"):
        launch.run(torch.zeros(8, 136), Config("row", 1))
