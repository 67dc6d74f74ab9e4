"""hrt.kernels.step_tables and hrt.kernels.reference: the tables check themselves and are executed literally."""

from dataclasses import replace

import pytest
import torch

from hrt.kernels.reference import run_steps
from hrt.kernels.step_tables import NONE, StepTables

COMPACT_TILES = [[4, 2, 0, 2, 0, 0], [6, 1, 2, 2, NONE, NONE], [7, 1, 2, 3, 2, NONE]]
COMPACT_STEPS = [[0, 3, 0, 0, NONE], [1, 2, 0, 1, NONE], [2, 2, 6, 0, NONE]]


def unscaled(steps) -> torch.Tensor:
    """int64 steps (n, 5) that take no scale."""
    return torch.tensor([[*step, NONE] for step in steps], dtype=torch.int64)


def compact(**changes) -> StepTables:
    """Three tiles, two buffers; the second tile has no step."""
    fields = {
        "tiles": torch.tensor(COMPACT_TILES, dtype=torch.int32),
        "steps": torch.tensor(COMPACT_STEPS, dtype=torch.int32),
        "weights": (torch.arange(8, dtype=torch.float32), torch.tensor([1, -1, 2, 0.5], dtype=torch.bfloat16)),
        "biases": torch.tensor([10.0, 20.0, 30.0]),
    }
    return StepTables(**(fields | changes))


def uniform(**changes) -> StepTables:
    """Two tiles over weight tiles of 2 x 4, one step in each of two buffers, then two steps side by side."""
    fields = {
        "tiles": torch.tensor([[8, 2, 0, 2, NONE, NONE], [10, 1, 2, 4, NONE, NONE]], dtype=torch.int32),
        "steps": unscaled([[0, 4, 8, 0], [4, 4, 0, 1], [0, 4, 0, 0], [4, 4, 8, 0]]),
        "weights": (torch.arange(16, dtype=torch.float32), torch.ones(8, dtype=torch.float16)),
        "biases": torch.zeros(0),
        "tile_rows": 2,
        "step_columns": 4,
        "unit": 4,
    }
    return StepTables(**(fields | changes))


def test_compact_tables_are_executed_literally():
    workspace = torch.full((3, 8), float("nan"), dtype=torch.float64)
    x = torch.arange(12, dtype=torch.float64).reshape(3, 4) - 5
    workspace[:, :4] = x
    run_steps(workspace, compact(), 0, 3, [torch.relu])
    first = x[:, :3] @ torch.tensor([[0.0, 1, 2], [3, 4, 5]], dtype=torch.float64).T
    second = x[:, 1:3] @ torch.tensor([[1.0, -1], [2, 0.5]], dtype=torch.float64).T
    expected = torch.relu(first + second + torch.tensor([10.0, 20.0], dtype=torch.float64))
    assert torch.equal(workspace[:, 4:6], expected)
    assert torch.equal(workspace[:, 6], torch.zeros(3, dtype=torch.float64))
    assert torch.equal(workspace[:, 7], x[:, 2] * 6 + x[:, 3] * 7 + 30)
    assert torch.equal(workspace[:, :4], x)


def test_scales_multiply_the_rows_of_int8_weights():
    """The same int8 numbers with and without scales, in one sum."""
    tables = compact(
        tiles=torch.tensor([[4, 2, 0, 2, NONE, NONE]], dtype=torch.int32),
        steps=torch.tensor([[0, 2, 0, 0, 1], [2, 2, 0, 0, NONE]], dtype=torch.int32),
        weights=(torch.tensor([1, -2, 3, 127], dtype=torch.int8),),
        scales=torch.tensor([9.0, 0.5, 4.0], dtype=torch.bfloat16),
    )
    workspace = torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]], dtype=torch.float64)
    run_steps(workspace, tables, 0, 1)
    assert workspace[0, 4:].tolist() == [0.5 * (1 - 4) + (3 - 8), 4.0 * (3 + 254) + (9 + 508)]
    assert tables.weight_bytes == 4 + 3 * 2
    with pytest.raises(ValueError, match="scales are out of bounds"):
        replace(tables, scales=tables.scales[:2])


def test_uniform_tables_are_executed_literally():
    workspace = torch.full((2, 12), float("nan"), dtype=torch.float64)
    x = torch.arange(16, dtype=torch.float64).reshape(2, 8)
    workspace[:, :8] = x
    tables = uniform()
    run_steps(workspace, tables, 0, 2)
    low, high = (torch.arange(8, dtype=torch.float64).reshape(2, 4) + k for k in (0, 8))
    assert torch.equal(workspace[:, 8:10], x[:, :4] @ high.T + x[:, 4:].sum(1, keepdim=True))
    assert torch.equal(workspace[:, 10], x[:, :4] @ low[0] + x[:, 4:] @ high[0])
    assert workspace[:, 11].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_workspaces_accumulate_in_float32(dtype):
    """1 + 256 additions of 1/256 stay at 1 in bfloat16 sums; float32 sums give 2."""
    tables = StepTables(
        torch.tensor([[257, 1, 0, 257, NONE, NONE]], dtype=torch.int32),
        unscaled([[k, 1, 0, 0] for k in range(257)]),
        (torch.ones(1, dtype=dtype),),
        torch.zeros(0),
    )
    workspace = torch.full((1, 258), 1 / 256, dtype=dtype)
    workspace[0, 0] = 1
    run_steps(workspace, tables, 0, 1)
    assert workspace[0, 257].item() == 2


