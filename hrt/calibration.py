"""What the data looks like: sampling, the split into calibration and held-out halves, and layer moments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hrt.errors import InputError
from hrt.program import Node, Program

BOX_SAMPLES = 16384
CHUNK = 4096  # rows evaluated at a time, so that memory does not grow with the calibration set


@dataclass(frozen=True)
class Box:
    """Inputs anywhere in low <= x <= high, sampled by a scrambled Sobol sequence.

    low, high: one number per input feature. For several inputs give a tuple of boxes.
    Raises InputError for bounds that are not finite, of unequal length, or in the wrong order.
    """

    low: Any
    high: Any

    def __post_init__(self) -> None:
        low, high = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (self.low, self.high))
        if low.ndim != 1 or low.shape != high.shape or not low.size:
            raise InputError(f"Box: found bounds of shapes {low.shape} and {high.shape}. Expected two equal lists.")
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise InputError("Box: expected finite bounds with low <= high for every feature.")
        object.__setattr__(self, "low", tuple(low.tolist()))
        object.__setattr__(self, "high", tuple(high.tolist()))

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.low)


def sample_boxes(boxes: Sequence[Box], count: int, seed: int) -> tuple[Tensor, ...]:
    """`count` points per box, float64 (count, width), from one Sobol sequence over all features together."""
    engine = torch.quasirandom.SobolEngine(sum(b.width for b in boxes), scramble=True, seed=seed)
    unit = engine.draw(count, dtype=torch.float64)
    out = []
    for part, box in zip(unit.split([b.width for b in boxes], dim=1), boxes, strict=True):
        low, high = torch.tensor(box.low, dtype=torch.float64), torch.tensor(box.high, dtype=torch.float64)
        out.append(low + (high - low) * part)
    return tuple(out)


def as_samples(inputs: Any, seed: int = 0, *, count: int = BOX_SAMPLES) -> tuple[Tensor, ...]:
    """User inputs as one float64 tensor (rows, *shape) per network input.

    inputs: a tensor or array, a Box, a tuple of those (one per network input), or a map-style dataset whose items are
    an input, or a tuple that starts with it. Raises InputError for no rows, unequal rows, NaN or infinite values.
    """
    parts: Sequence[Any]
    if isinstance(inputs, DataLoader):
        raise InputError("Found a DataLoader. Expected its dataset (loader.dataset), or the inputs as one tensor.")
    if isinstance(inputs, Dataset):
        items = [inputs[k] for k in range(len(inputs))]  # type: ignore[arg-type]
        first = [item[0] if isinstance(item, (tuple, list)) else item for item in items]
        parts = [torch.stack([torch.as_tensor(np.asarray(x)) for x in first])] if first else [torch.zeros(0, 1)]
    else:
        parts = inputs if isinstance(inputs, (tuple, list)) and not _is_numbers(inputs) else [inputs]
    boxes = [p for p in parts if isinstance(p, Box)]
    if boxes and len(boxes) < len(parts):
        raise InputError("Found boxes beside arrays. Expected one kind for all inputs.")
    if boxes:
        return sample_boxes(boxes, count, seed)
    out = tuple(_as_rows(p) for p in parts)
    rows = {int(x.shape[0]) for x in out}
    if len(rows) > 1:
        raise InputError(f"Calibration inputs have different numbers of rows: {sorted(rows)}. Expected one.")
    if rows == {0}:
        raise InputError("The calibration inputs have no rows. Pass at least one sample, or inputs=None.")
    return out


def _is_numbers(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and isinstance(inputs, list) and not isinstance(inputs[0], (Box, Tensor, np.ndarray))


def _as_rows(x: Any) -> Tensor:
    if isinstance(x, Tensor) and x.device.type == "meta":
        raise InputError("Calibration inputs: found a tensor on the meta device, which holds no numbers.")
    if not isinstance(x, Tensor) and np.asarray(x).dtype.kind not in "fiub":
        raise InputError(f"Calibration inputs: found {type(x).__name__} of {np.asarray(x).dtype}. Expected numbers.")
    t = x.detach().cpu() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x))
    if t.ndim < 2 or t.is_complex() or t.dtype == torch.bool:
        raise InputError(f"Calibration inputs: found {t.dtype} of shape {tuple(t.shape)}. Expected (rows, features).")
    t = t.to(torch.float64)
    bad = ~torch.isfinite(t).flatten(1).all(1)
    if bool(bad.any()):
        where = torch.nonzero(bad).flatten()[:5].tolist()
        raise InputError(f"Calibration inputs: {int(bad.sum())} rows hold NaN or infinity (rows {where} ...).")
    return t


def distinct(samples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The samples without rows that repeat an earlier one: a repeated row on both sides of the split would be verified
    by itself.
    """
    flat = torch.cat([x.flatten(1) for x in samples], dim=1)
    if not flat.shape[1]:
        return samples
    _, first = np.unique(flat.numpy(), axis=0, return_index=True)
    keep = torch.from_numpy(np.sort(first))
    return samples if len(keep) == len(flat) else tuple(x[keep] for x in samples)


