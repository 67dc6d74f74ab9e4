"""A .mdlus file alone: built by physicsnemo where that is installed, described where it is not. Here a stand-in of the
package, with the classes and the from_checkpoint that hrt asks for.
"""

import json
import sys
import types
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from torch import nn

from hrt.capture.checkpoints import load_weights, read_network
from hrt.errors import InputError

from checkpoint_cases import ARGUMENTS, FULLY_CONNECTED, mlp, physicsnemo, physicsnemo_tar

NESTED = "__physicsnemo.Module__.inner"


class Module(nn.Module):
    @staticmethod
    def from_checkpoint(path: str) -> nn.Module:
        with zipfile.ZipFile(path) as archive:
            assert json.loads(archive.read("args.json"))["__args__"] == ARGUMENTS
        load_weights(net := FullyConnected(), Path(path))
        return net


class FullyConnected(Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp(2, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture
def installed(monkeypatch) -> None:
    """physicsnemo, with one class and one function."""
    for name in ("physicsnemo", "physicsnemo.models", "physicsnemo.models.mlp"):
        monkeypatch.setitem(sys.modules, name, module := types.ModuleType(name))
        module.__spec__ = ModuleSpec(name, None, origin="here")
    vars(sys.modules["physicsnemo"])["Module"] = Module
    monkeypatch.setitem(sys.modules, FULLY_CONNECTED["__module__"], types.ModuleType("fully_connected"))
    vars(sys.modules[FULLY_CONNECTED["__module__"]]).update(FullyConnected=FullyConnected, launch=lambda **_: 1 / 0)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("package", ["physicsnemo", "modulus"])
def test_its_network_is_built(package, tmp_path):
    trained = FullyConnected()
    module = FULLY_CONNECTED["__module__"].replace("physicsnemo", package)
    physicsnemo(trained, tmp_path / "net.mdlus", {**FULLY_CONNECTED, "__module__": module})
    net = read_network(str(tmp_path / "net.mdlus"))
    assert isinstance(net, FullyConnected)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in net.state_dict().items())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "arguments, words",
    [
        ({**FULLY_CONNECTED, "__module__": "os", "__name__": "system"}, "os.system is no class of physicsnemo"),
        ({**FULLY_CONNECTED, "__module__": "physicsnemox.a"}, "physicsnemox.a.FullyConnected is no class"),
        ({**FULLY_CONNECTED, "__name__": "launch"}, "launch is no physicsnemo.Module"),
        ({**FULLY_CONNECTED, "__module__": "physicsnemo.models../x"}, "is no module"),
        ({**FULLY_CONNECTED, "__name__": "Renamed"}, "physicsnemo could not build it: AttributeError"),
        ({**FULLY_CONNECTED, NESTED: {"__module__": "subprocess", "__name__": "run"}}, "subprocess.run is no class"),
        ({"__args__": {}}, "does not say which network it is"),
        ({"__name__": "FullyConnected"}, "cannot be read"),
    ],
)
def test_classes_of_others_are_not_made(arguments, words, tmp_path):
    physicsnemo(mlp(2, 8, 1), tmp_path / "net.mdlus", arguments)
    with pytest.raises(InputError, match=r"net\.mdlus") as error:
        read_network(str(tmp_path / "net.mdlus"))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif("physicsnemo" in sys.modules, reason="physicsnemo is installed")
@pytest.mark.parametrize("write", [physicsnemo, physicsnemo_tar])
def test_without_physicsnemo_it_says_what_it_is_and_what_to_do(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "physicsnemo").mkdir()  # a folder of that name is not the package
    monkeypatch.syspath_prepend(tmp_path)
    write(mlp(2, 8, 1), tmp_path / "net.mdlus")
    with pytest.raises(InputError) as error:
        read_network("net.mdlus")
    text = str(error.value)
    assert "a FullyConnected (physicsnemo.models.mlp.fully_connected)" in text and "layer_size=8" in text
    assert "pip install nvidia-physicsnemo" in text and "mynets.py:build --weights net.mdlus" in text
