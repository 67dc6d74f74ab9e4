"""Whether a program from a file is one: as strict as running it without numbers, and without torch's compiler."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.check_program import check_program
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value

from helpers import hierarchical
from models import mixed_model
from op_cases import ACTIVATIONS, CASES, A, program_of
from zoo import ZOO, captured, mlp

ALONE = [(op, arguments, attrs) for op, arguments, attrs, _ in CASES]
ALONE += [(p.values[0].name, (A,), p.values[1]) for p in ACTIVATIONS]

VALUES = ("x", None, [1, 2], {}, -1, 0, 2**40, 1.5)


def run_it(program: Program) -> None:
    """The oracle: every op of the table on tensors without numbers."""
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}

    def check(names, values) -> None:
        wrong = [k for k, v in zip(names, values, strict=True) if k in shapes and tuple(v.shape) != (2, *shapes[k])]
        if wrong:
            raise ValueError(wrong)

    def check_arguments(node, arguments) -> None:
        others = [k for i, k in enumerate(node.inputs) if i != 1 or node.op != "linear"]
        if any(isinstance(program.constants.get(k), HMatrix) for k in others):
            raise TypeError(node.name)
        check(node.inputs, arguments)

    without = {k: torch.empty(c.shape, device="meta") for k, c in program.constants.items()}
    inputs = [torch.empty(2, *v.shape, device="meta") for v in program.inputs]
    with torch.no_grad():
        check(program.outputs, program.run(inputs, dtype=torch.float32, observe=check_arguments, constants=without))


def accepts(check, program: Program) -> bool:
    try:
        check(program)
    except Exception:
        return False
    return True


def changed(program: Program, chance: random.Random) -> Program | None:
    """One node with another shape, attribute or argument; None where that is no Program at all."""
    k = chance.randrange(len(program.nodes))
    node = program.nodes[k]
    kind = chance.choice(["shape", "attrs", "inputs"])
    if kind == "attrs" and node.attrs:
        key = chance.choice(list(node.attrs))
        attrs = {**node.attrs, key: chance.choice(VALUES)}
        if chance.random() < 0.3:
            del attrs[key]
        other = replace(node, attrs=attrs)
    elif kind == "inputs":
        names = [*(v.name for v in program.inputs), *program.constants, *(n.name for n in program.nodes[:k])]
        inputs = list(node.inputs)
        inputs[chance.randrange(len(inputs))] = chance.choice(names)
        other = replace(node, inputs=tuple(inputs))
    else:
        shape = list(node.shape)
        if shape and chance.random() < 0.7:
            shape[chance.randrange(len(shape))] += chance.choice([-1, 1, 2**40])
        else:
            shape = shape[1:] if shape and chance.random() < 0.5 else [*shape, 1]
        other = replace(node, shape=tuple(shape))
    try:
        return replace(program, nodes=(*program.nodes[:k], other, *program.nodes[k + 1 :]))
    except (hrt.HrtError, TypeError, AttributeError):
        return None


@pytest.mark.parametrize("name", sorted(ZOO))
def test_as_strict_as_running_it(name: str) -> None:
    plain = captured(name)
    chance, refused = random.Random(name), 0
    for program in (plain, hierarchical(plain, seed=1)):
        assert accepts(check_program, program) and accepts(run_it, program)
        for _ in range(8):
            other = changed(program, chance)
            if other is not None and not accepts(run_it, other):
                refused += 1
                assert not accepts(check_program, other), other.nodes
    assert refused or not plain.nodes


@pytest.mark.parametrize(("op", "arguments", "attrs"), ALONE, ids=[f"{n}-{k}" for k, (n, *_) in enumerate(ALONE)])
def test_as_strict_as_running_one_op(op, arguments, attrs) -> None:
    program, _ = program_of((op, arguments, attrs))
    chance = random.Random(op)
    assert accepts(check_program, program) and accepts(run_it, program)
    for _ in range(12):
        other = changed(program, chance)
        if other is not None and not accepts(run_it, other):
            assert not accepts(check_program, other), other.nodes


def test_every_op_is_changed_in_some_program() -> None:
    of_zoo = {n.op for name in ZOO for n in captured(name).nodes}
    assert of_zoo | {op for op, *_ in ALONE} == set(TABLE)


@pytest.mark.parametrize("index", [[0.0, 3.0], [-1.0], [0.5], [[0.0, 1.0]]])
def test_indices_that_reach_outside_are_refused(index: list) -> None:
    node, constants = Node("y", "gather", ("x", "i"), (len(index),), {"axis": -1}), {"i": torch.tensor(index)}
    program = Program((Value("x", (3,)),), (node,), ("y",), constants)
    assert not accepts(check_program, program)
    assert accepts(check_program, program.with_constants({"i": torch.zeros(len(index))})) == (len(index) < 3)


def test_indices_are_no_values() -> None:
    nodes = (Node("y", "gather", ("x", "x"), (3,), {"axis": -1}),)
    assert not accepts(check_program, Program((Value("x", (3,)),), nodes, ("y",), {}))


def test_what_gives_derivatives_is_accepted() -> None:
    check_program(mixed_model().differentiated(["d0", "d0d0"]).program)


def test_every_elementwise_op_is_marked() -> None:
    marked = {op.name for op in TABLE.values() if op.elementwise}
    unary = {op.name for op in TABLE.values() if op.taylor is not None}
    assert marked == unary | {"add", "sub", "mul", "div", "maximum", "minimum", "fmod", "atan2", "where"}


@pytest.mark.parametrize(
    ("op", "shapes", "attrs", "claimed"),
    [
        ("add", [(3,), (4,)], {}, (4,)),
        ("add", [(3, 1), (4,)], {}, (4,)),
        ("tanh", [(3,)], {}, (3, 1)),
        ("clamp", [(3,)], {"low": None, "high": None}, (3,)),
        ("power", [(3,)], {"exponent": [1, 2]}, (3,)),
        ("gelu", [(3,)], {"approximate": "no"}, (3,)),
        ("elu", [(3,)], {"alpha": [1.0, 2.0]}, (3,)),
    ],
)
def test_elementwise_ops_that_are_wrong(op, shapes, attrs, claimed) -> None:
    inputs = tuple(Value(f"x{k}", shape) for k, shape in enumerate(shapes))
    node = Node("y", op, tuple(v.name for v in inputs), claimed, attrs)
    assert not accepts(check_program, Program(inputs, (node,), ("y",), {}))


def test_a_first_load_does_not_import_torchs_compiler(tmp_path: Path) -> None:
    """It takes two seconds."""
    model = hrt.compress(mlp(2, 16, 16, 1), inputs=torch.rand(200, 2), tol=1e-2, progress=False)
    model.save(tmp_path / "net.hrt")
    model.differentiated(["d0", "d0d0"]).save(tmp_path / "derived.hrt")
    code = """
import sys, hrt
before = set(sys.modules)
for path in sys.argv[1:]:
    hrt.load(path)
print(sorted(m for m in set(sys.modules) - before if m.startswith(("torch._dynamo", "sympy"))))
"""
    command = [sys.executable, "-c", code, tmp_path / "net.hrt", tmp_path / "derived.hrt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
