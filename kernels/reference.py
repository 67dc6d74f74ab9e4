"""Y[:, out] = epilogue(sum_s X[:, columns_s] W_s^T + bias), one tile after the other, one step after the other.

The oracle of every step kernel: it executes the tables literally, in plain torch, and knows nothing else.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hrt.kernels.step_tables import NONE, StepTables


def run_steps(
    workspace: Tensor,
    tables: StepTables,
    first_tile: int,
    end_tile: int,
    epilogues: Sequence[Callable[[Tensor], Tensor]] = (),
) -> None:
    """Execute tiles [first_tile, end_tile) in place on `workspace` (batch, width).

    Sums are float64 where the workspace is, else float32. epilogues: elementwise functions by epilogue id.
    """
    accumulate = torch.float64 if workspace.dtype == torch.float64 else torch.float32
    steps = tables.steps.tolist()
    for out, length, first, end, bias, epilogue in tables.tiles[first_tile:end_tile].tolist():
        rows = tables.tile_rows if tables.is_uniform else length
        total = torch.zeros(workspace.shape[0], rows, dtype=accumulate, device=workspace.device)
        for column, columns, offset, buffer, scale in steps[first:end]:
            weight = tables.weights[buffer][offset : offset + rows * columns].view(rows, columns).to(accumulate)
            if scale != NONE:
                weight = weight * tables.scales[scale : scale + rows, None].to(accumulate)
            total += workspace[:, column : column + columns].to(accumulate) @ weight.T
        total = total[:, :length]
        if bias != NONE:
            total = total + tables.biases[bias : bias + length].to(accumulate)
        if epilogue != NONE:
            total = epilogues[epilogue](total)
        workspace[:, out : out + length] = total.to(workspace.dtype)
