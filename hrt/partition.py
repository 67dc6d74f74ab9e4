"""Which blocks a matrix is cut into: the paper's adaptive algorithm, and the cost-optimal partition.

`adaptive_partition` is Algorithm 1 of Mango & Katende (arXiv 2409.07028) as a readable reference: refine every block
whose error is above its share of the tolerance. `Planner` finds the cheapest partition instead: dynamic programming
from the finest blocks up, each block choosing the least of cost + lambda * error^2 among dense, low rank and split.
Global low rank and plain dense are the two choices at the root, so neither can beat it but by rounding.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hrt.cluster import Level, block_levels
from hrt.hmatrix import HMatrix, Leaf
from hrt.leaves import build_leaves, rounding_error
from hrt.options import ITEM, LEAF_OVERHEAD, Best, Choice, LevelOptions, without_last
from hrt.parallel import parallel_map
from hrt.spectra import BlockSource, LevelSpectra, level_spectra


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
        advance: Callable[[Level], None] | None = None,
    ):
        self.source = source
        self.storages = storages
        self.overhead = LEAF_OVERHEAD[target]
        matrix = source.matrix
        roundings = {s: rounding_error(matrix, s) for s in storages}
        roundings = {s: r for s, r in roundings.items() if bool(torch.isfinite(r).all())}  # others overflow
        self.spectra: list[LevelSpectra] = []
        self._options: list[LevelOptions] = []
        narrowest = min(ITEM[s] for s in storages)
        for level in reversed(block_levels(matrix.shape[0], matrix.shape[1], min_leaf)):
            limit = self._rank_limit(level, budget2, narrowest)
            spectra = level_spectra(source, level, roundings, 0.01 * budget2, limit)
            self.spectra.insert(0, spectra)
            self._options.insert(0, LevelOptions(spectra, storages, self.overhead))
            if advance:
                advance(level)
        self.norm2 = float(self.spectra[0].norm2.sum())

    def _rank_limit(self, level: Level, budget2: float, item: int) -> np.ndarray | None:
        """(R, C): the rank beyond which a block of `level` cannot beat the best partition of its children, by the
        multiplier that would meet a sixteenth of the budget without any larger block. None at the finest level.
        """
        if not self._options:
            return None
        unit = self.source.matrix.numel() * 4 / max(budget2, 1e-300)
        low, high = -40.0, 60.0
        for _ in range(20):
            mid = (low + high) / 2
            error2 = self._sweep(unit * 2.0**mid)[1].sum()
            low, high = (low, mid) if error2 <= budget2 / 16 else (mid, high)
        objective = _sum_children(self._sweep(unit * 2.0**high)[0], level.grid)
        heights, widths = np.diff(level.rows)[:, None], np.diff(level.cols)[None, :]
        return 1.2 * objective / (item * (heights + widths))

    def _sweep(self, lam: float) -> tuple[np.ndarray, np.ndarray, list[Best], list[np.ndarray]]:
        """Bottom-up over the levels known so far: objective and squared error of the coarsest level's blocks, the best
        unsplit option and whether to split, per level.
        """
        best = [t.best(lam) for t in self._options]
        total, error2 = best[-1].objective, best[-1].error2
        split = [np.zeros(t.grid, bool) for t in self._options]
        for k in range(len(best) - 2, -1, -1):
            children, grid = _sum_children(total, self._options[k].grid), self._options[k].grid
            split[k] = children < best[k].objective
            total = np.where(split[k], children, best[k].objective)
            error2 = np.where(split[k], _sum_children(error2, grid), best[k].error2)
        return total, error2, best, split

    def solve(self, lam: float) -> Plan:
        """The plan that minimises bytes + lam * squared error."""
        _, _, best, split = self._sweep(lam)
        leaves: list[Choice] = []
        cost = error2 = 0.0
        active = np.ones((1, 1), bool)
        for k, (options, level) in enumerate(zip(best, (s.level for s in self.spectra), strict=True)):
            for i, j in zip(*np.nonzero(active & ~split[k]), strict=True):
                dense = int(options.dense[i, j])
                leaves.append(
                    Choice(
                        (k, int(i), int(j)),
                        (level.rows[i], level.rows[i + 1]),
                        (level.cols[j], level.cols[j + 1]),
                        self.storages[dense] if dense >= 0 else None,
                        tuple(int(c) for c in options.counts[i, j]) if dense < 0 else (),
                    )
                )
                cost += float(options.cost[i, j])
                error2 += float(options.error2[i, j])
            if k + 1 < len(best):
                grid = self._options[k + 1].grid
                active = _spread(active & split[k], grid)
        return Plan(tuple(leaves), cost, error2)

    def solve_budget(self, error2: float) -> Plan:
        """The cheapest plan found with predicted squared error at most `error2` (bisection on the multiplier)."""
        low, high = -60.0, 120.0  # log2 of lambda * norm2 / bytes
        unit = self.source.matrix.numel() * 4 / max(self.norm2, 1e-300)
        plan = None
        for _ in range(46):
            mid = (low + high) / 2
            trial = self.solve(unit * 2.0**mid)
            if trial.error2 <= error2:
                plan, high = trial, mid
            else:
                low = mid
        return self._trim(plan, error2) if plan else self.solve(unit * 2.0**120)

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
        k, i, j = choice.place
        return int((self._options[k].sigma2[i, j] > 0).sum())

    def build(self, plan: Plan, row_order: Tensor | None = None, col_order: Tensor | None = None) -> HMatrix:
        """Factor the chosen leaves and round them to their storage types."""
        m, n = self.source.matrix.shape
        built = parallel_map(lambda choice: build_leaves(self.source, choice, self.storages), plan.leaves)
        return HMatrix((m, n), tuple(leaf for part in built for leaf in part), row_order, col_order)


def _factors(fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int]:
    return fine[0] // coarse[0], fine[1] // coarse[1]


def _sum_children(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    a, b = _factors(values.shape, grid)
    return values.reshape(grid[0], a, grid[1], b).sum(axis=(1, 3))


def _spread(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    a, b = _factors(grid, mask.shape)
    return np.repeat(np.repeat(mask, a, axis=0), b, axis=1)


def adaptive_partition(matrix: Tensor, tol: float, *, max_rank: int = 16, min_leaf: int = 32) -> HMatrix:
    """Algorithm 1 of arXiv 2409.07028 as a reference: keep a block as rank <= `max_rank` where its truncation error
    is at most its share of the budget, else refine it into four; the finest blocks stay dense.

    The share is tol * ||W||_F * sqrt(block entries / all entries), so that the disjoint errors add up to at most
    tol * ||W||_F (the paper's global bound, an equality for disjoint blocks). matrix: (m, n); returns float32 leaves.
    """
    w = matrix.to(torch.float64)
    budget2 = tol**2 * float((w * w).sum()) / max(1, w.numel())
    levels = block_levels(w.shape[0], w.shape[1], min_leaf)
    leaves: list[Leaf] = []

    def refine(depth: int, i: int, j: int) -> None:
        level: Level = levels[depth]
        (a, b), (c, d) = level.rows[i : i + 2], level.cols[j : j + 2]
        block = w[a:b, c:d]
        u, sigma, vt = torch.linalg.svd(block, full_matrices=False)
        tail2 = torch.cat([(sigma**2).flip(0).cumsum(0).flip(0), sigma.new_zeros(1)])
        rank = int((tail2 > budget2 * block.numel()).sum())
        if rank <= max_rank and rank * (b - a + d - c) < block.numel():
            scale = sigma[:rank].sqrt()
            us, vs = u[:, :rank] * scale, vt[:rank] * scale[:, None]
            leaves.append(Leaf(a, b - a, c, d - c, u=us.float().contiguous(), vt=vs.float().contiguous()))
        elif depth + 1 == len(levels):
            leaves.append(Leaf(a, b - a, c, d - c, dense=block.float().contiguous()))
        else:
            p, q = _factors(levels[depth + 1].grid, level.grid)
            for child_i in range(i * p, i * p + p):
                for child_j in range(j * q, j * q + q):
                    refine(depth + 1, child_i, child_j)

    if w.numel():
        refine(0, 0, 0)
    return HMatrix((w.shape[0], w.shape[1]), tuple(leaves))
