"""How often rows cross a jump is told from few rows that do not, and what that does to the limit."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrt.calibration.jumps import Jumps, Unseen, jumping, share_before_one
from hrt.calibration.moments import evaluate
from hrt.calibration.output_error import output_error
from hrt.capture.torch_export import capture
from hrt.program.dense_view import to_float64
from hrt.program.program import Program

ROWS, MANY = 400, 100_000
MOVED = 3e-3  # what is added to the weights, relative: ROWS rows cross about once, MANY do hundreds of times
Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.last, self.function = nn.Linear(3, 4), nn.Linear(4, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.layer(x)))


def expected(function: Function, moved: float = MOVED) -> tuple[Unseen | None, Program, Program]:
    """Of ROWS rows; the network and it with other weights."""
    g = torch.Generator().manual_seed(2)
    program = capture(Net(function), (torch.zeros(2, 3),))
    weight = to_float64(program.constants["layer.weight"])
    worse = {"layer.weight": weight * (1 + moved * torch.randn(4, 3, generator=g))}
    rows = (torch.randn(ROWS, 3, generator=g, dtype=torch.float64),)
    other = program.with_constants(worse)
    return Jumps.of(program, jumping(program, rows), rows).unseen(other.constants), program, other


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.atan2(y, y.flip(1)),
        lambda y: F.one_hot(y.argmax(1), 4).float(),
        lambda y: (y > 0.1).float(),
        lambda y: torch.floor(2 * y),
        lambda y: torch.fmod(2 * y, 0.5),
        lambda y: torch.tanh(2000 * y),
        lambda y: torch.softmax(1000 * y, 1),
        lambda y: torch.floor(y + (y[:, :1] > 0)),
        lambda y: torch.floor(y[:, 0])[:, None] * y,
    ],
    ids=["atan2", "argmax", "step", "floor", "fmod", "tanh", "softmax", "chain", "number"],
)
def test_what_many_rows_do_is_told_by_few(function: Function) -> None:
    """Of 400 rows one or none crosses; the mean squared error of 100,000 is known within a factor of two."""
    unseen, program, other = expected(function)
    x = (torch.randn(MANY, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64),)
    truth = float((evaluate(program, x) - evaluate(other, x)).square().sum()) / MANY
    assert unseen is not None
    told = float(unseen.squares.sum()) / ROWS
    assert told == pytest.approx(sum(rate * unseen.sizes[name] for name, rate in unseen.rates.items()))
    assert 0.5 < (told + unseen.smooth2) / truth < 2


def test_a_kink_is_no_jump() -> None:
    """A mask that only chooses between values that are equal where it changes."""
    unseen, program, other = expected(lambda y: torch.where(y > 0, y, 0.1 * y))
    x = (torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64),)
    smooth = float((evaluate(program, x) - evaluate(other, x)).square().sum())
    assert unseen is not None and float(unseen.squares.sum()) < 0.1 * smooth


def test_a_jump_that_no_row_comes_near_adds_next_to_nothing() -> None:
    far = expected(lambda y: torch.where(y > 20, y, -y), 1e-4)[0]
    assert far is not None and sum(far.rates.values()) < 1e-5


def test_networks_without_jumps_are_not_looked_at() -> None:
    rows = (torch.randn(50, 3).double(),)
    assert not jumping(capture(Net(torch.tanh), (torch.zeros(2, 3),)), rows)
    assert not jumping(capture(Net(lambda y: F.softmax(y.relu(), 1)), (torch.zeros(2, 3),)), rows)


def test_what_is_seen_often_needs_no_estimate() -> None:
    assert expected(lambda y: (y > 0).float(), 0.5)[0] is None


def test_shares() -> None:
    """As many in every step; fewer far off; more near by."""
    even = torch.arange(1, 33) * 100.0
    assert float(share_before_one(even)) == pytest.approx(1 / 3200, rel=0.4)
    assert share_before_one(even / 100 + 3200) < 0.2 / 3200
    assert share_before_one((even / 100) ** 4) > 3 * 32**-4.0


def test_expected_crossings_widen_the_limit_and_not_the_error() -> None:
    y, lost = torch.ones(200, 2).double(), torch.full((200, 2), 1e-3).double()
    squares = torch.zeros(100, 2).double()
    squares[:10] = 1e-4
    seen = torch.zeros(100, dtype=torch.bool)
    unseen = Unseen(squares, seen, 2e-6, {}, {})
    plain, wide = (output_error(y, y - lost, other=other) for other in (None, unseen.lost(lost)))
    assert wide.value == plain.value == pytest.approx(1e-3) and wide.per_output == plain.per_output
    assert wide.upper_99 > math.sqrt(1e-6 + 1e-5) > plain.upper_99
    assert output_error(y, y - lost, True, other=unseen.lost(lost)).columns[0] > math.sqrt(1.1e-5)
    coarser = unseen.lost(2 * lost)  # jumps move twice as far where numbers are rounded to twice the error
    assert coarser[0, 0] == pytest.approx(math.sqrt(4e-6 + 2e-4))
