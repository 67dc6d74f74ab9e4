"""Networks that look harmless: what they do to an index, a single row, a jump, a mask."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrt

TOL = 1e-2
X = torch.randn(500, 4, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.table = nn.Parameter(torch.randn(5, 3))
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def compressed(net: nn.Module, inputs: Any) -> hrt.CompressedModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hrt.compress(net, inputs=inputs, tol=TOL, progress=False)


def test_an_index_may_count_from_the_end() -> None:
    """It had become a row of zeros."""
    index = torch.randint(0, 5, (500,), generator=torch.Generator().manual_seed(1))
    index[::50] = -1
    net = Net(lambda net, x, i: net.layer(x) * net.table[i])
    model = compressed(net, (X, index))
    expected = net(X, index).detach()
    assert float((model.predict((X, index)) - expected).norm() / expected.norm()) <= TOL
    from_the_front = model.predict((X, index % 5))
    torch.testing.assert_close(model.predict((X, index)), from_the_front, rtol=0, atol=0)


def test_an_index_outside_the_table_is_no_number() -> None:
    """torch refuses it; a row of zeros would look like an answer."""
    net = nn.Sequential(nn.Embedding(7, 5), nn.Tanh(), nn.Linear(5, 2))
    model = compressed(net, torch.randint(0, 7, (300,), generator=torch.Generator().manual_seed(1)))
    answers = model.predict(torch.tensor([0, 6, 7, -1, 1_000_000]))
    assert torch.isfinite(answers).all(1).tolist() == [True, True, False, False, False]


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.layer(u) + 3 * self.layer(v).sin()


@pytest.mark.parametrize("names", ["uv", "vu"])
def test_a_tuple_comes_in_the_order_of_the_arguments(names: str) -> None:
    """Not in that of the dictionary that was given for calibration."""
    rows = {"u": X, "v": X.flip(0)}
    net = TwoInputs()
    model = compressed(net, {name: rows[name] for name in names})
    expected = net(**rows).detach()
    for given in ((rows["u"], rows["v"]), {name: rows[name] for name in names}):
        assert float((model.predict(given) - expected).norm() / expected.norm()) <= TOL


def test_one_row_alone_is_compared_too() -> None:
    net = Net(lambda net, x: net.layer(x) * (5 if x.shape[0] == 1 else 1))
    with pytest.raises(hrt.CaptureError, match=r"answers one row alone otherwise .* x\.shape\[0\]"):
        compressed(net, X)


def test_a_network_that_drops_the_dimension_of_one_row_is_taken() -> None:
    net = Net(lambda net, x: net.layer(x)[:, :1].squeeze())
    assert compressed(net, X).predict(X[:7]).shape == (7,)


def test_layer_norm_over_the_batch_is_refused() -> None:
    net = Net(lambda net, x: F.layer_norm(net.layer(x).T, (x.shape[0],)).T)
    with pytest.raises(hrt.CaptureError, match="layer_norm in the forward of Net cannot be captured: it works along"):
        compressed(net, X)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: torch.sign(net.layer(x)),
        lambda net, x: torch.where(net.layer(x) > 0, 1.0, -1.0),
        lambda net, x: (net.layer(x) > 0).float(),
    ],
)
def test_outputs_without_any_slope(forward: Callable[..., Any]) -> None:
    """They had no gradient to measure weights by: a RuntimeError of torch's."""
    model = compressed(Net(forward), X)
    assert float((model.predict(X) != Net(forward)(X)).float().mean()) <= TOL


def test_jumps_are_remarked() -> None:
    def remarks(net: nn.Module) -> str:
        return " ".join(compressed(net, X).certificate.context["remarks"])

    assert "it may jump, in step (gt" in remarks(Net(lambda net, x: torch.where(net.layer(x) > 0, net.layer(x), -1.0)))
    assert "it may jump, in atan2" in remarks(Net(lambda net, x: torch.atan2(*net.layer(x)[:, :2].unbind(1))))
    assert "jump" not in remarks(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    assert "jump" not in remarks(Net(lambda net, x: net.layer(x) * (x[:, :1] > 0))), "it depends on no weight"


def test_a_buffer_may_be_a_mask_of_infinities() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(4, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return self.attention(y, y, y, attn_mask=self.mask, need_weights=False)[0]

    net, x = Masked(), torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(2))
    expected = net(x).detach()
    assert float((compressed(net, x).predict(x) - expected).norm() / expected.norm()) <= TOL