def test_offsets_beyond_two_to_the_31_survive():
    steps = torch.tensor(COMPACT_STEPS, dtype=torch.int64)
    steps[0, 2] = 2**31 + 5
    with pytest.raises(ValueError, match="out of bounds"):
        compact(steps=steps)
    big = torch.empty(2**31 + 16, dtype=torch.float16, device="meta")
    tables = compact(steps=steps, weights=(big, compact().weights[1]))
    assert tables.steps[0, 2].item() == 2**31 + 5


def test_columns_end_with_a_sentinel_and_count_units():
    assert uniform().column_table.tolist() == [0, 1, 0, 1, 0]
    assert uniform().column_table.dtype == torch.int32


def test_runs_split_a_tile_by_buffer():
    assert uniform().runs.tolist() == [[0, 1, 2], [2, 4, 4]]
    assert uniform().runs.dtype == torch.int32


def test_bytes_count_all_tables():
    tables = compact()
    assert tables.weight_bytes == 8 * 4 + 4 * 2
    assert tables.nbytes == tables.weight_bytes + 3 * 4 + 3 * 6 * 4 + 3 * 5 * 4


def test_every_tensor_can_be_changed_alike():
    copied = uniform().map(torch.clone)
    assert copied.unit == 4 and torch.equal(copied.steps, uniform().steps) and len(copied.weights) == 2
    with pytest.raises(ValueError):
        uniform().map(torch.zeros_like)


def tiles(row: int, field: int, value: int) -> dict:
    changed = torch.tensor(COMPACT_TILES, dtype=torch.int32)
    changed[row, field] = value
    return {"tiles": changed}


def steps(row: int, field: int, value: int) -> dict:
    changed = torch.tensor(COMPACT_STEPS, dtype=torch.int32)
    changed[row, field] = value
    return {"steps": changed}


@pytest.mark.parametrize(
    "changes, tile, message",
    [
        (tiles(1, 2, 1), 1, "run does not begin"),
        (tiles(2, 3, 1), 2, "run does not begin"),
        (tiles(2, 3, 2), None, "last step"),
        (tiles(0, 1, 0), 0, "no columns"),
        (tiles(1, 0, -1), 1, "negative ones"),
        (tiles(1, 5, -2), 1, "epilogue"),
        (tiles(0, 4, 2), 0, "bias is out of bounds"),
        (tiles(0, 4, -2), 0, "bias is out of bounds"),
        (steps(1, 4, 0), 0, "its weights take none"),
        (steps(1, 4, -2), 0, "scales are out of bounds"),
        (steps(1, 3, 2), 0, "buffer that is not there"),
        (steps(1, 3, -1), 0, "buffer that is not there"),
        (steps(2, 0, -1), 2, "negative column"),
        (steps(2, 1, 0), 2, "no length"),
        (steps(2, 2, 7), 2, "weights are out of bounds"),
        ({"unit": 2}, 0, "multiple of unit"),
        ({"unit": 0}, None, "unit = 0"),
        ({"tile_rows": 4}, None, "both 0"),
        ({"tiles": torch.zeros(0, 6, dtype=torch.int64)}, None, "Expected int32"),
        ({"tiles": torch.zeros(0, 5, dtype=torch.int32)}, None, "n_tiles, 6"),
        ({"steps": torch.zeros(0, 4)}, None, "int32 or int64"),
        ({"biases": torch.zeros(3, 1)}, None, "flat"),
        ({"biases": torch.zeros(3, dtype=torch.int32)}, None, "floats or int8"),
        ({"weights": (torch.zeros(16)[::2], torch.zeros(8))}, None, "contiguous"),
    ],
)
def test_contradictory_tables_are_refused(changes, tile, message):
    with pytest.raises(ValueError, match=message) as caught:
        compact(**changes)
    assert tile is None or f"Tile {tile}:" in str(caught.value)


@pytest.mark.parametrize(
    "field, values, tile, message",
    [
        ("tiles", [[8, 3, 0, 2, NONE, NONE], [11, 1, 2, 4, NONE, NONE]], 0, "more than tile_rows = 2"),
        ("steps", [[0, 4, 8, 0], [4, 3, 0, 1], [0, 4, 0, 0], [4, 4, 8, 0]], 0, "not step_columns = 4"),
        ("steps", [[0, 4, 8, 0], [2, 4, 0, 1], [0, 4, 0, 0], [4, 4, 8, 0]], 0, "multiple of unit = 4"),
        ("steps", [[0, 4, 4, 0], [4, 4, 0, 1], [0, 4, 0, 0], [4, 4, 8, 0]], 0, "whole weight tile"),
        ("steps", [[0, 4, 0, 1], [4, 4, 0, 0], [0, 4, 0, 0], [4, 4, 8, 0]], 0, "sorted by buffer"),
        ("steps", [[0, 4, 8, 0], [4, 4, 0, 1], [0, 4, 8, 0], [4, 4, 0, 0]], 1, "one after the other"),
        ("steps", [[0, 4, 8, 0], [4, 4, 8, 1], [0, 4, 0, 0], [4, 4, 8, 0]], 0, "out of bounds"),
    ],
)
def test_uniform_tables_keep_their_promises(field, values, tile, message):
    with pytest.raises(ValueError, match=f"Tile {tile}: .*{message}"):
        replace(uniform(), **{field: unscaled(values) if field == "steps" else torch.tensor(values, dtype=torch.int32)})
