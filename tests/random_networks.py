"""Random small networks: whether `hrt.compress` keeps its promise on fresh inputs, and what it wins.

Run as `python tests/random_networks.py [COUNT]` (300 by default) for the counts and the medians.
"""

import math
import sys
import time
import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

import hrt

ACTIVATIONS = (nn.Tanh, nn.SiLU, nn.GELU, nn.ReLU, nn.Sigmoid, nn.Softplus, nn.ELU, nn.LeakyReLU, nn.Hardtanh)
TOLS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)
FRESH = 20_000
CONFIDENCE = 0.99


class Scaled(nn.Module):
    """A multilayer perceptron that takes inputs of one scale and answers on another."""

    def __init__(self, layers: nn.Sequential, inward: float, outward: float):
        super().__init__()
        self.layers, self.inward, self.outward = layers, inward, outward

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x * self.inward) * self.outward


@dataclass(frozen=True, eq=False)
class Case:
    """A network with rows to compress it by and fresh rows of the same distribution to judge it by.

    is_rich: three or more hidden layers and many rows. Of fewer layers each is at int8 or rank 1 soon, where the next
    step is beyond the tolerance; of fewer rows the confidence limit takes much of it.
    """

    seed: int
    net: nn.Module
    rows: Tensor
    fresh: Tensor
    tol: float
    words: str
    is_rich: bool


@dataclass(frozen=True)
class Outcome:
    """error: on the fresh rows, over tol. limit: certified, over tol. ratio: dense bytes over bytes."""

    seed: int
    error: float
    limit: float
    ratio: float
    seconds: float
    words: str
    is_rich: bool


def drawn(seed: int) -> Case:
    """Case `seed`: widths 4 to 64, 1 to 4 hidden layers, any activation, scales 1e-20 to 1e20, 64 to 4,000 rows, dead
    neurons and heavy tails in three of ten each, few rows in one of four.
    """
    g = torch.Generator().manual_seed(seed)

    def number(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=g))

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    inputs, outputs = whole(1, 6), whole(1, 4)
    widths = [whole(4, 64) for _ in range(whole(1, 4))]
    activation = ACTIVATIONS[whole(0, len(ACTIVATIONS) - 1)]
    layers: list[nn.Module] = []
    sizes = [inputs, *widths, outputs]
    for fan_in, fan_out in pairwise(sizes):
        linear = nn.Linear(fan_in, fan_out)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(fan_out, fan_in, generator=g) * number(0.7, 1.6) / math.sqrt(fan_in))
            linear.bias.copy_(0.3 * torch.randn(fan_out, generator=g))
            if number(0, 1) < 0.3 and fan_out > outputs:  # dead neurons
                dead = torch.rand(fan_out, generator=g) < 0.3
                linear.weight[dead], linear.bias[dead] = 0.0, -1.0
        layers += [linear, activation()]
    scales = [10.0 ** whole(-20, 20) if number(0, 1) < 0.5 else 1.0 for _ in range(2)]
    net = Scaled(nn.Sequential(*layers[:-1]), 1.0, scales[1])
    with torch.no_grad():  # the first weights undo the inputs' scale, as weights of unscaled inputs learn to
        net.layers[0].weight /= scales[0]
    count, heavy = whole(64, 400) if number(0, 1) < 0.25 else whole(400, 4000), number(0, 1) < 0.3

    def sample(rows: int) -> Tensor:
        x = torch.randn(rows, inputs, generator=g)
        x = x * torch.exp(torch.randn(rows, 1, generator=g)) / 2 if heavy else 2 * torch.special.ndtr(x) - 1
        return x * scales[0]

    tol = TOLS[whole(0, len(TOLS) - 1)]
    words = f"{sizes} {activation.__name__} scales {scales} heavy {heavy} rows {count} tol {tol:g}"
    is_rich = len(widths) >= 3 and count >= 400
    return Case(seed, net.eval(), sample(count), sample(FRESH), tol, words, is_rich)


def outcome(case: Case, **options) -> Outcome:
    """What `hrt.compress` makes of a case."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hrt.compress(case.net, inputs=case.rows, tol=case.tol, progress=False, **options)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        exact = case.net.double()(case.fresh.double())
    answers = model.predict(case.fresh).double()
    size = exact.abs().max()
    error = float(((answers - exact) / size).norm() / (exact / size).norm())
    limit = model.certificate.estimated["output_error_upper_99"] / case.tol
    return Outcome(
        case.seed, error / case.tol, limit, model.dense_nbytes / model.nbytes, seconds, case.words, case.is_rich
    )


def main(count: int, first: int = 0) -> None:
    """Print every case and, at last, the counts."""
    torch.set_num_threads(1)
    outcomes = []
    for seed in range(first, first + count):
        try:
            outcomes.append(outcome(drawn(seed)))
        except hrt.ToleranceError as error:
            print(f"{seed:4d} refused: {error}", flush=True)
            continue
        o = outcomes[-1]
        figures = f"error/tol {o.error:6.3f} limit/tol {o.limit:6.3f} ratio {o.ratio:6.2f} {o.seconds:6.1f} s"
        print(f"{seed:4d} {figures} {o.words}", flush=True)
    print(summary(outcomes))


def median(outcomes: list[Outcome]) -> float:
    """Of the error over tol."""
    return float(torch.tensor([o.error for o in outcomes]).quantile(0.5)) if outcomes else math.nan


def summary(outcomes: list[Outcome]) -> str:
    """The counts and medians in words."""
    won = [o for o in outcomes if o.ratio > 1]
    over = [o.seed for o in outcomes if o.error > 1]
    middle, rich = median(won), median([o for o in won if o.is_rich])
    ratio = torch.tensor([o.ratio for o in won]).log().mean().exp() if won else math.nan
    return (
        f"{len(outcomes)} networks: {len(over)} beyond tol on fresh inputs {over} (expected of a 99 % limit: at most "
        f"{(1 - CONFIDENCE) * len(outcomes):.0f}), {sum(o.ratio < 1 for o in outcomes)} larger than dense, "
        f"{len(won)} smaller: median error / tol {middle:.3f}, of rich ones {rich:.3f}, "
        f"geometric mean of ratios {ratio:.2f}; "
        f"{sum(o.seconds for o in outcomes):.0f} s in all"
    )


if __name__ == "__main__":
    main(*(int(v) for v in sys.argv[1:]))
