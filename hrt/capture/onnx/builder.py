"""What the lowerings of `hrt.capture.onnx.operators` work with: values by name, and the nodes that they write."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from hrt.capture.builder import ALONG_THE_BATCH
from hrt.capture.onnx.budgets import EXAMPLE_BYTES, EXAMPLE_PRODUCTS
from hrt.capture.weights import check_numbers
from hrt.errors import CaptureError, first_line
from hrt.program.check_program import without_numbers, work
from hrt.program.names import unique_name
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value

ROWS = 3  # of the examples


class TooMuchError(CaptureError):
    """A file that asks for more numbers or products than are worked out."""


class OnnxBuilder:
    """The program while it grows. known: constants by name.  example: values of ROWS rows.  at: the node at hand."""

    def __init__(self, known: dict[str, np.ndarray], values: set[str], opset: int):
        self.known, self.opset = known, opset
        self.values = values  # names that the graph's own values have
        self.example: dict[str, Tensor] = {}
        self.alone: dict[str, Tensor] = {}  # the first row of each, computed without the others
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)  # the caller's random numbers stay as they are
        self.at: onnx.NodeProto = onnx.NodeProto()
        self.room, self.products = EXAMPLE_BYTES, EXAMPLE_PRODUCTS  # that are left for the examples

    def add_input(self, name: str, shape: Sequence[int]) -> None:
        self._spend(name, ROWS + 1, math.prod(shape))
        self.inputs.append(Value(name, tuple(shape)))
        self.example[name] = torch.rand(ROWS, *shape, dtype=torch.float64, generator=self.generator)
        self.alone[name] = self.example[name][:1]

    def _spend(self, name: str, rows: int, numbers: int, products: int = 0) -> None:
        """Raise CaptureError where so many numbers and products a row are more than is left for the examples."""
        self.room, self.products = self.room - 8 * rows * numbers, self.products - rows * products
        if min(self.room, self.products) < 0:
            why = f"the values up to {name!r} take more than {EXAMPLE_BYTES >> 20} MB or too many products"
            raise self.fail(why, TooMuchError)

    def rows_within(self, nbytes: int) -> int:
        """Rows whose values, in float64, take so many bytes, and whose products no more than the examples may; one at
        least.
        """
        spent = (EXAMPLE_BYTES - self.room) // (ROWS + 1), (EXAMPLE_PRODUCTS - self.products) // (ROWS + 1)
        return max(1, min(nbytes // max(1, spent[0]), EXAMPLE_PRODUCTS // max(1, spent[1])))

    def count(self, program: Program) -> None:
        """Spend what a program that was made otherwise takes. Raises TooMuchError as lowerings do."""
        self.room, self.products = EXAMPLE_BYTES, EXAMPLE_PRODUCTS
        shapes = {v.name: (1, *v.shape) for v in (*program.inputs, *program.nodes)}
        shapes |= {name: tuple(c.shape) for name, c in program.constants.items()}
        for v in program.inputs:
            self._spend(v.name, ROWS + 1, math.prod(v.shape))
        for node in program.nodes:
            intermediate, products = work(node, [shapes[name] for name in node.inputs], program.constants)
            self._spend(node.name, ROWS + 1, math.prod(node.shape) + intermediate, products)

    def fail(self, why: str, kind: type[CaptureError] = CaptureError) -> CaptureError:
        where = self.at.name or (self.at.output[0] if self.at.output else "")
        return kind(f"ONNX node {where!r} ({self.at.op_type}): {why}.")

    def integers(self, name: str, what: str) -> list[int]:
        """A constant's whole numbers. Raises CaptureError where it depends on an input."""
        if name not in self.known:
            raise self.fail(f"its {what} depend on an input; only the batch may vary")
        return [int(v) for v in self.known[name].reshape(-1)]

    def operand(self, name: str) -> str:
        return name if name in self.example else self.constant(name, self.known[name])

    def constant(self, wanted: str, numbers: np.ndarray) -> str:
        """The name of a constant: `wanted` where that is free or holds the same numbers (tied weights stay tied)."""
        value = torch.from_numpy(np.array(numbers, dtype=np.float64, order="C"))
        check_numbers(wanted, value)

        def is_taken(name: str) -> bool:
            return name in self.values or (name in self.constants and not torch.equal(self.constants[name], value))

        name = unique_name(wanted, is_taken)
        self.constants[name] = value
        return name

    def emit(self, op: str, inputs: Sequence[str], wanted: str | None = None, **attrs: Any) -> str:
        """A node of the program; its example says its shape. Raises CaptureError where rows would mix."""

        def is_taken(name: str) -> bool:
            return name in self.values or name in self.constants or name in self.example

        name = wanted or unique_name(f"{self.out}.{len(self.nodes)}", is_taken)
        arguments = [self.example[n] if n in self.example else self.constants[n] for n in inputs]
        first = [self.alone[n] if n in self.alone else self.constants[n] for n in inputs]
        try:
            self._check_room(op, name, inputs, attrs)
            value = TABLE[op].torch(arguments, attrs)
        except RuntimeError as error:
            raise self.fail(f"its operands do not fit: {first_line(error)}") from error
        if value.ndim == 0 or value.shape[0] != ROWS:
            raise self.fail("its result has no batch in front, or one of a fixed size")
        try:
            alone = TABLE[op].torch(first, attrs)
        except RuntimeError as error:
            raise self.fail("it works for a batch of one size alone") from error
        if alone.shape != value[:1].shape or not torch.allclose(
            alone, value[:1], rtol=1e-9, atol=1e-12, equal_nan=True
        ):
            raise self.fail("it lets samples depend on each other, or on how many there are")
        self.example[name], self.alone[name] = value, alone
        self.nodes.append(Node(name, op, tuple(inputs), tuple(value.shape[1:]), attrs, self.at.name))
        return name

    def finish(self, name: str) -> None:
        """Give a value that the node at hand wrote, or one that it passes on, the name of its result."""
        if not self.nodes or self.nodes[-1].name != name or name in self.values:
            self.emit("reshape", [name], self.out, shape=list(self.example[name].shape[1:]))
            return
        self.nodes[-1] = replace(self.nodes[-1], name=self.out)
        self.example[self.out], self.alone[self.out] = self.example.pop(name), self.alone.pop(name)

    def _check_room(self, op: str, name: str, inputs: Sequence[str], attrs: dict[str, Any]) -> None:
        """Raise CaptureError where the value of an op is more than is left for the examples. Nothing is allocated."""
        arguments = [(self.alone[n] if n in self.alone else self.constants[n]).to("meta") for n in inputs]
        shape = without_numbers(Node(name, op, tuple(inputs), (), attrs), arguments).shape
        node = Node(name, op, tuple(inputs), tuple(shape[1:]), attrs)
        intermediate, products = work(node, [tuple(a.shape) for a in arguments], self.constants)
        self._spend(name, ROWS + 1, shape.numel() + intermediate, products)

    def rename(self, value: str) -> None:
        """Give the value that was emitted last the name of the node's output."""
        last = self.nodes.pop()
        if last.name != value:
            raise self.fail("it says nothing, or the same as a node before it")
        self.nodes.append(replace(last, name=self.out))
        self.example[self.out], self.alone[self.out] = self.example.pop(value), self.alone.pop(value)

    @property
    def out(self) -> str:
        return self.at.output[0]

    def axis(self, axis: int, name: str) -> int:
        """A negative axis of a value. Raises CaptureError where it is the batch."""
        negative = axis if axis < 0 else axis - self.example[name].ndim
        if negative == -self.example[name].ndim:
            raise self.fail(ALONG_THE_BATCH)
        return negative

    def linear(self, x: str, weight: np.ndarray, bias: np.ndarray | None, wanted: str | None) -> str:
        """x times weight^T (m, n) plus bias."""
        source = next((n for n in self.at.input if n in self.known and self.known[n].ndim >= 2), f"{self.out}.weight")
        inputs = [x, self.constant(source, weight)]
        if bias is not None:
            inputs.append(self.constant(f"{self.out}.bias", bias))
        return self.emit("linear", inputs, wanted)
