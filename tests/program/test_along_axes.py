"""Transforms along an axis in place: the same numbers, fewer transposes, whatever stands around them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.along_axes import View, along_axes
from hrt.program.check_program import check_program
from hrt.program.generated import Recipe
from hrt.program.program import Node, Program, Value

SIZES = (1, 2, 3, 4, 6, 8, 12)


def transform(n: int, m: int) -> Recipe:
    """A generated matrix (2 m, n)."""
    return Recipe(max(n, m), -1, 0, False, ((0, m),), ((0, n),), (0,), False)


def shapes_of(size: int, draw) -> tuple[int, ...]:
    """Some dimensions of so many numbers together."""
    shape = []
    while size > 1 and len(shape) < 4:
        part = draw(st.sampled_from([d for d in range(2, size + 1) if size % d == 0]))
        shape.append(part)
        size //= part
    shape += [size] if size > 1 else []
    return tuple(draw(st.permutations(shape + [1] * draw(st.integers(0, 1))))) or (1,)


@st.composite
def programs(draw) -> Program:
    """Chains of reshapes, transposes, transforms, products with a stored weight and sines; some values are outputs."""
    shape = tuple(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=3)))
    x, nodes, constants, recipes = Value("x", shape), [], {}, {}
    name, values = "x", {"x": shape}
    for k in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["reshape", "transpose", "transpose", "generated", "generated", "stored", "sin"]))
        inputs, attrs, made = (name,), {}, shape
        if kind == "reshape":
            made = shapes_of(math.prod(shape), draw)
            attrs = {"shape": list(made)}
        elif kind == "transpose":
            order = draw(st.permutations(range(len(shape))))
            made, attrs = tuple(shape[a] for a in order), {"axes": [a - len(shape) for a in order]}
        elif kind == "generated":
            m = draw(st.integers(1, 3))
            recipes[f"g{k}"] = transform(shape[-1], m)
            constants[f"g{k}"] = recipes[f"g{k}"].matrix()
            inputs, made = (name, f"g{k}"), (*shape[:-1], 2 * m)
        elif kind == "stored":
            constants[f"w{k}"] = HMatrix.from_dense(torch.randn(5, shape[-1], dtype=torch.float32))
            inputs, made = (name, f"w{k}"), (*shape[:-1], 5)
        nodes.append(Node(f"v{k}", "linear" if kind in ("generated", "stored") else kind, inputs, made, attrs))
        name, shape = f"v{k}", made
        values[name] = shape
        if draw(st.integers(0, 4)) == 0:  # go on from somewhere else
            name = draw(st.sampled_from(sorted(values)))
            shape = values[name]
    outputs = {name, nodes[-1].name, *draw(st.lists(st.sampled_from([n.name for n in nodes]), max_size=2))} - {"x"}
    program = Program((x,), tuple(nodes), tuple(sorted(outputs)), constants, recipes)
    return program.simplified()


@settings(max_examples=60, deadline=None)
@given(programs())
def test_the_answers_are_the_same(program):
    changed = along_axes(program)
    check_program(changed)
    x = [torch.randn(3, *v.shape, dtype=torch.float64) for v in program.inputs]
    for a, b in zip(program.run(x), changed.run(x), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, rtol=1e-12, atol=1e-12 * float(a.abs().amax() + 1))
    assert changed.outputs == program.outputs and changed.generated.keys() <= program.generated.keys()


def spectral(points: int = 16, channels: int = 8, modes: int = 3) -> Program:
    """Channels behind points; there and back, between them a weight on (part, mode, channel)."""
    there = Recipe(points, -1, 0, False, ((0, modes),), ((0, points),), (0,), False)
    back = Recipe(points, 1, 2, True, ((0, points),), ((0, modes),), (0, 1), True)
    steps = [
        ("transpose", (), (channels, points), {"axes": [-1, -2]}),
        ("linear", ("there",), (channels, 2 * modes), {}),
        ("reshape", (), (channels, 2, modes), {"shape": [channels, 2, modes]}),
        ("transpose", (), (2, modes, channels), {"axes": [-2, -1, -3]}),
        ("reshape", (), (2, modes * channels), {"shape": [2, modes * channels]}),
        ("linear", ("weight",), (2, modes * channels), {}),
        ("reshape", (), (2, modes, channels), {"shape": [2, modes, channels]}),
        ("transpose", (), (channels, 2, modes), {"axes": [-1, -3, -2]}),
        ("reshape", (), (channels, 2 * modes), {"shape": [channels, 2 * modes]}),
        ("linear", ("back",), (channels, points), {}),
        ("transpose", (), (points, channels), {"axes": [-1, -2]}),
        ("tanh", (), (points, channels), {}),
    ]
    nodes, name = [], "x"
    for k, (op, more, shape, attrs) in enumerate(steps):
        nodes.append(Node(f"v{k}", op, (name, *more), shape, attrs))
        name = f"v{k}"
    weight = HMatrix.from_dense(torch.arange(24.0**2).reshape(24, 24) / 99)
    constants = {"there": there.matrix(), "weight": weight, "back": back.matrix()}
    recipes = {"there": there, "back": back}
    return Program((Value("x", (points, channels)),), tuple(nodes), (name,), constants, recipes)


def test_a_spectral_layer_has_no_transpose_left():
    program = spectral()
    changed = along_axes(program)
    assert [n.op for n in changed.nodes] == ["matmul", "reshape", "linear", "reshape", "matmul", "tanh"]
    assert all(n.op != "transpose" for n in changed.nodes)
    x = [torch.randn(4, 16, 8, dtype=torch.float64)]
    torch.testing.assert_close(changed.run(x), program.run(x), rtol=1e-12, atol=1e-12)


def test_columns_follow_the_memory_and_one_matrix_serves_all_layers():
    """The weight gives modes before parts; the matrix back has them the other way round."""
    program = spectral()
    nodes = list(program.nodes)
    nodes[6] = Node("v6", "reshape", ("v5",), (3, 2, 8), {"shape": [3, 2, 8]})
    nodes[7] = Node("v7", "transpose", ("v6",), (8, 2, 3), {"axes": [-1, -2, -3]})
    mixed = Program(program.inputs, tuple(nodes), program.outputs, program.constants, program.generated)
    changed = along_axes(mixed)
    x = [torch.randn(4, 16, 8, dtype=torch.float64)]
    torch.testing.assert_close(changed.run(x), mixed.run(x), rtol=1e-12, atol=1e-12)
    assert len(changed.constants) == 3 and all(n.op != "transpose" for n in changed.nodes)


@pytest.mark.parametrize("shape", [(16, 2), (16,), (3, 16)])
def test_what_gains_nothing_stays_as_it_is(shape):
    """Few numbers behind the axis, or none: the product along the last axis is one for all rows."""
    recipe = transform(16, 3)
    moved = shape[::-1]
    axes = list(range(-1, -1 - len(shape), -1))
    last = moved[-1] if moved[-1] == 16 else shape[-1]
    value, source = (moved, "t") if moved[-1] == 16 else (shape, "x")
    nodes = (
        Node("t", "transpose", ("x",), moved, {"axes": axes}),
        Node("y", "linear", (source, "g"), (*value[:-1], 6), {}),
        Node("z", "sin", ("y",), (*value[:-1], 6), {}),
    )
    program = Program((Value("x", shape),), nodes, ("z", "t"), {"g": recipe.matrix()}, {"g": recipe})
    assert last == 16 and along_axes(program) is program


def test_a_view_is_cut_only_where_dimensions_meet():
    view = View.whole("x", (6, 1, 4))
    assert view.sizes == (6, 4) and view.cut((2, 12)) is not None and view.cut((4, 6)) is None
    assert view.cut((0, 4)) is None and view.cut((24,)) == view
    assert view.transposed((6, 1, 4), [-1, -2, -3]).merged() == View("x", (6, 4), (1, 0))
