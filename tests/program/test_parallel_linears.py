"""Parallel linear nodes as one node: the same numbers, in every runtime, and nothing that is not parallel."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hrt.hmatrix.hmatrix import HMatrix, relative_difference
from hrt.program.check_program import check_program
from hrt.program.parallel_linears import beside, joined
from hrt.program.program import Node, Program, Value
from hrt.runtime.backends import on_cpu, open_session
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.run_reference import execute

from helpers import MIXED, random_hmatrix

N, M, COUNT = 7, 5, 4


def matrices(seed, count=COUNT, shape=(M, N), **options):
    generator = np.random.default_rng(seed)
    return [random_hmatrix(generator, *shape, storages=MIXED, **options) for _ in range(count)]


def parallel(x_shape, axis, weights, spans, biases=()):
    """Slices of x along an axis, each times its weight, side by side, and a sine behind them."""
    nodes, parts = [], []
    for k, (w, span) in enumerate(zip(weights, spans, strict=True)):
        source, shape = "x", list(x_shape)
        if span is not None:
            shape[axis] = span[1] - span[0]
            source = f"s{k}"
            attrs = {"axis": axis, "start": span[0], "stop": span[1], "step": 1}
            nodes.append(Node(source, "slice", ("x",), tuple(shape), attrs))
        bias = [f"b{k}"] if k in biases else []
        parts.append((*shape[:-1], w.shape[0]))
        nodes.append(Node(f"p{k}", "linear", (source, f"w{k}", *bias), parts[-1], {}))
    total = list(parts[0])
    total[axis] = sum(p[axis] for p in parts)
    names = tuple(f"p{k}" for k in range(len(weights)))
    nodes.append(Node("y", "concat", names, tuple(total), {"axis": axis}))
    nodes.append(Node("z", "sin", ("y",), tuple(total), {}))
    constants = {f"w{k}": w for k, w in enumerate(weights)}
    constants |= {f"b{k}": torch.randn(weights[k].shape[0], dtype=torch.float32) for k in biases}
    return Program((Value("x", tuple(x_shape)),), tuple(nodes), ("z",), constants)


ROWS = [(k, k + 1) for k in range(COUNT)]
SIDE = [(k * N, (k + 1) * N) for k in range(COUNT)]
CASES = {
    "rows of a stack": parallel((3, COUNT, N), -2, matrices(0), ROWS),
    "rows of an outer axis": parallel((COUNT, 2, 3, N), -4, matrices(13), ROWS, biases=(1,)),
    "rows of a middle axis": parallel((2, COUNT, 3, N), -3, matrices(14), ROWS),
    "some rows, in another order": parallel((COUNT + 3, N), -2, matrices(1), [(5, 6), (0, 1), (2, 3), (6, 7)]),
    "one row twice": parallel((2, N), -2, matrices(2, 3, ordered=False), [(1, 2), (0, 1), (1, 2)]),
    "with some biases": parallel((COUNT, N), -2, matrices(3), ROWS, biases=(0, 2)),
    "slices side by side": parallel((COUNT * N,), -1, matrices(4), SIDE),
    "slices with gaps": parallel((3, COUNT * N + 9), -1, matrices(5, 2), [(3, 3 + N), (20, 20 + N)]),
    "the same value": parallel((N,), -1, matrices(6, ordered=False), [None] * COUNT, biases=range(COUNT)),
    "overlapping slices": parallel((2 * N,), -1, matrices(7, ordered=False), [(0, N), (2, 2 + N), (N, 2 * N), (1, 8)]),
    "unlike heights": parallel((2 * N,), -1, [*matrices(8, 1), *matrices(9, 1, (3, N))], [(0, N), (N, 2 * N)]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_product_takes_the_place_of_all(name):
    program = CASES[name]
    one = joined(program)
    check_program(one)
    assert len(one.linear_nodes) == 1 and one.outputs == program.outputs
    x = torch.randn(5, *program.inputs[0].shape, dtype=torch.float64)
    (expected,), (actual,) = program.run([x]), one.run([x])
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    (scheduled,) = execute(build_schedule(one), [x])
    torch.testing.assert_close(scheduled, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", on_cpu())
@pytest.mark.parametrize("name", ["rows of a stack", "with some biases", "slices with gaps", "the same value"])
def test_sessions_join_and_agree(name, backend):
    program = replace(CASES[name], nodes=CASES[name].nodes[:-1], outputs=("y",))
    x = torch.randn(6, *program.inputs[0].shape)
    (expected,), (actual,) = program.run([x]), open_session(program, backend).run([x])
    assert relative_difference(actual.double(), expected) < 1e-6


def test_stored_numbers_are_the_same_ones():
    weights = matrices(10)
    one = beside(weights, [k * N for k in range(COUNT)], COUNT * N)
    numbers = {t.data_ptr() for w in weights for leaf in w.leaves for t in leaf.tensors if t.numel()}
    assert {t.data_ptr() for leaf in one.leaves for t in leaf.tensors if t.numel()} == numbers
    dense = torch.block_diag(*(w.to_dense() for w in weights))
    assert torch.equal(one.to_dense(), dense)


def not_parallel(name):
    program = CASES["rows of a stack"]
    x = program.inputs
    if name == "a product is read elsewhere":
        return Program(x, program.nodes, ("z", "p1"), program.constants)
    if name == "a part is no product":
        other = Node("p1", "slice", ("s1",), (3, 1, M), {"axis": -1, "start": 0, "stop": M, "step": 1})
        return Program(x, tuple(other if n.name == "p1" else n for n in program.nodes), ("z",), program.constants)
    if name == "slices of two values":
        other = Node("o", "neg", ("x",), (3, COUNT, N), {})
        moved = [Node("s1", "slice", ("o",), n.shape, n.attrs) if n.name == "s1" else n for n in program.nodes]
        return Program(x, (other, *moved), ("z",), program.constants)
    weights = matrices(11, 2, ordered=True)
    return parallel((N,), -1, weights, [None, None])


@pytest.mark.parametrize(
    "name", ["a product is read elsewhere", "a part is no product", "slices of two values", "columns in two orders"]
)
def test_what_cannot_be_one_stays(name):
    program = not_parallel(name)
    assert joined(program) is program


def test_a_matrix_of_another_order_alone_is_still_joined():
    weights = [HMatrix.from_dense(torch.randn(M, N)), *matrices(12, 1)]
    assert len(joined(parallel((2 * N,), -1, weights, [(0, N), (N, 2 * N)])).linear_nodes) == 1
