"""Part of a one-off study."""

import torch
from torch import Tensor

from hrt.perf.methods.pruning import csr_nbytes
from hrt.perf.studies.baselines import Form, Forms, Problem, Result, smallest_bisected


def pruned(w: Tensor, kept: int) -> Form:
    """The `kept` entries of largest magnitude; dense where that is no larger."""
    nbytes = csr_nbytes(w.shape[0], w.shape[1], kept)
    if nbytes >= 4 * w.numel():
        return Form.dense(w)
    places = w.abs().flatten().topk(kept).indices
    out = torch.zeros_like(w).flatten()
    out[places] = w.flatten()[places]
    return Form(nbytes, out.reshape(w.shape))


def magnitude(problem: Problem, tol: float) -> Result | None:
    """The smaller of pruning every weight to one share of its squared norm and pruning all below one threshold."""
    weights = problem.weights
    largest = max(float(w.abs().max()) for w in weights.values())

    def by_threshold(t: float) -> Forms:
        return {name: pruned(w, int((w.abs() > t * largest).sum())) for name, w in weights.items()}

    def by_share(t: float) -> Forms:
        return {name: pruned(w, needed(w, t)) for name, w in weights.items()}

    found = [smallest_bisected(problem, family, tol) for family in (by_threshold, by_share)]
    return min((r for r in found if r is not None), key=lambda r: r.nbytes, default=None)


def needed(w: Tensor, tol: float) -> int:
    """How many entries, largest first, leave a relative Frobenius error of at most `tol`."""
    tail2 = w.flatten().square().sort().values.cumsum(0)
    return w.numel() - int((tail2 <= tol**2 * tail2[-1]).sum())
