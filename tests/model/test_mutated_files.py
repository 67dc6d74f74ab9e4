"""Damaged and forged .hrt files: a typed error, or the answer of the network that the file now describes."""

import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import hrt
from hrt.certificate.certificate import Certificate
from hrt.model.model import CompressedModel

from helpers import hierarchical
from models import file_bytes, many_bytes, mixed_bytes, resealed, small_bytes
from mutations import change_bytes, change_json, worst
from zoo import captured

NETWORKS = ("RMSNormalized", "SetNetwork", "GridMixing", "PODDeepONet", "Steps", "Shapes", "Ensemble", "mlp_elu_alpha")


@cache
def originals() -> tuple[bytes, ...]:
    models = [
        CompressedModel(hierarchical(captured(name), seed=1), Certificate(1e-3, "layers", ())) for name in NETWORKS
    ]
    return (mixed_bytes(), small_bytes(), many_bytes(), *map(file_bytes, models))


def damaged(chance: random.Random) -> bytes:
    """A third as it comes, the rest with a checksum that is right."""
    data = chance.choice(originals())
    kind = chance.randrange(6)
    if kind < 2:
        return change_bytes(data, chance)
    if kind == 2:
        return resealed(data, lambda table, header: change_json(table, chance))
    if kind == 3:

        def turn(numbers: bytearray) -> None:
            if numbers:
                numbers[:] = change_bytes(bytes(numbers), chance)

        return resealed(data, lambda table, header: None, turn)
    return resealed(data, lambda table, header: change_json(header, chance))


def judged(path: Path) -> str:
    backend = "torch" if path.stat().st_size % 2 else "onnxruntime"
    try:
        model = hrt.load(path, backend=backend)
    except hrt.HrtError as error:
        assert str(path) in str(error), error
        return "refused"
    model.report()
    generator = np.random.default_rng(0)
    x = tuple(generator.standard_normal((3, *v.shape)).astype(np.float32) for v in model.program.inputs)
    answers = model.predict(x)
    answers = answers if isinstance(answers, tuple) else (answers,)
    rows = [torch.from_numpy(v) for v in x]
    with torch.no_grad():
        exact, single = model.program.run(rows), model.program.run(rows, dtype=torch.float32)
    for a, b, c in zip(answers, exact, single, strict=True):
        if not bool(torch.isfinite(c).all()):  # weights of 1e38: float32 overflows, in one order of sums or another
            continue
        # a sine of 1e9 has no digits in float32: plain float32 arithmetic says how far off one may be
        limit = 1e-4 * max(1.0, float(b.abs().max()) if b.numel() else 0.0) + 100 * (b - c).abs()
        assert bool((np.abs(a - b.numpy()) <= limit.numpy()).all()), "another answer"
    return "answers"


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_damaged_file_is_refused_or_answers(count, tmp_path):
    print(worst(count, damaged, judged, tmp_path / "m.hrt"))
