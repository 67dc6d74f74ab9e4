"""The adapters, against stand-ins of the two interfaces, and against the packages where they are installed."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from hrt.errors import BackendError, InputError
from hrt.training.callbacks import deepxde_callback, lightning_callback
from hrt.training.dynamic import DynamicCompression


def dynamic() -> DynamicCompression:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 40), nn.Tanh(), nn.Linear(40, 1))
    return DynamicCompression(net, torch.rand(300, 2, generator=torch.Generator().manual_seed(0)), every=2)


class Base:
    """What both libraries' callbacks derive from, as far as it is used."""

    model: object = None


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lightning.pytorch", "deepxde.callbacks"):
        parent = ModuleType(name.partition(".")[0])
        parent.__path__ = []  # type: ignore[attr-defined]
        module = ModuleType(name)
        module.Callback = Base  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, parent.__name__, parent)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("stand_ins")
def test_lightning() -> None:
    watched = dynamic()
    callback = lightning_callback(watched, monitor="train_loss")
    assert isinstance(callback, Base)
    adam = torch.optim.Adam(watched.net.parameters())
    trainer = SimpleNamespace(callback_metrics={"train_loss": torch.tensor(0.5)}, current_epoch=0, optimizers=[adam])
    callback.on_train_epoch_end(trainer, watched.net)
    assert [(e.epoch, e.loss) for e in watched.log] == [(0, 0.5)]
    assert watched.optimizer is adam
    trainer.callback_metrics = {"other": torch.tensor(1.0)}
    with pytest.raises(InputError, match="train_loss"):
        callback.on_train_epoch_end(trainer, watched.net)


@pytest.mark.usefixtures("stand_ins")
def test_deepxde() -> None:
    watched = dynamic()
    callback = deepxde_callback(watched)
    state = SimpleNamespace(loss_train=None, epoch=0)
    callback.model = SimpleNamespace(train_state=state, opt=torch.optim.Adam(watched.net.parameters()))
    callback.on_epoch_end()
    assert not watched.log
    state.loss_train, state.epoch = [0.25, 0.5], 3
    callback.on_epoch_end()
    assert [(e.epoch, e.loss) for e in watched.log] == [(3, 0.75)]


@pytest.mark.parametrize(
    "adapter, modules", [(lightning_callback, ("lightning", "pytorch_lightning")), (deepxde_callback, ("deepxde",))]
)
def test_what_is_not_installed_is_said(adapter, modules, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match="not installed"):
        adapter(dynamic())
