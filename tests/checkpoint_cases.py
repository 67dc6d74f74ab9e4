"""Checkpoints as tools write them, made without the tools: the same keys, names and foreign classes, byte for byte the
same containers. The versions are those whose files were looked at.
"""

import copy
import enum
import io
import json
import sys
import tarfile
import types
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ARGUMENTS = {"in_features": 2, "layer_size": 8, "out_features": 1, "num_layers": 2, "activation_fn": "silu"}
FULLY_CONNECTED = {
    "__name__": "FullyConnected",
    "__module__": "physicsnemo.models.mlp.fully_connected",
    "__args__": ARGUMENTS,
}


def mlp(*widths: int) -> nn.Sequential:
    layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


@contextmanager
def made_elsewhere(name: str) -> Iterator[types.ModuleType]:
    """A module of a tool while a file is written; gone when the file is read."""
    packages = [".".join(name.split(".")[: k + 1]) for k in range(name.count(".") + 1)]
    before = {k: sys.modules.get(k) for k in packages}
    sys.modules.update({k: types.ModuleType(k) for k in packages})
    try:
        yield sys.modules[name]
    finally:
        for package, module in before.items():
            sys.modules.pop(package)
            if module is not None:
                sys.modules[package] = module


def before(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return OrderedDict((f"{prefix}{k}", v) for k, v in state.items())


def adam(net: nn.Module) -> dict[str, Any]:
    """The state of an optimizer that has made a step."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters())
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer.state_dict()


def lightning(net: nn.Module, path: Path, prefix: str = "model.", **more: Tensor) -> None:
    """Lightning 2.6.6, Trainer.save_checkpoint of a module with save_hyperparameters; pina-mathlab 0.3.2 the same."""
    content = {
        "epoch": 30,
        "global_step": 240,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict(more, **before(prefix, net.state_dict())),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 30}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "kth_value": None}},
        "optimizer_states": [adam(net)],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 8, "act": nn.Tanh, "scale": np.float64(0.5), "more": Namespace(a=1)},
    }
    torch.save(content, path)


def pina(net: nn.Module, path: Path) -> None:
    lightning(net, path, "_pina_models.0.")


def deepxde(net: nn.Module, path: Path) -> None:
    """DeepXDE 1.15.0, model.save with the pytorch backend."""
    torch.save({"model_state_dict": net.state_dict(), "optimizer_state_dict": adam(net)}, path)


def distributed(net: nn.Module, path: Path) -> None:
    """What training scripts write: DistributedDataParallel's names, beside settings and figures of any type."""
    kind = enum.Enum("Kind", "adam sgd", module="lab.settings")
    with made_elsewhere("lab.settings") as module:
        vars(module)["Kind"] = kind
        state = before("module.", net.state_dict())
        losses = defaultdict(list, {"train": [1.0, 0.5]})
        figures = {"best": np.float64(0.3), "rng": np.ones(3), "losses": losses}
        torch.save({"epoch": 3, "model": state, "args": Namespace(lr=3e-3, kind=kind.adam), **figures}, path)


def compiled(net: nn.Module, path: Path) -> None:
    """torch 2.13, the state_dict of what torch.compile returns."""
    torch.save({"net": before("_orig_mod.", net.state_dict())}, path)


def legacy(net: nn.Module, path: Path) -> None:
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False)


def physicsnemo(net: nn.Module, path: Path, arguments: Mapping[str, Any] = FULLY_CONNECTED) -> None:
    """PhysicsNeMo 2.2.2, Module.save."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in physicsnemo_members(net, arguments).items():
            archive.writestr(name, data)


def physicsnemo_tar(net: nn.Module, path: Path) -> None:
    """The same with legacy_format=True, as PhysicsNeMo 1 and Modulus wrote it."""
    with tarfile.open(path, "w") as archive:
        for name, data in physicsnemo_members(net, FULLY_CONNECTED).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def physicsnemo_members(net: nn.Module, arguments: Mapping[str, Any]) -> dict[str, bytes]:
    torch.save(net.state_dict(), weights := io.BytesIO())
    versions = {"physicsnemo_version": "2.2.2", "mdlus_file_version": "0.1.0"}
    texts = {"args.json": arguments, "metadata.json": versions}
    return {"model.pt": weights.getvalue(), **{name: json.dumps(v).encode() for name, v in texts.items()}}


def neuraloperator(net: nn.Module, folder: Path, name: str = "best") -> None:
    """neuraloperator 2.0.0, BaseModel.save_checkpoint: the arguments stand in both files, functions and classes too."""
    with made_elsewhere("neuralop.layers.spectral_convolution") as module:
        convolution = type("SpectralConv", (nn.Module,), {"__module__": module.__name__})
        vars(module)["SpectralConv"] = convolution
        arguments = {"n_modes": (8,), "non_linearity": torch.nn.functional.gelu, "conv_module": convolution}
        arguments |= {"_version": "0.1.0", "args": (), "_name": "FNO"}
        folder.mkdir(exist_ok=True)
        torch.save(OrderedDict(net.state_dict(), _metadata=arguments), folder / f"{name}_state_dict.pt")
        torch.save(arguments, folder / f"{name}_metadata.pkl")


def neuraloperator_training(net: nn.Module, folder: Path) -> None:
    """neuraloperator 2.0.0, save_training_state."""
    neuraloperator(net, folder, "model")
    torch.save(adam(net), folder / "optimizer.pt")
    torch.save({"model": "model_state_dict.pt", "optimizer": "optimizer.pt", "epoch": 3}, folder / "manifest.pt")


def sharded(net: nn.Module, folder: Path) -> None:
    """Two safetensors files and their index, as huggingface_hub 0.2x and transformers write large networks."""
    folder.mkdir(exist_ok=True)
    places = {}
    for k, name in enumerate(state := net.state_dict()):
        places[name] = f"model-0000{1 + k % 2}-of-00002.safetensors"
    for file in set(places.values()):
        save_file({name: state[name] for name, place in places.items() if place == file}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


WRITERS: dict[str, Callable[[nn.Module, Path], None]] = {
    "state.pt": lambda net, path: torch.save(net.state_dict(), path),
    "old.pth": legacy,
    "w.safetensors": lambda net, path: save_file(net.state_dict(), path),
    "lightning.ckpt": lightning,
    "pina.ckpt": pina,
    "deepxde-100.pt": deepxde,
    "ddp.pt": distributed,
    "compiled.pt": compiled,
    "net.mdlus": physicsnemo,
    "old.mdlus": physicsnemo_tar,
    "scripted.pt": lambda net, path: torch.jit.save(torch.jit.script(net), path),
    "traced.pt": lambda net, path: torch.jit.save(torch.jit.trace(net, torch.ones(3, 2)), path),
    "fno": neuraloperator,
    "training": neuraloperator_training,
    "shards": sharded,
}
FOLDERS = ("fno", "training", "shards")