@dataclass(frozen=True, eq=False)
class Split:
    """Rows for three purposes, disjoint where there are enough, one tensor per network input: `calibration` for
    moments, `search` to choose between candidates, and `held_out`, which neither has seen, for the certificate.
    """

    calibration: tuple[Tensor, ...]
    search: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...]

    @staticmethod
    def make(samples: tuple[Tensor, ...], seed: int) -> "Split":
        """A seeded random half for calibration, a quarter each for the others. Fewer than four rows cannot be told
        apart so: search and held-out rows coincide, and a single row serves for everything.
        """
        rows = samples[0].shape[0]
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        half = rows // 2
        cut = half + (rows - half) // 2 if rows >= 4 else half
        parts = (order[:half] if half else order, order[half:cut] if cut > half else order[half:], order[cut:])
        return Split(*(tuple(x[part] for x in samples) for part in parts))


@dataclass(frozen=True, eq=False)
class Moments:
    """What a weight sees and what the output feels of it, over the calibration rows.

    mean: (n,) of its inputs.  second: (n, n) E[x x^T].  covariance: (n, n), centred.  left: (m, m) E[J^T J] with J
    the derivative of the network's output by the layer's output, so that the output's mean squared error is
    tr(left E C E^T) to first order.  rows: how many inputs were seen.  focused: the same with every input weighted by
    ||J||^2, how strongly the output depends on this layer there; where sensitivity and input are far from independent
    (a shock, say) E[|J E x|^2] is better approximated so, one step of the power iteration towards the nearest Kronecker
    product of E[x x^T (x) J^T J] (Van Loan & Pitsianis, 1993).
    """

    mean: Tensor
    second: Tensor
    covariance: Tensor
    left: Tensor
    rows: int
    focused: "Moments | None" = None

    @property
    def is_focusable(self) -> bool:
        """Whether focusing changes the second moment at all: where J is the same for every input it does not."""
        if self.focused is None:
            return False
        return not torch.allclose(self.focused.second, self.second, rtol=0, atol=1e-9 * float(self.second.norm()))


