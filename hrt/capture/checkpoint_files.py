"""Files and folders of weights, as the tools that train networks write them, read so that nothing in them runs.

torch's own restricted unpickler reads the pickles. What a checkpoint holds beside its weights (arguments, settings, the
state of a training) may name any class or function. Each such name is given to the unpickler as a stand-in that does
nothing, so that the weights can be read without the tool that wrote them.
"""

import _compat_pickle
import json
import tarfile
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from hrt.capture.tracing import quiet
from hrt.errors import InputError, reason
from hrt.support.atomic_files import usable
from hrt.support.foreign_files import MOST, Foreign, Pickled

STATE = "Expected a state_dict: torch.save(net.state_dict(), path), or a .safetensors file."
MAX_NAMES = 200  # foreign classes and functions that a checkpoint may name
SHOWN = 3
INDEX = ".index.json"
# What a folder is asked for, in this order: exactly one file of a kind must be there.
IN_FOLDERS = (f"*{INDEX}", "*_state_dict.pt", "*.safetensors", "*.ckpt", "*.mdlus", "*.pt", "*.pth", "*.bin")
SHARDS = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pt"
# where tools keep the arguments that a network was made with: beside the weights, or among them
ARGUMENTS = ("hyper_parameters", "_metadata", "config", "args", "__args__")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds. tensors: by their place in it, keys joined by dots, such as state_dict.model.0.weight.
    holders: for each of them the place of the dictionary that it stands in, with a dot behind, such as "state_dict.".
    arguments: what the network was made with, as far as the file says so.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor]
    holders: Mapping[str, str]
    arguments: Mapping[str, Any]

    @staticmethod
    def of(path: Path, kind: str, content: Any) -> "Checkpoint":
        """Of what a file holds, nested in any way. What TorchScript holds are objects: their attributes count."""
        tensors, holders, arguments = dict[str, Tensor](), dict[str, str](), dict[str, Any]()
        seen, waiting = set[int](), deque([("", "", content)])
        while waiting:
            name, holder, value = waiting.popleft()
            if isinstance(value, Tensor):
                tensors[name or "tensor"] = value.detach().as_subclass(Tensor)
                holders[name or "tensor"] = holder
                continue
            items = _items(value, opened=kind == "TorchScript")
            if items is None or id(value) in seen:
                continue
            seen.add(id(value))
            start = f"{name}." if name else ""
            for key, inner in items:
                if key in ARGUMENTS and isinstance(inner, Mapping) and not arguments:
                    arguments.update(inner)
                waiting.append((f"{start}{key}", holder if kind == "TorchScript" else start, inner))
        return Checkpoint(path, kind, tensors, holders, arguments)

    def part(self, name: str) -> "Checkpoint":
        """What stands below the key or prefix `name`."""
        start = f"{name}."
        tensors = {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}
        if not tensors:
            parts = dict.fromkeys(k.partition(".")[0] for k in self.tensors)
            raise InputError(f"{self.path} holds no part {name!r}. Expected one of {', '.join(list(parts)[:8])}.")
        holders = {k: self.holders[start + k].removeprefix(start) for k in tensors}
        return replace(self, tensors=tensors, holders={k: h if k.startswith(h) else "" for k, h in holders.items()})


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in a file or folder; `file:part` takes a part of them. Raises InputError for a path that is not
    there, and for a file that is damaged, no file of weights, or cannot be read without running code.
    """
    whole, _, part = str(path).rpartition(":")
    if whole and not usable(path).exists() and usable(whole).exists():
        return read_checkpoint(Path(whole)).part(part)
    if usable(path).is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise InputError(f"The weights {path} do not exist.")
    if path.name.endswith(INDEX):
        return _sharded(path)
    foreign = Foreign.of(path)
    try:
        reader = READERS.get(foreign.kind)
        checkpoint = None if reader is None else Checkpoint.of(path, foreign.kind, reader(path))
    except Exception as error:  # readers of damaged files raise nearly anything
        raise InputError(_unreadable(path, foreign, error)) from error
    if checkpoint is None or not checkpoint.tensors:
        raise InputError(_no_weights(path, foreign))
    return checkpoint


def archive_member(path: Path, name: str) -> bytes:
    """A member of a .mdlus file, which is a zip archive or, until PhysicsNeMo 1, a tar archive."""
    if not tarfile.is_tarfile(path):  # asked first: the zip archive in a tar archive would be taken for it
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive.infolist(), path)
            return archive.read(name)
    with tarfile.open(path, "r:") as archive:
        member = next((m for m in archive if Path(m.name).name == name), None)
        content = None if member is None or member.issparse() else archive.extractfile(member)
        if content is None:
            raise ValueError(f"it holds no plain file {name}")
        return content.read()


def _items(value: Any, opened: bool) -> Iterable[tuple[Any, Any]] | None:
    if opened and isinstance(value, OrderedDict) and not value:
        return vars(value).items()
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None


def _in_folder(folder: Path) -> Path:
    for pattern in IN_FOLDERS:
        paths = sorted(p for p in folder.glob(pattern) if p.is_file())
        if len(paths) > 1:
            names = ", ".join(p.name for p in paths[:8])
            raise InputError(f"The folder {folder} holds several files of weights: {names}. Expected one of them.")
        if paths:
            return paths[0]
    if any(folder.glob("*.distcp")):
        remedy = SHARDS.format(path=folder)
        raise InputError(f"The folder {folder} is a distributed checkpoint of torch, in pieces. Expected one: {remedy}")
    raise InputError(f"The folder {folder} holds no file of weights. Expected {', '.join(IN_FOLDERS[1:])}.")


def _sharded(path: Path) -> Checkpoint:
    """The pieces that an index names, all in its folder, as one."""
    try:
        with open(path, "rb") as file:
            places = json.loads(file.read(MOST))["weight_map"]
        files = dict.fromkeys(places.values())
        if not files or any(Path(name).name != name for name in files):
            raise ValueError("its weight_map names no files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as the index of sharded weights: {reason(error)}.") from error
    pieces = [read_checkpoint(path.parent / name) for name in files]
    tensors = {k: v for piece in pieces for k, v in piece.tensors.items()}
    if missing := [name for name in places if name not in tensors]:
        raise InputError(f"The files of {path} hold {len(tensors)} tensors, and not {', '.join(missing[:SHOWN])}.")
    return replace(pieces[0], path=path, tensors=tensors, holders=dict.fromkeys(tensors, ""))


def _safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _physicsnemo(path: Path) -> Any:
    content = _unpickled(BytesIO(archive_member(path, "model.pt")))
    return {**content, "__args__": json.loads(archive_member(path, "args.json"))["__args__"]}


def _torchscript(path: Path) -> Any:
    """The objects without their code: torch reads an archive that has no code in it as one of plain data."""
    made = BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        data = [m for m in old.infolist() if m.filename.split("/")[1] in ("data.pkl", "data", "version", "byteorder")]
        _check_stored(data, path)
        for member in data:
            new.writestr(member.filename, old.read(member))
    return _unpickled(made)


def _pickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_stored(archive.infolist(), path)
            if damaged := archive.testzip():  # torch does not ask
                raise ValueError(f"the checksum of its member {damaged} does not agree")
    return _unpickled(path)


def _check_stored(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Nothing in an archive may take more memory than on disk."""
    compressed = any(m.compress_type != zipfile.ZIP_STORED for m in members)
    if compressed or sum(m.file_size for m in members) > path.stat().st_size:
        raise ValueError("its members are compressed, which torch.save does not do")


