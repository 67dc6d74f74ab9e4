"""Networks of packages for simulation-based inference and emulation by their own classes. See public_packages.py."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from architectures.public_packages import PACKAGES, add, of
from architectures.public_plain import Net, rand

HIDDEN = 8
SBI = "sbi.neural_nets"


def density(kind: str) -> nn.Module:
    """The log-probability of two parameters, given three numbers that were seen."""
    samples = rand(64, 2), rand(64, 3)
    estimator = of(f"{SBI}.net_builders:build_{kind}", *samples, hidden_features=HIDDEN)
    return Net(lambda s, theta, seen: s.e.log_prob(theta[None], seen)[0], e=estimator)


for kind in ("maf", "nsf", "maf_rqs", "made", "zuko_maf", "zuko_nsf", "mdn"):
    add(f"sbi {kind} log_prob", [(2,), (3,)], lambda kind=kind: density(kind))
add(
    "sbi mlp classifier (ratio)",
    [(2,), (3,)],
    lambda: of(f"{SBI}.net_builders:build_mlp_classifier", rand(64, 2), rand(64, 3), hidden_features=HIDDEN),
)
embedding = {"output_dim": 4}
add(
    "sbi FCEmbedding",
    (3,),
    lambda: of(f"{SBI}.embedding_nets:FCEmbedding", 3, num_layers=2, num_hiddens=8, **embedding),
)
add("sbi CNNEmbedding", (32,), lambda: of(f"{SBI}.embedding_nets:CNNEmbedding", (32,), num_linear_units=8, **embedding))


def flow(kind: str, **options: Any) -> nn.Module:
    """Two transforms of nflows, each followed by a permutation, before a normal distribution."""
    made: list[nn.Module] = []
    for _ in range(2):
        made.append(of(f"nflows.transforms:{kind}", 2, HIDDEN, context_features=3, **options))
        made.append(of("nflows.transforms:RandomPermutation", 2))
    normal = of("nflows.distributions.normal:StandardNormal", [2])
    whole = of("nflows.flows.base:Flow", of("nflows.transforms:CompositeTransform", made), normal)
    return Net(lambda s, x, given: s.f.log_prob(x, context=given), f=whole)


add("nflows maf log_prob directly", [(2,), (3,)], lambda: flow("MaskedAffineAutoregressiveTransform"))
splines = {"tails": "linear", "tail_bound": 3.0}
add(
    "nflows nsf log_prob directly",
    [(2,), (3,)],
    lambda: flow("MaskedPiecewiseRationalQuadraticAutoregressiveTransform", **splines),
)


def emulator(file: str) -> Any:
    """A network of dark_emulator2 as it is stored: TorchScript."""
    spec = find_spec("dark_emulator2")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'dark_emulator2'")
    return torch.jit.load(Path(spec.submodule_search_locations[0]) / "data" / "torch" / file)


def rebuilt(scripted: Any) -> nn.Module:
    """The layers of a stored network, one after the other, with its weights."""
    layers = list[nn.Module]()
    for part in scripted.seq_fc.children():
        weights = part.state_dict()
        layers.append(nn.Linear(*reversed(weights["weight"].shape)) if weights else getattr(nn, part.original_name)())
        layers[-1].load_state_dict(weights)
    return nn.Sequential(*layers)


for title, file, width in (
    ("amp (6x1000)", "amp/amp.pth", 10),
    ("lin_pk_cb", "lin_pk/lin_pk_cb.pth", 11),
    ("lin_ratio", "lin_pk/lin_ratio.pth", 11),
):
    add(f"dark_emulator2 {title} as TorchScript", (width,), lambda file=file: emulator(file))
    add(f"dark_emulator2 {title} rebuilt as nn.Module", (width,), lambda file=file: rebuilt(emulator(file)))
NONLINEAR, WIDTH = "nlin_pk/release/rand_mix_pk.pth", 312
PACKAGES["dark_emulator2 nonlinear P(k) as TorchScript"] = lambda: (
    emulator(NONLINEAR),
    [*(rand(16) for _ in range(3)), rand(16, WIDTH - 3)],
)
add("dark_emulator2 nonlinear P(k) rebuilt as nn.Module", (WIDTH,), lambda: rebuilt(emulator(NONLINEAR)))
for kind in ("CosmicNet2", "RNN"):
    add(f"sagenetgw {kind}", (9,), lambda kind=kind: of(f"sagenetgw.models:{kind}"))
add(
    "ANI-1x atomic net on AEVs (random)",
    (384,),
    lambda: of("torchani.nn:AtomicNetwork", (384, 160, 128, 96, 1), "celu", True),
)
add("pykan MultKAN [2,5,1]", (2,), lambda: of("kan:KAN", width=[2, 5, 1], grid=3, k=3, seed=0, auto_save=False))
