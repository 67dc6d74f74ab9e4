"""Networks of public packages by their own classes, tried where a package can be imported. See public_plain.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from architectures.public_plain import Made, Net, rand

PACKAGES: dict[str, Callable[[], Made]] = {}


def add(name: str, shape: Any, make: Callable[[], nn.Module]) -> None:
    inputs = shape if isinstance(shape, list) else [shape]
    PACKAGES[name] = lambda: (make(), tuple(rand(16, *s) for s in inputs) if len(inputs) > 1 else rand(16, *inputs[0]))


def of(path: str, *args: Any, **options: Any) -> Any:
    """The class at package.module:Class, made."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)(*args, **options)


NEURALOP = "neuralop.models"
add(
    "neuralop FNO 1d",
    (1, 16),
    lambda: of(f"{NEURALOP}:FNO", n_modes=(4,), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2),
)
add(
    "neuralop FNO 2d",
    (1, 8, 8),
    lambda: of(f"{NEURALOP}:FNO", n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2),
)
add(
    "neuralop TFNO 2d Tucker",
    (1, 8, 8),
    lambda: of(f"{NEURALOP}:TFNO", n_modes=(4, 4), in_channels=1, out_channels=1, hidden_channels=8, n_layers=2),
)
PNM = "physicsnemo.models"
fno = {
    "in_channels": 1,
    "out_channels": 1,
    "decoder_layer_size": 8,
    "latent_channels": 8,
    "num_fno_layers": 2,
    "num_fno_modes": 4,
    "padding": 2,
}
add("pnm FullyConnected", (3,), lambda: of(f"{PNM}.mlp:FullyConnected", 3, 16, 1, 2))
add(
    "pnm FullyConnected skip weight_norm",
    (3,),
    lambda: of(f"{PNM}.mlp:FullyConnected", 3, 16, 1, 4, skip_connections=True, weight_norm=True),
)
add("pnm FNO 1d", (1, 16), lambda: of(f"{PNM}.fno:FNO", dimension=1, **fno))
add("pnm FNO 2d", (1, 8, 8), lambda: of(f"{PNM}.fno:FNO", dimension=2, **fno))
add(
    "pnm AFNO",
    (1, 16, 16),
    lambda: of(f"{PNM}.afno:AFNO", [16, 16], 1, 1, patch_size=[4, 4], embed_dim=16, depth=2, num_blocks=2),
)
add("pnm UNet 3d", (1, 8, 8, 8), lambda: of(f"{PNM}.unet:UNet", 1, 1, model_depth=2, feature_map_channels=[2, 2, 4, 4]))
add(
    "pnm Pix2Pix",
    (1, 16, 16),
    lambda: of(f"{PNM}.pix2pix:Pix2Pix", 1, 1, 2, conv_layer_size=4, n_downsampling=1, n_blocks=1),
)
add(
    "pnm One2ManyRNN (ConvGRU)",
    (1, 1, 16, 16),
    lambda: of(f"{PNM}.rnn:One2ManyRNN", 1, 2, 4, 1, nr_downsamples=1, nr_tsteps=3),
)
add(
    "pnm Transolver",
    [(12, 2), (12, 3)],
    lambda: of(
        f"{PNM}.transolver:Transolver",
        functional_dim=2,
        out_dim=1,
        embedding_dim=3,
        n_layers=2,
        n_hidden=16,
        n_head=2,
        unified_pos=False,
        use_te=False,
        slice_num=4,
    ),
)


def mesh(graph_inside: bool) -> Made:
    """MeshGraphNet on one fixed mesh, whose features are those of a sample: its forward knows no batch."""
    with scatter_of_torch():
        kind = of(f"{PNM}.meshgraphnet:MeshGraphNet", **MESH)
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 2, 4]])
    data = of("torch_geometric.data:Data", edge_index=edges)
    if graph_inside:
        return Net(lambda s, x, e: s.n(x, e, data), n=kind), (rand(16, 6, 4), rand(16, 8, 3))
    fixed = rand(8, 3)
    return Net(lambda s, x: torch.vmap(lambda v: s.n(v, s.fixed, data))(x), n=kind, fixed=fixed), rand(16, 6, 4)


MESH = {
    "input_dim_nodes": 4,
    "input_dim_edges": 3,
    "output_dim": 2,
    "processor_size": 2,
    **{f"hidden_dim_{part}": 8 for part in ("processor", "node_encoder", "edge_encoder", "node_decoder")},
}


@contextmanager
def scatter_of_torch() -> Iterator[None]:
    """Inside, torch_scatter can be imported: where it is not installed, torch's own sums stand for it."""
    with suppress(ImportError):
        import_module("torch_scatter")
        yield
        return

    def scatter(x: Tensor, index: Tensor, dim: int, dim_size: int, reduce: str) -> Tensor:
        assert reduce == "sum"
        return x.new_zeros(dim_size, *x.shape[1:]).index_add(dim, index, x)

    module: Any = ModuleType("torch_scatter")
    module.scatter = scatter
    checks: Any = import_module("physicsnemo.core.version_check")
    version = checks.get_installed_version
    sys.modules["torch_scatter"] = module
    checks.get_installed_version = lambda name: "2.1" if name == "torch_scatter" else version(name)
    try:
        yield
    finally:
        checks.get_installed_version = version


