"""Networks by name, and checkpoints: what is read, and what each mistake is called."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hrt.capture.checkpoints import load_weights, read_network
from hrt.errors import InputError

NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(2, 3), nn.Tanh())

def build():
    return Net()

net = Net()
number = 5

def broken():
    raise RuntimeError("the lab is\\nclosed")

def needs(argument):
    return Net()

def stops():
    raise SystemExit("no network today")

def strange():
    return "a string"
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with net.py, which is also the current one; its modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(NETWORK)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("source", ["net.py:build", "net.py:Net", "net.py:net", "net:build"])
def test_python_sources(source, lab):
    assert type(read_network(source)).__name__ == "Net"


def test_a_file_is_not_taken_for_an_installed_module_of_its_name(lab):
    Path("json.py").write_text(NETWORK)
    assert isinstance(read_network("json.py:build"), nn.Module) and json.loads("1") == 1


def test_siblings_of_the_source_can_be_imported(lab):
    Path("parts").mkdir()
    Path("parts/layers_of_lab.py").write_text(NETWORK)
    Path("parts/top.py").write_text("from layers_of_lab import build\n")
    assert isinstance(read_network("parts/top.py:build"), nn.Module)


@pytest.mark.parametrize("path", ["weights.safetensors", "weights.pt"])
def test_weights(path, lab):
    net = read_network("net.py:build")
    state = {k: v * 3 for k, v in net.state_dict().items()}
    save_file(state, path) if path.endswith("s") else torch.save({"state_dict": state, "epoch": 3}, path)
    read = read_network("net.py:build", Path(path)).state_dict()
    assert all(torch.equal(read[k], v) for k, v in state.items())


@pytest.mark.parametrize(
    "source, weights, words",
    [
        ("missing.py:build", None, "missing.py does not exist"),
        ("net.py", None, "file.py:name"),
        ("net.py:", None, "file.py:name"),
        ("net.pt", None, "net.pt2, net.onnx, file.py:name"),
        ("evil.pt", None, "posix.system"),
        ("missing.pt2", None, "missing.pt2 does not exist"),
        ("damaged.pt2", None, "cannot be read as a torch.export.save file"),
        ("net.py:absent", None, "absent"),
        ("net.py:number", None, "net.py:number"),
        ("net.py:broken", None, "RuntimeError: the lab is closed (line 15 of net.py)"),
        ("net.py:needs", None, "argument"),
        ("net.py:stops", None, "no network today"),
        ("net.py:strange", None, "is a str"),
        ("wrong.py:net", None, "SyntaxError"),
        ("no.such.module:net", None, "No module named"),
        ("net.py:build", "missing.pt", "missing.pt do not exist"),
        ("net.py:build", "damaged.pt2", "of no kind that is known"),
        ("net.py:build", "other.safetensors", "the network has 0.weight, 0.bias, the file a.weight"),
        ("net.py:build", "evil.pt", "hold more than tensors (posix.system), and would run code"),
        ("net.pt2", "other.safetensors", "holds its own"),
        ("net.onnx", "other.safetensors", "holds its own"),
    ],
)
def test_a_mistake(source, weights, words, lab):
    Path("damaged.pt2").write_bytes(b"\x93NUMPY")
    Path("wrong.py").write_text("def net(:\n")
    save_file({"a.weight": torch.ones(2, 2)}, "other.safetensors")
    torch.save(os.system, "evil.pt")
    with pytest.raises(InputError) as caught:
        read_network(source, None if weights is None else Path(weights))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name, words", [("a\0b.pt", "NUL character"), ("n" * 300 + ".pt", "too long")])
def test_names_that_no_file_has(name, words):
    with pytest.raises(InputError, match=f"Found the path .*{words}.*Expected"):
        load_weights(nn.Linear(2, 2), Path(name))
