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
from hrt.hmatrix import STORAGE, HMatrix, Leaf
from hrt.parallel import parallel_map
from hrt.spectra import BlockSource, LevelSpectra, level_spectra, low_rank_factors

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2}
# Root-mean-square relative error of rounding one number, mantissas log-uniform: 2^-(bits+1) / sqrt(3) * 0.72.
ROUNDING_RMS = {"float32": 2.5e-8, "float16": 2.0e-4, "bfloat16": 1.6e-3}
# Bytes that one more leaf costs beside its numbers: the table row, and for a latency target the time of two small
# products, as the bytes that could have been streamed meanwhile.
LEAF_OVERHEAD = {"bytes": 11.0, "cpu": 1024.0, "cuda": 1024.0}

LARGEST_LAMBDA = 1e200  # beyond it 0 * infinity would appear where a budget is zero


@dataclass(frozen=True)
class Choice:
    """One leaf of a plan: block (row range, column range), rank (-1: dense), storage name; `place` is its
    (level, i, j) in the block tree.
    """

    place: tuple[int, int, int]
    rows: tuple[int, int]
    cols: tuple[int, int]
    rank: int
    storage: str


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
        roundings = {s: matrix - to_storage(matrix, s).to(matrix.dtype) for s in storages}
        roundings = {s: r for s, r in roundings.items() if bool(torch.isfinite(r).all())}  # others overflow
        self.spectra: list[LevelSpectra] = []
        self._tables: list[_OptionTables] = []
        narrowest = min(ITEM[s] for s in storages)
        for level in reversed(block_levels(matrix.shape[0], matrix.shape[1], min_leaf)):
            limit = self._rank_limit(level, budget2, narrowest)
            spectra = level_spectra(source, level, roundings, 0.01 * budget2, limit)
            self.spectra.insert(0, spectra)
            self._tables.insert(0, _OptionTables(spectra, storages, self.overhead))
            if advance:
                advance(level)
        self.norm2 = float(self.spectra[0].norm2.sum())

    def _rank_limit(self, level: Level, budget2: float, item: int) -> np.ndarray | None:
        """(R, C): the rank beyond which a block of `level` cannot beat the best partition of its children, by the
        multiplier that would meet a sixteenth of the budget without any larger block. None at the finest level.
        """
        if not self._tables:
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

    def _sweep(self, lam: float) -> tuple[np.ndarray, np.ndarray, list[dict[str, np.ndarray]], list[np.ndarray]]:
        """Bottom-up over the levels known so far: objective and squared error of the coarsest level's blocks, the best
        unsplit option and whether to split, per level.
        """
        best = [t.best(lam) for t in self._tables]
        total, error2 = best[-1]["objective"], best[-1]["error2"]
        split = [np.zeros(t.grid, bool) for t in self._tables]
        for k in range(len(best) - 2, -1, -1):
            children, grid = _sum_children(total, self._tables[k].grid), self._tables[k].grid
            split[k] = children < best[k]["objective"]
            total = np.where(split[k], children, best[k]["objective"])
            error2 = np.where(split[k], _sum_children(error2, grid), best[k]["error2"])
        return total, error2, best, split

    def solve(self, lam: float) -> Plan:
        """The plan that minimises bytes + lam * squared error."""
        _, _, best, split = self._sweep(lam)
        leaves: list[Choice] = []
        cost = error2 = 0.0
        active = np.ones((1, 1), bool)
        for k, (options, level) in enumerate(zip(best, (s.level for s in self.spectra), strict=True)):
            for i, j in zip(*np.nonzero(active & ~split[k]), strict=True):
                leaves.append(
                    Choice(
                        (k, int(i), int(j)),
                        (level.rows[i], level.rows[i + 1]),
                        (level.cols[j], level.cols[j + 1]),
                        int(options["rank"][i, j]),
                        self.storages[int(options["storage"][i, j])],
                    )
                )
                cost += float(options["cost"][i, j])
                error2 += float(options["error2"][i, j])
            if k + 1 < len(best):
                grid = self._tables[k + 1].grid
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
                nbytes = ITEM[c.storage] * (c.rows[1] - c.rows[0] + c.cols[1] - c.cols[0])
                k, i, j = c.place
                loss = float(self._tables[k].sigma2[i, j, c.rank - 1])
                heapq.heappush(queue, (loss / nbytes, index, loss, nbytes))

        queue: list[tuple[float, int, float, int]] = []
        for index in range(len(leaves)):
            offer(index)
        while queue:
            _, index, loss, nbytes = heapq.heappop(queue)
            if loss <= spare:
                spare, saved = spare - loss, saved + nbytes
                leaves[index] = replace(leaves[index], rank=leaves[index].rank - 1)
                offer(index)
        return Plan(tuple(leaves), plan.cost - saved, error2 - spare)

    def price(self, choice: Choice) -> tuple[float, float]:
        """(bytes, predicted squared error) of one leaf."""
        k, i, j = choice.place
        table, item = self._tables[k], ITEM[choice.storage]
        if choice.rank < 0:
            return table.entries[i, j] * item, float(table.rounding2[choice.storage][i, j])
        noise = ROUNDING_RMS[choice.storage] ** 2 * float(table.noise[i, j, choice.rank])
        return choice.rank * table.perimeter[i, j] * item, float(table.tail[i, j, choice.rank]) + noise

    def top_rank(self, choice: Choice) -> int:
        """The largest rank whose error is known for this block."""
        k, i, j = choice.place
        return int((self._tables[k].sigma2[i, j] > 0).sum())

    def build(self, plan: Plan, row_order: Tensor | None = None, col_order: Tensor | None = None) -> HMatrix:
        """Factor the chosen leaves and round them to their storage types."""
        m, n = self.source.matrix.shape
        leaves = parallel_map(lambda choice: build_leaf(self.source, choice), plan.leaves)
        return HMatrix((m, n), tuple(leaves), row_order, col_order)


