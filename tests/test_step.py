"""The Triton step kernel on Triton's interpreter, against the reference executor, on random schedules.

The interpreter multiplies float32 exactly as IEEE says and does not show tf32; its bfloat16 products are wrong, so that
bfloat16 weights are widened to float32 before the product here (as they are with mixed storage on a card): what these
tests show of bfloat16 is the indexing, the widening and the store, not the tensor core.
"""

import numpy as np
import pytest
import torch

from hrt.capture import capture
from hrt.execute import execute, read, write
from hrt.kernels.reference import run_steps
from hrt.kernels.step import EPILOGUES, StepProgram, epilogue_name, one_epilogue
from hrt.kernels.tables import NONE, StepTables
from hrt.ops import TABLE
from hrt.schedule import build_schedule
from hrt.stages import Gather, Wave
from tests.helpers import hierarchical
from tests.models import any_hmatrix, linear_program

FORMS = {"row": (1, 3, 8), "swapped": (9, 17, 40), "batch": (64, 70)}
# The interpreter truncates to bfloat16 where a card rounds: a whole unit in place of half of one.
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
OPS = {name: (name, {}) for name in EPILOGUES} | {
    "gelu": ("gelu", {"approximate": "none"}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}),
    "softplus": ("softplus", {"beta": 1.0}),
}


def random_tables(seed: int, storages: tuple[torch.dtype, ...]) -> StepTables:
    """A random uniform table of 16 x 16 weight tiles: tiles of 0 to 4 steps over several buffers, some with a bias."""
    rng = np.random.default_rng(seed)
    g = torch.Generator().manual_seed(seed)
    tiles, steps, used, out = [], [], [0] * len(storages), 64
    for _ in range(int(rng.integers(1, 5))):
        buffers = sorted(rng.integers(0, len(storages), int(rng.integers(0, 5))).tolist())
        length = int(rng.integers(1, 17))
        bias = int(rng.integers(0, 8)) if rng.random() < 0.6 else NONE
        tiles.append([out, length, len(steps), len(steps) + len(buffers), bias, NONE])
        for b in buffers:
            steps.append([8 * int(rng.integers(0, 7)), 16, 256 * used[b], b])
            used[b] += 1
        out += length
    weights = tuple(torch.randn(256 * max(1, n), generator=g).to(s) for n, s in zip(used, storages, strict=True))
    return StepTables(
        torch.tensor(tiles, dtype=torch.int32),
        torch.tensor(steps, dtype=torch.int32).reshape(-1, 4),
        weights,
        torch.randn(24, generator=g),
        16,
        16,
        8,
    )


def compare(tables, batch, dtype, form, epilogue=None, first=0, end=None, width=136, seed=0):
    """Run both; every number must agree to the rounding of the sums and of the store, the others must be untouched."""
    end = len(tables.tiles) if end is None else end
    g = torch.Generator().manual_seed(seed)
    start = torch.randn(batch, width, generator=g).to(dtype)
    workspace = start.clone()
    StepProgram(tables).run(workspace, first, end, epilogue, form=form)
    exact, size = start.double(), start.double().abs()
    function = (lambda x: exact_epilogue(epilogue, x)) if epilogue else (lambda x: x)
    expected = exact.clone()
    run_steps(expected, with_epilogue(tables, epilogue), first, end, [function])
    absolute = StepTables(
        tables.tiles, tables.steps, tuple(w.abs() for w in tables.weights), tables.biases.abs(), 16, 16, tables.unit
    )
    run_steps(size, absolute, first, end)
    written = torch.zeros(width, dtype=torch.bool)
    for out, length, *_ in tables.tiles[first:end].tolist():
        written[out : out + length] = True
    # Sums of at most 16 * steps terms; an epilogue's slope is at most exp(x), its own rounding a few units.
    terms = 16 * max(1, int((tables.tiles[:, 3] - tables.tiles[:, 2]).max())) + 2
    slope = 1.2 if epilogue != "exp" else 1.1 * expected.abs()
    allowed = (
        slope * terms * 2.0**-24 * size + 16 * 2.0**-24 * (1 + expected.abs()) + UNIT_ROUNDOFF[dtype] * expected.abs()
    )
    error = (workspace.double() - expected).abs()
    assert bool((error <= allowed)[:, written].all()), float((error / allowed)[:, written].max())
    assert torch.equal(workspace[:, ~written], start[:, ~written])


def exact_epilogue(name, x):
    op, attrs = OPS[name]
    return TABLE[op].torch((x,), attrs)


def with_epilogue(tables, epilogue):
    tiles = tables.tiles.clone()
    tiles[:, 5] = NONE if epilogue is None else 0
    return StepTables(tiles, tables.steps, tables.weights, tables.biases, 16, 16, tables.unit)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(50))
