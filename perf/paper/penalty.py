"""Rank regularisation of the Burgers PINN: bytes at error 1e-3 with and without it, the same steps and draws."""

import time

import torch
from torch import Tensor

import hrt
from hrt.perf.networks.burgers import burgers_network, gauss_newton, relative_error, residuals, sample
from hrt.perf.paper.trained_networks import directions
from hrt.perf.paper.training import DOMAIN, Figure, of_model
from hrt.training.rank_penalty import proximal_step, rank_penalty, second_moments

ADAM = 500  # steps before Gauss-Newton's, which are what makes a PINN accurate
SHRUNK = 0.7  # of Gauss-Newton's steps are followed by a proximal one; the others recover what that took
AGAIN = 20  # steps after which the norm of the data is taken anew
SEEN = 2048  # points that it is taken from
TOL = 1e-3


def penalised(weight: float, threshold: float, steps: int, width: int, batch: int, seed: int) -> Figure:
    """Adam on the loss plus `weight` times the penalty in the norm of the data, then `steps` of Gauss-Newton with
    proximal steps of `threshold` between them; bytes of `hrt.network_compression.compress` at TOL.
    """
    since, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    seen = sample(SEEN, torch.Generator().manual_seed(seed + 1))[0]
    network = burgers_network(width=width, seed=seed).double()
    adam = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, ADAM, eta_min=1e-4)
    moments: dict[str, Tensor] = {}
    for step in range(ADAM):
        if weight and step % AGAIN == 0:
            moments = second_moments(network, seen)
        adam.zero_grad()
        loss = residuals(network, sample(batch, generator)).square().sum()
        if weight:
            loss = loss + weight * rank_penalty(network, second_moments=moments)
        loss.backward()
        adam.step()
        schedule.step()

    def shrink(step: int, loss: float) -> None:
        nonlocal moments
        if not threshold or step > SHRUNK * steps:
            return
        if step % AGAIN == 1:
            moments = second_moments(network, seen)
        proximal_step(network, threshold, second_moments=moments)

    gauss_newton(network, steps, batch, generator, shrink)
    model = hrt.compress(network, inputs=DOMAIN, tol=TOL, target="bytes", seed=seed, progress=False)
    parts = [f"penalty {weight:g}"] * bool(weight) + [f"proximal {threshold:g}"] * bool(threshold)
    remark = f"dense {relative_error(network):.3e}, {directions(network, seen)} directions seen"
    return of_model(", ".join(parts) or "neither", seed, model, ADAM + steps, since, remark)
