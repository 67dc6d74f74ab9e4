"""Networks that a command line names. Every mistake is an InputError."""

import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from torch import nn
from torch.export import ExportedProgram

from hrt.capture.checkpoint_files import INDEX, READERS, read_checkpoint
from hrt.capture.describe_weights import described
from hrt.capture.exported_file import read_exported
from hrt.capture.fit_weights import fit_weights
from hrt.capture.network import unwrapped
from hrt.capture.physicsnemo_file import read_physicsnemo
from hrt.errors import InputError, reason
from hrt.support.atomic_files import usable
from hrt.support.foreign_files import Foreign


def read_network(source: str, weights: Path | None = None) -> str | nn.Module | ExportedProgram:
    """The network that `source` names, with the state_dict in `weights` loaded into it.

    source: net.pt2, net.onnx (returned as it is), file.py:name or package.module:name, where name is an nn.Module or
    makes one without arguments. The code it names is run.
    """
    if source.endswith((".onnx", ".pt2")):
        if weights is not None:
            raise InputError(f"Found --weights beside {source}, which holds its own. Expected one of them.")
        return source if source.endswith(".onnx") else read_exported(Path(source))
    if source.endswith(".mdlus") and weights is None and usable(source).is_file():
        return read_physicsnemo(Path(source))
    if not source.endswith(".py") and usable(source).exists() and (text := _alone(source)):
        raise InputError(text)
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
    """Load the weights in a file or folder into `net`; `file:part` takes a part of them. Nothing in it is executed.

    Read are what torch.save, safetensors and the tools around them write: see docs/how-to/checkpoints.md. Prefixes of
    names are stripped where that makes all names fit.
    """
    fit_weights(unwrapped(net), read_checkpoint(path))


def _alone(source: str) -> str:
    """A file or folder of weights without a network: what it is, what it holds, and what is missing."""
    folder = Path(source).is_dir()
    foreign = Foreign("state_dict") if folder else Foreign.of(Path(source))
    if foreign.kind in READERS or source.endswith(INDEX):
        try:
            holds = described(checkpoint := read_checkpoint(Path(source)))
        except InputError:
            if folder or foreign.kind != "module":
                raise
        else:  # whatever it names beside its tensors
            kind = checkpoint.kind if checkpoint.kind != "module" else "state_dict"
            return f"{checkpoint.path} is {Foreign(kind).what}. {holds} {Foreign(kind).remedy(source)}"
    return f"{source} is {foreign.what}. {foreign.remedy(source)}" if foreign.kind else ""


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
