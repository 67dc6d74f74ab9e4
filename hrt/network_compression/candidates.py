"""Candidates for a compressed network: built from the plans of its layers, measured on the search rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hrt.calibration.output_error import OutputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.planner import Plan
from hrt.network_compression.layer_plans import PlannedLayer
from hrt.network_compression.verify import Original
from hrt.program.dense_view import DenseView, stored
from hrt.program.program import Constant, Program, program_nbytes


@dataclass(frozen=True)
class Setting:
    """How moments are regularised: one of RIDGES, and whether the focused ones are taken."""

    ridges: tuple[float, float]
    focused: bool


@dataclass(frozen=True, eq=False)
class PlannedNetwork:
    """What candidates are built from: the layers with their planners, made under one setting, and the biases that are
    stored in float16.
    """

    setting: Setting
    layers: tuple[PlannedLayer, ...]
    narrow: frozenset[str]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A compressed program with its measured error on the search rows, and the plans that made it."""

    program: Program
    error: OutputError
    nbytes: int
    network: PlannedNetwork
    plans: tuple[Plan, ...]


def build(original: Original, network: PlannedNetwork, plans: Sequence[Plan]) -> Candidate:
    """The network that `plans` of its layers give: dense where that is smaller, errors' means absorbed by biases."""
    constants: dict[str, Constant] = dict(original.program.constants)
    for layer, plan in zip(network.layers, plans, strict=True):
        h = layer.planner.build(plan, layer.rows, layer.cols)
        if h.nbytes >= 4 * layer.matrix.numel():
            h = HMatrix.from_dense(layer.matrix)
        constants[layer.name] = h
        if layer.bias and layer.mean is not None and not h.is_dense:
            bias = original.program.constants[layer.bias]
            if isinstance(bias, Tensor):
                constants[layer.bias] = bias + (layer.matrix - h.to_dense()) @ layer.mean
    program = stored(original.program.with_constants(constants | halves(constants, network.narrow)))
    return Candidate(program, search_error(original, program), program_nbytes(program), network, tuple(plans))


def search_error(original: Original, program: Program) -> OutputError:
    """Of a stored program on the search rows, in float64 arithmetic."""
    outputs = original.aim.outputs(original.split.search, DenseView(program).constants)
    return original.aim.error(original.search_reference, outputs)


def halves(constants: Mapping[str, Constant], names: frozenset[str]) -> dict[str, Constant]:
    """The tensors among `constants` with these names, in float16."""
    return {k: c.half() for k, c in constants.items() if k in names and isinstance(c, Tensor)}
