"""A whole network in one launch: every program takes a block of batch rows through all waves, by itself.

Waves of a block depend on each other through the block's own rows alone, so a barrier between them is all the ordering
there is. For short waves (a PINN of a few hundred neurons a layer) this saves a launch, about 1 us, per wave.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
import triton
import triton.language as tl

from hrt.kernels.step_kernel import FIELDS, finish_tile, sum_of_tile


@triton.jit(do_not_specialize=["batch", "waves"])
def network_kernel(
    workspace,
    weights0,
    weights1,
    weights2,
    weights3,
    scales,
    biases,
    tiles,
    runs,
    starts,
    groups,
    columns,
    wave_ends,
    batch,
    pitch,
    waves,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNIT: tl.constexpr,
    BUFFERS: tl.constexpr,
    SCALED: tl.constexpr,
    FORM: tl.constexpr,
    WIDEN: tl.constexpr,
    PRECISION: tl.constexpr,
    EPILOGUE: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    RESCALE: tl.constexpr,
    JET: tl.constexpr,
):
    """One program per block of BLOCK batch rows. wave_ends: int32 (waves + 1,) tiles before each wave, and all."""
    first = tl.program_id(0) * BLOCK
    rows = first + tl.arange(0, BLOCK)
    inside = rows < batch
    safe = tl.where(inside, rows, first).to(tl.int64)  # a row of this block: other programs write theirs meanwhile
    x_rows = workspace + safe[:, None] * pitch + tl.arange(0, COLUMNS)[None, :]
    out_rows = workspace + safe[:, None] * pitch
    for wave in tl.range(0, waves, num_stages=1):
        for tile in tl.range(tl.load(wave_ends + wave), tl.load(wave_ends + wave + 1), num_stages=1):
            row = tiles + tile * FIELDS
            total = sum_of_tile(
                x_rows, weights0, weights1, weights2, weights3, scales, columns,
                runs + tile * (BUFFERS + 1), starts + tile * BUFFERS, groups, row,
                ROWS, UNIT, BUFFERS, SCALED, FORM, WIDEN, PRECISION,
            )  # fmt: skip
            finish_tile(total, out_rows, inside, biases, row, EPILOGUE, FIRST, SECOND, RESCALE, JET)
        tl.debug_barrier()