class _Keys(Tensor):
    """Stands for a foreign class or function, also for a kind of dictionary or of tensor. Calling it makes an empty
    dictionary, which the unpickler fills.
    """

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _Opaque:
    """Stands for a foreign class or function whose objects have a state of any type."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(source: Path | BytesIO) -> Any:
    """What torch.save wrote. Names that torch does not know are looked up nowhere."""
    zipped = zipfile.is_zipfile(source)
    names = {_renamed(*name.partition(" ")[::2]) for name in _names(source, zipped)}
    if len(names) > MAX_NAMES:
        raise ValueError(f"it names {len(names)} classes and functions, more than the {MAX_NAMES} that are read")
    mapped, fault = zipped and isinstance(source, Path), Exception()
    for opaque in (("numpy", "functools"), ("",)):
        stand_ins = [(type(n, (_Opaque if n.startswith(opaque) else _Keys,), {}), n) for n in names]
        if isinstance(source, BytesIO):
            source.seek(0)
        with quiet(), torch.serialization.safe_globals(list(stand_ins)):
            try:
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
            except Exception as error:  # readers of damaged files raise nearly anything
                fault = error
    raise fault


def _renamed(module: str, name: str) -> str:
    """What protocol 2, that of torch.save, calls by its name in Python 2."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


def _names(source: Path | BytesIO, zipped: bool) -> tuple[str, ...]:
    if zipped:
        with zipfile.ZipFile(source) as archive:
            pickle = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(pickle) as file:
                return Pickled.listed(file.read(MOST)).names
    if isinstance(source, BytesIO):
        return Pickled.listed(source.getvalue()[:MOST]).names
    with open(source, "rb") as file:
        return Pickled.listed(file.read(MOST)).names


def _unreadable(path: Path, foreign: Foreign, error: Exception) -> str:
    if isinstance(error, UnpicklingError) and foreign.names:
        return _runs_code(path, foreign)
    if "Unsupported operand" in str(error):
        return f"The weights {path} were saved with a pickle_protocol other than torch.save's own, 2. {STATE}"
    return f"The weights {path} cannot be read: {reason(error)}. Is the file whole? {STATE}"


def _no_weights(path: Path, foreign: Foreign) -> str:
    if foreign.kind == "module":
        return _runs_code(path, foreign)
    if foreign.kind in READERS:
        return f"The weights {path} hold no tensors. {STATE}"
    if foreign.kind:
        return f"The weights {path} are {foreign.what}. {STATE}"
    with open(path, "rb") as file:
        opening = file.read(12)
    if not opening:
        return f"The weights {path} are an empty file. {STATE}"
    if opening.startswith(b"PK"):
        return f"The weights {path} are a zip archive that is cut off, or none of torch's. Is the file whole? {STATE}"
    return f"The weights {path} are of no kind that is known: the file begins with {opening!r}. {STATE}"


def _runs_code(path: Path, foreign: Foreign) -> str:
    return (
        f"The weights {path} hold more than tensors ({', '.join(foreign.names[:SHOWN])}), and would run code when "
        f"read. {STATE} If you trust the file, let build() return what torch.load reads with weights_only=False."
    )


READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("state_dict", "Lightning", "DeepXDE", "module"), _pickled),
    "safetensors": _safetensors,
    "PhysicsNeMo": _physicsnemo,
    "TorchScript": _torchscript,
}
