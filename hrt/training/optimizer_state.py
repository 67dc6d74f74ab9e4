"""What an optimizer remembers of a layer's weight, carried over to the layer that takes its place.

First moments are means M of gradients by the matrix W = U V^T: by the factors they are M V and U^T M (chain rule). Back
from factors M is the least matrix that has both. Of second moments S the factors' are known within limits alone: S V^2
(squares entry by entry) if gradients are independent from entry to entry, (sqrt(S) |V|)^2 at most (Minkowski). Their
geometric mean counts as WORTH steps of Adam's, which then measures. Back from factors sqrt(S) is one number for
each row times one for each column (Shazeer and Stern, ICML 2018).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.hlinear import HLinear

MEANS = ("exp_avg", "momentum_buffer", "grad_avg")  # linear in the gradients
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")  # of their squares
WORTH = 30  # steps: with all of Adam's thousand a limit that is too high would slow training for as long
INDEPENDENT = 1e-6  # directions below this share of the longest are rounding
NOTHING = 1e-300  # in the place of zero where something is divided by it
Layer = nn.Linear | HLinear
Parts = list[tuple[Tensor, ...]]  # of every leaf: (dense,), or (by u, by vt)


def weights_of(layer: Layer) -> list[nn.Parameter]:
    """Its parameters without the bias."""
    return [p for p in layer.parameters() if p is not layer.bias]


def check_optimizer(optimizer: torch.optim.Optimizer, layers: Sequence[Layer]) -> None:
    """Raise InputError where what is remembered of a layer cannot be carried over."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return
    for p in (p for layer in layers for p in weights_of(layer)):
        for name, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and value.dim() and name not in (*MEANS, *SQUARES):
                raise InputError(
                    f"Found {type(optimizer).__name__}, whose {name!r} cannot be carried over to the factors of a "
                    "layer. Expected Adam, AdamW, NAdam, RAdam, SGD, RMSprop, Adagrad or LBFGS; or give no "
                    "optimizer and make a new one whenever `step` returns True."
                )


@torch.no_grad()
def exchange(optimizer: torch.optim.Optimizer, old: Layer, new: Layer) -> None:
    """Let the optimizer train `new` in the place of `old`, with what it remembers of it. The bias is one and the same.

    L-BFGS begins anew: it keeps a list of all parameters, and of all together a history that no longer fits.
    """
    before, after = weights_of(old), weights_of(new)
    gone, options = {id(p) for p in before}, {}
    for group in optimizer.param_groups:
        staying = [p for p in group["params"] if id(p) not in gone]
        if len(staying) < len(group["params"]):
            group["params"], options = [*staying, *after], group
    if isinstance(optimizer, torch.optim.LBFGS):
        _begin_anew(optimizer)
        return
    states = [optimizer.state.pop(p, {}) for p in before]
    if after and states and all(states):
        for p, state in zip(after, _carried(states, old, new), strict=True):
            if "betas" in options and "step" in state:
                _forget(state, options["betas"])
            optimizer.state[p] = state


def _begin_anew(optimizer: torch.optim.LBFGS) -> None:
    (group,) = optimizer.param_groups
    hooks = {name: value for name, value in vars(optimizer).items() if "hooks" in name}
    optimizer.__init__(group["params"], **{name: group[name] for name in optimizer.defaults})
    optimizer.param_groups[0].update(group)
    vars(optimizer).update(hooks)


def _carried(states: list[dict[str, Any]], old: Layer, new: Layer) -> list[dict[str, Any]]:
    """The state of every weight of `new`."""
    maps = {**dict.fromkeys(MEANS, (_mean, _mean_parts)), **dict.fromkeys(SQUARES, (_root, _square_parts))}
    carried: list[dict[str, Any]] = [{} for _ in weights_of(new)]
    for name, value in states[0].items():
        if name in maps and value is not None:
            whole, parts = maps[name]
            tensors = _spread(new, parts, whole(old, [s[name] for s in states]))
        else:
            tensors = [copy.deepcopy(value) for _ in carried]
        for state, tensor in zip(carried, tensors, strict=True):
            state[name] = tensor
    return carried


