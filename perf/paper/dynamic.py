"""Dynamic compression of the Burgers PINN while it is trained, beside dense training of the same steps."""

import math
import time
from dataclasses import dataclass

import hrt
from hrt.perf.networks.burgers import burgers_network, residuals, sample
from hrt.perf.networks.pinn_training import fit
from hrt.perf.paper.training import DOMAIN, Figure, of_dense, of_model


@dataclass(frozen=True)
class Course:
    """adam, newton: steps.  first, every, until: Gauss-Newton's before the first change of the partitions, between two,
    and before the last: the rest trains the last ones.  coarsest, finest: tolerances of the layers, which fall as the
    loss does.  stored: that of storing what was trained.

    Partitions that change sooner are those of a network that has not found the solution: what they drop then costs
    more steps than it saves.
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
    since = time.perf_counter()
    network, total = burgers_network(width=width, seed=seed).double(), course.adam + course.newton
    if not dynamically:
        fit(residuals, sample, network, seed, course.adam, course.newton, batch)
        return of_dense("dense", seed, network, total, since)
    first, smoothed = course.adam + course.first, math.nan
    options = {"every": course.every, "first": first, "tol": course.coarsest, "finest": course.finest, "seed": seed}
    dynamic = hrt.DynamicCompression(network, DOMAIN, **options)

    def follow(step: int, loss: float) -> None:
        nonlocal smoothed
        adam = step <= course.adam  # whose losses vary from batch to batch
        smoothed = 0.98 * smoothed + 0.02 * loss if adam and step > 1 else loss
        if step <= course.adam + course.until:
            dynamic.step(step, smoothed)

    fit(residuals, sample, network, seed, course.adam, course.newton, batch, follow)
    ranks = " ".join("+".join(map(str, r)) or "-" for r in dynamic.ranks.values())
    model = hrt.compress(network, inputs=DOMAIN, tol=course.stored, target="bytes", seed=seed, progress=False)
    return of_model("dynamic", seed, model, total, since, f"ranks {ranks}, {dynamic.ratio:.2f}x in float32")


def trained_dynamically(course: Course, width: int, batch: int, seed: int) -> list[Figure]:
    """(b): the dense network, and the one that is compressed while it is trained."""
    return [trained(course, width, batch, seed, dynamically) for dynamically in (False, True)]
