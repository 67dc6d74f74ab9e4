"""What a file is that is no network hrt reads, told by its first bytes and its table of contents. Nothing is unpickled:
the names and texts of a pickle are listed, not looked up.
"""

import pickletools
import tarfile
import zipfile
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

MOST = 1 << 24  # bytes of a pickle that are listed
# what weights are made of, as "module name"
PLAIN = (
    "torch ",
    "torch._",
    "torch.storage",
    "torch.serialization",
    "collections",
    "_codecs",
    "numpy",
    "builtins set",
    "__builtin__ set",
)
NESTED_PICKLES = "torch.storage _load_from_bytes"  # what a pickle that is not of torch.save makes of a tensor
BUILD = "hrt compress mynets.py:build --weights {path}, where build() returns {net}"
WHAT_IT_IS = {
    "state_dict": ("a state_dict, weights without their network", BUILD, "the nn.Module that they belong to"),
    "Lightning": (
        "a Lightning checkpoint, weights without their network",
        BUILD,
        "the LightningModule or the network in it",
    ),
    "DeepXDE": (
        "a DeepXDE checkpoint, weights without their network",
        BUILD,
        "what was model.net, its transforms applied",
    ),
    "safetensors": ("a safetensors file, weights without their network", BUILD, "the nn.Module that they belong to"),
    "TorchScript": (
        "a TorchScript archive",
        BUILD,
        "the nn.Module that was scripted or traced; or net.pt2, torch.export.save of that",
    ),
    "PhysicsNeMo": ("a PhysicsNeMo checkpoint", BUILD, "the physicsnemo.Module that was saved"),
    "Keras": (
        "a Keras model",
        'an ONNX file: model.export("net.onnx", format="onnx") in Keras, then hrt compress net.onnx',
    ),
    "module": (
        "a pickled object ({names}), which runs code when read",
        "hrt compress mynets.py:build, where build() returns it (torch.load, weights_only=False: if you trust it)",
    ),
    "pickle": (
        "a pickle, which may run code when read",
        "net.pt2, net.onnx, or a state_dict (torch.save) with hrt compress mynets.py:build --weights",
    ),
    "export": ("an archive of torch.export", "the same file under a name that ends in .pt2"),
    "hrt": ("a compressed network already", "the original network; hrt info and hrt predict read this file"),
}


@dataclass(frozen=True)
class Foreign:
    """kind: a key of WHAT_IT_IS, or "" where it is not known. names: what its pickle would look up, beyond tensors."""

    kind: str
    names: tuple[str, ...] = ()

    @staticmethod
    def of(path: Path) -> "Foreign":
        """Of a file that exists. What cannot be read is not known."""
        try:
            with open(path, "rb") as file:
                opening = file.read(MOST)
            if path.suffix == ".mdlus" or (tarfile.is_tarfile(path) and _has_model(path)):
                return Foreign("PhysicsNeMo")
            if zipfile.is_zipfile(path):
                return _of_zip(path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError):
            return Foreign("")
        if opening.startswith(b"\x89HDF") or path.suffix in (".keras", ".h5"):
            return Foreign("Keras")
        if opening[8:9] == b"{" and b'"__metadata__":{"sha256"' in opening[:64]:
            return Foreign("hrt")
        if opening[8:9] == b"{" and b'"data_offsets"' in opening:
            return Foreign("safetensors")
        return _of_pickle(opening) if opening.startswith(b"\x80") else Foreign("")

    @property
    def what(self) -> str:
        """In words, what it is."""
        return WHAT_IT_IS[self.kind][0].format(names=", ".join(self.names[:3]))

    def remedy(self, path: str) -> str:
        """What to give in its place."""
        _, remedy, *net = WHAT_IT_IS[self.kind]
        return f"Expected {remedy.format(path=path, net=''.join(net))}."


def _has_model(path: Path) -> bool:
    with tarfile.open(path) as archive:
        return any(Path(m.name).name in ("model.pt", "args.json") for m in archive)


def _of_zip(path: Path) -> Foreign:
    with zipfile.ZipFile(path) as archive:
        listed = archive.namelist()
        names = {name.rpartition("/")[2] for name in listed}
        if path.suffix == ".mdlus" or {"model.pt", "args.json"} <= names:
            return Foreign("PhysicsNeMo")
        if "model.weights.h5" in names:
            return Foreign("Keras")
        if "constants.pkl" in names or any("/code/" in name for name in listed):
            return Foreign("TorchScript")
        if "archive_format" in names or "serialized_exported_program.json" in names:
            return Foreign("export")
        pickles = [name for name in listed if name.endswith("data.pkl")]
        if not pickles:
            return Foreign("")
        with archive.open(pickles[0]) as file:
            foreign = _of_pickle(file.read(MOST))
        return replace(foreign, kind="state_dict") if foreign.kind == "pickle" else foreign  # of numbers, not tensors


@dataclass(frozen=True)
class Pickled:
    """names: what a pickle would look up, as "module name", in order. texts: the texts in it."""

    names: tuple[str, ...]
    texts: frozenset[str]

    @staticmethod
    def listed(data: bytes) -> "Pickled":
        """Of one pickle, or of the several in a legacy file of torch.save: one after the other, the third has the
        content. What is cut off is listed up to there.
        """
        texts, memo, names, stream = [], dict[object, str](), dict[str, None](), BytesIO(data)
        try:
            while stream.tell() < len(data) and stream.getbuffer()[stream.tell()] == 0x80:
                for code, argument, _ in pickletools.genops(stream):
                    if code.name == "GLOBAL":
                        names[str(argument)] = None
                    elif code.name == "STACK_GLOBAL":
                        names[" ".join(texts[-2:])] = None
                    elif code.name == "MEMOIZE" or code.name.endswith("PUT"):
                        memo[len(memo) if argument is None else argument] = texts[-1] if texts else ""
                    elif code.name.endswith("GET"):
                        texts.append(memo.get(argument, ""))
                    elif isinstance(argument, str):
                        texts.append(argument)
        except (ValueError, EOFError, IndexError):  # storages follow, or it is cut off
            pass
        return Pickled(tuple(names), frozenset(texts))


def _of_pickle(data: bytes) -> Foreign:
    listed = Pickled.listed(data)
    strangers = tuple(name.replace(" ", ".") for name in listed.names if not name.startswith(PLAIN))
    if NESTED_PICKLES in listed.names:
        return Foreign("pickle", strangers)
    if "pytorch-lightning_version" in listed.texts:
        return Foreign("Lightning", strangers)
    if {"model_state_dict", "optimizer_state_dict"} <= listed.texts:
        return Foreign("DeepXDE", strangers)
    if strangers:
        return Foreign("module", strangers)
    return Foreign("state_dict" if any(name.startswith("torch") for name in listed.names) else "pickle")
