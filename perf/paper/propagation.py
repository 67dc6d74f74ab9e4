"""Errors on their way through the Burgers PINN: every method at the same tolerance of weights, and of the output."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import relative_difference
from hrt.perf.paper.data import Subject
from hrt.perf.paper.output import Rows
from hrt.perf.paper.weight_methods import AUTO, MAKERS, Stored, at_output, at_weights
from hrt.program import Program, to_float64

WEIGHTS, OUTPUT = "every weight", "the output"


def served(s: Subject, tol: float) -> Stored:
    """hrt's own, by its search; it corrects biases, too."""
    model = s.models[AUTO, tol]
    program = model.program
    return model.nbytes, {k: to_float64(program.constants[k]) for k in s.problem.program.constants}


def propagation(s: Subject) -> Rows:
    """Error of what leaves every layer, in float64 on fresh points: with all layers compressed, with this one alone,
    and the error of the weight in the Frobenius norm.
    """
    original = s.problem.program
    reference = layer_outputs(original, s.problem.fresh)
    rows: Rows = []
    for bound in (WEIGHTS, OUTPUT):
        for tol in s.setting.through:
            for method in MAKERS:
                if bound == WEIGHTS:
                    nbytes, constants = at_weights(s.problem, method, tol)
                else:
                    nbytes, constants = served(s, tol) if method == AUTO else at_output(s.problem, method, tol)
                known = {"bound": bound, "tol": tol, "method": method, "bytes": nbytes}
                known["ratio"] = s.problem.dense_nbytes / nbytes
                together = layer_outputs(original.with_constants(constants), s.problem.fresh)
                for number, node in enumerate(original.linear_nodes, 1):
                    name = node.inputs[1]
                    layer = {k: constants[k] for k in node.inputs[1:] if k in constants}
                    alone = layer_outputs(original.with_constants(layer), s.problem.fresh)[name]
                    compared = {"error": (together[name], reference[name]), "alone": (alone, reference[name])}
                    compared["frobenius"] = (constants[name], s.problem.weights[name])
                    errors = {k: relative_difference(*pair) for k, pair in compared.items()}
                    rows.append(known | {"layer": number, "weight": name} | errors)
    return rows


def layer_outputs(program: Program, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What every linear layer gives (before its activation), by weight, float64."""
    outputs: dict[str, Tensor] = {}

    def observe(node: Any, arguments: tuple[Any, ...]) -> None:
        if node.op == "linear":
            outputs[node.inputs[1]] = node.row.torch(arguments, node.attrs)

    with torch.no_grad():
        program.run(inputs, observe=observe)
    return outputs
