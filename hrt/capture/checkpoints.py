"""Networks that a command line names. Every mistake is an InputError."""

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from hrt.capture.exported_file import read_exported
from hrt.errors import InputError, reason
from hrt.support.atomic_files import usable
from hrt.support.foreign_files import Foreign

NESTED = ("state_dict", "model_state_dict")  # where checkpoints keep the weights beside other things


def read_network(source: str, weights: Path | None = None) -> str | nn.Module | ExportedProgram:
    """The network that `source` names, with the state_dict in `weights` loaded into it.

    source: net.pt2, net.onnx (returned as it is), file.py:name or package.module:name, where name is an nn.Module or
    makes one without arguments. The code it names is run.
    """
    if source.endswith((".onnx", ".pt2")):
        if weights is not None:
            raise InputError(f"Found --weights beside {source}, which holds its own. Expected one of them.")
        return source if source.endswith(".onnx") else read_exported(Path(source))
    if not source.endswith(".py") and usable(source).is_file():
        foreign = Foreign.of(Path(source))
        if foreign.kind:
            raise InputError(foreign.advice(source))
    where, _, name = source.rpartition(":")
    if not where or not name:
        raise InputError(f"Found {source!r}. Expected net.pt2, net.onnx, file.py:name or package.module:name.")
    if where.endswith(".py") and not usable(where).is_file():
        raise InputError(f"The file {where} does not exist.")
    try:
        net = getattr(_module(where), name)
        net = net if isinstance(net, nn.Module) else net()
    except (Exception, SystemExit) as error:  # it is the user's code: anything may happen
        raise InputError(f"{source} could not be made: {reason(error)}{_place(error, where)}.") from error
    if not isinstance(net, nn.Module):
        raise InputError(f"{source} is a {type(net).__name__}. Expected an nn.Module, or a function that returns one.")
    if weights is not None:
        load_weights(net, weights)
    return net


def load_weights(net: nn.Module, path: Path) -> None:
    """Load the state_dict in a .safetensors or torch.save file into `net`; nothing in the file is executed."""
    if not usable(path).is_file():
        raise InputError(f"The weights {path} do not exist.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        nested = [state[key] for key in NESTED if isinstance(state.get(key), dict)]
        net.load_state_dict(nested[0] if nested else state)
    except Exception as error:  # readers of damaged files raise nearly anything
        if names := Foreign.of(path).names:
            raise InputError(
                f"The weights {path} hold more than tensors ({', '.join(names[:3])}), and would run code when read. "
                "Expected a state_dict: torch.save(net.state_dict(), path), or a .safetensors file."
            ) from error
        raise InputError(f"The weights {path} do not fit: {reason(error)}.") from error


def _module(where: str) -> ModuleType:
    """The module, with its folder (or the current one) importable, as for a script."""
    path = Path(where).resolve()
    folder = str(path.parent) if where.endswith(".py") else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not where.endswith(".py"):
        return importlib.import_module(where)
    # By its place, not by its name: a file called json.py or model.py is not the module of that name.
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _place(error: BaseException, where: str) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(where).name]
    return f" (line {frames[-1].lineno} of {Path(where).name})" if frames else ""
