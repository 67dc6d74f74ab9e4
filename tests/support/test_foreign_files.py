"""Files that are no network: each is called what it is, with what to do instead, and none is unpickled."""

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hrt.capture.checkpoints import load_weights, read_network
from hrt.errors import InputError
from hrt.support.foreign_files import WHAT_IT_IS, Foreign

from models import mixed_bytes

NET = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
STATE = NET.state_dict()


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("args.json", "model.pt"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


LIGHTNING = {"state_dict": STATE, "pytorch-lightning_version": "2.4", "hyper_parameters": {"width": 3}}
DEEPXDE = {"model_state_dict": STATE, "optimizer_state_dict": torch.optim.Adam(NET.parameters()).state_dict()}
MAKE = {
    "state.pt": lambda path: torch.save(STATE, path),
    "old.pth": lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False),
    "epoch.ckpt": lambda path: torch.save(LIGHTNING, path),
    "model-100.pt": lambda path: torch.save(DEEPXDE, path),
    "w.safetensors": lambda path: save_file(STATE, path),
    "script.pt": lambda path: torch.jit.script(NET).save(path),
    "fno.mdlus": tarred,
    "new.mdlus": lambda path: zipped(path, "args.json", "model.pt", "metadata.json"),
    "net.keras": lambda path: zipped(path, "config.json", "model.weights.h5"),
    "net.h5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "whole.pt": lambda path: torch.save(NET, path),
    "x.pkl": lambda path: path.write_bytes(pickle.dumps({"a": 1.5})),
    "evil.pkl": lambda path: path.write_bytes(pickle.dumps(os.system)),
    "array.bin": lambda path: path.write_bytes(pickle.dumps(np.ones(3))),
    "net.zip": lambda path: (
        torch.export.save(torch.export.export(NET, (torch.ones(2, 2),)), path.with_suffix(".pt2"))
        or path.with_suffix(".pt2").rename(path)
    ),
    "done.hrt": lambda path: path.write_bytes(mixed_bytes()),
}
KINDS = {
    "state.pt": "state_dict",
    "old.pth": "state_dict",
    "epoch.ckpt": "Lightning",
    "model-100.pt": "DeepXDE",
    "w.safetensors": "safetensors",
    "script.pt": "TorchScript",
    "fno.mdlus": "PhysicsNeMo",
    "new.mdlus": "PhysicsNeMo",
    "net.keras": "Keras",
    "net.h5": "Keras",
    "whole.pt": "module",
    "x.pkl": "pickle",
    "evil.pkl": "module",
    "array.bin": "pickle",
    "net.zip": "export",
    "done.hrt": "hrt",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_each_is_called_what_it_is_in_one_line(name, tmp_path):
    path = tmp_path / name
    MAKE[name](path)
    with patch("torch.load", side_effect=AssertionError("read")), patch("pickle.loads", side_effect=AssertionError):
        assert Foreign.of(path).kind == KINDS[name]
    with patch("pickle.loads", side_effect=AssertionError), pytest.raises(InputError) as error:
        read_network(str(path))
    text = str(error.value)
    assert str(path) in text and "Expected" in text and "\n" not in text and "{" not in text
    if KINDS[name] in ("state_dict", "Lightning", "DeepXDE", "safetensors", "TorchScript"):
        assert f"hrt compress mynets.py:build --weights {path}" in text


def test_there_is_a_case_of_every_kind():
    assert set(KINDS.values()) == set(WHAT_IT_IS)


@pytest.mark.parametrize("name", ["state.pt", "old.pth", "epoch.ckpt", "model-100.pt", "w.safetensors"])
def test_the_advice_works(name, tmp_path):
    MAKE[name](tmp_path / name)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    load_weights(net, tmp_path / name)
    assert all(torch.equal(value, STATE[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    "data", [b"", b"PK\x03\x04" * 50, b"\x80", b"\x80\x02" + b"(" * 1000, b"text", json.dumps({"a": 1}).encode()]
)
def test_what_is_damaged_or_unknown_is_not_guessed_at(data, tmp_path):
    (tmp_path / "x.dat").write_bytes(data)
    assert Foreign.of(tmp_path / "x.dat").kind in ("", "pickle")
    with pytest.raises(InputError):
        read_network(str(tmp_path / "x.dat"))
