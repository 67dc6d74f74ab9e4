"""How long generated C takes for a network, roughly, beside ONNX Runtime: "auto" chooses between them by this.

The constants are those that `python -m hrt.perf.bench.native_constants` printed for plain networks and for the PINN,
DeepONet, emulator, FNO and log kernels of the harness, compressed: microseconds for each unit of a feature, on one
thread of a server CPU (2026-11, gcc 12, ONNX Runtime 1.31, AVX-512). Rows were within 0.73 and 1.27 of what was
measured, blocks within 0.6 and 1.36, ONNX Runtime within 0.35 and 1.73. A wrong choice costs time, never correctness.
"""

import sys
from collections.abc import Mapping
from math import prod

from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.carried import CARRIED
from hrt.program.program import Constant, Node, Program
from hrt.runtime.onnx_costs import FEW_ROWS, MANY_ROWS, choose_forms, program_us

BATCHES = (1, 2, 4, 8, 16, 32, 64, 256, 1024)
EVERY = sys.maxsize  # rows
LARGE, SMALL, FEW = 32, 16, 10  # rows of a block, of a half, and from how many on there are any
LANES = 16  # numbers that rows and columns of leaves are padded to
FREE = frozenset({"reshape"})
LIGHT = frozenset(
    {
        *(
            "relu",
            "leaky_relu",
            "clamp",
            "neg",
            "abs",
            "step",
            "add",
            "sub",
            "mul",
            "div",
            "maximum",
            "minimum",
            "where",
        ),
        *("reciprocal", "sqrt", "floor", "round", "concat", "slice", "transpose", "expand", "repeat", "gather", "sum"),
        *("mean", "amax", "amin", "cumsum"),
    }
)
# whose products ONNX Runtime has better kernels for, and what it alone runs
UNKNOWN = frozenset({"patches", "matmul", "einsum", CARRIED})
ROW: Mapping[str, float] = {
    **{"call": 0.0292, "nodes": 0.00958, "leaves": 0.00558, "weights": 0.0262, "light": 0.0, "heavy": 0.0705}
}
BLOCK: Mapping[str, float] = {
    **{"call": 0.0, "nodes": 0.0, "leaves": 0.00988, "decoded": 0.0577, "products": 0.0125, "moved": 0.0196},
    **{"light": 0.0, "heavy": 0.138},
}
ONNX: Mapping[str, float] = {"call": 1.42, "nodes": 0.0, "linear": 1.75, "light": 0.555, "heavy": 0.569}
CLEAR = 0.9  # generated C is taken where it needs less than this share of the other's time


def faster_up_to(program: Program) -> int:
    """Up to how many rows generated C is predicted to be clearly faster than ONNX Runtime and for none of fewer slower,
    on one thread each; EVERY where it always is, 0 where never.
    """
    if any(node.op in UNKNOWN for node in program.nodes):
        return 0
    most = 0
    for rows in BATCHES:
        share = native_us(program, rows) / onnx_us(program, rows)
        if share > 1.0:
            break
        most = rows if share <= CLEAR else most
    return EVERY if most == BATCHES[-1] else most


def native_us(program: Program, rows: int) -> float:
    """Predicted microseconds of generated C on so many rows, on one thread."""
    blocks, rest = divmod(rows, LARGE)
    us = blocks * _sum(BLOCK, block_features(program, LARGE))
    if rest < FEW:
        return us + rest * _sum(ROW, row_features(program))
    return us + _sum(BLOCK, block_features(program, SMALL if rest <= SMALL else LARGE))


def onnx_us(program: Program, rows: int) -> float:
    """Predicted microseconds of a session of ONNX Runtime."""
    return _sum(ONNX, onnx_features(program, rows))


def row_features(program: Program) -> dict[str, float]:
    """What a row costs by itself. Numbers are counted in thousands."""
    linear, light, heavy = _work(program)
    return {
        "call": 1.0,
        "nodes": len(linear) + len(light) + len(heavy),
        "leaves": sum(_leaves(program.constants[n.inputs[1]]) for n in linear),
        "weights": 1e-3 * sum(_numbers(program.constants[n.inputs[1]]) * _positions(program, n) for n in linear),
        "light": 1e-3 * sum(prod(n.shape) for n in light),
        "heavy": 1e-3 * sum(prod(n.shape) for n in heavy),
    }


def block_features(program: Program, rows: int) -> dict[str, float]:
    """What a block of so many rows costs."""
    linear, _, _ = _work(program)
    one = row_features(program)
    inside = sum(prod(program.constants[n.inputs[1]].shape[:1]) * _positions(program, n) for n in linear)
    return {
        **{k: one[k] for k in ("call", "nodes", "leaves")},
        "decoded": 1e-3 * sum(_numbers(program.constants[n.inputs[1]]) for n in linear),
        "products": rows * one["weights"],
        "moved": 1e-3 * rows * (inside + sum(prod(v.shape) for v in program.inputs)),
        "light": rows * one["light"],
        "heavy": rows * one["heavy"],
    }


def onnx_features(program: Program, rows: int) -> dict[str, float]:
    """What a call of ONNX Runtime costs. linear: as `hrt.runtime.onnx_costs` predicts it."""
    _, light, heavy = _work(program)
    forms = choose_forms(program, FEW_ROWS if rows <= FEW_ROWS[-1] else MANY_ROWS, never_slower=True)
    return {
        "call": 1.0,
        "nodes": len(light) + len(heavy),
        "linear": program_us(program, forms, rows),
        "light": 1e-3 * rows * sum(prod(n.shape) for n in light),
        "heavy": 1e-3 * rows * sum(prod(n.shape) for n in heavy),
    }


def _work(program: Program) -> tuple[list[Node], list[Node], list[Node]]:
    """The linear nodes, those that do little for a number, and those that do much."""
    others = [n for n in program.nodes if n.op != "linear" and n.op not in FREE]
    light = [n for n in others if n.op in LIGHT]
    return list(program.linear_nodes), light, [n for n in others if n.op not in LIGHT]


def _positions(program: Program, node: Node) -> int:
    """How many vectors of a sample a linear node multiplies."""
    return prod(node.shape) // max(1, program.constants[node.inputs[1]].shape[0])


def _leaves(weight: Constant) -> int:
    return len(weight.leaves) if isinstance(weight, HMatrix) else 1


def _numbers(weight: Constant) -> int:
    """Of a weight, padded."""
    if not isinstance(weight, HMatrix):
        return _up(weight.shape[0]) * weight.shape[1]
    dense = sum(_up(e.rows) * e.cols for e in weight.leaves if e.is_dense)
    return dense + sum(e.rank * (_up(e.rows) + _up(e.cols)) for e in weight.leaves if not e.is_dense)


def _up(count: int) -> int:
    return -(-count // LANES) * LANES


def _sum(constants: Mapping[str, float], features: Mapping[str, float]) -> float:
    return sum(constants[k] * v for k, v in features.items())
