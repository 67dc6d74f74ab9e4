"""`DynamicCompression`: layers become hierarchical matrices while they are trained, and follow what training needs.

Truncated directions cannot return, so a block that uses all of its directions gets spare ones with u = 0, which the
next round drops if unused (rank adaptation: Schotthoefer et al., NeurIPS 2022).
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrt.calibration.moments import ridge
from hrt.calibration.samples import Inputs, as_samples
from hrt.errors import InputError, TrainingError
from hrt.hmatrix.hmatrix import HMatrix, Leaf, relative_difference
from hrt.matrix_compression.compress_matrix import compress_matrix
from hrt.matrix_compression.hlinear import HLinear, merged
from hrt.matrix_compression.orderings import ORDERING_SIDE
from hrt.matrix_compression.request import check_tol, check_whole
from hrt.matrix_compression.span_weight import cholesky_psd
from hrt.support.torch_state import as_called, guarded
from hrt.training.optimizer_state import check_optimizer, exchange
from hrt.training.rank_penalty import second_moments

# Of the mean eigenvalue of the inputs' second moment: directions that the samples hardly show count a little. With 1e-6
# what a weight was started with in directions that no input has is kept at tolerances below 1e-3: nothing compresses.
RIDGE = 1e-10
SEEN = 1e-7  # singular values below this share of the largest are rounding
NOTHING = 1e-300  # in the place of zero where something is divided by it
GROWTH = 4  # a block without room is given a fourth of its rank, at least one direction
LATE = (
    0.25  # of the loss's fall, in decades: less than this in the last half of the epochs says that a solution is there
)
BAND = 4  # a layer stays until tol has fallen by so much, or until it would be smaller, with room, at tol / BAND


@dataclass(frozen=True)
class Entry:
    """What the log says of one epoch. error: relative L2 change of the outputs by it.  ranks: by module name."""

    epoch: int
    loss: float
    tol: float
    ratio: float
    error: float
    ranks: dict[str, tuple[int, ...]]


class DynamicCompression:
    """Compress a network while it is trained: call `step(epoch, loss)` after every epoch of a plain loop.

    A change moves a layer's output by `tol`, whatever the loss allows: one far below, or of derivatives, jumps, with
    L-BFGS by up to 10^4, and takes some twenty epochs to fall again. Leave it these: call no `step` near the end.

    Args:
        net: its nn.Linear layers are replaced in place by HLinear where that is smaller. Layers that share a weight,
            are the same module in several places, or are not trained, stay as they are.
        inputs: rows, a tuple of them, or hrt.Box: where the network is used. The layers' norm comes from them.
        optimizer: whose parameters are exchanged too. What it remembers of a weight (Adam's moments, momentum) is
            carried over to the factors; L-BFGS begins anew. None: `step` returns True when parameters are new, and the
            caller makes a new optimizer.
        every: epochs between changes. A layer whose ranks still fit stays as it is.
        first: epochs before the first change. None: the loss says when. It has halved at least, and less than a
            quarter of its fall (of its logarithm) was in the last half of the epochs: what a network drops before it
            has found its solution, it lacks later.
        tol: of every layer's output, relative L2, at first. It falls with the square root of the best loss so far.
        finest: the tolerance falls no further than to this. Lower, a late change costs less, and saves less.
        schedule: instead, best loss -> tolerance.
        seed: of the rows drawn from a box, and of the directions that are added.

    Raises:
        InputError: an argument does not fit, there is nothing to compress, or a schedule rises as the loss falls.
        TrainingError: the loss is not finite. The network is put back to the last epoch that was.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        >>> dynamic = DynamicCompression(net, torch.rand(64, 2), every=1)
        >>> parameters_are_new = dynamic.step(0, net(torch.rand(64, 2)).square().mean())
        >>> dynamic.ratio >= 1
        True
    """

    net: nn.Module
    optimizer: torch.optim.Optimizer | None
    seed: int
    every: int
    first: int | None
    start: float
    finest: float
    schedule: Callable[[float], float] | None

    @guarded
    def __init__(
        self,
        net: nn.Module,
        inputs: Inputs,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        every: int = 10,
        first: int | None = None,
        tol: float = 0.1,
        finest: float = 1e-3,
        schedule: Callable[[float], float] | None = None,
        seed: int = 0,
    ):
        self.net, self.optimizer, self.seed = net, optimizer, seed
        self.every = check_whole(every, "every", 1)
        self.first = None if first is None else check_whole(first, "first", 0)
        self.start, self.finest, self.schedule = check_tol(tol), check_tol(finest), schedule
        if finest > tol:
            raise InputError(f"Found tol {tol:g} and finest {finest:g}. Expected finest <= tol: it may not rise.")
        frozen = [name for name, p in net.named_parameters() if p.is_inference()]
        if frozen:
            raise InputError(f"Found {frozen[0]!r} made in inference mode, which cannot be trained. Make it outside.")
        self.samples: tuple[Tensor, ...] = as_samples(inputs, seed, count=2048)
        if not self._paths():
            raise InputError("Found no linear layers to follow. Expected nn.Linear or HLinear, trained, none tied.")
        if optimizer is not None:
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            lost = [path for path in self._paths() if not {id(p) for p in net.get_submodule(path).parameters()} <= held]
            if lost:
                names = ", ".join(lost)
                raise InputError(
                    f"The optimizer does not hold the parameters of {names}. Freeze them to leave them out."
                )
        self.log: list[Entry] = []
        self.tol = math.inf
        self._made: dict[str, float] = {}  # at which tolerance, by path
        self._best = self._scale = math.inf
        self._dense = self._total(dense=True)
        self._good: tuple[Any, dict[str, nn.Module], dict[str, Tensor]] = self._state("the start")

    @guarded
    def step(self, epoch: int, loss: Tensor | float) -> bool:
        """To be called after every epoch.

        Args:
            epoch: its number.
            loss: of this epoch, a scalar.

        Returns:
            Whether parameters of the network are new.
        """
        value = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if not math.isfinite(value) or not all(bool(torch.isfinite(p).all()) for p in self.net.parameters()):
            label, modules, state = self._good
            if self.optimizer is not None:
                for parameter in self.net.parameters():  # moments have seen what was not finite
                    self.optimizer.state.pop(parameter, None)
            for path, module in modules.items():
                self._exchange(path, module)
            self.net.load_state_dict(state)
            raise TrainingError(
                f"The loss of epoch {epoch} is {value}, or its weights are not finite. The network was put "
                f"back to {label}. Expected a finite loss; try a smaller learning rate."
            )
        if self._scale == math.inf:
            self._scale = max(value, NOTHING)
        self._best = min(self._best, value)
        self._tighten()
        if self.optimizer is not None:
            check_optimizer(self.optimizer, [self.net.get_submodule(path) for path in self._paths()])  # type: ignore[misc]
        start, before = self._begin(epoch), self._weights()
        error = self.adapt() if start is not None and (epoch - start) % self.every == 0 else 0.0
        self.log.append(Entry(epoch, value, self.tol, self.ratio, error, self.ranks))
        self._good = self._state(f"that after epoch {epoch}")
        return before != self._weights()

    def _begin(self, epoch: int) -> int | None:
        """The epoch of the first change, None while it is to come. The first of the losses is `_scale`."""
        if self.first is None and has_settled([*(e.loss for e in self.log), self._best]):
            self.first = epoch
        return self.first if self.first is not None and epoch >= self.first else None

    def _weights(self) -> set[int]:
        return {id(p) for p in self.net.parameters()}

    def _tighten(self) -> None:
        if self.schedule is None:
            self.tol = max(self.finest, min(self.start, self.start * math.sqrt(max(self._best, 0.0) / self._scale)))
            return
        wanted = check_tol(self.schedule(self._best))
        if wanted > self.tol:
            values = f"{wanted:g} for the loss {self._best:g}, after {self.tol:g}"
            raise InputError(f"Found tolerances {values}. Expected a schedule that does not rise as the loss falls.")
        self.tol = wanted

    @guarded
    @torch.no_grad()
    def adapt(self) -> float:
        """Compress every layer at the present tolerance.

        Returns:
            The relative change of the outputs on `inputs`.
        """
        if not math.isfinite(self.tol):
            self.tol: float = self.start
        reference = next(p for p in self.net.parameters() if p.is_floating_point())
        x = tuple(s.to(reference) for s in self.samples)
        before, moments = self._outputs(x), second_moments(self.net, *x)
        for path in self._paths():
            layer, c = self.net.get_submodule(path), moments.get(path)
            if isinstance(layer, HLinear):
                w = layer.to_hmatrix(torch.float64).to_dense()
            else:
                w = layer.weight.detach().to("cpu", torch.float64)  # type: ignore[operator, union-attr]
            moment = None if c is None else ridge(c.to("cpu", torch.float64), RIDGE)
            order = "auto" if min(w.shape) >= ORDERING_SIDE else "natural"
            options: dict[str, Any] = {"second_moment": moment, "ordering": order, "seed": self.seed}
            if self.tol > self._made.get(path, math.inf) / BAND and isinstance(layer, HLinear):
                h = compress_matrix(w, tol=self.tol / BAND, **options)
                if numbers_of(h, room=True) >= numbers_of(layer):
                    continue
            self._made[path] = self.tol
            h = with_room(compress_matrix(w, tol=self.tol, **options), w, moment, self.seed)
            if h.is_dense and isinstance(layer, nn.Linear):
                continue
            bias = layer.bias if isinstance(layer.bias, Tensor) else None
            new = HLinear(h, bias, dtype=reference.dtype).to(reference.device)
            new.train(layer.training)
            self._exchange(path, new)
        after = self._outputs(x)
        return relative_difference(after, before)

    def _outputs(self, x: tuple[Tensor, ...]) -> Tensor:
        with as_called():
            return _flat(self.net(*x))

    @property
    def ratio(self) -> float:
        """Dense float32 bytes of all parameters over those of now."""
        return self._dense / max(1, self._total())

    @property
    def ranks(self) -> dict[str, tuple[int, ...]]:
        """Of every layer's low-rank blocks."""
        layers = {path: self.net.get_submodule(path) for path in self._paths()}
        return {
            path: tuple(leaf.rank for leaf in m.leaves if not leaf.is_dense) if isinstance(m, HLinear) else ()
            for path, m in layers.items()
        }

    def _paths(self) -> list[str]:
        """Of the layers that are trained as a whole, in one place."""
        everywhere = dict(self.net.named_modules(remove_duplicate=False)).values()
        uses = Counter(id(p) for m in everywhere for p in m.parameters(recurse=False))
        return [
            name
            for name, m in self.net.named_modules()
            if isinstance(m, (nn.Linear, HLinear)) and name
            if all(p.requires_grad and uses[id(p)] == 1 for p in m.parameters())
        ]

    def _total(self, dense: bool = False) -> int:
        """The numbers of the network, shared ones once; dense: those that it would have without any HLinear."""
        layers = [m for m in self.net.modules() if isinstance(m, HLinear)]
        inside = {id(p) for m in layers for p in m.parameters()}
        total = sum(p.numel() for p in self.net.parameters() if id(p) not in inside)
        for m in layers:  # without what pads their blocks
            total += m.in_features * m.out_features if dense else numbers_of(m)
            total += 0 if m.bias is None else m.out_features
        return total

    def _state(self, label: str) -> tuple[str, dict[str, nn.Module], dict[str, Tensor]]:
        modules = {path: self.net.get_submodule(path) for path in self._paths()}
        return label, modules, copy.deepcopy(self.net.state_dict())

    def _exchange(self, path: str, module: nn.Module) -> None:
        """Put `module` in the place of the one at `path`, its parameters in the place of the old ones'."""
        parent, _, name = path.rpartition(".")
        old = self.net.get_submodule(path)
        setattr(self.net.get_submodule(parent), name, module)
        if old is module:
            return
        if old.bias is not None:
            module.bias = old.bias
        if self.optimizer is not None:
            exchange(self.optimizer, old, module)  # type: ignore[arg-type]


def numbers_of(matrix: HMatrix | HLinear, room: bool = False) -> int:
    """What all leaves store. room: with further directions in every low-rank block."""
    more = [room_of(e) * (e.rows + e.cols) if room and e.rank >= 0 else 0 for e in matrix.leaves]
    return sum(more) + sum(t.numel() for e in matrix.leaves for t in e.tensors)


def room_of(leaf: Leaf) -> int:
    """Further directions for a block."""
    return max(1, leaf.rank // GROWTH)


def has_settled(losses: Sequence[float]) -> bool:
    """Whether the best loss has halved, with less than LATE of the fall of its logarithm in the last half of `losses`.

    Where losses are not positive, falls are those of the losses themselves.
    """
    first, early, best = losses[0], min(losses[: max(1, len(losses) // 2)]), min(losses)
    if best <= 0:
        return 0 <= early - best < LATE * (first - best)
    return first >= 2 * best and math.log(early / best) < LATE * math.log(first / best)


def with_room(h: HMatrix, w: Tensor, moment: Tensor | None, seed: int) -> HMatrix:
    """`h` with further directions, u = 0, in every low-rank block that uses all directions its block of `w` has.

    vt is drawn like the inputs (L z with moment = L L^T). A block that would be smaller dense becomes dense.
    """
    generator = torch.Generator().manual_seed(seed)
    start, leaves = merged(h), []
    ordered = w if h.row_order is None else w[h.row_order.long()]
    ordered = ordered if h.col_order is None else ordered[:, h.col_order.long()]
    c = moment if moment is None or h.col_order is None else moment[h.col_order.long()][:, h.col_order.long()]
    for leaf in start.leaves:
        block = ordered[leaf.row : leaf.row + leaf.rows, leaf.col : leaf.col + leaf.cols]
        part = None if c is None else c[leaf.col : leaf.col + leaf.cols, leaf.col : leaf.col + leaf.cols]
        root = torch.eye(leaf.cols, dtype=torch.float64) if part is None else cholesky_psd(part)
        if leaf.u is None or leaf.vt is None or leaf.rank < _directions(block @ root):
            leaves.append(leaf)
            continue
        more = room_of(leaf)
        if (leaf.rank + more) * (leaf.rows + leaf.cols) >= leaf.rows * leaf.cols:
            leaves.append(Leaf(*leaf.place, dense=block.clone()))
            continue
        drawn = torch.randn(more, leaf.cols, dtype=torch.float64, generator=generator) @ root.mT
        if leaf.rank:  # as long as the directions that are there
            drawn = drawn * (leaf.vt.norm() / drawn.norm().clamp_min(NOTHING) * math.sqrt(more / leaf.rank))
        else:
            drawn = torch.randn(more, leaf.cols, dtype=torch.float64, generator=generator) / leaf.cols**0.5
        u = torch.cat([leaf.u, leaf.u.new_zeros(leaf.rows, more)], dim=1)
        leaves.append(Leaf(*leaf.place, u=u, vt=torch.cat([leaf.vt, drawn])))
    return HMatrix(start.shape, tuple(leaves), start.row_order, start.col_order)


def _directions(block: Tensor) -> int:
    sigma = torch.linalg.svdvals(block)
    return int((sigma > SEEN * sigma[0]).sum())


def _flat(output: Any) -> Tensor:
    parts = output if isinstance(output, (tuple, list)) else (output,)
    return torch.cat([y.reshape(y.shape[0], -1) for y in parts], dim=1).double()
