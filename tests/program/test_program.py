"""The Program: what it refuses when it is made, what it says of bad inputs, and the passes over it."""

from __future__ import annotations

import json
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from hrt.errors import CaptureError, InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.program import Node, Program, Value

W = torch.arange(12, dtype=torch.float64).reshape(3, 4) / 8  # exact in every storage
BIAS = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)


def make(**changed: Any) -> Program:
    """tanh(x W^T + b) * y, two inputs."""
    parts: dict[str, Any] = {
        "inputs": (Value("x", (4,)), Value("y", (3,))),
        "nodes": (
            Node("h", "linear", ("x", "w", "b"), (3,), {}, "layers.0"),
            Node("a", "tanh", ("h",), (3,), {}, "layers.1"),
            Node("out", "mul", ("a", "y"), (3,), {}),
        ),
        "outputs": ("out",),
        "constants": {"w": W, "b": BIAS},
    }
    return Program(**(parts | changed))


def samples(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return (torch.rand(batch, 4, generator=generator), torch.rand(batch, 3, generator=generator))


class TestValidation:
    @pytest.mark.parametrize(
        ("node", "message"),
        [
            (Node("z", "sort", ("x",), (4,), {}), r"z has the unknown op 'sort'. Known: linear, tanh"),
            (Node("z", "tanh", ("x", "x"), (4,), {}), r"z gives 2 arguments to tanh of 1"),
            (Node("z", "mul", ("x",), (4,), {}), r"z gives 1 arguments to mul of 2"),
            (Node("z", "tanh", ("later",), (4,), {}), r"z is out of order: \['later'\]"),
            (Node("z", "tanh", ("z",), (4,), {}), r"z is out of order: \['z'\]"),
            (Node("x", "tanh", ("x",), (4,), {}), r"x is out of order: its name is taken"),
            (Node("w", "tanh", ("x",), (4,), {}), r"w is out of order: its name is taken"),
            *(
                (Node("z", "linear", names, (4,), {}), r"z is linear in .*Expected a value, a constant weight")
                for names in (("x",), ("x", "y"), ("x", "b"))
            ),
            *(
                (Node("z", "linear", ("x", "w", *names), (3,), {}), r"z is linear in .*at most a constant bias")
                for names in (("y",), ("w",), ("b", "b"))
            ),
        ],
    )
    def test_bad_node(self, node: Node, message: str) -> None:
        with pytest.raises(CaptureError, match=message):
            make(nodes=(node,), outputs=(node.name,))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"outputs": ("out", "nothing")}, r"outputs \['nothing'\] are not computed"),
            *(({"inputs": (Value("x", (4,)), Value(name, (4,)))}, "share the names") for name in "xw"),
        ],
    )
    def test_bad_names(self, changed: dict[str, Any], message: str) -> None:
        with pytest.raises(CaptureError, match=message):
            make(**changed)


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ((torch.zeros(2, 4),), r"Found 1 input\(s\)\. Expected 2: x, y, as a tuple"),
            ((), r"Found 0 input\(s\)\. Expected 2"),
            ((torch.zeros(2, 5), torch.zeros(2, 3)), r"Input 'x': found shape \(2, 5\)\. Expected \(batch, 4\)"),
            ((torch.zeros(2, 4), torch.zeros(3)), r"Input 'y': found shape \(3,\)\. Expected \(batch, 3\)"),
            ((torch.zeros(4), torch.zeros(3)), r"Input 'x': found shape \(4,\)\. Expected \(batch, 4\)"),
            ((torch.zeros(()), torch.zeros(3)), r"Input 'x': found shape \(\)\. Expected \(batch, 4\)"),
            ((torch.zeros(2, 4, 1), torch.zeros(2, 3)), r"found shape \(2, 4, 1\)\. Expected \(batch, 4\)"),
            ((torch.zeros(2, 4), torch.zeros(3, 3)), r"different batch sizes: \[2, 3\]\. Expected one"),
        ],
    )
    def test_says_found_and_expected(self, inputs: tuple[Tensor, ...], message: str) -> None:
        with pytest.raises(InputError, match=message):
            make().check_inputs(inputs)

    @pytest.mark.parametrize("batch", [0, 1, 5])
    def test_takes_any_batch_of_tensors_and_arrays(self, batch: int) -> None:
        make().check_inputs(samples(batch))
        make().check_inputs([x.numpy() for x in samples(batch)])

    def test_sample_without_dimensions(self) -> None:
        program = Program((Value("x", ()),), (Node("y", "sin", ("x",), (), {}),), ("y",), {})
        program.check_inputs([torch.zeros(3)])
        assert program.run([torch.zeros(3)])[0].shape == (3,)
        with pytest.raises(InputError, match=r"found shape \(3, 1\)\. Expected \(batch\)"):
            program.check_inputs([torch.zeros(3, 1)])


