"""The Triton kernels on Triton's interpreter, against the reference executor, on random schedules.

The interpreter multiplies float32 exactly as IEEE says and does not show tf32; its bfloat16 products are wrong, so that
bfloat16 operands are widened to float32 before the product here (as they are with mixed storage on a card): what these
tests show of bfloat16 is the indexing, the widening and the store, not the tensor core.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hrt.capture.torch_export import capture
from hrt.kernels.launch import SHORTEST, Config, NetworkList, TileList
from hrt.kernels.precisions import NAMES, Epilogue, epilogue_of
from hrt.kernels.reference import run_steps
from hrt.kernels.step_tables import NONE, StepTables
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.run_reference import execute, read, write
from hrt.schedule.schedule import Wave

from helpers import MIXED, hierarchical
from models import any_hmatrix, linear_program
from step_cases import NO_EPILOGUE, OPS, exact_epilogue, random_tables, with_epilogue

BATCHES = {"row": (1, 3, 8), "swapped": (9, 17, 40), "batch": (64, 70)}
FORMS = tuple(BATCHES)
SEEDS = range(5)  # a card runs 200 random schedules (tests/card.py); the interpreter takes a second for some
CONFIGS = {"row": Config("row", 1), "swapped": Config("swapped", 16), "batch": Config("batch", 64)}
# The interpreter truncates to bfloat16 where a card rounds: a whole unit in place of half of one.
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}


def expected_and_allowed(tables, start, dtype, epilogue, first, end):
    """What float64 says, and how far arithmetic in float32, stored as `dtype`, may be from it, entry by entry."""
    exact, size = start.double(), start.double().abs()
    marked = with_epilogue(tables, epilogue)
    run_steps(exact, marked, first, end, [lambda x: exact_epilogue(epilogue.name, x)])
    absolute = replace(
        tables, weights=tuple(w.abs() for w in tables.weights), biases=tables.biases.abs(), scales=tables.scales.abs()
    )
    run_steps(size, absolute, first, end)
    # Sums of at most 16 * steps terms and a scale; an epilogue's slope is at most exp(x), its own rounding a few units.
    terms = 16 * max(1, int((tables.tiles[:, 3] - tables.tiles[:, 2]).max())) + 3
    slope = slope_of(epilogue.name, exact)
    # gelu's tails are a difference, in torch too: its own rounding is relative to its argument.
    function = 16 * 2.0**-24 * (exact.abs() + (size if epilogue.name == "gelu" else 0))
    allowed = slope * terms * 2.0**-24 * size + function + UNIT_ROUNDOFF[dtype] * exact.abs()
    return exact, allowed


def slope_of(name, y):
    """The largest derivative of an epilogue near the value y."""
    steep = {"exp": 1.1 * y.abs(), "log": 1.1 * torch.exp(-y), "sqrt": 1 / y, "reciprocal": 1.1 * y * y}
    return steep.get(name, 1.2)


def workspace_of(batch, dtype=torch.float32, width=136, seed=0):
    return torch.randn(batch, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def compare(tables, start, form, epilogue=NO_EPILOGUE, tiles=None, parts=0):
    """Run both; every number must agree to the rounding of the sums and of the store, the others must be untouched."""
    first, end = tiles or (0, len(tables.tiles))
    dtype, width = start.dtype, start.shape[1]
    expected, allowed = expected_and_allowed(tables, start, dtype, epilogue, first, end)
    workspace = start.clone()
    launch = TileList.build(with_epilogue(tables, epilogue), range(first, end), epilogue, parts)
    launch.run(workspace, CONFIGS[form])
    written = torch.zeros(width, dtype=torch.bool)
    for out, length, *_ in tables.tiles[first:end].tolist():
        written[out : out + length] = True
    error, finite = (workspace.double() - expected).abs(), torch.isfinite(expected)
    assert torch.equal(torch.isfinite(workspace.double())[:, written], finite[:, written])
    fine = (error <= allowed) | ~finite
    assert bool(fine[:, written].all()), float((error / allowed)[finite].max())
    assert torch.equal(workspace[:, ~written], start[:, ~written])
    return launch, workspace


def epilogue_alone(name, values):
    """What the kernel makes of these numbers: a tile of one step, whose weight is 1."""
    tables = StepTables(
        torch.tensor([[16, 1, 0, 1, NONE, 0]], dtype=torch.int32),
        torch.tensor([[0, 16, 0, 0, NONE]], dtype=torch.int32),
        (torch.nn.functional.pad(torch.ones(1), (0, 255)),),
        torch.zeros(0),
        16,
        16,
        8,
    )
    workspace = torch.zeros(len(values), 32)
    workspace[:, 0] = values
    TileList.build(tables, [0], epilogue_of(*OPS[name]), 0).run(workspace, CONFIGS["batch"])
    return workspace[:, 16]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_tables_of_mixed_storage(seed):
    rng, form = np.random.default_rng(seed), FORMS[seed % 3]
    kinds = rng.permutation(4)[: int(rng.integers(1, 5))]
    batch = int(rng.choice(BATCHES[form]))
    compare(random_tables(seed, tuple(MIXED[int(k)] for k in kinds)), workspace_of(batch, seed=seed), form)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_tables_cut_along_their_steps(seed):
    """The fixed-order second pass: as exact as one pass, and the same bits whatever the batch."""
    rng, form = np.random.default_rng(seed), FORMS[seed % 3]
    tables = random_tables(seed, (torch.float32, torch.int8), longest=19)
    batch, parts = int(rng.choice(BATCHES[form])), int(rng.integers(4, 12))
    launch, workspace = compare(tables, workspace_of(batch, seed=seed), form, parts=parts)
    lengths = tables.tiles[:, 3] - tables.tiles[:, 2]
    if parts > len(lengths) and int(lengths.max()) > max(SHORTEST, -(-int(lengths.sum()) // parts)):
        assert len(launch.lists[0]) > len(lengths) and launch.finish is not None
    again = torch.randn(batch, 136, generator=torch.Generator().manual_seed(seed))[:1]
    launch.run(again, CONFIGS[form])
    assert torch.equal(again[0], workspace[0])


@pytest.mark.parametrize("form", BATCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_workspaces(form, dtype):
    for seed, storages in enumerate(((dtype,), (torch.int8, dtype), (torch.int8,))):
        compare(random_tables(seed, storages), workspace_of(BATCHES[form][1], dtype, seed=seed), form)


@pytest.mark.parametrize("name", NAMES)
def test_epilogues_are_those_of_the_op_table(name):
    epilogue = epilogue_of(*OPS[name])
    assert epilogue is not None and epilogue.name == name
    form = FORMS[NAMES.index(name) % 3]
    compare(random_tables(7, (torch.float32,), 9), workspace_of(BATCHES[form][0]), form, epilogue, parts=6)


@pytest.mark.parametrize(
    "name", ["tanh", "elu", "softplus", "mish", "silu", "gelu", "gelu_tanh", "sin", "erf", "sigmoid"]
)
def test_epilogues_keep_their_relative_accuracy(name):
    """Where a difference of two near numbers would lose everything: small arguments, and far negative ones."""
    values = torch.tensor([s * 10.0**e * f for e in range(-9, 1) for f in (1.0, 2.7, 6.2) for s in (1.0, -1.0)])
    if name in ("softplus", "mish", "silu", "sigmoid"):
        values = torch.cat([values, torch.tensor([-8.0, -12.0, -16.0, -20.0, -30.0])])
    expected = exact_epilogue(name, values.double())
    error = (epilogue_alone(name, values).double() - expected).abs() / expected.abs()
    limit = 1e-5 if name.startswith("gelu") else 1e-6  # 1 + erf(-4) keeps few digits, here and in torch
    keep = values > -3 if name.startswith("gelu") else torch.ones(len(values), dtype=torch.bool)
    assert float(error[keep].max()) <= limit, (name, values[keep][error[keep].argmax()])


def test_epilogues_of_extreme_numbers_and_nan():
    """NaN stays in its own row; large arguments do not overflow where the true value does not."""
    values = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4, float("nan")])
    for name in set(NAMES) - {"exp", "sin", "cos", "log", "sqrt", "reciprocal"}:
        found = epilogue_alone(name, values)
        expected = exact_epilogue(name, values.double())
        assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True), name
        assert torch.equal(torch.isnan(found), torch.isnan(values))


@pytest.mark.parametrize("seed", SEEDS)
def test_schedules_of_hierarchical_matrices(seed):
    """Every wave of a random H-matrix, in one form or another, all storage types mixed."""
    rng = np.random.default_rng(seed)
    m, n = (int(k) for k in rng.integers(1, 60, 2))
    program = linear_program(any_hmatrix(seed, m, n), torch.randn(m, dtype=torch.float64))
    schedule = build_schedule(program, tile_rows=16, step_columns=16, unit=8)
    form = FORMS[seed % 3]
    for wave in (s for s in schedule.stages if isinstance(s, Wave)):
        tiles = (wave.first_tile, wave.end_tile)
        compare(schedule.tables, workspace_of(BATCHES[form][0], width=schedule.width), form, tiles=tiles)


def test_bitwise_the_same_every_time_and_whatever_the_rest_of_the_batch():
    tables = random_tables(3, (torch.float32, torch.float16, torch.int8))
    start = torch.randn(40, 136, generator=torch.Generator().manual_seed(0))
    launch = TileList.build(tables, range(len(tables.tiles)), NO_EPILOGUE, 0)
    twice = []
    for rows in (start, start, start[:20]):
        workspace = rows.clone()
        launch.run(workspace, CONFIGS["swapped"])
        twice.append(workspace)
    assert torch.equal(twice[0], twice[1]) and torch.equal(twice[0][:20], twice[2])


@pytest.mark.parametrize("parts", [0, 8])
def test_more_rows_than_a_launch_has_blocks_for(parts, monkeypatch):
    """They run in several launches, with the same bits."""
    tables = random_tables(3, (torch.float32, torch.int8), longest=19)
    start = workspace_of(70)
    launch, whole = compare(tables, start, "swapped", parts=parts)
    assert (launch.finish is not None) == (parts > 0)
    monkeypatch.setattr("hrt.kernels.launch.MOST_BLOCKS", 2)
    _, sliced = compare(tables, start, "swapped", parts=parts)
    assert torch.equal(whole, sliced)


def test_nan_stays_in_its_row():
    tables = random_tables(3, (torch.float32, torch.int8))
    clean = torch.randn(20, 136, generator=torch.Generator().manual_seed(0))
    spoilt = clean.clone()
    spoilt[7, :64] = float("nan")
    launch, others = TileList.build(tables, range(len(tables.tiles)), NO_EPILOGUE, 0), torch.arange(20) != 7
    for rows in (clean, spoilt):
        launch.run(rows, CONFIGS["swapped"])
    assert torch.equal(clean[others], spoilt[others]) and spoilt[7].isnan().any()


def test_empty_batches_and_lists_write_nothing():
    tables = random_tables(3, (torch.float32,))
    TileList.build(tables, range(len(tables.tiles)), NO_EPILOGUE, 0).run(torch.zeros(0, 136), CONFIGS["row"])
    workspace = torch.ones(3, 136)
    TileList.build(tables, [], NO_EPILOGUE, 4).run(workspace, CONFIGS["row"])
    assert torch.equal(workspace, torch.ones(3, 136))


def test_what_the_kernel_cannot_run_is_refused():
    tables = random_tables(3, (torch.float32,))
    launch = TileList.build(tables, [0], NO_EPILOGUE, 0)
    with pytest.raises(ValueError, match="not contiguous"):
        launch.run(torch.zeros(136, 3).T, CONFIGS["row"])
    with pytest.raises(ValueError, match="Expected one of bf16"):
        launch.run(torch.zeros(3, 136), CONFIGS["row"], "fp8")
    compact = StepTables(tables.tiles[:0], tables.steps[:0], tables.weights, tables.biases)
    with pytest.raises(ValueError, match="powers of two"):
        TileList.build(compact, [], NO_EPILOGUE, 0)
    several = tables.tiles.clone()
    several[:, 5] = torch.arange(len(several))
    with pytest.raises(ValueError, match="at most one"):
        TileList.build(replace(tables, tiles=several), range(len(several)), Epilogue("tanh"), 0)
    for wrong in (("row", 16), ("swapped", 8), ("batch", 48), ("diagonal", 16)):
        with pytest.raises(ValueError, match="Expected the form"):
            Config(*wrong)


def test_converted_weights_are_never_the_first_operand_on_a_card(monkeypatch):
    monkeypatch.setattr("hrt.kernels.launch.is_interpreted", lambda: False)
    launch = TileList.build(random_tables(3, (torch.int8,)), [0], NO_EPILOGUE, 0)
    for dtype, precision in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "tf32")):
        with pytest.raises(ValueError, match="Expected batch or row"):
            launch.run(workspace_of(20, dtype), CONFIGS["swapped"], precision)


def test_names_of_epilogues():
    assert epilogue_of("atan", {}) is None
    assert epilogue_of("power", {"exponent": 2.0}) is None
    assert epilogue_of("gelu", {"approximate": "other"}) is None
    assert epilogue_of("clamp", {"low": None, "high": 0.5}) == Epilogue("clamp", -np.inf, 0.5)


def network_workspace(seed, batch=20):
    """A network of random H-matrices whose activations are all epilogues, and a workspace with its input."""
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(5, 20), torch.nn.GELU(), torch.nn.Linear(20, 20), torch.nn.GELU(), torch.nn.Linear(20, 3)]
    x = torch.randn(batch, 5)
    program = hierarchical(
        capture(torch.nn.Sequential(*layers), [x[:2]]), seed, storages=MIXED, ordered=False, max_rank=5
    )
    schedule = build_schedule(program, tile_rows=16, step_columns=16, unit=8)
    workspace = torch.zeros(batch, schedule.width)
    write(workspace, schedule.inputs[0], x)
    return schedule, x, workspace


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_network_in_one_launch(seed):
    """The same numbers, bit for bit, as one launch per wave."""
    form = FORMS[seed % 3]
    schedule, x, workspace = network_workspace(seed, BATCHES[form][0])
    waves = [range(s.first_tile, s.end_tile) for s in schedule.stages if isinstance(s, Wave)]
    assert len(waves) == len(schedule.stages), "a network of waves alone"
    epilogue = epilogue_of(schedule.epilogues[0].op, schedule.epilogues[0].attrs)
    several = workspace.clone()
    NetworkList.build(schedule.tables, waves, epilogue).run(workspace, CONFIGS[form])
    for tiles in waves:
        TileList.build(schedule.tables, tiles, epilogue, 0).run(several, CONFIGS[form])
    assert torch.equal(workspace, several)
    (expected,) = execute(schedule, [x])
    error = float((read(workspace, schedule.outputs[0]).double() - expected).abs().max())
    assert error <= 1e-5 * float(expected.abs().max())
