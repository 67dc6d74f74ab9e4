"""Whether an ONNX graph is valid by onnx's full check, and answers as `predict` does on the torch backend."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper

from hrt.errors import BackendError, HrtError, InputError
from hrt.model.model import CompressedModel
from hrt.model.rows import in_order

TOLERANCE = 1e-5  # relative; both sides compute the same stored numbers in float32, in another order
# Derivatives amplify rounding, differently in another runtime: d0d1 of the compressed Burgers PINN differs by 5 times
# what float32 costs in torch, measured against float64. They may differ by so many times that.
ROUNDING = 16
BATCHES = (1, 7, 64)  # rows that a graph is checked on
MESSAGE_BYTES = 2_000_000_000  # of weights; one protobuf message holds 2 GiB

Batch = Sequence[np.ndarray]  # one float32 array (batch, *shape) per input, or per output
Run = Callable[[Sequence[Batch]], Sequence[Batch]]  # a runtime: inputs of several batches to their outputs


def check_onnx(
    proto: onnx.ModelProto, model: CompressedModel, inputs: Any = None, *, values: int | None = None
) -> dict[str, float]:
    """The largest relative L2 difference of every output from `predict` in ONNX Runtime (see `compare`).

    Raises HrtError where a graph is refused or an output differs, BackendError where ONNX Runtime is not installed.
    """
    try:
        with _readable(proto) as source:
            onnx.checker.check_model(source, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise HrtError(f"The exported graph is not valid ONNX: {error}") from error
    session = open_runtime(proto)
    types = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in proto.graph.input}

    def run(batches: Sequence[Batch]) -> Sequence[Batch]:
        try:
            return [session.run(None, {k: v.astype(types[k]) for k, v in zip(types, x, strict=True)}) for x in batches]
        except Exception as error:
            raise HrtError(f"ONNX Runtime cannot run the exported graph: {error}") from error

    return compare("ONNX Runtime", run, proto, model, inputs, values=values)


def compare(
    runtime: str, run: Run, proto: onnx.ModelProto, model: CompressedModel, inputs: Any, *, values: int | None = None
) -> dict[str, float]:
    """The largest relative L2 difference from `predict` (on torch) of every output in the runtime that `run` asks, on
    batches of 1, 7 and 64 random rows or on `inputs`.

    values: outputs from that number on are derivatives. These, and values of which a batch differs by more than 1e-5,
    are measured over all batches together, and may differ by ROUNDING times what `predict` differs from float64 by:
    terms cancel near zero. Raises HrtError where shapes differ, or numbers by more than that.
    """
    names = [v.name for v in proto.graph.output]
    values = len(names) if values is None else values
    batches = _samples(model, inputs)
    answers, reference = run(batches), replace(model, backend="torch", device=None)
    expected: list[Batch] = []
    worst = dict.fromkeys(names, 0.0)
    for x, outputs in zip(batches, answers, strict=True):
        predicted = reference.predict(tuple(x))
        expected.append(predicted if isinstance(predicted, tuple) else (predicted,))
        for name, y, e in zip(names, outputs, expected[-1], strict=True):
            if y.shape != e.shape:
                raise HrtError(f"Output {name!r} has shape {y.shape} in {runtime}. Expected {e.shape}.")
            difference = relative(y, e)
            worst[name] = difference if np.isnan(difference) else max(worst[name], difference)
    limits = dict.fromkeys(names, TOLERANCE)
    suspects = [k for k, name in enumerate(names) if k >= values or not worst[name] <= TOLERANCE]
    exact = [model.program.run([torch.from_numpy(v) for v in x]) for x in batches] if suspects else []  # in float64
    for k in suspects:  # at once: rounding is amplified most where results are small, and one row may be such a place
        y, e, truth = (np.concatenate([np.asarray(batch[k]) for batch in side]) for side in (answers, expected, exact))
        worst[names[k]], limits[names[k]] = relative(y, e), max(TOLERANCE, ROUNDING * relative(e, truth))
    bad = {name: value for name, value in worst.items() if not value <= limits[name]}
    if bad:
        allowed = ", ".join(f"{limits[name]:.2g}" for name in bad)
        raise HrtError(f"{runtime} differs from predict by {bad} (relative). Expected at most {allowed}.")
    return worst


def relative(y: np.ndarray, expected: np.ndarray) -> float:
    """||y - expected|| / ||expected|| in float64; the difference alone where `expected` is zero. NaN and infinities
    count as equal where both have the same.
    """
    y, e = y.astype(np.float64), expected.astype(np.float64)
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
    with _readable(proto) as source:
        graph = source if isinstance(source, str) else source.SerializeToString()
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def fits_one_message(proto: onnx.ModelProto) -> bool:
    """Whether a graph can be one file. Not asked of protobuf, which would serialize it, and fails above 2 GiB."""
    return sum(len(t.raw_data) for t in proto.graph.initializer) <= MESSAGE_BYTES


@contextmanager
def _readable(proto: onnx.ModelProto | str) -> Iterator[onnx.ModelProto | str]:
    """`proto`, or the path of a file with its weights beside it where one message cannot hold them."""
    if isinstance(proto, str) or fits_one_message(proto):
        yield proto
        return
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)  # what is saved so loses its weights
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model.onnx"))
        onnx.save(whole, path, save_as_external_data=True, location="model.data")
        yield path


def _samples(model: CompressedModel, inputs: Any = None) -> list[list[np.ndarray]]:
    """`inputs` as one float32 batch, or random ones of 1, 7 and 64 rows in (0, 1)."""
    if inputs is not None:
        given = in_order(model.program, inputs)
        try:
            rows = [np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, dtype=np.float32) for v in given]
        except (TypeError, ValueError) as error:
            raise InputError(f"Found inputs that are no numbers: {error}. Expected rows.") from error
        if any(not len(np.atleast_1d(v)) or not np.isfinite(v).all() for v in rows):
            raise InputError("Found no rows, or NaN or infinite inputs. Expected rows that tell right from wrong.")
        return [rows]
    g = torch.Generator().manual_seed(0)
    kinds, shapes = [v.kind for v in model.program.inputs], [v.shape for v in model.program.inputs]
    rows = [[torch.rand(b, *s, generator=g) for s in shapes] for b in BATCHES]
    return [[(x if kind == "float" else x.round()).numpy() for x, kind in zip(r, kinds, strict=True)] for r in rows]