class TestRun:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("batch", [0, 1, 4])
    def test_is_the_formula(self, batch: int, dtype: torch.dtype) -> None:
        x, y = samples(batch)
        (found,) = make().run((x, y), dtype=dtype)
        assert found.dtype == dtype
        expected = torch.tanh(x.to(dtype) @ W.T.to(dtype) + BIAS.to(dtype)) * y.to(dtype)
        torch.testing.assert_close(found, expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)

    def test_several_outputs_also_inputs_and_twice(self) -> None:
        x, y = samples(3)
        a, same, again = make(outputs=("a", "y", "a")).run((x, y))
        assert torch.equal(a, again)
        assert torch.equal(same, y.double())

    def test_hierarchical_weight(self) -> None:
        x = samples(3)
        compressed = make().with_constants({"w": HMatrix.from_dense(W)})
        torch.testing.assert_close(compressed.run(x), make().run(x), rtol=1e-12, atol=1e-14)

    def test_leaves_its_inputs_and_constants(self) -> None:
        x, program = tuple(v.double() for v in samples(3)), make()
        copies = [v.clone() for v in (*x, W, BIAS)]
        program.run(x)
        assert all(torch.equal(v, copy) for v, copy in zip((*x, W, BIAS), copies, strict=True))

    def test_gives_memory_back(self) -> None:
        depth, alive = 30, []
        nodes = tuple(Node(f"n{k}", "tanh", (f"n{k - 1}" if k else "x",), (4,), {}) for k in range(depth))
        program = Program((Value("x", (4,)),), nodes, (nodes[-1].name,), {})

        def watch(_: Node, arguments: tuple[Any, ...]) -> None:
            alive.append(weakref.ref(arguments[0]))
            assert sum(r() is not None for r in alive) <= 3

        program.run([torch.rand(2, 4)], observe=watch)
        assert len(alive) == depth


class TestQueries:
    def test_weights_in_order_with_their_nodes(self) -> None:
        nodes = (
            Node("h", "linear", ("x", "w", "b"), (3,), {}),
            Node("g", "linear", ("h", "v"), (4,), {}),
            Node("f", "linear", ("g", "w"), (3,), {}),
        )
        program = make(nodes=nodes, outputs=("f",), constants={"w": W, "b": BIAS, "v": W.T})
        assert [n.name for n in program.linear_nodes] == ["h", "g", "f"]
        assert {k: [n.name for n in v] for k, v in program.weights.items()} == {"w": ["h", "f"], "v": ["g"]}


class TestHeader:
    def test_survives_json(self) -> None:
        program = make()
        text = json.dumps(program.to_header(), allow_nan=False)
        again = Program.from_header(json.loads(text), program.constants)
        assert (again.inputs, again.nodes, again.outputs) == (program.inputs, program.nodes, program.outputs)
        assert torch.equal(again.run(samples(3))[0], program.run(samples(3))[0])

    def test_is_validated(self) -> None:
        header = json.loads(json.dumps(make().to_header()))
        header["nodes"][1][1] = "shell"
        with pytest.raises(CaptureError, match="unknown op 'shell'"):
            Program.from_header(header, make().constants)
        with pytest.raises(CaptureError, match=r"h is out of order: \['w', 'b'\]"):
            Program.from_header(make().to_header(), {})


def added(*more: Node, outputs: tuple[str, ...] = ("s",), constants: dict[str, Tensor] | None = None) -> Program:
    product = Node("p", "linear", ("x", "w"), (3,), {}, "layer")
    return make(nodes=(product, *more), outputs=outputs, constants={"w": W, "b": BIAS, **(constants or {})})


class TestSimplified:
    @pytest.mark.parametrize("inputs", [("p", "b"), ("b", "p")])
    def test_added_constant_becomes_the_bias(self, inputs: tuple[str, str]) -> None:
        program = added(Node("s", "add", inputs, (3,), {})).simplified()
        assert program.nodes == (Node("s", "linear", ("x", "w", "b"), (3,), {}, "layer"),)

    @pytest.mark.parametrize(
        ("op", "inputs", "outputs"),
        [
            ("add", ("p", "b"), ("s", "p")),  # the product is read elsewhere
            ("add", ("p", "p"), ("s",)),
            ("add", ("p", "y"), ("s",)),  # not a constant
            ("sub", ("p", "b"), ("s",)),
            ("add", ("p", "c"), ("s",)),
        ],
    )
    def test_other_sums_stay(self, op: str, inputs: tuple[str, str], outputs: tuple[str, ...]) -> None:
        scalar = torch.ones((), dtype=torch.float64)
        program = added(Node("s", op, inputs, (3,), {}), outputs=outputs, constants={"c": scalar})
        assert [n.op for n in program.simplified().nodes] == [n.op for n in program.nodes]
        for found, expected in zip(program.simplified().run(samples(3)), program.run(samples(3)), strict=True):
            assert torch.equal(found, expected)

    def test_second_constant_stays(self) -> None:
        program = added(Node("q", "add", ("p", "b"), (3,), {}), Node("s", "add", ("b", "q"), (3,), {}))
        assert [n.op for n in program.simplified().nodes] == ["linear", "add"]
        expected = program.run(samples(3))
        torch.testing.assert_close(program.simplified().run(samples(3)), expected, rtol=1e-14, atol=1e-15)

    def test_what_no_output_needs_is_dropped(self) -> None:
        spare = Node("spare", "mul", ("a", "unread"), (3,), {})
        program = make(nodes=(*make().nodes, spare), constants={"w": W, "b": BIAS, "unread": BIAS})
        assert program.simplified().nodes == make().nodes
        assert set(program.simplified().constants) == {"w", "b"}
        assert program.simplified().inputs == program.inputs  # inputs are what callers count on
