"""Expressions of a network's outputs, their derivatives and its inputs, such as "d1 + u*d0 - 0.00318*d0d0".

Python's parser reads text into a closed grammar; it is never evaluated as code.
"""

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from hrt.derivatives.differentiate import HIGHEST
from hrt.errors import InputError
from hrt.program.program import Program

LENGTH = 4000  # characters of an expression
DEPTH = 200  # operations inside one another; a sum of n terms is n - 1 deep
NUMBER = "(0|[1-9][0-9]*)"  # d01 would be read as d1 by some, as d0d1 by others
POWER = 100  # the largest exponent that is a number

OPERATORS: dict[type[ast.operator], Callable[..., Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.true_divide,
    ast.Pow: torch.pow,
}
SIGNS: dict[type[ast.unaryop], Callable[..., Tensor]] = {ast.USub: torch.neg, ast.UAdd: torch.positive}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    name: getattr(torch, name) for name in ("sin", "cos", "tan", "exp", "log", "sqrt", "tanh", "abs")
}

Values = Mapping[str, Tensor]  # "u" and derivatives (components, rows), coordinates "x0" (rows,); float64
Term = Callable[[Values], Tensor]


@dataclass(frozen=True)
class Names:
    """coordinates, components: features of all inputs and of all outputs, in order, row-major."""

    coordinates: int
    components: int

    @staticmethod
    def of(program: Program) -> "Names":
        inputs = sum(math.prod(v.shape) for v in program.inputs)
        return Names(inputs, sum(math.prod(program.shape_of(name)) for name in program.outputs))

    def resolve(self, name: str) -> str | None:
        """The name in its one spelling ("d1d0" is "d0d1"); None for one that is unknown."""
        if name == "u":
            return name
        numbers = [int(k) for k in re.findall(r"[0-9]+", name)] if len(name) <= 16 * HIGHEST else []
        known = re.fullmatch(f"x{NUMBER}|(d{NUMBER})+", name) and 0 < len(numbers) <= HIGHEST
        if not known or max(numbers) >= self.coordinates:
            return None
        return "".join(f"{name[0]}{k}" for k in sorted(numbers))

    def __str__(self) -> str:
        last = self.coordinates - 1
        index = "" if self.components == 1 else f", both with an index 0 to {self.components - 1} as in u[0]"
        return f"u, derivatives d0 to d{last} and such as d0d{last}{index}, inputs x0 to x{last}, pi"


@dataclass(frozen=True)
class Expression:
    """derivatives: their names, each once.  evaluate: values to (rows,), or () where nothing depends on the row."""

    text: str
    derivatives: tuple[str, ...]
    evaluate: Term


def parse_expression(text: str, names: Names) -> Expression:
    """A residual in the grammar

        number | pi | u | d0, d0d1, ... | u[0], d0[1], ... | x0, x1, ... | + - * / ** | (...) | sin(...), ...

    with the functions sin, cos, tan, exp, log, sqrt, tanh and abs. Outputs and derivatives have an index, of the
    component, where the network has several components, and need none where it has one. Raises InputError, saying what
    was found, at which column, and what is expected: for anything else, more than 4,000 characters, 200 operations
    inside one another, numbers that are not finite in float64, and exponents that are numbers beyond 100.
    """
    return _Parser(text, names).parse()


