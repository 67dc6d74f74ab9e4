"""Which blocks a matrix is cut into: the paper's adaptive algorithm, and the cost-optimal partition.

`adaptive_partition` is Algorithm 1 of Mango & Katende (arXiv 2409.07028) as a readable reference: refine every block
whose error is above its share of the tolerance. `Planner` finds the cheapest partition instead: dynamic programming
from the finest blocks up, each block choosing the least of cost + lambda * error^2 among dense, low rank and split.
Global low rank and plain dense are the two choices at the root, so neither can beat it but by rounding.
"""

import heapq
import math
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.block_choices import ITEM, LEAF_OVERHEAD, Best, Choice, LevelOptions, without_last
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.block_spectra import LevelSpectra, level_spectra
from hrt.matrix_compression.build_leaves import build_all
from hrt.matrix_compression.cluster_tree import Level, block_levels
from hrt.support.progress import Advance, silent

GRID = 8  # multipliers per factor of two
FIRST_POWER, LAST_POWER = -60, 120  # of two, where multiplier 1 trades all bytes for the whole norm


@dataclass(frozen=True)
class Plan:
    """Leaves, their cost in bytes and the squared weighted error that the spectra predict."""

    leaves: tuple[Choice, ...]
    cost: float
    error2: float


class Planner:
    """The cost-optimal partition of one matrix for any Lagrange multiplier.

    source: the matrix in tree order with its weights.  storages: names the leaves may use.  budget2: the squared error
    that will roughly be asked for; it only tells where factoring can stop.  `solve(lam)` costs milliseconds once the
    spectra are known; `build(plan)` factors only the chosen leaves.
    """

    def __init__(
        self,
        source: BlockSource,
        *,
        min_leaf: int,
        storages: tuple[str, ...],
        target: str,
        budget2: float,
        advance: Advance = silent,
        executor: Executor | None = None,
    ):
        self.source = source
        self.storages = storages
        self.overhead = LEAF_OVERHEAD[target]
        matrix = source.matrix
        self.norm2 = source.norm2()
        self.unit = matrix.numel() * 4 / max(self.norm2, 1e-300)
        self._guess = round(GRID * math.log2(1 + self.norm2 / max(budget2, 1e-300)))
        self._built: list[dict[Choice, list[Leaf]]] = [{}, {}]
        self.levels: list[Level] = []
        finer: LevelSpectra | None = None
        self._options: list[LevelOptions] = []
        narrowest = min(ITEM[s] for s in storages)
        levels = block_levels(matrix.shape[0], matrix.shape[1], min_leaf)
        for k, level in enumerate(reversed(levels)):
            height, width = (max(np.diff(cuts)) for cuts in (level.rows, level.cols))
            advance(f"blocks of {height} x {width}", k / len(levels))
            limit = self._rank_limit(level, budget2, narrowest)
            finer = level_spectra(source, level, storages, 0.01 * budget2, limit, finer, executor)
            self.levels.insert(0, level)
            self._options.insert(0, LevelOptions(finer, storages, self.overhead))

    def __getstate__(self) -> dict[str, object]:
        """Without the matrix: whoever sent it has it."""
        return {**self.__dict__, "source": None, "_built": [{}, {}]}

    def multiplier(self, step: int) -> float:
        """Lagrange multipliers on a geometric grid, so that values worked out once can be used again."""
        return self.unit * 2.0 ** (step / GRID)

    def _rank_limit(self, level: Level, budget2: float, item: int) -> np.ndarray | None:
        """(R, C): the rank beyond which a block of `level` cannot beat the best partition of its children, by the
        multiplier that would meet a sixteenth of the budget without any larger block. None at the finest level.
        """
        if not self._options:
            return None
        step = least_step(lambda step: self.error2(self.multiplier(step)) <= budget2 / 16, self._guess, GRID)
        self._guess = step
        objective = _sum_children(self._sweep(self.multiplier(step))[0], level.grid)
        heights, widths = np.diff(level.rows)[:, None], np.diff(level.cols)[None, :]
        return 1.2 * objective / (item * (heights + widths))

    def _sweep(self, lam: float) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Bottom-up over the levels known so far: objective and squared error of the coarsest level's blocks, and
        whether to split, per level.
        """
        values = [t.values(lam) for t in self._options]
        total, error2 = values[-1]
        split = [np.zeros(t.grid, bool) for t in self._options]
        for k in range(len(values) - 2, -1, -1):
            whole, whole2 = values[k]
            children, grid = _sum_children(total, whole.shape), whole.shape
            split[k] = children < whole
            total = np.where(split[k], children, whole)
            error2 = np.where(split[k], _sum_children(error2, grid), whole2)
        return total, error2, split

    def error2(self, lam: float) -> float:
        """The predicted squared error of the plan that minimises bytes + lam * squared error."""
        return float(self._sweep(lam)[1].sum())

    def solve(self, lam: float) -> Plan:
        """The plan that minimises bytes + lam * squared error."""
        _, _, split = self._sweep(lam)
        leaves: list[Choice] = []
        cost = error2 = 0.0
        active = np.ones((1, 1), bool)
        for k, options in enumerate(self._options):
            here = np.flatnonzero(active & ~split[k])
            best = options.best(lam, here)
            leaves += self._choices(k, here, best)
            cost += float(best.cost.sum())
            error2 += float(best.error2.sum())
            if k + 1 < len(self._options):
                active = _spread(active & split[k], self._options[k + 1].grid)
        return Plan(tuple(leaves), cost, error2)

    def solve_budget(self, error2: float) -> Plan:
        """The cheapest plan found with predicted squared error at most `error2` (bisection on the multiplier)."""
        step = least_step(lambda step: self.error2(self.multiplier(step)) <= error2, self._guess)
        self._guess = step
        plan = self.solve(self.multiplier(step))
        return self._trim(plan, error2) if plan.error2 <= error2 else plan

    def _choices(self, k: int, blocks: np.ndarray, best: Best) -> list[Choice]:
        """The best options of some blocks of level k, given by their flat indices."""
        level, choices = self.levels[k], []
        for index, dense, counts in zip(blocks.tolist(), best.dense.tolist(), best.counts.tolist(), strict=True):
            i, j = divmod(index, self._options[k].grid[1])
            rows, cols = (level.rows[i], level.rows[i + 1]), (level.cols[j], level.cols[j + 1])
            stored = self.storages[dense] if dense >= 0 else None
            choices.append(Choice((k, i, j), rows, cols, stored, tuple(counts) if dense < 0 else ()))
        return choices

    def whole(self, error2: float) -> Plan | None:
        """The cheapest plan of one low-rank leaf over the whole matrix with predicted squared error at most `error2`;
        None where the ranks that are known do not reach that, or a dense leaf is cheaper.
        """
        options, all_blocks = self._options[0], np.arange(1)
        step = least_step(lambda step: options.values(self.multiplier(step))[1].sum() <= error2, self._guess)
        best = options.best(self.multiplier(step))
        if options.grid != (1, 1) or best.error2[0] > error2 or best.dense[0] >= 0:
            return None
        plan = Plan(tuple(self._choices(0, all_blocks, best)), float(best.cost[0]), float(best.error2[0]))
        return self._trim(plan, error2)

    def _trim(self, plan: Plan, error2: float) -> Plan:
        """Spend what the multiplier left of the budget: drop trailing directions, least error per byte first."""
        leaves = list(plan.leaves)
        spare, saved = error2 - plan.error2, 0.0

        def offer(index: int) -> None:
            c = leaves[index]
            if c.rank > 0:
                nbytes, loss = self._options[c.place[0]].last_direction(c)
                heapq.heappush(queue, (loss / nbytes, index, loss, nbytes))

        queue: list[tuple[float, int, float, float]] = []
        for index in range(len(leaves)):
            offer(index)
        while queue:
            _, index, loss, nbytes = heapq.heappop(queue)
            if loss <= spare:
                spare, saved = spare - loss, saved + nbytes
                leaves[index] = replace(leaves[index], counts=without_last(leaves[index].counts))
                offer(index)
        return Plan(tuple(leaves), plan.cost - saved, error2 - spare)

    def price(self, choice: Choice) -> tuple[float, float]:
        """(bytes, predicted squared error) of one block."""
        return self._options[choice.place[0]].price(choice)

    def top_rank(self, choice: Choice) -> int:
        """The largest rank whose error is known for this block."""
        return self._options[choice.place[0]].known(choice)

    def build(self, plan: Plan, row_order: Tensor | None = None, col_order: Tensor | None = None) -> HMatrix:
        """Factor the chosen leaves and round them to their storage types; the last two plans' are still there. A single
        block needs no orderings: its factors are put back into the original order.
        """
        m, n = self.source.matrix.shape
        before = {**self._built[0], **self._built[1]}
        new = [choice for choice in plan.leaves if choice not in before]
        before.update(zip(new, build_all(self.source, new, self.storages), strict=True))
        self._built = [self._built[1], {choice: before[choice] for choice in plan.leaves}]
        leaves = tuple(leaf for choice in plan.leaves for leaf in before[choice])
        if all(not leaf.is_dense and (leaf.rows, leaf.cols) == (m, n) for leaf in leaves):
            leaves = tuple(_reordered(leaf, row_order, col_order) for leaf in leaves)
            row_order = col_order = None
        return HMatrix((m, n), leaves, row_order, col_order)


def _reordered(leaf: Leaf, row_order: Tensor | None, col_order: Tensor | None) -> Leaf:
    """A low-rank leaf over the whole of a matrix in tree order, as one of the matrix in its own order."""
    u, vt = leaf.u, leaf.vt
    if row_order is not None and u is not None:
        u = torch.empty_like(u).index_copy_(0, row_order.long(), u)
    if col_order is not None and vt is not None:
        vt = torch.empty_like(vt).index_copy_(1, col_order.long(), vt)
    return replace(leaf, u=u, vt=vt)


def least_step(enough: Callable[[int], bool], guess: int, finest: int = 1, grid: int = GRID) -> int:
    """The least step of a geometric grid of multipliers, `grid` per factor of two, that is `enough`, the last if none.

    By galloping from `guess` and bisection, to a multiple of `finest`. Whole powers of two come first: other calls
    asked for those already.
    """
    low, high, stride = FIRST_POWER * grid, LAST_POWER * grid, grid
    place = min(max(guess // grid * grid, low), high)
    while low < place < high:
        low, high = (low, place) if enough(place) else (place, high)
        place = place - stride if high == place else place + stride
        stride *= 2
    for width in (grid, finest):
        while high - low > width:
            mid = low + (high - low) // width // 2 * width
            low, high = (low, mid) if enough(mid) else (mid, high)
    return high


def _factors(fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int]:
    return fine[0] // coarse[0], fine[1] // coarse[1]


def _sum_children(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    a, b = _factors(values.shape, grid)
    return values.reshape(grid[0], a, grid[1], b).sum(axis=(1, 3))


def _spread(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    a, b = _factors(grid, mask.shape)
    return np.repeat(np.repeat(mask, a, axis=0), b, axis=1)
