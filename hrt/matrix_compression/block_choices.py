"""What a block can be, and what that costs: dense or low-rank, every direction in a storage type of its own.

Directions are independent: keeping direction k in type s costs its bytes plus lambda times the squared error of
rounding it, rho_s^2 noise_k; dropping it costs lambda sigma_k^2. So a block's best mixture is a minimum per direction,
taken for all blocks of a level at once.
"""

from dataclasses import dataclass, replace

import numpy as np

from hrt.matrix_compression.block_spectra import LevelSpectra
from hrt.support.recent import Recent

ITEM = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
# Root-mean-square relative error of storing one number. Floats: 2^-(bits+1) / sqrt(3) * 0.72 for log-uniform mantissas.
# int8: a step of max/127 is uniform in +-step/2, and numbers of a smooth or random row have rms near max/2.2.
ROUNDING_RMS = {"float32": 2.5e-8, "float16": 2.0e-4, "bfloat16": 1.6e-3, "int8": 5e-3}
SCALE_BYTES = 2  # per int8 direction, and per row of an int8 dense block
TABLE_ROW = 11.0
# Bytes that one more leaf costs beside its numbers: the table row, and for a latency target the time of two small
# products, as the bytes that could have been streamed meanwhile.
LEAF_OVERHEAD = {"bytes": TABLE_ROW, "cpu": 1024.0, "cuda": 1024.0}
PIECE = 1 << 13  # blocks worked on at a time: temporaries stay in cache
KEPT_VALUES = 1 << 20  # block values kept, over all multipliers
LARGEST_LAMBDA = 1e200  # beyond it 0 * infinity would appear where a budget is zero


@dataclass(frozen=True)
class Choice:
    """A block of a plan, its (level, i, j), and a dense type, or directions per storage type, most exact first."""

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
    """Per block (B,): objective, bytes, squared error, dense storage index or -1, directions per storage (B, S)."""

    objective: np.ndarray
    cost: np.ndarray
    error2: np.ndarray
    dense: np.ndarray
    counts: np.ndarray


FIELDS = ("objective", "cost", "error2", "dense", "counts")


