"""What a compressed network is held to: its value and, if asked for, derivatives by its inputs, each to the same tol.

Derivatives are more outputs of one larger network (`hrt.derivatives.differentiate`) in which every weight acts several
times: on the value and on each derivative that enters its layer. An error E of a weight W moves the outputs of one
sample, to first order, by the sum over these uses s of J_s E x_s: x_s (n,) is what the use multiplies, J_s the
derivative of all outputs by its product. Outputs are counted over their root mean square, so that one per cent of u_xx
weighs like one of u. With v random signs over the outputs (Hutchinson) and M = sum_s J_s^T v x_s^T the mean squared
error is E <M, E>^2. Its nearest Kronecker product, one step of the power iteration from both sides (Van Loan and
Pitsianis, 1993), is what the planner takes:

    E <M, E>^2  ~  tr(L E R E^T) / T,    L = E[M M^T],    R = E[M^T M],    T = E ||M||_F^2

With X (S, n) and G (S, m) the uses of one sample as rows, M^T M = X^T G G^T X: no matrix of M's size is ever made.
Cross terms between the uses are all in it, and it does not matter how large the derivatives are between the layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hrt.calibration.jumps import Unseen
from hrt.calibration.moments import Moments, Use, evaluate, layer_moments, observed_uses, rows_at_once
from hrt.calibration.output_error import RISK, OutputError, output_error
from hrt.derivatives.differentiate import differentiate
from hrt.program.program import Program

ROWS = 1024  # at a time: everything between the layers is kept for the backward pass
GRAM_NUMBERS = 1 << 22  # of Gram matrices (S, S) held at a time


@dataclass(frozen=True, eq=False)
class Aim:
    """The value (no names) or the value and derivatives, which are judged one by one.

    graph: the original network with all of them as outputs, by the same constants, none folded: they may be replaced.
    kinks: ops whose derivatives jump somewhere ("relu (layers.1)").
    each: every column of these is judged by itself, too.
    """

    names: tuple[str, ...]
    graph: Program
    kinks: tuple[str, ...] = ()
    each: bool = False

    @staticmethod
    def of(program: Program, names: Sequence[str] = (), each: bool = False) -> "Aim":
        """Raises InputError and DerivativeError as `hrt.derivatives.differentiate.differentiate` does."""
        if not isinstance(names, str) and not names:
            return Aim((), program, each=each)
        whole = differentiate(program, names, folded=False)
        return Aim(whole.derivatives, whole.program, whole.kinks, each)

    def served(self, program: Program) -> Program:
        """What a runtime is given of `program`, the original or a compressed form of it."""
        return differentiate(program, self.names).program if self.names else program

    def outputs(self, inputs: Sequence[Tensor], constants: Mapping[str, Tensor] | None = None) -> Tensor:
        """Value, then every derivative, (rows, features) float64. constants: all of them, to replace the original's."""
        if constants is None:
            return evaluate(self.graph, inputs)
        others = {k: c for k, c in self.graph.constants.items() if k not in constants and isinstance(c, Tensor)}
        return evaluate(self.graph, inputs, {**{k: c.to(torch.float64) for k, c in others.items()}, **constants})

    def parts(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The value's columns, then those of every derivative."""
        return outputs.tensor_split(1 + len(self.names), dim=1)

    def error(self, reference: Tensor, actual: Tensor, risk: float = RISK, unseen: Unseen | None = None) -> OutputError:
        """The value's error with those of the derivatives; see `output_error`. unseen: of the first rows."""
        others = [None] * (1 + len(self.names)) if unseen is None else self.parts(unseen.lost(reference - actual))
        triples = zip(self.parts(reference), self.parts(actual), others, strict=True)
        value, *rest = (output_error(y, y_h, self.each, risk, other) for y, y_h, other in triples)
        return replace(value, derivatives=tuple(rest)) if rest else value

    def where(self, error: OutputError) -> str:
        """In words, which derivative, or output column, has the largest error; nothing for the whole value."""
        for name, part in zip(("", *self.names), (error, *error.derivatives), strict=True):
            derivative = f" in {name}" if name else ""
            if part.value == error.largest:
                return derivative
            if self.each and error.largest in part.per_output:
                return f" in output {part.per_output.index(error.largest)}{derivative}"
        return ""

    def scales(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Factors (features,) that make the outputs comparable: of every part or column 1 over its rms, 0 for zeros."""
        if not self.names and not self.each:
            return None
        factors = []
        for part in self.parts(self.outputs(inputs)):
            power = part.square().mean(0) if self.each else part.square().sum(1).mean().expand(part.shape[1])
            factors.append(torch.where(power > 0, 1 / power.sqrt(), 0.0))
        return torch.cat(factors)

    def allowed2(self, tol: float, reference: Tensor) -> float:
        """The mean squared error that the moments may predict, of relative errors where these are what is judged."""
        if self.names and not self.each:
            return tol**2
        if self.each:
            return tol**2 * max(1, int(reference.any(0).sum()))
        return tol**2 * float(reference.square().sum()) / max(1, reference.shape[0])

    def moments(self, inputs: Sequence[Tensor], seed: int = 0) -> dict[str, Moments]:
        """What every weight sees and what the outputs feel of it: for the value alone as `layer_moments` has it."""
        if self.names:
            return sobolev_moments(self, inputs, seed)
        return layer_moments(self.graph, inputs, seed, self.scales(inputs))


def _sums(x: Tensor, g: Tensor, biased: Tensor) -> list[Any]:
    """L, R, E x x^T, T, ||G||^2, the inputs of uses with a bias, what counts these, and the rows: see `_moments`.

    x (B, S, n), g (B, S, m) of B samples; biased (S,): the uses to which a bias is added.
    """
    inner, outer, inputs = x @ x.mT, g @ g.mT, x.flatten(0, 1)
    weighted = outer @ x
    left, right = g.flatten(0, 1).T @ (inner @ g).flatten(0, 1), inputs.T @ weighted.flatten(0, 1)
    total, energy = float((inner * outer).sum()), float((g * g).sum())
    bias_energy = float(outer[:, biased][:, :, biased].sum())
    return [left, right, inputs.T @ inputs, total, energy, weighted[:, biased].sum((0, 1)), bias_energy, len(inputs)]


def _moments(sums: list[Any], samples: int) -> Moments:
    """Scaled so that `second` is a weighted mean of x x^T, as `Moments` has it.

    A bias can take over E c; the best c is `biased` over `bias_energy` and takes c c^T `bias_energy` from R.
    """
    left, right, plain, total, energy, biased, bias_energy, rows = sums
    if not total > 0:  # no output depends on it
        second = plain / max(1, rows)
        return Moments(biased * 0, second, second, left * 0, rows)
    second = (right + right.T) / 2 / energy
    covariance, mean = second, biased * 0
    if bias_energy > 0:
        mean = biased / bias_energy
        covariance = second - torch.outer(mean, mean) * (bias_energy / energy)
    return Moments(mean, second, covariance, (left + left.T) / 2 * (energy / total) / samples, rows)


def sobolev_moments(aim: Aim, inputs: Sequence[Tensor], seed: int = 0) -> dict[str, Moments]:
    """Moments over value and derivatives: tr(left E second E^T) is the sum of their squared relative errors."""
    scales = aim.scales(inputs)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, list[Any]] = {}
    samples = inputs[0].shape[0]
    at_once = rows_at_once(aim.graph, ROWS)
    for start in range(0, samples, at_once):
        chunk = [x[start : start + at_once] for x in inputs]
        uses: dict[str, list[Use]] = {}
        for use in observed_uses(aim.graph, chunk, generator, scales):
            uses.setdefault(use.weight, []).append(use)
        for name, together in uses.items():
            x, g, biased = _stacked(together)
            step = max(1, GRAM_NUMBERS // max(1, x.shape[1] ** 2))
            for part in range(0, len(x), step):
                new = _sums(x[part : part + step], g[part : part + step], biased)
                sums[name] = [a + b for a, b in zip(sums[name], new, strict=True)] if name in sums else new
    return {name: _moments(entry, samples) for name, entry in sums.items()}


def _stacked(uses: Sequence[Use]) -> tuple[Tensor, Tensor, Tensor]:
    """All uses of a weight as rows: inputs (B, S, n), slopes (B, S, m), and which of them add a bias (S,)."""
    count = len(uses[0].slope)
    x = [u.x.expand(count, *u.x.shape[1:]).reshape(count, -1, u.x.shape[-1]) for u in uses]
    g = [u.slope.reshape(count, -1, u.slope.shape[-1]) for u in uses]
    biased = [torch.full((part.shape[1],), u.biased) for part, u in zip(g, uses, strict=True)]
    return torch.cat(x, 1), torch.cat(g, 1), torch.cat(biased)


def derivative_figures(
    aim: Aim, exact: OutputError, served: Mapping[str, OutputError], reference: Tensor
) -> dict[str, Any]:
    """The certificate's fields about derivatives, by section. exact: in float64.  served: of the accepted backends."""
    if not aim.names:
        return {"measured": {}, "estimated": {}, "context": {}}
    columns = list(zip(*(e.derivatives for e in served.values()), strict=True))
    worst = {name: max(errors, key=lambda e: e.upper_99) for name, errors in zip(aim.names, columns, strict=True)}
    rms = [float(part.square().sum(1).mean().sqrt()) for part in aim.parts(reference)[1:]]
    return {
        "measured": {
            "derivative_error": {n: e.value for n, e in zip(aim.names, exact.derivatives, strict=True)},
            "derivative_runtime_error": {n: e.value for n, e in worst.items()},
            "derivative_rms": dict(zip(aim.names, rms, strict=True)),
        },
        "estimated": {"derivative_error_upper_99": {n: e.upper_99 for n, e in worst.items()}},
        "context": {"derivatives": list(aim.names), "kinks": list(aim.kinks)},
    }
