"""A small workload for the harness, plans that take no time, and rows by hand."""

import torch
from torch import nn

from hrt.capture.torch_export import capture
from hrt.perf.bench.candidates import Timing
from hrt.perf.bench.runner import Plan
from hrt.perf.measuring.results import MEASURED, Row
from hrt.perf.networks.registry import Workload

from zoo import mlp


def low_rank_net(width: int = 64, seed: int = 0) -> nn.Sequential:
    """3 -> width -> width -> 2 whose large weight falls off: something that every method can say something about."""
    torch.manual_seed(seed)
    net = mlp(3, width, width, 2).eval()
    with torch.no_grad():
        u, s, vt = torch.linalg.svd(net[2].weight)
        net[2].weight.copy_(u @ torch.diag(s * torch.exp(-0.5 * torch.arange(width))) @ vt)
    return net


def small(seed: int = 0, rows: int = 512) -> Workload:
    """A workload that takes no time."""
    net = low_rank_net(seed=seed)
    sets = [(torch.rand(rows, 3, generator=torch.Generator().manual_seed(k)),) for k in (1, 2, 3)]
    program = capture(net, sets[0])
    return Workload("small", "a small network", net, program, sets[0], sets[1], sets[2], batches=(1, 8))


def plan(*methods: str, rounds: int = 2, **changes) -> Plan:
    """The small workload at one error and batch size."""
    defaults = {"workloads": ("small",), "tols": (1e-2,), "batches": (4,), "threads": 1}
    return Plan(methods=("dense float32", *methods), timing=Timing(rounds, 0.0), **{**defaults, **changes})


def row(
    method: str = "hrt", nbytes: int | None = None, p50: float | None = None, ratio: float | None = None, **changes
):
    """A row of workload "net" whose error is half its target, where it was measured; ratios get an interval."""
    known = {"workload": "net", "batch": 1, "backend": "b", "target": 1e-3, "nbytes": nbytes, "p50_us": p50, **changes}
    if known.get("status", "ok") in MEASURED:
        known.setdefault("error", known["target"] / 2)
    if ratio is not None:
        known |= {"ratio_vs_best_dense": ratio, "ratio_low": ratio * 0.9, "ratio_high": ratio * 1.1}
    return Row(method=method, **known)
