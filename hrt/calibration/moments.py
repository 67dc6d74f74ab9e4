"""What the data looks like: sampling, the split into calibration and held-out halves, and layer moments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import psutil
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.program.program import Node, Program

WIDE = 1024  # outputs; of so many the random signs of as many rows say too little, and what is known is taken
HELD = 6  # matrices (n, n) of every weight, when its moments are made: two sums and four of `Moments`
CHUNK = 4096  # rows evaluated at a time, so that memory does not grow with the calibration set
NUMBERS = 1 << 27  # of all values of the rows at a time, fewer rows where these are images: a gigabyte in float64


@dataclass(frozen=True, eq=False)
class Moments:
    """What a weight sees and what the output feels of it. mean: (n,).  second: (n, n) E[x x^T].  covariance: centred.

    left: (m, m) E[J^T J], J the derivative of the network's output by the layer's: the output's mean squared error is
    tr(left E C E^T) to first order.  rows: inputs seen.  focused: the same with inputs weighted by ||J||^2, one step of
    the power iteration towards the nearest Kronecker product of E[x x^T (x) J^T J] (Van Loan & Pitsianis, 1993), for
    sensitivities that depend on the input (a shock, say).
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


def layer_moments(
    program: Program, inputs: Sequence[Tensor], seed: int = 0, scales: Tensor | None = None
) -> dict[str, Moments]:
    """Moments of every weight of `program`, in float64. Tied weights pool their uses. scales: see `observed_uses`.

    One backward pass with random signs v over outputs and rows (Hutchinson): E (J^T v)(J^T v)^T = J^T J.
    Raises InputError where they cannot fit into memory.
    """
    widths = [program.constants[name].shape[1] for name in program.weights]
    needed, free = HELD * 8 * sum(n * n for n in widths), psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"Found layers of up to {max(widths):,} inputs: how these vary together takes {needed / 2**30:,.1f} GiB, "
            f"and {free / 2**30:,.1f} GiB are free. Nothing was allocated for it. Use a machine with more memory, or "
            "compress with inputs=None, which bounds the weights alone."
        )
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, list[Any]] = {}
    total_rows, at_once = inputs[0].shape[0], rows_at_once(program)
    for start in range(0, total_rows, at_once):
        chunk = [x[start : start + at_once] for x in inputs]
        for use in observed_uses(program, chunk, generator, scales):
            name, x, g = use.weight, use.x.flatten(0, -2), use.slope.flatten(0, -2)
            weight = (g * g).sum(1, keepdim=True)
            xw = x * weight
            felt = g.T @ g if use.exact is None else torch.diag(use.exact * len(g))
            entry = [x.sum(0), x.T @ x, felt, x.shape[0], xw.sum(0), xw.T @ x, weight.sum()]
            old = sums.get(name)
            sums[name] = entry if old is None else [a + b for a, b in zip(old, entry, strict=True)]
    out = {}
    for name, (total, outer, left, rows, focused_total, focused_outer, weight) in sums.items():
        left = left / total_rows  # per network sample: a layer used N times per sample counts N times
        is_felt = float(weight) > 0
        focused = _moments(focused_total / weight, focused_outer / weight, left, rows) if is_felt else None
        out[name] = replace(_moments(total / rows, outer / rows, left, rows), focused=focused)
    return out