def layer_moments(program: Program, inputs: Sequence[Tensor], seed: int = 0) -> dict[str, Moments]:
    """Moments of every weight of `program`, in float64. Tied weights pool their uses.

    The output's sensitivity comes from one backward pass with a random sign per output and row (Hutchinson): the
    expectation of (J^T v)(J^T v)^T over signs v is J^T J.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, list[Any]] = {}
    total_rows = inputs[0].shape[0]
    for start in range(0, total_rows, CHUNK):
        chunk = [x[start : start + CHUNK] for x in inputs]
        for use in observed_uses(program, chunk, generator):
            name, x, g = use.weight, use.x.flatten(0, -2), use.slope.flatten(0, -2)
            weight = (g * g).sum(1, keepdim=True)
            xw = x * weight
            entry = [x.sum(0), x.T @ x, g.T @ g, x.shape[0], xw.sum(0), xw.T @ x, weight.sum()]
            old = sums.get(name)
            sums[name] = entry if old is None else [a + b for a, b in zip(old, entry, strict=True)]
    out = {}
    for name, (total, outer, left, rows, focused_total, focused_outer, weight) in sums.items():
        left = left / total_rows  # per network sample: a layer used N times per sample counts N times
        focused = None
        if float(weight) > 0:
            focused = _moments(focused_total / weight, focused_outer / weight, left, rows)
        out[name] = replace(_moments(total / rows, outer / rows, left, rows), focused=focused)
    return out


def _moments(mean: Tensor, second: Tensor, left: Tensor, rows: int) -> Moments:
    second = (second + second.T) / 2
    return Moments(mean, second, second - torch.outer(mean, mean), left, rows)


@dataclass(frozen=True, eq=False)
class Use:
    """One linear node at work. x: (rows, ..., n), what it multiplies.  slope: (rows, ..., m), the derivative of the
    signed sum of the outputs by its product.  biased: whether it adds a bias.
    """

    weight: str
    x: Tensor
    slope: Tensor
    biased: bool


def observed_uses(
    program: Program, chunk: Sequence[Tensor], generator: torch.Generator, scales: Sequence[float] = ()
) -> list[Use]:
    """Every linear node on the rows of `chunk`, in order. scales: factors of the outputs, by default 1."""
    seen: list[tuple[Node, Tensor, Tensor]] = []
    probed = _with_probes(program, chunk, seen)
    scaled = [y * s for y, s in zip(probed, scales, strict=True)] if scales else probed
    loss = sum((y * _signs(y, generator)).sum() for y in scaled)
    probes = [probe for _, _, probe in seen]
    grads = torch.autograd.grad(loss, probes, allow_unused=True) if isinstance(loss, Tensor) and probes else []
    return [
        Use(node.inputs[1], x, torch.zeros_like(probe) if g is None else g, len(node.inputs) == 3)
        for (node, x, probe), g in zip(seen, grads, strict=True)
    ]


def _signs(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1


def _with_probes(program: Program, chunk: Sequence[Tensor], seen: list[tuple[Node, Tensor, Tensor]]) -> list[Tensor]:
    """Run the program with a zero added to every linear layer's output, to take derivatives there."""
    nodes: list[Node] = []
    extra: dict[str, Tensor] = {}
    rows = chunk[0].shape[0]
    owner: dict[str, Node] = {}
    for node in program.nodes:
        if node.op != "linear":
            nodes.append(node)
            continue
        raw, probe = f"{node.name}:raw", f"{node.name}:probe"
        extra[probe] = torch.zeros(rows, *node.shape, dtype=torch.float64, requires_grad=True)
        owner[raw] = node
        nodes.append(replace(node, name=raw))
        nodes.append(replace(node, op="add", inputs=(raw, probe), attrs={}))
    probed = replace(program, nodes=tuple(nodes), constants={**program.constants, **extra})

    def observe(node: Node, arguments: tuple[Any, ...]) -> None:
        if node.name in owner:
            seen.append((owner[node.name], arguments[0].detach(), extra[node.name.replace(":raw", ":probe")]))

    with torch.enable_grad():
        # the probes must not be cast: constants of another dtype would be copies
        return list(probed.run(chunk, observe=observe))


def evaluate(program: Program, inputs: Sequence[Tensor], constants: dict[str, Any] | None = None) -> Tensor:
    """All outputs of the network in float64, flattened to (rows, features), without gradients."""
    rows = inputs[0].shape[0]
    with torch.no_grad():
        parts = []
        for start in range(0, max(rows, 1), CHUNK):
            chunk = [x[start : start + CHUNK] for x in inputs]
            ys = program.run(chunk, constants=constants)
            parts.append(torch.cat([y.reshape(y.shape[0], -1) for y in ys], dim=1))
        return torch.cat(parts)