class _OptionTables:
    """What a level's blocks can be, with everything that does not depend on lambda worked out once."""

    def __init__(self, spectra: LevelSpectra, storages: tuple[str, ...], overhead: float):
        self.grid = spectra.level.grid
        h, w = spectra.heights.numpy()[:, None], spectra.widths.numpy()[None, :]
        self.entries, self.perimeter = (h * w).astype(float), (h + w).astype(float)
        self.sigma2 = spectra.sigma2.numpy()
        start = np.zeros((*self.grid, 1))
        kept = np.concatenate([start, np.cumsum(self.sigma2, axis=2)], axis=2)
        self.tail = np.maximum(spectra.norm2.numpy()[..., None] - kept, 0.0)
        self.noise = np.concatenate([start, np.cumsum(spectra.noise.numpy(), axis=2)], axis=2)
        self.ranks = np.arange(kept.shape[2])
        overflow = np.full(self.grid, np.inf)
        self.rounding2 = {s: spectra.rounding2[s].numpy() if s in spectra.rounding2 else overflow for s in storages}
        self.storages, self.overhead = storages, overhead

    def best(self, lam: float) -> dict[str, np.ndarray]:
        """Per block the cheapest of dense and low rank over all storages: objective, cost, error2, rank, storage."""
        lam = min(lam, LARGEST_LAMBDA)
        out: dict[str, np.ndarray] = {"objective": np.full(self.grid, np.inf)}
        for index, storage in enumerate(self.storages):
            item = ITEM[storage]
            per_direction = self.perimeter * item
            error2 = self.tail + ROUNDING_RMS[storage] ** 2 * self.noise
            rank = (self.ranks * per_direction[..., None] + lam * error2).argmin(axis=2)
            error2 = np.take_along_axis(error2, rank[..., None], axis=2)[..., 0]
            self._offer(out, lam, rank * per_direction, error2, rank, index)
            self._offer(out, lam, self.entries * item, self.rounding2[storage], np.full(self.grid, -1), index)
        return out

    def _offer(self, out, lam, cost, error2, rank, index) -> None:
        cost = cost + self.overhead
        objective = cost + lam * error2
        better = objective < out["objective"]
        new = {"objective": objective, "cost": cost, "error2": error2, "rank": rank}
        new["storage"] = np.full(self.grid, index)
        for key, value in new.items():
            out[key] = np.where(better, value, out.get(key, value))


def _factors(fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int]:
    return fine[0] // coarse[0], fine[1] // coarse[1]


def _sum_children(values: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    a, b = _factors(values.shape, grid)
    return values.reshape(grid[0], a, grid[1], b).sum(axis=(1, 3))


def _spread(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    a, b = _factors(grid, mask.shape)
    return np.repeat(np.repeat(mask, a, axis=0), b, axis=1)


def to_storage(t: Tensor, storage: str) -> Tensor:
    """Round to a storage type (nearest even; overflow becomes infinite, which the planner refuses)."""
    return t.to(STORAGE[storage]).contiguous()


def build_leaf(source: BlockSource, choice: Choice) -> Leaf:
    """The stored leaf of a choice. Factors that overflow their narrow type are kept in float32."""
    (a, b), (c, d) = choice.rows, choice.cols
    place = (a, b - a, c, d - c)
    if choice.rank < 0:
        return Leaf(*place, dense=to_storage(source.matrix[a:b, c:d], choice.storage))
    u, vt = low_rank_factors(source, choice.rows, choice.cols, choice.rank, ROUNDING_RMS[choice.storage])
    for storage in (choice.storage, "float32"):
        us, vs = to_storage(u, storage), to_storage(vt, storage)
        if bool(torch.isfinite(us).all() & torch.isfinite(vs).all()):
            return Leaf(*place, u=us, vt=vs)
    return Leaf(*place, dense=to_storage(source.matrix[a:b, c:d], "float32"))


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