PACKAGES |= {
    "pnm MeshGraphNet (graph object)": lambda: mesh(True),
    "pnm MeshGraphNet fixed mesh, vmapped": lambda: mesh(False),
}
DDE = "deepxde.nn.pytorch"
add("dde FNN tanh", (2,), lambda: of(f"{DDE}:FNN", [2, 16, 16, 1], "tanh", "Glorot normal"))
add(
    "dde FNN sin, per-layer acts LAAF",
    (2,),
    lambda: of(f"{DDE}:FNN", [2, 16, 16, 1], ["sin", "LAAF-10 tanh", "tanh"], "Glorot normal"),
)
add("dde PFNN parallel", (2,), lambda: of(f"{DDE}:PFNN", [2, [8, 8], [8, 8], 2], "tanh", "Glorot normal"))


def transformed() -> nn.Module:
    net = of(f"{DDE}:FNN", [2, 16, 1], "tanh", "Glorot normal")
    net.apply_output_transform(lambda x, y: x[:, :1] * (1 - x[:, :1]) * y)
    return net


add("dde FNN output transform", (2,), transformed)
operator = lambda: of(f"{DDE}:DeepONet", [10, 16, 8], [2, 16, 8], "tanh", "Glorot normal")  # noqa: E731
add("dde DeepONet (forward takes a list)", [(10,), (2,)], operator)
add("dde DeepONet wrapped to two arguments", [(10,), (2,)], lambda: Net(lambda s, f, x: s.n([f, x]), n=operator()))


def cartesian(kind: str, frozen: bool, *layers: Any) -> nn.Module:
    net, points = of(f"{DDE}:{kind}", *layers, "tanh", "Glorot normal"), rand(12, 2)
    return Net(lambda s, f: s.n([f, points]), n=net) if frozen else net


add(
    "dde DeepONetCartesianProd, trunk points frozen",
    (10,),
    lambda: cartesian("DeepONetCartesianProd", True, [10, 16, 8], [2, 16, 8]),
)
add(
    "dde DeepONetCartesianProd (list)",
    [(10,), (12, 2)],
    lambda: cartesian("DeepONetCartesianProd", False, [10, 16, 8], [2, 16, 8]),
)
add("dde PODDeepONet, trunk frozen", (10,), lambda: cartesian("PODDeepONet", True, rand(12, 8), [10, 16, 8]))


def mionet() -> nn.Module:
    net, points = (
        of(f"{DDE}:MIONetCartesianProd", [10, 16, 8], [10, 16, 8], [2, 16, 8], "tanh", "Glorot normal"),
        rand(12, 2),
    )
    return Net(lambda s, f, g: s.n([f, g, points]), n=net)


add("dde MIONetCartesianProd, trunk frozen", [(10,), (10,)], mionet)
PINA = "pina.model"
add("pina FeedForward", (3,), lambda: of(f"{PINA}:FeedForward", 3, 1, 16, 2))
add("pina ResidualFeedForward", (3,), lambda: of(f"{PINA}:ResidualFeedForward", 3, 1, 16, 2))
add("pina PirateNet", (3,), lambda: of(f"{PINA}:PirateNet", 3, 16, 1))
add("pina Spline", (1,), lambda: of(f"{PINA}:Spline", 4, torch.linspace(0, 1, 9), rand(5)))


def averaging() -> Made:
    feed = lambda *sizes: of(f"{PINA}:FeedForward", *sizes)  # noqa: E731
    net = of(f"{PINA}:AveragingNeuralOperator", feed(3, 8), feed(10, 1), ["f"], ["x", "y"], n_layers=2)
    return net, of("pina:LabelTensor", rand(16, 12, 3), ["f", "x", "y"])


def labelled() -> Made:
    nets = [of(f"{PINA}:FeedForward", 2, 8) for _ in range(2)]
    net = of(f"{PINA}:DeepONet", *nets, ["a", "b"], ["x", "y"])
    return Net(lambda s, x: s.n(of("pina:LabelTensor", x, ["a", "b", "x", "y"])), n=net), rand(16, 4)


PACKAGES |= {"pina AveragingNeuralOperator": averaging, "pina DeepONet with LabelTensor inside": labelled}
add("pina KAN", (2,), lambda: of(f"{PINA}:KolmogorovArnoldNetwork", [2, 4, 1]))


def physics(kind: str, *more: Any, inside: bool = True) -> Made:
    tp = import_module("torchphysics")
    space, out = tp.spaces.R2("x") * tp.spaces.R1("t"), tp.spaces.R1("u")
    options = {"hidden": (16, 16)} if kind != "DeepRitzNet" else {"width": 16, "depth": 2}
    net = getattr(tp.models, kind)(space, out, *more, **options)
    if not inside:
        return net, tp.spaces.Points(rand(16, 3), space)
    return Net(lambda s, x: s.n(tp.spaces.Points(x, space)).as_tensor, n=net), rand(16, 3)


PACKAGES |= {
    "torchphysics FCN (Points inside)": lambda: physics("FCN"),
    "torchphysics QRES (Points inside)": lambda: physics("QRES"),
    "torchphysics DeepRitzNet (Points inside)": lambda: physics("DeepRitzNet"),
    "torchphysics Harmonic_FCN (Points inside)": lambda: physics("Harmonic_FCN", 1),
    "torchphysics FCN itself (takes Points)": lambda: physics("FCN", inside=False),
}
