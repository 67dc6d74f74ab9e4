"""Runs of one side beside runs of another: the ratio of their medians and its interval."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
PRIOR = 8  # degrees of freedom that the spread of all rows' runs is worth beside that of one row's
Runs = Sequence[Sequence[float]]  # microseconds: rounds of every run


def interval(
    was: Runs, now: Runs, level: float, *, between: float = 0.0, draws: int = DRAWS, rng: np.random.Generator
) -> tuple[float, float]:
    """Interval of the ratio of medians, now over was, that misses the truth with chance `level`.

    The spread of the logarithm is that of the bootstrap (rounds drawn again within every run), and on top of it how
    runs differ: this row's runs, moderated by `between`, what runs of all rows differ by. So few draws cannot say how
    likely the unlikely is: Student's t does, with as many degrees of freedom as there were rounds or runs.
    """
    from scipy.special import stdtrit

    logs = np.log(_resampled(now, draws, rng)) - np.log(_resampled(was, draws, rng))
    spread2, freedom = float(logs.var(ddof=1)), min(len(r) for r in (*was, *now)) - 1
    own2, own_freedom = between_runs([was, now])
    if own_freedom:
        freedom = own_freedom + PRIOR
        moderated2 = (own_freedom * own2 + PRIOR * between**2) / freedom
        spread2 += moderated2 * (1 / len(was) + 1 / len(now))
    centre = float(np.log(median(now)) - np.log(median(was)))
    half = float(stdtrit(freedom, 1 - level / 2)) * spread2**0.5
    return float(np.exp(centre - half)), float(np.exp(centre + half))


def between_runs(sides: Sequence[Runs]) -> tuple[float, int]:
    """Variance of log medians between runs of one side, pooled, and its degrees of freedom; 0, 0 for single runs."""
    logs = [np.log([np.median(r) for r in runs]) for runs in sides]
    freedom = sum(len(v) - 1 for v in logs)
    return (sum(float(((v - v.mean()) ** 2).sum()) for v in logs) / freedom if freedom else 0.0), freedom


def _resampled(runs: Runs, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Medians (draws,): in every run rounds are drawn again; the median of the runs' medians."""
    medians = [np.median(np.asarray(r)[rng.integers(0, len(r), (draws, len(r)))], axis=1) for r in runs]
    return np.median(np.array(medians), axis=0)


def median(runs: Runs) -> float:
    """Of the runs' medians."""
    return float(np.median([np.median(r) for r in runs]))
