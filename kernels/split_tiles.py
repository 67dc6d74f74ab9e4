"""Where long tiles are cut along their steps, and which runs of int8 steps share a scale."""

from itertools import pairwise

import numpy as np
import torch

from hrt.kernels.step_tables import NONE, StepTables

SHORTEST = 4  # steps of a part: fewer are over before the second pass has begun


def longest_part(lengths: np.ndarray, parts: int) -> int:
    """Steps that a part may have at most, so that there are about `parts` of them, none too short to be worth it."""
    if parts <= len(lengths):
        return max(1, int(lengths.max(initial=1)))
    return max(SHORTEST, -(-int(lengths.sum()) // parts))


def cut(first: np.ndarray, end: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of at most `longest` steps: first and end step, and the tile of each; a tile without steps is one part."""
    count = np.maximum(1, -(-(end - first) // longest))
    owner = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    low = first[owner] + within * longest
    return low, np.minimum(low + longest, end[owner]), owner


def scale_groups(tables: StepTables, runs: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of int8 steps of one scale: (groups, 3) first step, end step, scale offset; and where each part's begin."""
    scaled = [k for k, t in enumerate(tables.weights) if t.dtype == torch.int8]
    if not scaled:
        return np.zeros((1, 3), dtype=np.int64), np.zeros(len(runs) + 1, dtype=np.int64)
    low, high = runs[:, scaled[0]], runs[:, scaled[0] + 1]
    changes = np.flatnonzero(scale[1:] != scale[:-1]) + 1
    inner_low, inner_high = np.searchsorted(changes, low, "right"), np.searchsorted(changes, high, "left")
    rows: list[tuple[int, int, int]] = []
    first = [0]
    for a, b, i, j in zip(low.tolist(), high.tolist(), inner_low.tolist(), inner_high.tolist(), strict=True):
        bounds = [a, *changes[i:j].tolist(), b] if b > a else []
        rows += [(p, q, int(scale[p])) for p, q in pairwise(bounds)]
        first.append(len(rows))
    return np.array(rows or [(0, 0, NONE)], dtype=np.int64), np.array(first, dtype=np.int64)
