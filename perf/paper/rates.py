"""How fast the training loss falls after p refinements of every hidden weight: O(1 / k^(r + p)), says section 3.1.

A weight refined p times is a grid of 2^p x 2^p blocks, each of rank RANK, and is trained as such. All start as the same
network, cut down; all take the same draws and steps of Adam at one rate. The exponent is a line through the logarithms
of windows of the loss.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.hlinear import HLinear
from hrt.perf.networks.allen_cahn import ALLEN_CAHN
from hrt.perf.networks.burgers import BURGERS
from hrt.perf.networks.pinn_training import Course, Equation, fit
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.tangent_kernel.ntk_statements import PowerLaw, fit_power_law

EQUATIONS = (BURGERS, ALLEN_CAHN)
LEVELS = (0, 1, 2)
RANK = 4
RATE = 2e-3
WINDOWS = 12  # of steps, equal in log k: the loss of single batches is noise


@dataclass(frozen=True)
class Descent:
    """How long is trained. first: step from which the line is fitted; before it the loss does not follow any law."""

    steps: int = 3000
    first: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 32
    depth: int = 3
    batch: int = 128

    @staticmethod
    def quick() -> "Descent":
        return Descent(steps=600, seeds=(0,))


def refined(w: Tensor, p: int) -> HMatrix:
    """w (m, n) in 2^p x 2^p blocks, each its best approximation of rank RANK."""
    rows, cols = (np.linspace(0, n, 2**p + 1).astype(int).tolist() for n in w.shape)
    leaves = []
    for (a, b), (c, d) in ((r, s) for r in pairwise(rows) for s in pairwise(cols)):
        u, s, vt = torch.linalg.svd(w[a:b, c:d], full_matrices=False)
        leaves.append(Leaf(a, b - a, c, d - c, u=u[:, :RANK] * s[:RANK], vt=vt[:RANK].contiguous()))
    return HMatrix((w.shape[0], w.shape[1]), tuple(leaves))


def with_blocks(network: nn.Module, p: int) -> nn.Module:
    """A copy whose square weights are `refined`."""
    made = copy.deepcopy(network)
    layers = made.get_submodule("layers")
    for name, layer in list(layers.named_children()):
        if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features:
            setattr(
                layers, name, HLinear(refined(layer.weight.detach(), p), layer.bias.detach(), dtype=layer.weight.dtype)
            )
    return made


def losses(equation: Equation, p: int, seed: int, d: Descent) -> list[float]:
    """Of every step's batch, before the step."""
    network, seen = with_blocks(equation.network(d.width, d.depth, seed), p), []
    course = Course(d.steps, 0, d.batch, seed, (RATE, RATE))
    fit(equation, network, course, lambda step, loss: seen.append(loss))
    return seen


def windows(seen: list[float], first: int) -> Iterator[tuple[float, float]]:
    """Middles of windows that are equal in log k, and the mean loss in each."""
    edges = np.unique(np.geomspace(first, len(seen) + 1, WINDOWS + 1).astype(int)).tolist()
    for a, b in pairwise(edges):
        yield float(np.sqrt(a * (b - 1))), float(np.mean(seen[a - 1 : b - 1]))


def rates(d: Descent) -> Rows:
    """The loss in every window, of two equations, every seed and every p."""
    return [
        {"case": equation.name, "seed": seed, "p": p, "step": step, "loss": loss}
        for equation in EQUATIONS
        for seed in d.seeds
        for p in LEVELS
        for step, loss in windows(losses(equation, p, seed, d), d.first)
    ]


def laws(rows: Rows) -> dict[tuple[str, int], PowerLaw]:
    """loss = factor k^exponent, by equation and p, over all seeds (each moved to the same mean in the logarithm)."""
    result = {}
    for case in distinct(rows, "case"):
        for p in distinct(rows, "p"):
            line = matching(rows, case=case, p=p)
            level = {
                seed: np.log([r["loss"] for r in matching(line, seed=seed)]).mean() for seed in distinct(line, "seed")
            }
            result[case, p] = fit_power_law(
                [r["step"] for r in line], [r["loss"] / np.exp(level[r["seed"]]) for r in line]
            )
    return result
