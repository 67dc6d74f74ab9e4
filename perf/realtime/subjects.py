"""Who is asked by the clock: hrt and the dense network in two runtimes, each checked before it is timed."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

import hrt
from hrt.errors import InputError
from hrt.perf.networks.as_torch_module import written_out
from hrt.program.program import Program

OURS = "hrt"
KINDS = 16  # inputs that requests take in turn
AGREEMENT = 1e-4  # relative: dense multiplied out from the file, beside predict
Call = Callable[[int], object]


def questions(program: Program, batch: int, rows: np.ndarray | None = None) -> list[tuple[np.ndarray, ...]]:
    """KINDS requests of `batch` float32 rows: random ones in (0, 1), or from `rows` in turn."""
    generator = np.random.default_rng(0)
    if rows is None:
        return [tuple(generator.random((batch, *v.shape), np.float32) for v in program.inputs) for _ in range(KINDS)]
    if len(program.inputs) != 1 or not len(rows):
        raise InputError(f"Found one array of {len(rows)} rows for {len(program.inputs)} inputs. Expected one input.")
    program.check_inputs([rows])
    with np.errstate(over="ignore"):  # refused below
        rows = np.asarray(rows, np.float32)
    bad = int((~np.isfinite(rows).reshape(len(rows), -1).all(1)).sum())
    if bad:
        raise InputError(f"Found NaN or infinity (in float32) in {bad} of {len(rows)} rows. Expected finite numbers.")
    picks = (np.arange(k * batch, (k + 1) * batch) % len(rows) for k in range(KINDS))
    return [(np.ascontiguousarray(rows[p]),) for p in picks]


def in_process(model: hrt.CompressedModel, asked: Sequence[tuple[np.ndarray, ...]], threads: int) -> dict[str, Call]:
    """hrt and the dense forms by name, each checked on the first request."""
    from hrt.export.onnx.check import open_runtime, relative
    from hrt.export.onnx.exporter import graph_of

    dense = written_out(model.program)
    eager = straight_line(dense)
    runtime = open_runtime(graph_of(dense), threads)
    names = [v.name for v in runtime.get_inputs()]
    feeds = [dict(zip(names, x, strict=True)) for x in asked]
    tensors = [tuple(map(torch.from_numpy, x)) for x in asked]
    arrays: list[Any] = [x[0] if len(x) == 1 else x for x in asked]
    calls: dict[str, Call] = {
        OURS: lambda k: model.predict(arrays[k % KINDS]),
        "dense, ONNX Runtime": lambda k: runtime.run(None, feeds[k % KINDS]),
        "dense, torch eager": lambda k: eager(*tensors[k % KINDS]),
    }
    with torch.no_grad():
        ours = _first(calls[OURS](0))
        for name, call in calls.items():
            answer = _first(call(0))
            difference = relative(answer, ours) if answer.shape == ours.shape else float("inf")
            if not difference <= AGREEMENT:
                raise InputError(f"{name} differs from predict by {difference:.2g}. Expected at most {AGREEMENT:g}.")
    return calls


def straight_line(program: Program) -> Callable[..., Any]:
    """Torch eager without what nn.Module adds: the ops one after the other, constants ready in float32."""
    constants = {k: c.float() if isinstance(c, torch.Tensor) else c for k, c in program.constants.items()}

    def run(*tensors: torch.Tensor) -> Any:
        return program.run(tensors, dtype=torch.float32, constants=constants)

    return run


def _first(outputs: Any) -> np.ndarray:
    y = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    return y.numpy() if isinstance(y, torch.Tensor) else y
