"""Training towards low ranks: the nuclear norm of blocks, and singular-value thresholding in its place.

A penalty is ||A||_* of every block, or ||A L||_* with L L^T = C the inputs' second moment: the convex envelope of the
rank (Fazel, 2002) that the data sees. With A = P S Q^T it is <P Q^T, A>, P Q^T without gradients: value and subgradient
need no differentiated decomposition; second derivatives are not those of the norm.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.hlinear import HLinear
from hrt.matrix_compression.request import check_whole
from hrt.matrix_compression.span_weight import cholesky_psd
from hrt.support.torch_state import as_called, guarded, guarded_values

CRUMB = 1e-6  # singular values below this share of the largest (float32's rounding) have no direction of their own


@dataclass(frozen=True, eq=False)
class _Block:
    """A = u vt, or a dense u, on inputs `cols`. size: rows + columns.  layer, number: the HLinear and its leaf."""

    module: str
    u: Tensor
    vt: Tensor | None
    cols: Tensor | slice
    size: int
    layer: HLinear | None = None
    number: int = 0


@guarded_values
def rank_penalty(
    net: nn.Module,
    *,
    second_moments: Mapping[str, Tensor] | None = None,
    partitions: Mapping[str, HMatrix] | None = None,
    sketch: int | None = None,
) -> Tensor:
    """The rank penalty of all HLinear and nn.Linear layers: add a multiple of it to the loss.

    It is sum_b size_b ||A_b L_b||_* / sum_layers (m + n), size_b being rows + columns of block b.

    Args:
        net: any module.
        second_moments: C (n, n) of the inputs, by module name; see `second_moments`. Layers not named have L = 1.
        partitions: of nn.Linear layers, by module name: into which blocks they shall fall; by default one.
        sketch: of blocks with more rows and columns than this only so many leading directions are penalised, by a
            random sketch with one power iteration and a fixed seed. None: all directions.

    Returns:
        A scalar with gradients.

    Raises:
        InputError: a moment or a partition does not fit its layer, or is not finite.

    Example:
        >>> net = nn.Linear(4, 4, bias=False)
        >>> _ = net.weight.data.copy_(torch.eye(4))
        >>> round(rank_penalty(net).item(), 5)  # 8 * ||1||_* / 8
        4.0

    Source:
        The sketch: Halko, Martinsson and Tropp, SIAM Review 53, 2011.
    """
    sketch = None if sketch is None else check_whole(sketch, "sketch", 1)
    moments, partitions = second_moments or {}, partitions or {}
    _check(net, moments, partitions)
    total, sizes = torch.zeros(()), sum(module.in_features + module.out_features for _, module in _layers(net))
    for block in _blocks(net, partitions):
        right = _right(moments.get(block.module), block)
        total = total.to(block.u) + block.size * _nuclear_norm(block.u, block.vt, right, sketch)
    return total / max(1, sizes)


@guarded
@torch.no_grad()
def proximal_step(
    net: nn.Module, threshold: float, *, second_moments: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Lower every singular value of every block by `threshold`, to zero at least, in place.

    This is the proximal operator of threshold * ||.||_* or, with second moments, that of the weighted norm's singular
    values along their own directions. Call it after an optimizer's step with threshold = rate * weight. Leaves keep
    their shapes; `hrt.compress` and `DynamicCompression` drop directions that have become zero.

    Args:
        net: any module.
        threshold: at least 0.
        second_moments: C (n, n) of the inputs, by module name.

    Returns:
        The rank that is left of every layer, by module name.

    Raises:
        InputError: a negative or infinite threshold, or a moment that does not fit.

    Example:
        >>> net = nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.diag(torch.tensor([1.0, 0.1])))
        >>> proximal_step(nn.Sequential(net), 0.5)
        {'0': 1}

    Source:
        Cai, Candes and Shen, SIAM J. Optim. 20, 2010.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"Found threshold {threshold!r}. Expected a finite number of at least 0.")
    moments = second_moments or {}
    _check(net, moments, {})
    ranks: dict[str, int] = {}
    for block in _blocks(net, {}):
        right = _right(moments.get(block.module), block)
        p, s, _ = _decomposed(block.u, block.vt, right, None)
        shrunk = (s - threshold).clamp_min(0)
        keep = p * (shrunk / s.clamp_min(torch.finfo(s.dtype).tiny))  # P diag(.) P^T A: exact with any L
        ranks[block.module] = ranks.get(block.module, 0) + int((shrunk > 0).sum())
        u = keep @ (p.mT @ block.u)
        with torch.inference_mode() if block.u.is_inference() else nullcontext():  # these change nowhere else
            if block.layer is None:
                net.get_submodule(block.module).weight.copy_(u)  # type: ignore[union-attr, operator]
            else:
                block.layer.assign(block.number, *(t for t in (u, block.vt) if t is not None))
    return ranks


@guarded
@torch.no_grad()
def second_moments(net: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Second moments of what every nn.Linear and HLinear sees.

    Args:
        net: any module.
        *inputs: it runs on these once.

    Returns:
        C = E[x x^T] (n, n) in float64, by module name.

    Example:
        >>> second_moments(nn.Sequential(nn.Linear(1, 1)), torch.tensor([[1.0], [3.0]]))
        {'0': tensor([[5.]], dtype=torch.float64)}
    """
    sums: dict[str, list[Any]] = {}

    def observe(name: str):
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].detach().flatten(0, -2).double()
            entry = sums.setdefault(name, [0, 0])
            entry[0], entry[1] = entry[0] + x.mT @ x, entry[1] + len(x)

        return hook

    handles = [module.register_forward_pre_hook(observe(name)) for name, module in _layers(net)]
    try:
        with as_called():
            net(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(1, count) for name, (total, count) in sums.items()}


