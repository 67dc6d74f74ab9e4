"""Training towards low ranks: the nuclear norm of blocks, and singular-value thresholding in its place.

The nuclear norm is the convex envelope of the rank on the unit ball of the spectral norm (Fazel, 2002); the sum over
blocks stands for the sum of block ranks, each weighted by what one direction of the block takes to store. A penalty
is ||A||_* of every block, or ||A L||_* with L L^T = C the second moment of the layer's inputs: what is penalised then
is the rank that the data sees, the one that `hrt.network_compression.compress` stores.

With A = P S Q^T the value is <P Q^T, A>, P Q^T worked out from small matrices without gradients. Its gradient by A is
P Q^T, the subgradient of the norm, so that neither value nor gradient needs a differentiated decomposition. Second
derivatives are not those of the norm.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_source import cholesky_psd
from hrt.matrix_compression.checks import check_whole
from hrt.matrix_compression.hlinear import HLinear

CRUMB = 1e-6  # singular values below this share of the largest (float32's rounding) have no direction of their own


@dataclass(frozen=True, eq=False)
class _Block:
    """A = u vt, or a dense u with vt None. cols: its columns in the order of the layer's inputs.  size: rows + columns.
    layer, number: the HLinear it is a leaf of, and which; None for a dense layer.
    """

    module: str
    u: Tensor
    vt: Tensor | None
    cols: Tensor | slice
    size: int
    layer: HLinear | None = None
    number: int = 0


def rank_penalty(
    net: nn.Module,
    *,
    second_moments: Mapping[str, Tensor] | None = None,
    partitions: Mapping[str, HMatrix] | None = None,
    sketch: int | None = None,
) -> Tensor:
    """The penalty of all HLinear and nn.Linear layers of `net`, a scalar: add a multiple of it to the loss.

    It is sum_b size_b ||A_b L_b||_* / sum_layers (m + n), size_b being rows + columns of block b.
    second_moments: by module name, (n, n); see `second_moments`. Layers that are not named have L = 1.
    partitions: by module name, of nn.Linear layers, into which blocks they shall fall; by default one.
    sketch: of blocks with more rows and columns than this only so many leading directions are penalised, found by a
        random sketch with one power iteration (Halko, Martinsson and Tropp, 2011) of fixed seed. None: all of them.
    Raises InputError for a moment or a partition that does not fit its layer, or is not finite.
    """
    sketch = None if sketch is None else check_whole(sketch, "sketch", 1)
    factors = {name: _factor(c) for name, c in (second_moments or {}).items()}
    _check(net, second_moments or {}, partitions or {})
    total, sizes = torch.zeros(()), 0
    for block in _blocks(net, partitions or {}):
        right = _right(factors.get(block.module), block)
        total = total.to(block.u) + block.size * _nuclear_norm(block.u, block.vt, right, sketch)
    for _, module in _layers(net):
        sizes += module.in_features + module.out_features
    return total / max(1, sizes)


@torch.no_grad()
def proximal_step(
    net: nn.Module, threshold: float, *, second_moments: Mapping[str, Tensor] | None = None
) -> dict[str, int]:
    """Lower every singular value of every block by `threshold`, to zero at least, in place: the proximal operator of
    threshold * ||.||_* (Cai, Candes and Shen, SIAM J. Optim. 20, 2010), or, with second moments, of the weighted norm's
    singular values along their own directions. To be called after an optimizer's step, threshold = rate * weight.

    Returns the rank that is left of every layer, by module name. Leaves keep their shapes; `hrt.network_compression.compress` and
    `DynamicCompression` drop directions that have become zero. Raises InputError for a negative or infinite threshold.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"Found threshold {threshold!r}. Expected a finite number of at least 0.")
    factors = {name: _factor(c) for name, c in (second_moments or {}).items()}
    _check(net, second_moments or {}, {})
    ranks: dict[str, int] = {}
    for block in _blocks(net, {}):
        right = _right(factors.get(block.module), block)
        p, s, _ = _decomposed(block.u, block.vt, right, None)
        shrunk = (s - threshold).clamp_min(0)
        keep = p * (shrunk / s.clamp_min(torch.finfo(s.dtype).tiny))  # P diag(.) P^T A: exact with any L
        ranks[block.module] = ranks.get(block.module, 0) + int((shrunk > 0).sum())
        u = keep @ (p.mT @ block.u)
        if block.layer is None:
            module = net.get_submodule(block.module)
            module.weight.copy_(u)  # type: ignore[union-attr, operator]
        elif block.vt is None:
            block.layer.assign(block.number, u)
        else:
            block.layer.assign(block.number, u, block.vt)
    return ranks


@torch.no_grad()
def second_moments(net: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """C = E[x x^T] (n, n), in float64, of what every nn.Linear and HLinear sees as `net` runs on `inputs`, by name."""
    sums: dict[str, list[Any]] = {}

    def observe(name: str):
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0].detach().flatten(0, -2).double()
            entry = sums.setdefault(name, [0, 0])
            entry[0], entry[1] = entry[0] + x.mT @ x, entry[1] + len(x)

        return hook

    handles = [module.register_forward_pre_hook(observe(name)) for name, module in _layers(net)]
    try:
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
                cols = slice(leaf.col, leaf.col + leaf.cols)
                first, *rest = leaf.tensors
                yield _Block(
                    name,
                    first,
                    rest[0] if rest else None,
                    cols if order is None else order[cols],
                    leaf.rows + leaf.cols,
                    module,
                    number,
                )
        elif name in partitions:
            h = partitions[name]
            rows, cols = (
                torch.arange(k) if o is None else o.long()
                for k, o in zip(h.shape, (h.row_order, h.col_order), strict=True)
            )
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
            raise InputError(
                f"Found a {what} of shape {tuple(given.shape)} "
                f"for {name!r}. Expected {wanted or 'the name of a linear layer: ' + ', '.join(shapes)}."
            )
        if isinstance(given, Tensor) and not bool(torch.isfinite(given).all()):
            raise InputError(f"Found a second moment for {name!r} with entries that are not finite. Expected numbers.")


def _factor(c: Tensor) -> Tensor:
    """C itself: each block takes the Cholesky factor of its own part."""
    return c.detach().to(torch.float64)


def _right(c: Tensor | None, block: _Block) -> Tensor | None:
    if c is None:
        return None
    part = c[block.cols][:, block.cols]
    return cholesky_psd(part.cpu()).to(block.u)


@torch.no_grad()
def _decomposed(
    u: Tensor, vt: Tensor | None, right: Tensor | None, sketch: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """P (m, k), S (k,), Q (n, k) of u vt L: through r x r matrices where there are factors, through the Gram matrix of
    the smaller side where the block is dense.
    """
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
