"""The guard of torch's state: nested, on several threads at once, and around what the caller wrote."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import hrt
from hrt.support.torch_state import as_called, guarded, guarded_values, has_usual_values, usual_state, usual_values


@pytest.fixture
def wide() -> Iterator[None]:
    """float64 by default, as DeepXDE sets it."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("wide")
def test_guards_nest_and_give_back_what_was_there() -> None:
    seen = []

    @guarded
    def outer() -> None:
        seen.append((torch.get_default_dtype(), torch.is_grad_enabled(), has_usual_values()))
        inner()
        with as_called():
            seen.append((torch.get_default_dtype(), has_usual_values()))
        seen.append(torch.get_default_dtype())

    @guarded_values
    def inner() -> None:
        seen.append(torch.get_default_dtype())

    with torch.no_grad():
        outer()
        assert not torch.is_grad_enabled()
    float32, float64 = torch.float32, torch.float64
    assert seen == [(float32, True, True), float32, (float64, False), float32]
    assert torch.get_default_dtype() is float64


@pytest.mark.usefixtures("wide")
def test_values_alone_leave_gradients_to_the_caller() -> None:
    with torch.no_grad(), usual_values():
        assert torch.get_default_dtype() is torch.float32 and not torch.is_grad_enabled()
    with torch.inference_mode(), usual_state():
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.usefixtures("wide")
def test_the_last_of_several_threads_gives_the_default_dtype_back() -> None:
    entered, leave, dtypes = threading.Event(), threading.Event(), []

    def first() -> None:
        with usual_state():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with usual_values():  # float32 already, by the other thread's doing, which ends first
        leave.set()
        thread.join()
        dtypes.append(torch.get_default_dtype())
    assert dtypes == [torch.float32] and torch.get_default_dtype() is torch.float64


@pytest.mark.usefixtures("wide")
def test_the_state_is_given_back_after_an_error() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        with pytest.raises(ZeroDivisionError), usual_state():
            assert torch.ones(1).device.type == "cpu" and not torch.is_autocast_enabled("cpu")
            _ = 1 / 0
        assert torch.ones(1).device.type == "meta" and torch.is_autocast_enabled("cpu")


class Grid(nn.Module):
    """A forward that makes numbers of the default type, as its author has set it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ torch.linspace(0.0, 1.0, 4)[:, None]


@pytest.mark.usefixtures("wide")
def test_a_network_runs_under_the_default_type_of_its_author() -> None:
    net, rows = Grid(), torch.rand(64, 2)
    model = hrt.compress(net, inputs=rows, tol=1e-4, progress=False)
    theirs = net(rows).detach()
    assert float((model.predict(rows) - theirs).norm() / theirs.norm()) <= 1e-4
    assert net.layer.weight.dtype == torch.float64