def test_random_tables_of_mixed_storage(form, seed):
    rng = np.random.default_rng(seed)
    kinds = [torch.float32, torch.float16, torch.bfloat16]
    storages = tuple(kinds[int(k)] for k in rng.integers(0, 3, int(rng.integers(1, 4))))
    compare(random_tables(seed, storages), int(rng.choice(FORMS[form])), torch.float32, form, seed=seed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_workspaces(form, dtype):
    for seed in range(5):
        compare(random_tables(seed, (dtype,)), FORMS[form][1], dtype, form, seed=seed)


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_epilogues_are_those_of_the_op_table(epilogue):
    for form in FORMS:
        compare(random_tables(7, (torch.float32,)), FORMS[form][0], torch.float32, form, epilogue)


def test_epilogues_of_extreme_numbers_and_nan():
    """NaN stays in its own row; large arguments do not overflow where the true value does not."""
    tables = StepTables(
        torch.tensor([[16, 1, 0, 1, NONE, NONE]], dtype=torch.int32),
        torch.tensor([[0, 16, 0, 0]], dtype=torch.int32),
        (torch.nn.functional.pad(torch.ones(1), (0, 255)),),
        torch.zeros(0),
        16,
        16,
        8,
    )
    values = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4, float("nan")])
    for epilogue in set(EPILOGUES) - {"exp", "sin", "cos"}:
        workspace = torch.zeros(6, 32)
        workspace[:, 0] = values
        StepProgram(tables).run(workspace, 0, 1, epilogue, form="row")
        expected = exact_epilogue(epilogue, values.double())
        assert torch.allclose(workspace[:, 16].double(), expected, rtol=1e-6, atol=1e-6, equal_nan=True), epilogue
        assert torch.equal(torch.isnan(workspace[:, 16]), torch.isnan(values))


@pytest.mark.parametrize("seed", range(20))
def test_schedules_of_hierarchical_matrices(seed):
    rng = np.random.default_rng(seed)
    m, n = (int(k) for k in rng.integers(1, 60, 2))
    program = linear_program(any_hmatrix(seed, m, n), torch.randn(m, dtype=torch.float64))
    schedule = build_schedule(program, tile_rows=16, step_columns=16, unit=8)
    for wave in (s for s in schedule.stages if isinstance(s, Wave)):
        form = list(FORMS)[seed % 3]
        compare(
            schedule.tables, FORMS[form][0], torch.float32, form, None, wave.first_tile, wave.end_tile, schedule.width
        )


def test_bitwise_the_same_every_time_and_whatever_the_rest_of_the_batch():
    tables = random_tables(3, (torch.float32, torch.float16))
    start = torch.randn(40, 136, generator=torch.Generator().manual_seed(0))
    twice = []
    for rows in (start, start, start[:20]):
        workspace = rows.clone()
        StepProgram(tables).run(workspace, 0, len(tables.tiles), form="swapped")
        twice.append(workspace)
    assert torch.equal(twice[0], twice[1]) and torch.equal(twice[0][:20], twice[2])


def test_empty_batches_and_runs_write_nothing():
    tables = random_tables(3, (torch.float32,))
    StepProgram(tables).run(torch.zeros(0, 136), 0, len(tables.tiles))
    workspace = torch.ones(3, 136)
    StepProgram(tables).run(workspace, 1, 1)
    assert torch.equal(workspace, torch.ones(3, 136))


def test_what_the_kernel_cannot_run_is_refused():
    tables = random_tables(3, (torch.float32,))
    with pytest.raises(ValueError, match="not contiguous"):
        StepProgram(tables).run(torch.zeros(136, 3).T, 0, 1)
    compact = StepTables(tables.tiles[:0], tables.steps[:0], tables.weights, tables.biases)
    with pytest.raises(ValueError, match="powers of two"):
        StepProgram(compact)


def test_one_epilogue_of_a_run():
    tables = with_epilogue(random_tables(0, (torch.float32,)), "tanh")
    assert one_epilogue(tables, 0, len(tables.tiles), ["tanh"]) == "tanh"
    tables.tiles[0, 5] = NONE
    assert one_epilogue(tables, 0, 1, ["tanh"]) is None
    if len(tables.tiles) > 1:
        with pytest.raises(ValueError, match="Expected one"):
            one_epilogue(tables, 0, 2, ["tanh"])


def test_names_of_epilogues():
    assert all(epilogue_name(*OPS[name]) == name for name in EPILOGUES)
    assert epilogue_name("softplus", {"beta": 2.0}) is None
    assert epilogue_name("mish", {}) is None


def test_a_whole_network_through_the_kernel():
    """Every wave of a network with random hierarchical weights runs in the kernel, beside the reference executor."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(5, 40), torch.nn.Tanh(), torch.nn.Linear(40, 40), torch.nn.GELU(), torch.nn.Linear(40, 3)]
    net = torch.nn.Sequential(*layers)
    x = torch.randn(20, 5)
    program = hierarchical(capture(net, [x[:2]]))
    schedule = build_schedule(program, tile_rows=16, step_columns=16, unit=8)
    names = [epilogue_name(e.op, e.attrs) for e in schedule.epilogues]
    steps = StepProgram(schedule.tables)
    workspace = torch.zeros(20, schedule.width)
    write(workspace, schedule.inputs[0], x)
    for stage in schedule.stages:
        if isinstance(stage, Gather):
            workspace[:, torch.from_numpy(stage.output.columns)] = workspace[:, stage.index.long()]
            continue
        assert isinstance(stage, Wave), "all activations should have become epilogues"
        name = one_epilogue(schedule.tables, stage.first_tile, stage.end_tile, names)
        steps.run(workspace, stage.first_tile, stage.end_tile, name)
    (expected,) = execute(schedule, [x])
    error = float((read(workspace, schedule.outputs[0]).double() - expected).abs().max())
    assert error <= 1e-5 * float(expected.abs().max()), (error, expected.abs().max(), names)
