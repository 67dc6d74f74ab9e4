"""Every row of the op table in C: answers are the table's own, for one row, a few and blocks, in both precisions."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from hrt.errors import ExportError
from hrt.export.c.exporter import generate
from hrt.export.c.operators import EXPRESSIONS, LOWERINGS
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value

from c_cases import every_case, together
from compiled import build, call


def check(program: Program, inputs: list[torch.Tensor], folder: Path, *, double: bool, flags: tuple[str, ...]) -> None:
    """A function errs by 5 units in the last place at most (kernels/native/accuracy.csv), a sum of n terms by n / 2; in
    float64 torch does too.
    """
    dtype, eps = (np.float64, 2 * 2.0**-52) if double else (np.float32, 2.0**-23)
    library = build(generate(program, "all", precision="float64" if double else "float32"), folder, *flags)
    sizes = {v.name: prod(v.shape) for v in program.inputs}
    for rows in (1, 7, 100):
        x = [v[torch.arange(rows) % 5] for v in inputs]
        for node, y, expected in zip(
            program.nodes, call(library, "all", program, x, dtype), program.run(x), strict=True
        ):
            wanted = expected.numpy()
            terms = 1 if node.row.elementwise else sizes.get(node.inputs[0], 1)
            power = abs(node.attrs["exponent"]) if node.op == "power" else 0
            size = np.abs(wanted) + np.abs(wanted).mean()
            worst = float((np.abs(y - wanted) / size).max()) / eps
            assert worst <= 5 + (terms + power) / 2, (node.op, node.attrs, node.shape, rows, worst)


def test_every_row_has_a_lowering_and_no_other() -> None:
    assert {*EXPRESSIONS, *LOWERINGS, "linear", "reshape"} == set(TABLE)
    assert set(EXPRESSIONS) == {op.name for op in TABLE.values() if op.elementwise}
    assert {name for name, *_ in every_case()} == set(TABLE)


def test_answers_are_the_tables(tmp_path: Path) -> None:
    """As plain C99, which compiles in seconds; the vectors of every width are the slow test's."""
    check(*together(), tmp_path, double=False, flags=("-O0", "-DHRT_WIDTH=0"))


@pytest.mark.slow
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(
    "flags",
    [
        ("-O3", "-march=native"),
        ("-O0", "-DHRT_WIDTH=16"),
        ("-O2", "-DHRT_WIDTH=0"),
        ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
    ],
    ids=lambda flags: flags[1],
)
def test_answers_are_the_tables_however_compiled(tmp_path: Path, double: bool, flags: tuple[str, ...]) -> None:
    check(*together(), tmp_path, double=double, flags=flags)


def test_a_constant_where_a_value_must_be_is_named() -> None:
    nodes = (Node("s", "softmax", ("c",), (3,), {"axis": -1}), Node("y", "add", ("x", "s"), (3,), {}))
    program = Program((Value("x", (3,)),), nodes, ("y",), {"c": torch.ones(1, 3)})
    with pytest.raises(ExportError, match=r"Node s .* constant c"):
        generate(program, "net")