def _forget(state: dict[str, Any], betas: tuple[float, float]) -> None:
    """Let moments count as those of no more than WORTH steps."""
    t = float(state["step"])
    if t <= WORTH:
        return
    for names, beta in zip((MEANS, SQUARES), betas, strict=True):
        for name in (n for n in names if n in state):
            state[name] *= (1 - beta**WORTH) / (1 - beta**t)
    state["step"] = torch.full_like(state["step"], WORTH) if isinstance(state["step"], Tensor) else WORTH


def _matrix(layer: Layer) -> HMatrix:
    """The layer's matrix, its leaves the live numbers in float64."""
    if isinstance(layer, nn.Linear):
        return HMatrix.from_dense(layer.weight.detach().cpu(), torch.float64)
    return layer.to_hmatrix(torch.float64)


def _parts(layer: Layer, tensors: Sequence[Tensor]) -> Parts:
    """Tensors of the shapes of the weights, leaf by leaf."""
    twin = copy.deepcopy(layer)
    for p, tensor in zip(weights_of(twin), tensors, strict=True):
        p.copy_(tensor)
    return [leaf.tensors for leaf in _matrix(twin).leaves]


def _spread(layer: Layer, parts: Callable[[Leaf, Tensor], tuple[Tensor, ...]], whole: Tensor) -> list[Tensor]:
    """What `parts` makes of every leaf and its block of `whole`, in tensors of the shapes of the weights."""
    matrix = _matrix(layer)
    for dim, order in enumerate((matrix.row_order, matrix.col_order)):
        whole = whole if order is None else whole.index_select(dim, order.long())
    twin = copy.deepcopy(layer)
    for p in weights_of(twin):
        p.zero_()
    for number, e in enumerate(matrix.leaves):
        block = parts(e, whole[e.row : e.row + e.rows, e.col : e.col + e.cols])
        if isinstance(twin, nn.Linear):
            twin.weight.copy_(block[0])
        else:
            twin.assign(number, *block)
    return [p.detach() for p in weights_of(twin)]


def _whole(layer: Layer, parts: Parts, block_of: Callable[..., Tensor]) -> Tensor:
    """The matrix (m, n), in natural order, of what `block_of` makes of a low-rank leaf's factors and parts."""
    matrix = _matrix(layer)
    blocks = [
        part[0] if e.u is None or e.vt is None else block_of(e.u, e.vt, *part)
        for e, part in zip(matrix.leaves, parts, strict=True)
    ]
    leaves = [Leaf(*e.place, dense=block) for e, block in zip(matrix.leaves, blocks, strict=True)]
    return replace(matrix, leaves=tuple(leaves)).to_dense()


def _mean(layer: Layer, tensors: Sequence[Tensor]) -> Tensor:
    def block(u: Tensor, vt: Tensor, by_u: Tensor, by_vt: Tensor) -> Tensor:
        right, left = (torch.linalg.pinv(t, rtol=INDEPENDENT) for t in (vt, u))
        return by_u @ right.mT + left.mT @ (by_vt - by_vt @ right @ vt)

    return _whole(layer, _parts(layer, tensors), block)


def _mean_parts(leaf: Leaf, block: Tensor) -> tuple[Tensor, ...]:
    return (block,) if leaf.u is None or leaf.vt is None else (block @ leaf.vt.mT, leaf.u.mT @ block)


def _root(layer: Layer, tensors: Sequence[Tensor]) -> Tensor:
    def block(u: Tensor, vt: Tensor, by_u: Tensor, by_vt: Tensor) -> Tensor:
        rows = by_u.sum(1) / vt.abs().sum().clamp_min(NOTHING)
        cols = by_vt.sum(0) / u.abs().sum().clamp_min(NOTHING)
        mean = (rows.mean() * cols.mean()).sqrt().clamp_min(NOTHING)
        return rows[:, None] * cols / mean

    parts = [tuple(t.clamp_min(0).sqrt() for t in part) for part in _parts(layer, tensors)]
    return _whole(layer, parts, block)


def _square_parts(leaf: Leaf, root: Tensor) -> tuple[Tensor, ...]:
    if leaf.u is None or leaf.vt is None:
        return (root.square(),)
    u, v, s = leaf.u.abs().mT, leaf.vt.abs().mT, root.square()
    return (root @ v) * (s @ v.square()).sqrt(), (u @ root) * (u.square() @ s).sqrt()
