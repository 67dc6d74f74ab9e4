"""Random tables of steps for the kernels' tests."""

from dataclasses import replace

import numpy as np
import torch

from hrt.kernels.precisions import PLAIN, Epilogue
from hrt.kernels.step_tables import NONE, StepTables
from hrt.program.op_table import TABLE

OPS = {name: (name, {}) for name in PLAIN} | {
    "gelu": ("gelu", {"approximate": "none"}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}),
    "softplus": ("softplus", {"beta": 2.5}),
    "leaky_relu": ("leaky_relu", {"slope": 0.125}),
    "elu": ("elu", {"alpha": 0.75}),
    "clamp": ("clamp", {"low": None, "high": 0.5}),
}


NO_EPILOGUE = Epilogue()


def random_tables(seed: int, storages: tuple[torch.dtype, ...], longest: int = 4) -> StepTables:
    """A random uniform table of 16 x 16 weight tiles: tiles of 0 to `longest` steps over several buffers, some with a
    bias; int8 steps in runs of one scale, some without any.
    """
    rng = np.random.default_rng(seed)
    g = torch.Generator().manual_seed(seed)
    tiles, steps, used, out, scales = [], [], [0] * len(storages), 64, 0
    for _ in range(int(rng.integers(1, 5))):
        buffers = sorted(rng.integers(0, len(storages), int(rng.integers(0, longest + 1))).tolist())
        length = int(rng.integers(1, 17))
        bias = int(rng.integers(0, 8)) if rng.random() < 0.6 else NONE
        tiles.append([out, length, len(steps), len(steps) + len(buffers), bias, NONE])
        scale = NONE
        for b in buffers:
            if rng.random() < 0.6:
                scale = int(rng.integers(0, 20)) if rng.random() < 0.7 else NONE
            own = scale if storages[b] == torch.int8 else NONE
            steps.append([8 * int(rng.integers(0, 7)), 16, 256 * used[b], b, own])
            scales += own != NONE
            used[b] += 1
        out += length

    def numbers(count: int, kind: torch.dtype) -> torch.Tensor:
        if kind == torch.int8:
            return torch.randint(-127, 128, (count,), generator=g, dtype=torch.int8)
        return torch.randn(count, generator=g).to(kind)

    weights = tuple(numbers(256 * max(1, n), s) for n, s in zip(used, storages, strict=True))
    return StepTables(
        torch.tensor(tiles, dtype=torch.int32),
        torch.tensor(steps, dtype=torch.int32).reshape(-1, 5),
        weights,
        torch.randn(24, generator=g),
        16,
        16,
        8,
        (torch.rand(36, generator=g) * 0.02 - 0.01).bfloat16(),
    )


def exact_epilogue(name, x):
    op, attrs = OPS[name]
    return TABLE[op].torch((x,), attrs)


def with_epilogue(tables, epilogue):
    tiles = tables.tiles.clone()
    tiles[:, 5] = NONE if epilogue.name == "none" else 0
    return replace(tables, tiles=tiles)
