"""What the command line reads and writes: networks, weights, arrays, boxes. Every mistake is an InputError."""

import importlib
import importlib.util
import io
import math
import os
import sys
import traceback
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from hrt.calibration.samples import Box
from hrt.errors import HrtError, InputError
from hrt.program.names import unique_name
from hrt.support.atomic_files import replacing, usable

ARRAY_SUFFIXES = (".npy", ".npz", ".csv")
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
NESTED = ("state_dict", "model_state_dict")  # where checkpoints keep the weights beside other things
MAX_REASON = 300  # characters of a foreign error that are worth a line


def read_network(source: str, weights: Path | None = None) -> Any:
    """The network that `source` names: net.pt2, net.onnx (its path, as it is), file.py:name or package.module:name,
    where name is an nn.Module or makes one without arguments; the state_dict in `weights` is loaded into it. Runs the
    code it names.
    """
    if source.endswith(".onnx"):
        if weights is not None:
            raise InputError(f"Found --weights beside {source}, which holds its own. Expected one of them.")
        return source
    if source.endswith(".pt2"):
        if weights is not None:
            raise InputError(f"Found --weights beside {source}, which holds its own. Expected one of them.")
        return _exported(Path(source))
    if source.endswith(PICKLES):
        raise InputError(
            f"{source} is a pickle and may run code when read. Expected net.pt2 (torch.export.save), or file.py:name "
            f"with --weights {source}."
        )
    where, _, name = source.rpartition(":")
    if not where or not name:
        raise InputError(f"Found {source!r}. Expected net.pt2, net.onnx, file.py:name or package.module:name.")
    if where.endswith(".py") and not usable(where).is_file():
        raise InputError(f"The file {where} does not exist.")
    try:
        found = getattr(_module(where), name)
        net = found if isinstance(found, torch.nn.Module) else found()
    except (Exception, SystemExit) as error:  # it is the user's code: anything may happen
        raise InputError(f"{source} could not be made: {reason(error)}{_place(error, where)}.") from error
    if not isinstance(net, torch.nn.Module):
        raise InputError(f"{source} is a {type(net).__name__}. Expected an nn.Module, or a function that returns one.")
    if weights is not None:
        load_weights(net, weights)
    return net


def load_weights(net: torch.nn.Module, path: Path) -> None:
    """Load the state_dict in a .safetensors or torch.save file into `net`; nothing in the file is executed."""
    if not usable(path).is_file():
        raise InputError(f"The weights {path} do not exist.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        nested = [state[key] for key in NESTED if isinstance(state.get(key), dict)]
        net.load_state_dict(nested[0] if nested else state)
    except Exception as error:  # readers of damaged files raise nearly anything
        raise InputError(f"The weights {path} do not fit: {reason(error)}.") from error


def read_array(path: Path) -> np.ndarray:
    """Numbers from .npy, .npz (its only array) or .csv (one row a sample, no header), (rows, ...)."""
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(f"{path}: found the suffix {path.suffix!r}. Expected one of {', '.join(ARRAY_SUFFIXES)}.")
    if not usable(path).is_file():
        raise InputError(f"{path} does not exist.")
    try:
        if path.suffix == ".csv":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an empty file: said below
                data = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
        else:
            data = np.load(path, allow_pickle=False)
        if isinstance(data, np.lib.npyio.NpzFile):
            with data:
                if len(data.files) != 1:
                    raise InputError(f"{path} holds {len(data.files)} arrays. Expected one; pass one file per input.")
                data = data[data.files[0]]
    except HrtError:
        raise
    except Exception as error:  # readers of damaged files raise nearly anything
        raise InputError(f"{path} cannot be read as numbers: {reason(error)}.") from error
    if data.ndim < 2 or data.dtype.kind not in "fiu":
        raise InputError(f"{path}: found {data.dtype} of shape {data.shape}. Expected numbers, one row a sample.")
    return data if data.dtype.kind == "f" else data.astype(np.float64)


def check_outputs(path: Path, count: int = 1) -> None:
    """Raise InputError unless `count` outputs can be written to a file of this name."""
    expected = ARRAY_SUFFIXES if count == 1 else ARRAY_SUFFIXES[1:]
    if path.suffix not in expected:
        raise InputError(f"Cannot write {count} output(s) to {path.name}. Expected one of {', '.join(expected)}.")


def write_arrays(path: Path, outputs: Sequence[np.ndarray], names: Sequence[str], force: bool = True) -> None:
    """Write outputs, whole or not at all, as .npy (one), .npz (under their names, in order) or .csv (`as_csv`). A name
    that comes again gets a number behind it; one that is empty is "output".
    """
    check_outputs(path, len(outputs))
    with replacing(path, force=force) as file:
        if path.suffix == ".csv":
            file.write(as_csv(outputs).encode())
        elif path.suffix == ".npz":
            with zipfile.ZipFile(file, "w") as archive:  # np.savez takes no array that is called "file"
                for name, y in zip(distinct(names), outputs, strict=True):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                        np.lib.format.write_array(entry, y, allow_pickle=False)
        else:
            np.save(file, outputs[0])


def distinct(names: Sequence[str]) -> list[str]:
    """Names that an archive can hold: NUL, which would end one, as "_", and a number behind each that came before."""
    unique: list[str] = []
    for name in names:
        unique.append(unique_name(name.replace("\0", "_") or "output", unique))
    return unique


def as_csv(outputs: Sequence[np.ndarray]) -> str:
    """One line a sample, the outputs' columns side by side, with as many digits as float32 has."""
    text = io.StringIO()
    columns = [y.reshape(len(y), math.prod(y.shape[1:])) for y in outputs]
    np.savetxt(text, np.concatenate(columns, axis=1), fmt="%.9g", delimiter=",")
    return text.getvalue()


def parse_box(text: str) -> Box:
    """`low,low : high,high` as a Box."""
    low, _, high = text.partition(":")
    try:
        return Box([float(v) for v in low.split(",")], [float(v) for v in high.split(",")])
    except HrtError as error:
        raise InputError(f"Found box {text!r}. {error}") from error
    except ValueError as error:
        raise InputError(f"Found box {text!r}. Expected 'low,low : high,high' with one number per feature.") from error


def reason(error: BaseException) -> str:
    """A foreign error in one line."""
    text = " ".join(str(error).split()).rstrip(".")
    text = text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _exported(path: Path) -> Any:
    if not usable(path).is_file():
        raise InputError(f"{path} does not exist.")
    try:
        return torch.export.load(path)
    except Exception as error:  # readers of damaged files raise nearly anything
        raise InputError(f"{path} cannot be read as a torch.export.save file: {reason(error)}.") from error


def _module(where: str) -> ModuleType:
    """The module file.py or package.module, with its folder (or the current one) importable, as for a script."""
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
    """The line of the user's file that failed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == Path(where).name]
    return f" (line {frames[-1].lineno} of {Path(where).name})" if frames else ""
