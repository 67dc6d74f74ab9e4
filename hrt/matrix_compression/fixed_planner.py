"""A partition that is there already: its blocks truncated and stored as the tolerance allows, none cut or joined."""

import numpy as np

from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import LevelOptions
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.block_spectra import level_spectra
from hrt.matrix_compression.cluster_tree import Level
from hrt.matrix_compression.planner import FLOOR, Plan, Planner


class KeptPlanner(Planner):
    """`Planner` over the blocks of one given H-matrix. source: the matrix in its orderings, with its weights."""

    def __init__(
        self, source: BlockSource, partition: HMatrix, *, storages: tuple[str, ...], target: str, budget2: float
    ):
        self._begin(source, storages, target, budget2)
        self.levels = [Level((row, row + m), (col, col + n)) for row, m, col, n in partition.blocks() if m and n]
        floor2 = FLOOR * budget2 / max(1, len(self.levels))
        spectra = (level_spectra(source, level, storages, floor2) for level in self.levels)
        self._options = [LevelOptions(block, storages, self.overhead) for block in spectra]

    def error2(self, lam: float) -> float:
        """The predicted squared error of the choices that minimise bytes + lam * squared error."""
        return sum(float(options.values(lam)[1].sum()) for options in self._options)

    def solve(self, lam: float) -> Plan:
        """Every block's choice that minimises bytes + lam * squared error."""
        bests = [options.best(lam) for options in self._options]
        leaves = [choice for k, best in enumerate(bests) for choice in self._choices(k, np.arange(1), best)]
        return Plan(tuple(leaves), sum(float(b.cost[0]) for b in bests), sum(float(b.error2[0]) for b in bests))

    def whole(self, error2: float) -> Plan | None:
        """None: blocks that are there stay."""
        return None
