"""Dynamic compression of the Burgers PINN while it is trained, beside dense training of the same steps."""

import time
from dataclasses import dataclass

import torch

import hrt
from hrt.perf.burgers import burgers_network, residuals, sample
from hrt.perf.pinn_steps import Newton, carried, layers_of
from hrt.perf.training import DOMAIN, Figure, of_dense, of_model


@dataclass(frozen=True)
class Course:
    """adam, newton: steps.  first, every, until: Gauss-Newton's before the first change of the partitions, between two,
    and before the last: the rest trains the last ones.  coarsest, finest: tolerances of the layers, which fall as the
    loss does.  stored: that of storing what was trained.

    Partitions that change sooner are those of a network that has not found the solution: what they drop then costs
    more steps than it saves (two to five times the dense error after the same steps, whichever tolerances).
    """

    adam: int = 1000
    newton: int = 600
    first: int = 240
    every: int = 60
    until: int = 300
    coarsest: float = 1e-2
    finest: float = 3e-4
    stored: float = 1.5e-5


def trained(course: Course, width: int, batch: int, seed: int, dynamically: bool) -> Figure:
    """The network trained from its start, densely or compressed meanwhile: equal starts, steps and draws."""
    since, draws = time.perf_counter(), torch.Generator().manual_seed(seed)
    network, total = burgers_network(width=width, seed=seed).double(), course.adam + course.newton
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, course.adam, eta_min=1e-4)
    dynamic = hrt.DynamicCompression(
        network,
        DOMAIN,
        every=course.every,
        first=course.adam + course.first if dynamically else total + 1,
        tol=course.coarsest,
        finest=course.finest,
        seed=seed,
    )
    smoothed = None
    for step in range(1, course.adam + 1):
        adam.zero_grad()
        loss = residuals(network, sample(batch, draws)).square().sum()
        loss.backward()
        adam.step()
        schedule.step()
        smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
        dynamic.step(step, smoothed)
    newton = Newton(residuals, network)
    for step in range(1, course.newton + 1):
        loss = newton.step(sample(batch, draws), min(1.0, max(0.1, 4.0 * (1.0 - step / course.newton))))
        before = layers_of(network)
        if step <= course.until and dynamic.step(course.adam + step, loss):
            newton.direction = carried(newton.direction, before, network)
    if not dynamically:
        return of_dense("dense", seed, network, total, since)
    ranks = " ".join("+".join(map(str, r)) or "-" for r in dynamic.ranks.values())
    model = hrt.compress(network, inputs=DOMAIN, tol=course.stored, target="bytes", seed=seed, progress=False)
    return of_model("dynamic", seed, model, total, since, f"ranks {ranks}, {dynamic.ratio:.2f}x in float32")


def trained_dynamically(course: Course, width: int, batch: int, seed: int) -> list[Figure]:
    """(b): the dense network, and the one that is compressed while it is trained."""
    return [trained(course, width, batch, seed, dynamically) for dynamically in (False, True)]
