"""Derivatives by the input as a Program: what `predict(x, derivatives=[...])` and exports run.

Forward (Taylor) mode: one pass carries the value and the derivatives that the asked ones are made of (d0 and d1 for
"d0d1"), as more rows of the network's own layers (`hrt.derivatives.jets`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import factorial, prod

import torch

from hrt.derivatives.jet_rules import RULES
from hrt.derivatives.jets import Index, Jet, Part
from hrt.derivatives.step import Step
from hrt.derivatives.symbols import Symbol, Writer
from hrt.errors import InputError, shown
from hrt.program.program import Node, Program, Value

HIGHEST = 8  # order: the derivatives below it are many; most ops have rules to the third


@dataclass(frozen=True)
class Differentiated:
    """program: the original's outputs, then of every derivative that of every output, such as "d0_u", shaped like u.
    kinks: nodes whose derivatives jump somewhere ("relu (layers.1)"), where the derivative is torch's.
    """

    program: Program
    derivatives: tuple[str, ...]
    kinks: tuple[str, ...]
    origin: Program


def differentiate(program: Program, derivatives: Sequence[str], *, folded: bool = True) -> Differentiated:
    """`program` with derivatives by its inputs as more outputs.

    derivatives: such as ["d0", "d1", "d0d1"]. Coordinates count through the features of all inputs in order, row-major.
    folded: compute beforehand what depends on no input; False keeps every use of a weight, so that weights may be
    replaced. Raises InputError for bad names, DerivativeError where an op has no rule for the order.
    """
    asked = parse(program, derivatives)
    needed = closure(asked)
    writer, kinks = Writer(program), []
    jets = _inputs(program, writer, needed, folded)
    for node in program.nodes:
        writer.origin = node
        arguments = [jets.get(name, name) for name in node.inputs]
        if not any(isinstance(a, Jet) for a in arguments):
            writer.nodes.append(node)
            continue
        step = Step(writer, node, arguments, needed)
        jets[node.name] = RULES[node.op](step)
        if _kinked(node) and any(a.parts for a in step.jets):
            kinks.append(f"{node.op} ({node.module or node.name})")
    writer.origin = None
    outputs = [*program.outputs]
    for text, index in zip(derivatives, asked, strict=True):
        outputs += [_output(writer, jets, name, text, index) for name in program.outputs]
    return Differentiated(writer.program_of(program.inputs, outputs), tuple(derivatives), tuple(kinks), program)


def parse(program: Program, derivatives: Sequence[str]) -> tuple[Index, ...]:
    """The coordinates, sorted, of every derivative. Raises InputError for names that are none."""
    count = sum(prod(v.shape) for v in program.inputs)
    known = f"Expected a list of names such as ['d0', 'd0d0'] by the input coordinates 0 to {count - 1}"
    listed = isinstance(derivatives, Iterable) and not isinstance(derivatives, str) and getattr(derivatives, "ndim", 1)
    if not listed or not all(isinstance(text, str) for text in derivatives):
        raise InputError(f"Found derivatives={shown(derivatives)}. {known}.")
    indices: list[Index] = []
    for text in derivatives:
        if not re.fullmatch(r"(d(0|[1-9][0-9]{0,17}))+", text):
            raise InputError(
                f"Found the derivative {text[:80]!r}. {known}: a d and a number, repeated for higher orders."
            )
        index = coordinates(text)
        if index[-1] >= count:
            raise InputError(f"Found the derivative {text!r} of a network of {count} input coordinates. {known}.")
        if discrete := next((v for v in map(partial(_input_of, program), index) if v.kind != "float"), None):
            raise InputError(
                f"Found the derivative {text!r} by the input {discrete.name!r}, which holds "
                f"{'truth values' if discrete.kind == 'bool' else 'whole numbers'}. Expected one by floats."
            )
        if len(index) > HIGHEST:
            raise InputError(f"Found the order {len(index)}. Expected at most {HIGHEST}: it takes all that are lower.")
        if index in indices:
            raise InputError(f"Found the derivative {text!r} more than once. Expected each once, in whatever spelling.")
        indices.append(index)
    return tuple(indices)


def _input_of(program: Program, coordinate: int) -> Value:
    """The input that a coordinate is a feature of."""
    for v in program.inputs:
        if coordinate < prod(v.shape):
            return v
        coordinate -= prod(v.shape)
    raise IndexError(coordinate)


def coordinates(text: str) -> Index:
    """The coordinates that a derivative is by, sorted: those of "d1d0" are (0, 1)."""
    return tuple(sorted(int(k) for k in re.findall(r"[0-9]+", text)))


def closure(asked: Sequence[Index]) -> tuple[Index, ...]:
    """All derivatives that the asked ones are made of, themselves too, lower orders first."""
    parts = {part for index in asked for r in range(1, len(index) + 1) for part in combinations(index, r)}
    return tuple(sorted(parts, key=lambda i: (len(i), i)))


def _inputs(program: Program, writer: Writer, needed: Sequence[Index], folded: bool) -> dict[str, Jet]:
    """The jets of the inputs: unit vectors, constant over the batch, and nothing of higher order."""
    jets, start = {}, 0
    for v in program.inputs:
        size = prod(v.shape)
        first = [i for i in needed if len(i) == 1 and start <= i[0] < start + size]
        parts = {}
        if first:
            rows = torch.zeros(1, len(first), size, dtype=torch.float64)
            rows[0, range(len(first)), [i[0] - start for i in first]] = 1
            unit = writer.tensor(rows.reshape(1, len(first), *v.shape))
            parts[1] = Part(tuple(first), unit if folded else writer.repeated(unit))
        jets[v.name] = Jet(Symbol(writer, v.name, v.shape), parts)
        start += size
    return jets


def _kinked(node: Node) -> bool:
    """Whether a derivative of it jumps, or is infinite where its value is not."""
    return node.row.kinked or (node.op == "power" and node.attrs["exponent"] > 0 and node.attrs["exponent"] % 1 != 0)


def _output(writer: Writer, jets: Mapping[str, Jet], output: str, text: str, index: Index) -> str:
    """The name of a derivative of an output, as a node of its own."""
    name, jet = writer.name(f"{text}_{output}"), jets.get(output)
    if jet is not None and jet.has(index):
        derivative = jet.take([index]) * factorial(len(index))
        shape = jet.value.shape
    else:  # zero, of the output's shape
        shape = jet.value.shape if jet else tuple(writer.constants[output].shape)
        derivative = writer.tensor(torch.zeros(1, 1, *shape, dtype=torch.float64))
    derivative = writer.repeated(derivative)
    return writer.node("reshape", [derivative], shape, {"shape": list(shape)}, name=name).name
