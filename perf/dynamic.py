"""Dynamic compression of the Burgers PINN while it is trained, beside dense training of the same steps."""

import time

import torch
from torch import Tensor, nn
from torch.func import functional_call

import hrt
from hrt.gauss_newton import GaussNewton, Term
from hrt.perf.burgers import burgers_network, gauss_newton, residuals, sample
from hrt.perf.training import DOMAIN, Figure, burgers_points, burgers_residual, of_dense, of_model

ADAM, NEWTON = 1000, 240  # steps; about half of perf/burgers.py's 2000 and 400: four minutes a seed
EVERY, FIRST = 200, 200  # of Adam's steps: between changes of the partitions, before the first
NEWTON_EVERY, NEWTON_UNTIL = 30, 0.5  # of Gauss-Newton's steps, and up to which share of them
COARSEST, FINEST = 2e-3, 3e-5
STORED_TOL = 3e-5  # of storing the trained network


def newton_on_factors(
    network: nn.Module, steps: int, done: int, total: int, batch: int, draws: torch.Generator
) -> float:
    """`steps` of Gauss-Newton in place, number `done` to done + steps of `total`; the last loss."""
    names = {name: p.shape for name, p in network.named_parameters()}
    solver = GaussNewton(names, torch.cat([p.detach().reshape(-1) for p in network.parameters()]))
    loss = 0.0

    def residual(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return burgers_residual(lambda x: functional_call(network, parameters, (x,)), row)

    for step in range(done + 1, done + steps + 1):
        rows = burgers_points(batch, draws)
        longest = min(1.0, max(0.1, 4 * (1 - step / total)))
        loss = solver.step([Term(residual, (rows,), len(rows) ** -0.5)], longest=longest)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.copy_(solver.parameters()[name])
    return loss


def trained_dynamically(width: int, steps: int | None, batch: int, seed: int) -> list[Figure]:
    """(b): the dense network, and the one that is compressed while it is trained: same start, steps and draws."""
    adam_steps, newton_steps = ADAM, steps or NEWTON
    figures = []
    for dynamically in (False, True):
        since, draws = time.perf_counter(), torch.Generator().manual_seed(seed)
        network = burgers_network(width=width, seed=seed).double()
        adam = torch.optim.Adam(network.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, adam_steps, eta_min=1e-4)
        options = {"optimizer": adam, "every": EVERY, "first": FIRST, "tol": COARSEST, "finest": FINEST, "seed": seed}
        dynamic = hrt.DynamicCompression(network, DOMAIN, **options) if dynamically else None
        smoothed = None
        for step in range(1, adam_steps + 1):
            adam.zero_grad()
            loss = residuals(network, sample(batch, draws)).square().sum()
            loss.backward()
            adam.step()
            schedule.step()
            smoothed = loss.item() if smoothed is None else 0.98 * smoothed + 0.02 * loss.item()
            if dynamic is not None:
                dynamic.step(step, smoothed)
        if dynamic is None:
            gauss_newton(network, newton_steps, batch, draws)
            figures.append(of_dense("dense", seed, network, adam_steps + newton_steps, since))
            continue
        dynamic.optimizer, dynamic.every, dynamic.first, done = None, NEWTON_EVERY, adam_steps, 0
        while done < newton_steps:
            last = done + NEWTON_EVERY >= NEWTON_UNTIL * newton_steps
            count = newton_steps - done if last else NEWTON_EVERY
            smoothed = newton_on_factors(network, count, done, newton_steps, batch, draws)
            done += count
            if not last:
                dynamic.step(adam_steps + done, smoothed)
        ranks = " ".join("+".join(map(str, r)) or "-" for r in dynamic.ranks.values())
        print(f"seed {seed}: ratio {dynamic.ratio:.2f} in float32, tol {dynamic.tol:.2g}, ranks {ranks}", flush=True)
        model = hrt.compress(network, inputs=DOMAIN, tol=STORED_TOL, target="bytes", seed=seed, progress=False)
        figures.append(of_model("dynamic", seed, model, adam_steps + newton_steps, since, f"ranks {ranks}"))
    return figures
