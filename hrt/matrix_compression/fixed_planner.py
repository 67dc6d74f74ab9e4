"""A partition that is there already: its blocks truncated and stored as the tolerance allows, none cut or joined."""

import math

from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import LEAF_OVERHEAD, Choice, LevelOptions
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.block_spectra import level_spectra
from hrt.matrix_compression.cluster_tree import Level
from hrt.matrix_compression.planner import GRID, Plan, Planner


class KeptPlanner(Planner):
    """`Planner` over the blocks of one given H-matrix. source: the matrix in its orderings, with its weights."""

    def __init__(
        self, source: BlockSource, partition: HMatrix, *, storages: tuple[str, ...], target: str, budget2: float
    ):
        self.source, self.storages, self.overhead = source, storages, LEAF_OVERHEAD[target]
        self.norm2 = source.norm2()
        self.unit = source.matrix.numel() * 4 / max(self.norm2, 1e-300)
        self._guess = round(GRID * math.log2(1 + self.norm2 / max(budget2, 1e-300)))
        self._built = [{}, {}]
        self.levels = [
            Level((row, row + rows), (col, col + cols)) for row, rows, col, cols in partition.blocks() if rows and cols
        ]
        floor2 = 0.01 * budget2 / max(1, len(self.levels))
        spectra = [level_spectra(source, level, storages, floor2) for level in self.levels]
        self._options = [LevelOptions(found, storages, self.overhead) for found in spectra]

    def error2(self, lam: float) -> float:
        """The predicted squared error of the choices that minimise bytes + lam * squared error."""
        return sum(float(options.values(lam)[1].sum()) for options in self._options)

    def solve(self, lam: float) -> Plan:
        """Every block's choice that minimises bytes + lam * squared error."""
        leaves, cost, error2 = [], 0.0, 0.0
        for k, (options, level) in enumerate(zip(self._options, self.levels, strict=True)):
            best = options.best(lam)
            dense = int(best.dense[0])
            counts = () if dense >= 0 else tuple(best.counts[0].tolist())
            stored = self.storages[dense] if dense >= 0 else None
            (a, b), (c, d) = level.rows, level.cols
            leaves.append(Choice((k, 0, 0), (a, b), (c, d), stored, counts))
            cost += float(best.cost[0])
            error2 += float(best.error2[0])
        return Plan(tuple(leaves), cost, error2)

    def whole(self, error2: float) -> Plan | None:
        """None: blocks that are there stay."""
        return None
