"""What a block can be, and what that costs: dense or low-rank, every direction in a storage type of its own.

Directions are independent: keeping direction k in type s costs its bytes plus lambda times the squared error of
rounding it, rho_s^2 noise_k; dropping it costs lambda sigma_k^2. So a block's best mixture is a minimum per direction,
taken for all blocks of a level at once.
"""

from dataclasses import dataclass, replace

import numpy as np

from hrt.spectra import LevelSpectra

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
# Root-mean-square relative error of storing one number. Floats: 2^-(bits+1) / sqrt(3) * 0.72 for log-uniform mantissas.
# int8: a step of max/127 is uniform in +-step/2, and numbers of a smooth or random row have rms near max/2.2.
ROUNDING_RMS = {"float32": 2.5e-8, "float16": 2.0e-4, "bfloat16": 1.6e-3, "int8": 5e-3}
SCALE_BYTES = 2  # per int8 direction, and per row of an int8 dense block
TABLE_ROW = 11.0
# Bytes that one more leaf costs beside its numbers: the table row, and for a latency target the time of two small
# products, as the bytes that could have been streamed meanwhile.
LEAF_OVERHEAD = {"bytes": TABLE_ROW, "cpu": 1024.0, "cuda": 1024.0}
LARGEST_LAMBDA = 1e200  # beyond it 0 * infinity would appear where a budget is zero


@dataclass(frozen=True)
class Choice:
    """One block of a plan: row range, column range, and either a storage type for the dense block or how many
    directions each storage type holds, in the planner's order (most exact first). `place` is its (level, i, j).
    """

    place: tuple[int, int, int]
    rows: tuple[int, int]
    cols: tuple[int, int]
    dense: str | None
    counts: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """Directions kept; -1 for a dense block."""
        return -1 if self.dense is not None else sum(self.counts)


@dataclass(frozen=True, eq=False)
class Best:
    """Per block (R, C) of a level: objective, bytes, squared error, dense storage index (-1: low rank), counts per
    storage type (R, C, S).
    """

    objective: np.ndarray
    cost: np.ndarray
    error2: np.ndarray
    dense: np.ndarray
    counts: np.ndarray