def _layers(net: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, m) for name, m in net.named_modules() if isinstance(m, (nn.Linear, HLinear)))


def _blocks(net: nn.Module, partitions: Mapping[str, HMatrix]) -> Iterator[_Block]:
    for name, module in _layers(net):
        if isinstance(module, HLinear):
            order: Tensor | None = module.col_order
            for number, leaf in enumerate(module.leaves):
                if leaf.rank == 0 or not leaf.rows or not leaf.cols:
                    continue
                place = slice(leaf.col, leaf.col + leaf.cols)
                cols, u = place if order is None else order[place], leaf.tensors[0]
                yield _Block(name, u, leaf.vt, cols, leaf.rows + leaf.cols, module, number)
        elif name in partitions:
            h = partitions[name]
            pairs = zip(h.shape, (h.row_order, h.col_order), strict=True)
            rows, cols = (torch.arange(k) if o is None else o.long() for k, o in pairs)
            for r, m, c, n in h.blocks():
                here = cols[c : c + n].to(module.weight.device)
                yield _Block(name, module.weight[rows[r : r + m].to(here.device)][:, here], None, here, m + n)
        else:
            yield _Block(name, module.weight, None, slice(0, module.in_features), sum(module.weight.shape))


def _check(net: nn.Module, moments: Mapping[str, Tensor], partitions: Mapping[str, HMatrix]) -> None:
    shapes = {name: (m.out_features, m.in_features) for name, m in _layers(net)}
    for name, given in (*moments.items(), *partitions.items()):
        expected = shapes.get(name)
        wanted = None if expected is None else (expected[1],) * 2 if isinstance(given, Tensor) else expected
        if wanted is None or tuple(given.shape) != wanted:
            what = "second moment" if isinstance(given, Tensor) else "partition"
            remedy = wanted or "the name of a linear layer: " + ", ".join(shapes)
            raise InputError(f"Found a {what} of shape {tuple(given.shape)} for {name!r}. Expected {remedy}.")
        if isinstance(given, Tensor) and not bool(torch.isfinite(given).all()):
            raise InputError(f"Found a second moment for {name!r} with entries that are not finite. Expected numbers.")


def _right(c: Tensor | None, block: _Block) -> Tensor | None:
    """The Cholesky factor of the block's part of C."""
    if c is None:
        return None
    part = c.detach().to(torch.float64)[block.cols][:, block.cols]
    return cholesky_psd(part.cpu()).to(block.u)


@torch.no_grad()
def _decomposed(
    u: Tensor, vt: Tensor | None, right: Tensor | None, sketch: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """P (m, k), S (k,), Q (n, k) of u vt L, from small matrices: r x r, or the Gram matrix of the smaller side."""
    u = u.detach()
    if vt is not None:
        v = (vt.detach() if right is None else vt.detach() @ right).mT
        (p, a), (q, b) = torch.linalg.qr(u), torch.linalg.qr(v)
        left, s, other = torch.linalg.svd(a @ b.mT, full_matrices=False)
        return p @ left, s, q @ other.mT
    a = u if right is None else u @ right
    if sketch is not None and min(a.shape) > sketch:
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(a.shape[1], sketch, generator=generator, dtype=torch.float64).to(a)
        basis = torch.linalg.qr(a @ torch.linalg.qr(a.mT @ torch.linalg.qr(a @ start).Q).Q).Q
        p, s, q = _decomposed(basis.mT @ a, None, None, None)
        return basis @ p, s, q
    if a.shape[0] > a.shape[1]:
        q, s, p = _decomposed(a.mT, None, None, None)
        return p, s, q
    values, p = torch.linalg.eigh(a.double() @ a.double().mT)
    s = values.clamp_min(0).sqrt().to(a)
    p = p.to(a)
    return p, s, a.mT @ p / s.clamp_min(torch.finfo(a.dtype).tiny)


def _nuclear_norm(u: Tensor, vt: Tensor | None, right: Tensor | None, sketch: int | None) -> Tensor:
    """||u vt L||_*, with the subgradient P Q^T."""
    p, s, q = _decomposed(u, vt, right, sketch)
    is_seen = s > CRUMB * s.max() if s.numel() else s > 0
    p, q = p[:, is_seen], q[:, is_seen]
    seen = q if right is None else right @ q
    inner = u if vt is None else vt @ seen
    return ((p.mT @ u) * inner.mT).sum() if vt is not None else ((p.mT @ inner) * seen.mT).sum()
