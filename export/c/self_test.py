"""The rows that a generated file checks itself on, with the answers of float64 arithmetic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from hrt.errors import HrtError
from hrt.export.c.numbers import Numbers, literal
from hrt.program.program import Program, Value

ROWS = 3
ALLOWED = 32  # times what roundings were seen to move
LEAST = 32  # roundings that are always allowed
ILL = 1e-4  # relative moves by roundings to float32 above which rows test nothing
ROUNDING = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class CheckedRows:
    """inputs, outputs: tables in C, `count` rows each.  limits: relative L2 errors that are allowed, in C."""

    count: int
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    remark: str = ""


Draw = Callable[[Value, torch.Generator], Tensor]


def _normal(v: Value, generator: torch.Generator) -> Tensor:
    x = torch.randn(ROWS, *v.shape, generator=generator)
    return x if v.kind == "float" else (x > 0).float()


def _small(v: Value, generator: torch.Generator) -> Tensor:
    return _normal(v, generator) / 8 if v.kind == "float" else _normal(v, generator)


def _positive(v: Value, generator: torch.Generator) -> Tensor:
    x = 0.25 + 0.5 * torch.rand(ROWS, *v.shape, generator=generator)
    return x if v.kind == "float" else torch.ones_like(x)


def checked_rows(program: Program, numbers: Numbers) -> CheckedRows:
    """Random rows whose answers are finite and that roundings hardly move; none where there are no such rows."""
    unit = torch.finfo(torch.float64 if numbers.double else torch.float32).eps
    for draw in (_normal, _small, _positive):
        generator = torch.Generator().manual_seed(0)
        inputs = [draw(v, generator) for v in program.inputs]
        answers = _answers(program, inputs)
        if answers is None:
            continue
        exact, moved = answers
        if max(moved, default=0) <= ILL:
            limits = [max(LEAST, ALLOWED * change / ROUNDING) * unit for change in moved]
            suffix = "" if numbers.double else "f"
            return CheckedRows(
                ROWS,
                tuple(f"N->reals + {numbers.add('reals', x, 'self-test: rows')}" for x in inputs),
                tuple(f"N->reals + {numbers.add('reals', y, 'self-test: answers')}" for y in exact),
                tuple(literal(limit, suffix=suffix) for limit in limits),
            )
    return CheckedRows(0, remark="random rows have no finite answers that roundings leave where they are: no self-test")


def _answers(program: Program, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[float]] | None:
    """Answers in float64, and by what part of a row's size they move at most where every node's result is moved by a
    rounding to float32; None where they are not finite.
    """
    try:
        exact, *others = (_run(program, inputs, seed) for seed in (None, 1, 2, 3))
    except (RuntimeError, HrtError):  # an index that random rows do not fit
        return None
    if not all(bool(y.isfinite().all()) for ys in (exact, *others) for y in ys):
        return None
    moved = []
    for k, y in enumerate(exact):
        sizes = y.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        moved.append(max(float(((other[k] - y).norm(dim=1) / sizes).max()) for other in others))
    return exact, moved


def _run(program: Program, inputs: Sequence[Tensor], seed: int | None) -> list[Tensor]:
    """Outputs (ROWS, numbers) in float64. seed: of random moves of every node's result; None: no moves."""
    generator = torch.Generator().manual_seed(seed or 0)
    values: dict[str, Any] = {
        k: c.to(torch.float64) if isinstance(c, Tensor) else c for k, c in program.constants.items()
    }
    values |= {v.name: x.to(torch.float64) for v, x in zip(program.inputs, inputs, strict=True)}
    for node in program.nodes:
        y = node.row.torch([values[name] for name in node.inputs], node.attrs)
        if seed is not None:
            y = y * (1 + ROUNDING * torch.randn(y.shape, generator=generator, dtype=torch.float64))
        values[node.name] = y
    sizes = {v.name: prod(v.shape) for v in (*program.inputs, *program.nodes)}
    outputs = [values[name] for name in program.outputs]
    return [
        y.reshape(ROWS, -1) if name in sizes and len(y) == ROWS else y.reshape(1, -1).repeat(ROWS, 1)
        for name, y in zip(program.outputs, outputs, strict=True)
    ]