class LevelOptions:
    """The options of a level's blocks, with everything that does not depend on lambda worked out once."""

    def __init__(self, spectra: LevelSpectra, storages: tuple[str, ...], overhead: float):
        self.grid, self.storages, self.overhead = spectra.level.grid, storages, overhead
        h, w = spectra.heights.numpy()[:, None], spectra.widths.numpy()[None, :]
        heights, perimeter = np.broadcast_to(h, self.grid).astype(float), (h + w).astype(float)
        self.sigma2, self.noise = spectra.sigma2.numpy(), spectra.noise.numpy()
        start = np.zeros((*self.grid, 1))
        kept = np.concatenate([start, np.cumsum(self.sigma2, axis=2)], axis=2)
        self.tail = np.maximum(spectra.norm2.numpy()[..., None] - kept, 0.0)
        scaled = [SCALE_BYTES if s == "int8" else 0 for s in storages]
        self.direction_bytes = [ITEM[s] * perimeter + extra for s, extra in zip(storages, scaled, strict=True)]
        self.dense_bytes = [ITEM[s] * h * w + extra * heights for s, extra in zip(storages, scaled, strict=True)]
        overflow = np.full(self.grid, np.inf)
        self.dense_error2 = [spectra.rounding2[s].numpy() if s in spectra.rounding2 else overflow for s in storages]
        self.rho2 = [ROUNDING_RMS[s] ** 2 for s in storages]

    def best(self, lam: float) -> Best:
        """The cheapest option of every block by bytes + lam * squared error."""
        lam = min(lam, LARGEST_LAMBDA)
        none = np.full(self.grid, -1)
        zero = np.zeros((*self.grid, len(self.storages)), int)
        out = Best(np.full(self.grid, np.inf), none * 0.0, none * 0.0, none, zero)
        for k in range(len(self.storages)):
            out = self._offer(out, lam, self.dense_bytes[k] + self.overhead, self.dense_error2[k], none * 0 + k, zero)
            out = self._offer_low_rank(out, lam, (k,))
        if len(self.storages) > 1:
            out = self._offer_low_rank(out, lam, tuple(range(len(self.storages))))
        return out

    def _offer_low_rank(self, out: Best, lam: float, allowed: tuple[int, ...]) -> Best:
        price = np.stack(
            [self.direction_bytes[s][..., None] + lam * self.rho2[s] * self.noise for s in allowed], axis=-1
        )
        # Directions get weaker, so their storage may only get coarser: groups stay contiguous.
        pick = np.maximum.accumulate(price.argmin(axis=-1), axis=2)
        spent = np.take_along_axis(price, pick[..., None], axis=-1)[..., 0]
        gain = np.cumsum(spent - lam * self.sigma2, axis=2)
        rank = np.concatenate([np.zeros((*self.grid, 1)), gain], axis=2).argmin(axis=2)
        keep = np.arange(pick.shape[2]) < rank[..., None]
        error2 = np.take_along_axis(self.tail, rank[..., None], axis=2)[..., 0]
        cost = np.zeros(self.grid)
        counts = np.zeros((*self.grid, len(self.storages)), int)
        for position, s in enumerate(allowed):
            mine = keep & (pick == position)
            counts[..., s] = mine.sum(axis=2)
            cost += counts[..., s] * self.direction_bytes[s]
            error2 = error2 + self.rho2[s] * (self.noise * mine).sum(axis=2)
        groups = np.maximum((counts > 0).sum(axis=2), 1)
        cost += self.overhead + TABLE_ROW * (groups - 1)
        return self._offer(out, lam, cost, error2, np.full(self.grid, -1), counts)

    def _offer(self, out: Best, lam: float, cost, error2, dense, counts) -> Best:
        objective = cost + lam * error2
        better = objective < out.objective
        return Best(
            np.where(better, objective, out.objective),
            np.where(better, cost, out.cost),
            np.where(better, error2, out.error2),
            np.where(better, dense, out.dense),
            np.where(better[..., None], counts, out.counts),
        )

    def price(self, choice: Choice) -> tuple[float, float]:
        """(bytes, predicted squared error) of one block of this level, without the leaf's overhead."""
        _, i, j = choice.place
        if choice.dense is not None:
            s = self.storages.index(choice.dense)
            return float(self.dense_bytes[s][i, j]), float(self.dense_error2[s][i, j])
        error2 = float(self.tail[i, j, choice.rank])
        cost = TABLE_ROW * max(0, sum(c > 0 for c in choice.counts) - 1)
        start = 0
        for s, count in enumerate(choice.counts):
            cost += count * float(self.direction_bytes[s][i, j])
            error2 += self.rho2[s] * float(self.noise[i, j, start : start + count].sum())
            start += count
        return cost, error2

    def last_direction(self, choice: Choice) -> tuple[float, float]:
        """(bytes, squared error added) of dropping the weakest direction of a low-rank block."""
        _, i, j = choice.place
        s = max(k for k, c in enumerate(choice.counts) if c)
        k = choice.rank - 1
        loss = float(self.sigma2[i, j, k]) - self.rho2[s] * float(self.noise[i, j, k])
        return float(self.direction_bytes[s][i, j]), loss


def without_last(counts: tuple[int, ...], drop: int = 1) -> tuple[int, ...]:
    """`counts` with `drop` directions fewer, the weakest first."""
    out = list(counts)
    for s in reversed(range(len(out))):
        taken = min(out[s], drop)
        out[s], drop = out[s] - taken, drop - taken
    return tuple(out)


def neighbours(choice: Choice, storages: tuple[str, ...], up: bool) -> list[Choice]:
    """Blocks one step away: fewer bytes (or more, for `up`). Directions are dropped or added at the weak end, or moved
    to the next storage type; a step is one direction, an eighth of them, or all.
    """
    if choice.dense is not None:
        here = ITEM[choice.dense]
        return [replace(choice, dense=s) for s in storages if (ITEM[s] > here if up else ITEM[s] < here)]
    found: set[tuple[int, ...]] = set()
    sizes = {1, -(-choice.rank // 8)}
    used = [s for s, c in enumerate(choice.counts) if c]
    if up:
        last = used[-1] if used else len(storages) - 1
        for n in sizes:
            found.add(tuple(c + n * (s == last) for s, c in enumerate(choice.counts)))
    else:
        found |= {without_last(choice.counts, n) for n in sizes if n <= choice.rank}
    for exact in range(len(storages)):
        for coarse in range(exact + 1, len(storages)):
            source, sink = (coarse, exact) if up else (exact, coarse)
            between = any(choice.counts[exact + 1 : coarse])
            for n in sizes | {choice.counts[source]}:
                if 0 < n <= choice.counts[source] and not between:
                    moved = [c + n * (s == sink) - n * (s == source) for s, c in enumerate(choice.counts)]
                    found.add(tuple(moved))
    found.discard(choice.counts)
    return [replace(choice, counts=counts) for counts in sorted(found)]