class _Parser:
    def __init__(self, text: str, names: Names):
        self.text, self.names = text.strip(), names
        self.skipped = len(text) - len(text.lstrip())  # columns are those of what was given
        self.asked: dict[str, None] = {}

    def parse(self) -> Expression:
        if len(self.text) > LENGTH:
            raise InputError(f"Found an expression of {len(self.text)} characters. Expected at most {LENGTH}.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on odd spacing of numbers: what is odd is refused
                tree = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            where = f" at column {self.skipped + error.offset}" if error.offset else ""
            raise InputError(f"Found {self.quoted(self.text)}: {error.msg}{where}. {self.expected()}") from error
        except (ValueError, MemoryError, RecursionError) as error:
            raise InputError(f"Found an expression that cannot be read: {error}. {self.expected()}") from error
        evaluate = self.term(tree, 0)
        return Expression(self.text, tuple(self.asked), evaluate)

    def term(self, node: ast.expr, depth: int) -> Term:
        if depth > DEPTH:
            self.refuse(node, f"more than {DEPTH} operations inside one another")
        match node:
            case ast.Constant(int() | float() as value) if not isinstance(value, bool):
                return self.number(node, value)
            case ast.Name("pi"):
                return self.number(node, math.pi)
            case ast.Name(name):
                return self.name(node, name, None)
            case ast.Subscript(ast.Name(name), ast.Constant(index)) if type(index) is int:
                return self.name(node, name, index)
            case ast.UnaryOp(sign, operand) if type(sign) in SIGNS:
                return _applied(SIGNS[type(sign)], self.term(operand, depth + 1))
            case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
                first, second = self.term(left, depth + 1), self.term(right, depth + 1)
                if isinstance(operator, ast.Pow):
                    self.check_power(right, second)
                return _applied(OPERATORS[type(operator)], first, second)
            case ast.Call(ast.Name(name), [argument], []) if name in FUNCTIONS:
                return _applied(FUNCTIONS[name], self.term(argument, depth + 1))
            case ast.Call(ast.Name(name)) if name in FUNCTIONS:
                self.refuse(node, f"{name} of something else than one argument")
            case ast.Call(ast.Name(name)):
                self.refuse(node, f"the function {name!r}")
            case ast.BinOp(_, ast.BitXor(), _):
                self.refuse(node, "^, where a power is written **,")
        self.refuse(node, f"{type(node).__name__.lower()} {self.quoted(ast.get_source_segment(self.text, node))}")

    def number(self, node: ast.expr, value: float) -> Term:
        try:
            constant = torch.tensor(float(value), dtype=torch.float64)
        except OverflowError:
            constant = torch.tensor(math.inf)
        if not constant.isfinite():
            self.refuse(node, "a number beyond float64")
        return lambda values: constant

    def name(self, node: ast.expr, name: str, index: int | None) -> Term:
        key = self.names.resolve(name)
        if key is None:
            self.refuse(node, f"the name {self.quoted(name)}")
        if key[0] == "x":
            if index is not None:
                self.refuse(node, f"the input {key} with an index")
            return lambda values: values[key]
        if not 0 <= (index or 0) < self.names.components or (index is None and self.names.components > 1):
            self.refuse(node, f"{key} {'without an index' if index is None else f'with the index {index}'}")
        if key != "u":
            self.asked[key] = None
        return lambda values: values[key][index or 0]

    def check_power(self, node: ast.expr, exponent: Term) -> None:
        named = any(isinstance(n, ast.Name) and n.id not in ("pi", *FUNCTIONS) for n in ast.walk(node))
        if not named and not abs(float(exponent({}))) <= POWER:
            self.refuse(node, f"an exponent beyond {POWER}")

    def refuse(self, node: ast.expr, what: str) -> NoReturn:
        column = len(re.split(r"\r\n?|\n", self.text)[node.lineno - 1].encode()[: node.col_offset].decode()) + 1
        place = f"column {column + (self.skipped if node.lineno == 1 else 0)}"
        line = f"line {node.lineno}, " if node.lineno > 1 else ""
        raise InputError(f"Found {what} at {line}{place} of {self.quoted(self.text)}. {self.expected()}")

    def expected(self) -> str:
        return f"Expected numbers, + - * / **, parentheses, {', '.join(FUNCTIONS)}, and of names {self.names}."

    @staticmethod
    def quoted(text: str | None) -> str:
        return repr(text if text is None or len(text) <= 60 else text[:57] + "...")


def _applied(function: Callable[..., Tensor], first: Term, second: Term | None = None) -> Term:
    if second is None:
        return lambda values: function(first(values))
    return lambda values: function(first(values), second(values))
