"""Neural operators of neuraloperator and PhysicsNeMo by their packages' own classes, where these are installed.

    pip install --target FOLDER neuraloperator nvidia-physicsnemo     # and what they need; PYTHONPATH=FOLDER

PhysicsNeMo imports torchvision, for a class that none of these networks uses. Its wheel needs torch with CUDA; beside
another torch a module that is empty stands in for it (`torchvision_stands_in`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from torch import nn

from architectures.checked import Family
from architectures.public_packages import of

WHEELS = Family("wheels")


class Named(type):
    """A class whose attributes are their names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class Empty(ModuleType):
    """A module in which every name is a class of its own."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (), {})


class StandIn(MetaPathFinder, Loader):
    """Finds torchvision, and all modules in it, empty."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] == "torchvision" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@cache
def torchvision_stands_in() -> bool:
    """Whether torchvision cannot be imported, and is now empty."""
    try:
        import_module("torchvision")
        return False
    except (ImportError, OSError, RuntimeError):
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.meta_path.insert(0, StandIn())
        return True


def physicsnemo(path: str, *args: Any, **options: Any) -> nn.Module:
    torchvision_stands_in()
    return of(f"physicsnemo.models.{path}", *args, **options)


def neuralop(path: str, *args: Any, **options: Any) -> nn.Module:
    return of(f"neuralop.models:{path}", *args, **options)


def add(name: str, shape: tuple[int, ...], make: Callable[..., nn.Module], *args: Any, **options: Any) -> None:
    """Making it raises ImportError where there is no such package."""
    WHEELS.add([shape], name=name)(partial(make, *args, **options))


channels = {"in_channels": 1, "out_channels": 1, "n_layers": 2, "hidden_channels": 16}
add("neuraloperator FNO 1-D", (1, 32), neuralop, "FNO", (8,), **channels)
add("neuraloperator FNO 2-D", (1, 16, 16), neuralop, "FNO", (8, 8), **channels)
add("neuraloperator FNO 3-D", (1, 6, 6, 6), neuralop, "FNO", (4, 4, 4), **{**channels, "hidden_channels": 8})
add("neuraloperator TFNO 1-D, Tucker", (1, 32), neuralop, "TFNO", (8,), rank=0.5, **channels)
add("neuraloperator TFNO 2-D, Tucker", (1, 16, 16), neuralop, "TFNO", (8, 8), rank=0.2, **channels)
for kind in ("CP", "TT"):
    options = {"factorization": kind, "implementation": "factorized", "rank": 0.2, **channels}
    add(f"neuraloperator TFNO 2-D, {kind}, factorized", (1, 8, 8), neuralop, "TFNO", (4, 4), **options)

fno = {"in_channels": 1, "out_channels": 1, "decoder_layer_size": 16, "latent_channels": 16, "num_fno_layers": 2}
add("PhysicsNeMo FNO 1-D", (1, 32), physicsnemo, "fno:FNO", dimension=1, num_fno_modes=8, padding=4, **fno)
add("PhysicsNeMo FNO 2-D", (1, 12, 12), physicsnemo, "fno:FNO", dimension=2, num_fno_modes=4, padding=2, **fno)
blocks = {"patch_size": [4, 4], "embed_dim": 32, "depth": 2, "num_blocks": 4}
add("PhysicsNeMo AFNO", (1, 16, 16), physicsnemo, "afno:AFNO", [16, 16], 1, 1, **blocks)
