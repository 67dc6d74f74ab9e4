"""Whether an ONNX graph is what it should be: onnx's own full check, then ONNX Runtime beside `predict` on the torch
backend, whose arithmetic is another.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from hrt.errors import BackendError, HrtError, InputError
from hrt.model.model import CompressedModel

TOLERANCE = 1e-5  # relative; both sides compute the same stored numbers in float32, in another order
# Derivatives amplify rounding, differently in another runtime: d0d1 of the compressed Burgers PINN differs by 5 times
# what float32 costs in torch, measured against float64. They may differ by so many times that.
ROUNDING = 16
BATCHES = (1, 7, 64)
ROOM = 1_900_000_000  # bytes of a graph that fits one message

Run = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]


def check_onnx(
    proto: onnx.ModelProto, model: CompressedModel, inputs: Any = None, *, values: int | None = None
) -> dict[str, float]:
    """The largest relative L2 difference of every output from `predict`, on batches of 1, 7 and 64 rows or on `inputs`.

    values: how many of the outputs are values; those behind them are derivatives (see `compare`). Raises HrtError where
    onnx or ONNX Runtime refuses the graph or an output differs by more than 1e-5, BackendError where ONNX Runtime is
    not installed.
    """
    try:
        onnx.checker.check_model(proto, full_check=proto.ByteSize() < ROOM)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise HrtError(f"The exported graph is not valid ONNX: {error}") from error
    session = open_runtime(proto)
    names = [v.name for v in proto.graph.input]

    def run(x: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            return session.run(None, dict(zip(names, x, strict=True)))
        except Exception as error:
            raise HrtError(f"ONNX Runtime cannot run the exported graph: {error}") from error

    outputs = [v.name for v in proto.graph.output]
    return compare("ONNX Runtime", run, outputs, model, samples(model, inputs), values=values)


def compare(
    runtime: str,
    run: Run,
    outputs: Sequence[str],
    model: CompressedModel,
    batches: Sequence[Sequence[np.ndarray]],
    *,
    values: int | None = None,
) -> dict[str, float]:
    """The largest relative L2 difference from `predict` of every output (by name) over float32 batches.

    `predict` is asked on the torch backend, lest ONNX Runtime be compared with itself.  run: float32 inputs to outputs,
    in a runtime called `runtime`.  values: outputs from that number on are derivatives. These, and values of which some
    batch differs by more than 1e-5, are measured over all batches together and may differ by ROUNDING times what
    `predict` itself differs from float64 by, where that is more than 1e-5: terms cancel where a result is near zero.
    Raises HrtError where shapes differ, or more than that.
    """
    values = len(outputs) if values is None else values
    worst = dict.fromkeys(outputs, 0.0)
    reference = replace(model, backend="torch", device=None)
    answers = []
    for x in batches:
        expected = reference.predict(tuple(x))
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = run(x)
        for name, y, e in zip(outputs, found, expected, strict=True):
            if y.shape != e.shape:
                raise HrtError(f"Output {name!r} has shape {y.shape} in {runtime}. Expected {e.shape}.")
            difference = relative(y, e)
            worst[name] = difference if np.isnan(difference) else max(worst[name], difference)
        answers.append((found, expected, x))
    limits = dict.fromkeys(outputs, TOLERANCE)
    suspects = [k for k, name in enumerate(outputs) if k >= values or not worst[name] <= TOLERANCE]
    exact = [model.program.run([torch.from_numpy(v) for v in x]) for *_, x in answers] if suspects else []
    for k in suspects:
        worst[outputs[k]], limits[outputs[k]] = _together(k, answers, exact)
    bad = {name: value for name, value in worst.items() if not value <= limits[name]}
    if bad:
        allowed = ", ".join(f"{limits[name]:.2g}" for name in bad)
        raise HrtError(f"{runtime} differs from predict by {bad} (relative). Expected at most {allowed}.")
    return worst


def _together(k: int, answers: Sequence[tuple[Any, Any, Any]], exact: Sequence[Any]) -> tuple[float, float]:
    """What output k differs by, and what it may, over all (found, expected, inputs) at once: rounding is amplified most
    where results are small, and a batch of one row may be such a place. exact: in float64.
    """
    found, expected = (np.concatenate([a[side][k] for a in answers]) for side in (0, 1))
    truth = np.concatenate([y[k].numpy() for y in exact])
    return relative(found, expected), max(TOLERANCE, ROUNDING * relative(expected, truth))


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """||found - expected|| / ||expected|| in float64; the difference alone where `expected` is zero.

    Numbers that are not finite count as equal where both have the same one, and make the result NaN or inf where not.
    """
    y, e = found.astype(np.float64), expected.astype(np.float64)
    same = (y == e) | (np.isnan(y) & np.isnan(e))
    size = float(np.linalg.norm(e[np.isfinite(e)]))
    with np.errstate(invalid="ignore"):
        difference = float(np.linalg.norm((y - e)[~same]))
    return difference / size if size else difference


def open_runtime(proto: onnx.ModelProto | str, threads: int | None = None) -> Any:
    """An ONNX Runtime session on the CPU. Raises BackendError where ONNX Runtime is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError("ONNX Runtime is not installed. Install it: pip install onnxruntime.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = ["CPUExecutionProvider"]
    if isinstance(proto, str):
        return onnxruntime.InferenceSession(proto, options, providers=providers)
    if proto.ByteSize() < ROOM:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as folder:
        path = os.fspath(Path(folder) / "model.onnx")
        onnx.save(proto, path, save_as_external_data=True, location="model.data")
        return onnxruntime.InferenceSession(path, options, providers=providers)


def samples(model: CompressedModel, inputs: Any = None) -> list[list[np.ndarray]]:
    """`inputs` as one float32 batch, or random ones of 1, 7 and 64 rows in (0, 1)."""
    if inputs is not None:
        given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
        try:
            rows = [np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, dtype=np.float32) for v in given]
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Found inputs that are no numbers: {error}. Expected rows, as predict takes them."
            ) from error
        if any(not len(np.atleast_1d(v)) or not np.isfinite(v).all() for v in rows):
            raise InputError(
                "Found no rows, or NaN or infinite inputs. Expected rows that tell a right graph from a wrong one."
            )
        return [rows]
    g = torch.Generator().manual_seed(0)
    shapes = [v.shape for v in model.program.inputs]
    return [[torch.rand(b, *s, generator=g).numpy() for s in shapes] for b in BATCHES]