def rows_at_once(program: Program, most: int = CHUNK) -> int:
    """How many rows are evaluated at a time, so that all values of the network fit into memory."""
    numbers = sum(prod(v.shape) for v in (*program.inputs, *program.nodes))
    return max(1, min(most, NUMBERS // max(1, numbers)))


def _moments(mean: Tensor, second: Tensor, left: Tensor, rows: int) -> Moments:
    second = (second + second.T) / 2
    return Moments(mean, second, second - torch.outer(mean, mean), left, rows)


@dataclass(frozen=True, eq=False)
class Use:
    """One linear node at work. x: (rows, ..., n).  slope: (rows, ..., m) of the signed outputs by its product.
    exact: (m,) the slopes' mean squares, uncorrelated, where the node is a WIDE output of the network and nothing else.
    """

    weight: str
    x: Tensor
    slope: Tensor
    biased: bool
    exact: Tensor | None = None


def observed_uses(
    program: Program, chunk: Sequence[Tensor], generator: torch.Generator, scales: Tensor | None = None
) -> list[Use]:
    """Every linear node on the rows of `chunk`, in order. scales: factors (features,) of all outputs, by default 1."""
    seen: list[tuple[Node, Tensor, Tensor]] = []
    probed = _with_probes(program, chunk, seen)
    scaled = probed
    if scales is not None:
        parts = scales.split([y.shape[1:].numel() for y in probed])
        scaled = [y * part.reshape(y.shape[1:]) for y, part in zip(probed, parts, strict=True)]
    loss = sum((y * _signs(y, generator)).sum() for y in scaled)
    probes = [probe for _, _, probe in seen]
    grads: Sequence[Tensor | None] = [None] * len(probes)  # where every output is constant between its jumps
    if isinstance(loss, Tensor) and loss.requires_grad:
        grads = torch.autograd.grad(loss, probes, allow_unused=True)
    read = {name for node in program.nodes for name in node.inputs}
    alone = [name not in read and program.outputs.count(name) == 1 for name in program.outputs]
    ones = [torch.ones(y.shape[1:], dtype=y.dtype) for y in probed]
    factors = ones if scales is None else [p.reshape(y.shape) for p, y in zip(parts, ones, strict=True)]
    exact = {
        name: f.square().reshape(-1, f.shape[-1]).mean(0)
        for name, f, is_alone in zip(program.outputs, factors, alone, strict=True)
        if is_alone and f.ndim and f.shape[-1] >= WIDE
    }
    return [
        Use(node.inputs[1], x, torch.zeros_like(probe) if g is None else g, len(node.inputs) == 3, exact.get(node.name))
        for (node, x, probe), g in zip(seen, grads, strict=True)
    ]


def _signs(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, y.shape, generator=generator).to(y.dtype) * 2 - 1


def _with_probes(program: Program, chunk: Sequence[Tensor], seen: list[tuple[Node, Tensor, Tensor]]) -> list[Tensor]:
    """Run the program with a zero added to every linear layer's output, to take derivatives there."""
    nodes: list[Node] = []
    probes: dict[str, tuple[Node, Tensor]] = {}  # by the name of the bare product
    for node in program.nodes:
        if node.op != "linear" or node.inputs[1] in program.generated:
            nodes.append(node)
            continue
        raw = f"{node.name}:raw"
        probes[raw] = node, torch.zeros(len(chunk[0]), *node.shape, dtype=torch.float64, requires_grad=True)
        nodes.append(replace(node, name=raw))
        nodes.append(replace(node, op="add", inputs=(raw, f"{raw}:probe"), attrs={}))
    extra = {f"{raw}:probe": probe for raw, (_, probe) in probes.items()}
    probed = replace(program, nodes=tuple(nodes), constants={**program.constants, **extra})

    def observe(node: Node, arguments: tuple[Any, ...]) -> None:
        for argument in arguments:
            if isinstance(argument, Tensor) and argument.requires_grad:
                argument.register_hook(_finite)
        if node.name in probes:
            linear, probe = probes[node.name]
            seen.append((linear, _checked(arguments[0].detach(), linear, program), probe))

    with torch.enable_grad():
        # the probes must not be cast: constants of another dtype would be copies
        return list(probed.run(chunk, observe=observe))


def _finite(slope: Tensor) -> Tensor:
    """The slope, 0 where it is NaN or infinite: where a value within overflows and the output does not, as in
    1 / (1 + exp(1000)), the output does not move, and autograd has 0 times infinity.
    """
    return slope if bool(torch.isfinite(slope.sum())) else torch.where(torch.isfinite(slope), slope, 0.0)


def _checked(x: Tensor, linear: Node, program: Program) -> Tensor:
    """What a weight multiplies. Raises InputError where it is not finite: no error of the weight can be told then."""
    if bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all()):
        return x
    before = next((n for n in program.nodes if n.name == linear.inputs[0]), None)
    origin = f"{before.op} ({before.name})" if before else linear.inputs[0]
    raise InputError(
        f"Found NaN or infinite values of {origin}, which the weight {linear.inputs[1]} multiplies, on "
        f"{int((~torch.isfinite(x.flatten(1))).any(1).sum()):,} calibration inputs, though the outputs are finite. "
        "Expected values that do not overflow: bound them (torch.clamp) before this layer, or leave such inputs out."
    )


def evaluate(program: Program, inputs: Sequence[Tensor], constants: dict[str, Any] | None = None) -> Tensor:
    """All outputs of the network in float64, flattened to (rows, features), without gradients."""
    rows, at_once = inputs[0].shape[0], rows_at_once(program)
    with torch.no_grad():
        parts = []
        for start in range(0, max(rows, 1), at_once):
            chunk = [x[start : start + at_once] for x in inputs]
            ys = program.run(chunk, constants=constants)
            parts.append(torch.cat([y.reshape(y.shape[0], -1) for y in ys], dim=1))
        return torch.cat(parts)


def ridge(c: Tensor, amount: float) -> Tensor:
    """C plus `amount` times its mean eigenvalue on the diagonal."""
    return c + amount * c.diagonal().mean().clamp_min(0) * torch.eye(c.shape[0], dtype=c.dtype)
