"""Convolutions and products over channels, whose rows are read and written where they are."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hrt.export.c.exporter import generate
from hrt.export.c.layout.workspace import plan
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value

from compiled import build, call

# Steps along the last axis that end within, with and behind a block of 32; windows that leave the image on every side.
WINDOWS = [
    ((3, 7, 9), {"kernel": [3, 3], "stride": [1, 1], "dilation": [1, 1], "padding": [1, 1, 1, 1]}),
    ((2, 6, 40), {"kernel": [2, 5], "stride": [2, 1], "dilation": [3, 2], "padding": [0, 3, 3, 5]}),
    ((2, 5, 71), {"kernel": [1, 4], "stride": [1, 3], "dilation": [1, 2], "padding": [0, 7, 0, 0]}),
    ((4, 64), {"kernel": [3], "stride": [1], "dilation": [1], "padding": [1, 1]}),
    ((2, 3, 4, 5), {"kernel": [2, 2, 2], "stride": [1, 2, 1], "dilation": [1, 1, 2], "padding": [1, 0, 1, 1, 0, 1]}),
]


def program() -> tuple[Program, list[torch.Tensor]]:
    """Every window with and without its channels in front; products over channels, one whose rows others read too and
    one behind another.
    """
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator).add(0.5)

    values, nodes, constants, rows, outputs = [], [], {}, [], []

    def node(name: str, op: str, inputs: tuple[str, ...], attrs: dict) -> str:
        shapes = {v.name: v.shape for v in (*values, *nodes)}
        arguments = [torch.empty(1, *shapes[k]) if k in shapes else constants[k] for k in inputs]
        shape = tuple(TABLE[op].torch(arguments, attrs).shape[1:])
        nodes.append(Node(name, op, inputs, shape, attrs))
        return name

    for k, (shape, window) in enumerate(WINDOWS):
        values.append(Value(f"x{k}", shape))
        rows.append(some(5, *shape).double())
        patched = node(f"p{k}", "patches", (f"x{k}",), window)
        n = nodes[-1].shape[-1]
        constants |= {f"w{k}": some(6, n), f"b{k}": some(6)}
        product = node(f"l{k}", "linear", (patched, f"w{k}", f"b{k}"), {})
        rank = len(nodes[-1].shape)
        turned = node(f"t{k}", "transpose", (product,), {"axes": [-1, *range(-rank, -1)]})
        outputs += [turned] if k % 2 else [turned, product]  # what others read too is stored
    for k, axes in enumerate(([-2, -1, -3], [-1, -2, -3])):
        last = node(f"c{k}", "transpose", ("x0",), {"axes": axes})
        constants[f"v{k}"] = some(17, 3)
        outputs.append(node(f"m{k}", "linear", (last, f"v{k}"), {}))
    outputs.append(node("again", "neg", ("c1",), {}))
    values.append(Value("y", (12, 4)))
    rows.append(some(5, 12, 4).double())
    constants |= {"first": some(10, 4), "second": some(12, 12)}
    between = node("turned", "transpose", (node("before", "linear", ("y", "first"), {}),), {"axes": [-1, -2]})
    outputs.append(node("back", "transpose", (node("after", "linear", (between, "second"), {}),), {"axes": [-1, -2]}))
    return Program(tuple(values), tuple(nodes), tuple(outputs), constants), rows


def test_rows_that_nobody_else_reads_are_not_stored() -> None:
    inside = plan(program()[0]).inside
    assert {"p0", "p1", "p2", "p3", "p4", "l1", "l3", "c0"} <= inside
    assert not {"l0", "l2", "l4", "c1", "t1"} & inside


def test_a_step_has_products_with_one_weight() -> None:
    """A product whose rows are turned, and one that reads them turned, are two steps: they were one."""
    for step in plan(program()[0]).steps:
        assert len({node.inputs[1] for node in step if node.op == "linear"}) <= 1


@pytest.mark.parametrize("double", [False, True])
def test_answers_are_those_of_the_table(tmp_path: Path, double: bool) -> None:
    """Sums of n positive terms, each rounded n / 2 times at most."""
    network, rows = program()
    library = build(generate(network, "net", precision="float64" if double else "float32"), tmp_path, "-O0")
    eps = 2.0**-52 if double else 2.0**-23
    for count in (1, 5, 40):
        x = [v[torch.arange(count) % 5] for v in rows]
        for y, expected in zip(
            call(library, "net", network, x, np.float64 if double else np.float32), network.run(x), strict=True
        ):
            assert (np.abs(y - expected.numpy()) <= 36 / 2 * eps * np.abs(expected.numpy())).all()