class LevelOptions:
    """The options of a level's blocks, with everything that does not depend on lambda worked out once."""

    grid: tuple[int, int]
    storages: tuple[str, ...]
    overhead: float
    sigma2: np.ndarray
    noise: np.ndarray
    tail: np.ndarray
    noise_until: np.ndarray  # (B, K + 1): of the directions before
    direction_bytes: np.ndarray  # (S, B), like the two below
    dense_bytes: np.ndarray
    dense_error2: np.ndarray

    def __init__(self, spectra: LevelSpectra, storages: tuple[str, ...], overhead: float):
        self.grid, self.storages, self.overhead = spectra.level.grid, storages, overhead
        h, w = (v.ravel() for v in np.meshgrid(spectra.heights.numpy(), spectra.widths.numpy(), indexing="ij"))
        # No direction beyond these pays: the block is smaller dense and wide than low-rank and narrow.
        widest, narrowest = max(ITEM[s] for s in storages), min(ITEM[s] for s in storages)
        longest = int(max(1, (widest * h * w / (narrowest * (h + w))).max(initial=0)))
        known = spectra.sigma2.shape[2]
        self.sigma2, self.noise = (
            np.ascontiguousarray(v.numpy().reshape(-1, known)[:, :longest]) for v in (spectra.sigma2, spectra.noise)
        )
        self.ranks = (self.sigma2 > 0).sum(axis=1)
        norm2 = spectra.norm2.numpy().reshape(-1, 1)
        self.tail = np.maximum(norm2 - np.pad(np.cumsum(self.sigma2, axis=1), ((0, 0), (1, 0))), 0.0)
        scaled = {s: SCALE_BYTES if s == "int8" else 0 for s in storages}
        self.noise_until = np.pad(np.cumsum(self.noise, axis=1), ((0, 0), (1, 0)))
        self.direction_bytes = np.stack([ITEM[s] * (h + w).astype(float) + extra for s, extra in scaled.items()])
        self.dense_bytes = np.stack([ITEM[s] * (h * w).astype(float) + extra * h for s, extra in scaled.items()])
        lost = {s: error2.numpy().ravel() for s, error2 in spectra.rounding2.items()}
        self.dense_error2 = np.stack([lost.get(s, np.full(len(norm2), np.inf)) for s in storages])
        self.rho2: np.ndarray = np.array([ROUNDING_RMS[s] for s in storages]) ** 2
        self._values = self._no_values()

    def _no_values(self) -> Recent[float, tuple[np.ndarray, np.ndarray]]:
        return Recent(max(8, KEPT_VALUES // max(1, len(self.tail))))

    def __getstate__(self) -> dict[str, object]:
        """Without the values worked out so far: another process finds its own."""
        return {**self.__dict__, "_values": self._no_values()}

    def values(self, lam: float) -> tuple[np.ndarray, np.ndarray]:
        """Objective and squared error of every block's cheapest option (R, C), kept for the multipliers asked last."""
        return self._values.get(lam, lambda: self._worked_out(lam))

    def _worked_out(self, lam: float) -> tuple[np.ndarray, np.ndarray]:
        best = self.best(lam)
        return best.objective.reshape(self.grid), best.error2.reshape(self.grid)

    def best(self, lam: float, blocks: np.ndarray | None = None) -> Best:
        """The cheapest option by bytes + lam * squared error of all blocks, or of those with flat indices `blocks`."""
        blocks = np.arange(len(self.tail)) if blocks is None else blocks
        if len(blocks) <= PIECE:
            return self._best(min(lam, LARGEST_LAMBDA), blocks)
        order = np.argsort(self.ranks[blocks], kind="stable")  # together with those that need as many directions
        parts = np.split(blocks[order], range(PIECE, len(blocks), PIECE))
        pieces = [self._best(min(lam, LARGEST_LAMBDA), part) for part in parts]
        back = np.empty(len(blocks), int)
        back[order] = np.arange(len(blocks))
        return Best(*(np.concatenate([getattr(p, f) for p in pieces])[back] for f in FIELDS))

    def _best(self, lam: float, blocks: np.ndarray) -> Best:
        count = len(blocks)
        rows, none = np.arange(count), np.full(count, -1)
        longest = max(1, int(self.ranks[blocks].max(initial=0)))
        sigma2, noise = (v[blocks, :longest] for v in (self.sigma2, self.noise))
        cost, error2 = (v[:, blocks] for v in (self.dense_bytes + self.overhead, self.dense_error2))
        kind = (cost + lam * error2).argmin(axis=0)
        cost, error2 = cost[kind, rows], error2[kind, rows]
        out = Best(cost + lam * error2, cost, error2, kind, np.zeros((count, len(self.storages)), int))
        prices = self.direction_bytes[:, blocks, None] + self.rho2[:, None, None] * (lam * noise)
        # Directions get weaker, so their storage may only get coarser: groups stay contiguous.
        coarser = np.maximum.accumulate(prices.argmin(axis=0), axis=1)
        rank = _best_rank(np.take_along_axis(prices, coarser[None], axis=0)[0] - lam * sigma2)
        until = [np.minimum((coarser <= s).sum(axis=1), rank) for s in range(len(self.storages))]
        counts = _steps(np.stack(until, axis=1))
        mixed = self._low_rank(lam, blocks, counts)
        out = _offer(out, lam, mixed.cost, mixed.error2, none, counts)
        several = np.flatnonzero((counts > 0).sum(axis=1) > 1)  # a mixture costs table rows: is one type better?
        if len(several):
            kinds, count = len(self.storages), len(several)
            ranks = _best_rank(prices[:, several] - lam * sigma2[several])  # (S, B), of every type alone
            alike = (np.eye(kinds, dtype=int)[:, None, :] * ranks[..., None]).reshape(kinds * count, kinds)
            every = self._low_rank(lam, np.tile(blocks[several], kinds), alike)
            first = every.objective.reshape(kinds, count).argmin(axis=0) * count + np.arange(count)
            better = every.objective[first] < out.objective[several]
            for name in FIELDS:
                getattr(out, name)[several[better]] = getattr(every, name)[first[better]]
        return out

    def _low_rank(self, lam: float, blocks: np.ndarray, counts: np.ndarray) -> Best:
        """Low rank with so many directions per storage (B, S)."""
        until = counts.cumsum(axis=1)
        noise = _steps(self.noise_until[blocks[:, None], until])
        error2 = self.tail[blocks, until[:, -1]] + noise @ self.rho2
        cost = (counts * self.direction_bytes[:, blocks].T).sum(axis=1) + self.overhead
        cost += TABLE_ROW * (np.maximum((counts > 0).sum(axis=1), 1) - 1)
        return Best(cost + lam * error2, cost, error2, np.full(len(blocks), -1), counts)

    def _index(self, choice: Choice) -> int:
        _, i, j = choice.place
        return i * self.grid[1] + j

    def known(self, choice: Choice) -> int:
        """The largest rank whose error is known for this block."""
        return int(self.ranks[self._index(choice)])

    def price(self, choice: Choice) -> tuple[float, float]:
        """(bytes, predicted squared error) of one block of this level, without the leaf's overhead."""
        index = self._index(choice)
        if choice.dense is not None:
            s = self.storages.index(choice.dense)
            return float(self.dense_bytes[s, index]), float(self.dense_error2[s, index])
        error2 = float(self.tail[index, choice.rank])
        cost = TABLE_ROW * max(0, sum(c > 0 for c in choice.counts) - 1)
        start = 0
        for s, count in enumerate(choice.counts):
            cost += count * float(self.direction_bytes[s, index])
            error2 += self.rho2[s] * float(self.noise[index, start : start + count].sum())
            start += count
        return cost, error2

    def crossings(self, choice: Choice, up: bool) -> list[Choice]:
        """The block low-rank instead of dense, of one storage type and next fewer bytes (`up`: more), or the reverse.

        No rank is beyond the last one known.
        """
        if choice.dense is None:
            return [replace(choice, dense=s, counts=()) for s in self.storages]
        nbytes, one = self.price(choice)[0], self.direction_bytes[:, self._index(choice)]
        ranks = np.minimum(nbytes // one + 1 if up else np.ceil(nbytes / one) - 1, self.known(choice))
        kinds = range(len(self.storages))
        counts = [tuple(int(rank) * (k == s) for k in kinds) for s, rank in enumerate(ranks) if rank > 0]
        return [replace(choice, dense=None, counts=c) for c in counts]

    def last_direction(self, choice: Choice) -> tuple[float, float]:
        """(bytes, squared error added) of dropping the weakest direction of a low-rank block."""
        index = self._index(choice)
        s = max(k for k, c in enumerate(choice.counts) if c)
        k = choice.rank - 1
        loss = float(self.sigma2[index, k]) - self.rho2[s] * float(self.noise[index, k])
        return float(self.direction_bytes[s, index]), loss


def _best_rank(price: np.ndarray) -> np.ndarray:
    """(..., B): how many leading directions (..., B, K) to keep, at these prices less what they are worth."""
    gain = np.cumsum(price, axis=-1)
    return np.where(gain.min(axis=-1) < 0, gain.argmin(axis=-1) + 1, 0)


def _steps(sums: np.ndarray) -> np.ndarray:
    """What was summed along the rows: np.diff from 0 on, in a quarter of the time."""
    out = sums.copy()
    out[:, 1:] -= sums[:, :-1]
    return out


def _offer(out: Best, lam: float, cost, error2, dense, counts) -> Best:
    new = (cost + lam * error2, cost, error2, dense, counts)
    better = new[0] < out.objective
    old = (out.objective, out.cost, out.error2, out.dense, out.counts)
    return Best(*(np.where(better if a.ndim == 1 else better[:, None], a, b) for a, b in zip(new, old, strict=True)))


def without_last(counts: tuple[int, ...], drop: int = 1) -> tuple[int, ...]:
    """`counts` with `drop` directions fewer, the weakest first."""
    out = list(counts)
    for s in reversed(range(len(out))):
        taken = min(out[s], drop)
        out[s], drop = out[s] - taken, drop - taken
    return tuple(out)


def neighbours(choice: Choice, storages: tuple[str, ...], up: bool) -> list[Choice]:
    """Blocks one step away, of fewer bytes (`up`: more): 1, an eighth or all directions are dropped or moved."""
    if choice.dense is not None:
        here = ITEM[choice.dense]
        return [replace(choice, dense=s) for s in storages if (ITEM[s] > here if up else ITEM[s] < here)]
    mixtures: set[tuple[int, ...]] = set()
    sizes = {1, -(-choice.rank // 8)}
    used = [s for s, c in enumerate(choice.counts) if c]
    if up:
        last = used[-1] if used else len(storages) - 1
        for n in sizes:
            mixtures.add(tuple(c + n * (s == last) for s, c in enumerate(choice.counts)))
    else:
        mixtures |= {without_last(choice.counts, n) for n in sizes if n <= choice.rank}
    for exact in range(len(storages)):
        for coarse in range(exact + 1, len(storages)):
            source, sink = (coarse, exact) if up else (exact, coarse)
            between = any(choice.counts[exact + 1 : coarse])
            for n in sizes | {choice.counts[source]}:
                if 0 < n <= choice.counts[source] and not between:
                    moved = [c + n * (s == sink) - n * (s == source) for s, c in enumerate(choice.counts)]
                    mixtures.add(tuple(moved))
    mixtures.discard(choice.counts)
    return [replace(choice, counts=counts) for counts in sorted(mixtures)]
