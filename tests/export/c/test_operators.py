"""Every row of the op table in C: answers are the table's own, for one row, a few and blocks, in both precisions."""

from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.errors import ExportError
from hrt.export.c.exporter import generate
from hrt.export.c.operators import EXPRESSIONS, LOWERINGS
from hrt.export.onnx.check import ROUNDING, TOLERANCE, relative
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
    in_c = set(TABLE) - {"carried"}  # an ONNX model, refused by name: test_outside.py
    assert {*EXPRESSIONS, *LOWERINGS, "linear", "reshape"} == in_c
    assert set(EXPRESSIONS) == {op.name for op in TABLE.values() if op.elementwise}
    assert {name for name, *_ in every_case()} == in_c


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
        ("-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all"),
    ],
    ids=lambda flags: flags[1],
)
def test_answers_are_the_tables_however_compiled(tmp_path: Path, double: bool, flags: tuple[str, ...]) -> None:
    check(*together(), tmp_path, double=double, flags=flags)


class Scaled(torch.nn.Module):
    """Constants that are broadcast along every axis, before and behind what is differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.shape = torch.nn.Linear(2, 60), (3, 4, 5)
        for k, shape in enumerate([(1, 2), (2,), (3, 4, 5), (1, 4, 1), (3, 1, 5), (5,), (1, 3, 4, 1), (1,), (4, 5)]):
            self.register_buffer(f"c{k}", torch.rand(shape) + 0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.tanh(self.inner((x - self.c1) * self.c0)).reshape(-1, *self.shape)
        y = torch.sin(h * self.c2 + self.c3) / self.c4 - self.c5
        z = (self.c6 - y) * h * self.c7
        return y, z @ self.c8.T, torch.exp(z * self.c6 * 0.1).sum(-1)


def test_constants_are_broadcast_beside_derivatives(tmp_path: Path) -> None:
    """Streams of d0 and d0d0 stand beside the value: a constant is the same to all of them, or not there at all."""
    program = capture(Scaled(), (torch.rand(4, 2),))
    derived = differentiate(program, ["d0", "d0d0"]).program
    assert {1, 2, 3} <= {len(program.constants[n].shape) for node in program.nodes for n in node.inputs if n[:1] == "c"}
    library = build(generate(program, "net", derived=derived), tmp_path, "-O0", "-DHRT_WIDTH=16")
    for rows in (1, 9, 40):
        x = 2 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(rows)) - 1
        answers = call(library, "net_derivatives", derived, [x])
        for y, exact, single in zip(answers, derived.run([x]), derived.run([x], dtype=torch.float32), strict=True):
            assert relative(y, exact.numpy()) <= max(TOLERANCE, ROUNDING * relative(single.numpy(), exact.numpy()))


def test_a_constant_where_a_value_must_be_is_named() -> None:
    nodes = (Node("s", "softmax", ("c",), (3,), {"axis": -1}), Node("y", "add", ("x", "s"), (3,), {}))
    program = Program((Value("x", (3,)),), nodes, ("y",), {"c": torch.ones(1, 3)})
    with pytest.raises(ExportError, match=r"Node s .* constant c"):
        generate(program, "net")
