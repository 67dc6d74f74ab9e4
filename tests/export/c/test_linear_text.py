"""Products in C: random H-matrices of every storage type and shape, against what float32 sums may err by."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.export.c.exporter import generate
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.program.program import Node, Program, Value

from compiled import build, call
from models import allowed, any_hmatrix

LAYERS = st.lists(
    st.tuples(
        st.integers(0, 2**20),  # seed
        st.integers(1, 90),  # outputs
        st.integers(1, 90),  # inputs
        st.sampled_from([(), (1,), (3,), (2, 2), (11,), (37,)]),  # leading axes: streams, and rows that become lanes
        st.booleans(),  # bias
        st.booleans(),  # a second node on the same weight
        st.integers(0, 5),  # depth of the partition: few blocks are straight-line code, many a table
    ),
    min_size=6,
    max_size=6,
)


def program_of(layers) -> Program:
    inputs, nodes, constants, outputs = [], [], {}, []
    for k, (seed, m, n, lead, has_bias, twice, depth) in enumerate(layers):
        constants[f"w{k}"] = any_hmatrix(seed, m, n, depth=depth)
        bias = (f"b{k}",) if has_bias else ()
        constants |= {name: torch.randn(m, generator=torch.Generator().manual_seed(seed)) for name in bias}
        for j in range(1 + twice):
            inputs.append(Value(f"x{k}_{j}", (*lead, n)))
            arguments = (f"x{k}_{j}", f"w{k}", *(bias if j == 0 else ()))
            nodes.append(Node(f"y{k}_{j}", "linear", arguments, (*lead, m), {}))
            outputs.append(f"y{k}_{j}")
    return Program(tuple(inputs), tuple(nodes), tuple(outputs), constants)


def check(program: Program, rows: int, library, name: str = "net") -> None:
    generator = torch.Generator().manual_seed(rows)
    x = [torch.randn(rows, *v.shape, generator=generator) for v in program.inputs]
    for node, given_rows, y in zip(program.nodes, x, call(library, name, program, x), strict=True):
        weight, flat = program.constants[node.inputs[1]], given_rows.reshape(-1, given_rows.shape[-1])
        bias = program.constants[node.inputs[2]].double() if len(node.inputs) > 2 else torch.zeros(())
        exact = flat.double() @ weight.to_dense().T + bias
        limit = allowed(flat, weight) + 4 * torch.finfo(torch.float32).eps * bias.abs()
        assert ((torch.from_numpy(y).reshape(exact.shape) - exact).abs() <= limit).all(), (node, rows)


@settings(max_examples=1)
@given(LAYERS)
def test_products_err_no_more_than_sums_of_float32(layers) -> None:
    program = program_of(layers)
    with tempfile.TemporaryDirectory() as folder:
        library = build(generate(program, "net"), Path(folder), "-O1", "-march=native")
        for rows in (1, 12, 40):
            check(program, rows, library)


@pytest.mark.slow
@settings(max_examples=6)
@given(
    LAYERS,
    st.sampled_from(
        [
            ("-O3", "-march=native"),
            ("-O2",),
            ("-O2", "-mavx2", "-mfma", "-mf16c"),
            ("-O0", "-DHRT_WIDTH=0", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
        ]
    ),
    st.sampled_from(["gcc", "clang"]),
)
def test_products_however_compiled(layers, flags: tuple[str, ...], cc: str) -> None:
    program = program_of(layers)
    with tempfile.TemporaryDirectory() as folder:
        library = build(generate(program, "net"), Path(folder), *flags, cc=cc)
        for rows in (1, 12, 40):
            check(program, rows, library)


def test_a_block_that_ends_inside_a_vector_reads_nothing_behind_it(tmp_path) -> None:
    """Numbers behind the input are NaN in memory: a low-rank block must not multiply them, not even by zero."""
    parts = {"u": torch.ones(5, 2), "vt": torch.ones(2, 19)}
    h = HMatrix((5, 37), (Leaf(0, 5, 0, 18, dense=torch.ones(5, 18)), Leaf(0, 5, 18, 19, **parts)))
    nodes = (Node("y", "linear", ("x", "w"), (5,), {}), Node("z", "linear", ("x", "w"), (5,), {}))
    program = Program((Value("x", (37,)),), nodes, ("y", "z"), {"w": h})
    library = build(generate(program, "net"), tmp_path)
    x = torch.ones(1, 37)
    for y in call(library, "net", program, [x]):
        assert (torch.from_numpy(y) == 18 + 38).all()
