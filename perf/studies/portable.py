"""One compressed network in every runtime that reads its ONNX file: does each answer as `predict` does, as the dense
network does, and what do its bytes go to.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

import hrt
from hrt.errors import BackendError
from hrt.export.onnx.check import open_runtime, relative
from hrt.export.other_runtimes.openvino import open_openvino
from hrt.export.other_runtimes.web import WebJob, run_web

BATCHES = (1, 7, 1024)
AGREEMENT = 1e-5  # relative; every runtime computes the same stored numbers in float32, in another order
BYTES = 1.10  # .onnx over .hrt
FRESH = 4096  # rows that the certificate of an output is judged on

Arrays = tuple[np.ndarray, ...]
Batches = Sequence[Arrays]
Answers = list[list[np.ndarray]]  # per batch, all outputs


@dataclass(frozen=True)
class Network:
    """What is compressed and how it is judged.

    source: nn.Module or path of an .onnx file.  calibration: `inputs` of hrt.compress; None bounds the weights instead.
    rows(count, seed): float32 inputs as the network is used on.  dense: float32 inputs to the outputs of the network as
    its authors have it.  note: what to know about it, in a few words.
    """

    source: object
    calibration: object
    rows: Callable[[int, int], Arrays]
    dense: Callable[[Arrays], Sequence[np.ndarray]]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """All figures of one network in one storage.

    agreement: relative L2 difference from `predict`, by runtime and batch, the worst output.  error: from the dense
    network, by runtime, as the certificate counts it.  missing: why a runtime was not asked.  refused: why it did not
    take the graph.  parts: what the bytes of the .onnx file go to.
    """

    network: str
    storage: str
    tol: float
    promise: str
    dense_nbytes: int
    nbytes: int
    hrt_bytes: int
    hrt_header: int
    onnx_bytes: int
    parts: Mapping[str, int]
    valid: str
    agreement: Mapping[str, Mapping[int, float]]
    error: Mapping[str, float]
    missing: Mapping[str, str]
    refused: Mapping[str, str]
    default_precision: str
    seconds: float
    note: str = ""
    nodes: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes_ratio(self) -> float:
        """Bytes of the .onnx file over those of the .hrt file."""
        return self.onnx_bytes / self.hrt_bytes

    def worst(self, runtime: str) -> float:
        """The largest difference from `predict` of any batch; NaN where one is."""
        return float(np.max(list(self.agreement[runtime].values())))

    def faults(self) -> list[str]:
        """What broke a promise; empty where all hold. OpenVINO's default arithmetic is shown, not promised."""
        where = f"{self.network}, {self.storage}"
        found = [] if self.valid == "yes" else [f"{where}: not valid ONNX: {self.valid}"]
        found += [f"{where}: {why}" for why in self.refused.values()]
        for runtime in self.agreement:
            if runtime != DEFAULT and not self.worst(runtime) <= AGREEMENT:
                found.append(
                    f"{where}: {runtime} differs from predict by {self.worst(runtime):.2e}, limit {AGREEMENT:g}"
                )
        for runtime, value in self.error.items():
            if runtime != DEFAULT and not value <= self.tol:
                found.append(f"{where}: {runtime} differs from the dense network by {value:.2e}, limit {self.tol:g}")
        return found


ORT, OPENVINO, DEFAULT, WEB = "onnxruntime", "openvino f32", "openvino default", "onnxruntime-web"


def _onnxruntime(proto: onnx.ModelProto, batches: Batches) -> Answers:
    names = [v.name for v in proto.graph.input]
    try:
        session = open_runtime(proto, threads=torch.get_num_threads())
        return [session.run(None, dict(zip(names, x, strict=True))) for x in batches]
    except BackendError:
        raise
    except Exception as error:
        raise hrt.HrtError(f"ONNX Runtime cannot run the exported graph: {error}") from error


def _openvino(proto: onnx.ModelProto, batches: Batches) -> Answers:
    session = open_openvino(proto, threads=torch.get_num_threads())
    return [session.run(x) for x in batches]


def _openvino_default(proto: onnx.ModelProto, batches: Batches) -> Answers:
    session = open_openvino(proto, default=True, threads=torch.get_num_threads())
    return [session.run(x) for x in batches]


def _web(proto: onnx.ModelProto, batches: Batches) -> Answers:
    (found,) = run_web([WebJob(proto, batches)])
    if isinstance(found, hrt.HrtError):
        raise found
    return found


RUNTIMES: Mapping[str, Callable[[onnx.ModelProto, Batches], Answers]] = {
    ORT: _onnxruntime,
    OPENVINO: _openvino,
    DEFAULT: _openvino_default,
    WEB: _web,
}


def measure(
    name: str,
    network: Network,
    storage: str,
    tol: float,
    folder: Path,
    on_stage: Callable[[str], None] = lambda text: None,
) -> Row:
    """Compress, save, export to `folder`, and ask every runtime. Files stay there. on_stage(text): what comes next."""
    start = time.perf_counter()
    on_stage("compress")
    made = hrt.compress(network.source, inputs=network.calibration, tol=tol, storage=storage, progress=False)
    seconds = time.perf_counter() - start
    stem = folder / f"{name}-{storage}"
    made.save(stem.with_suffix(".hrt"))
    on_stage("export")
    hrt.export_onnx(stem.with_suffix(".hrt"), stem.with_suffix(".onnx"), check=False)  # judged below, not refused
    proto = onnx.load(stem.with_suffix(".onnx"))
    model = hrt.load(stem.with_suffix(".hrt"), backend="torch")
    fresh = _telling(model, network.rows(max(BATCHES), 77))
    batches: list[Arrays] = [tuple(x[:b] for x in fresh) for b in BATCHES]
    judged = _judged(network, model)
    expected = [_predicted(model, x) for x in batches]
    dense = network.dense(judged)
    agreement: dict[str, dict[int, float]] = {}
    errors = {"predict": _together(_predicted(model, judged), dense)}
    missing: dict[str, str] = {}
    refused: dict[str, str] = {}
    for runtime, run in RUNTIMES.items():
        on_stage(runtime)
        try:
            found = run(proto, [*batches, judged])
        except BackendError as error:
            missing[runtime] = str(error)
            continue
        except hrt.HrtError as error:
            refused[runtime] = str(error)
            continue
        agreement[runtime] = {
            b: float(np.max([relative(y, e) for y, e in zip(ys, es, strict=True)]))
            for b, ys, es in zip(BATCHES, found, expected, strict=False)
        }
        errors[runtime] = _together(found[-1], dense)
    return Row(
        network=name,
        storage=storage,
        tol=tol,
        promise=made.certificate.kind,
        dense_nbytes=made.dense_nbytes,
        nbytes=made.nbytes,
        hrt_bytes=os.path.getsize(stem.with_suffix(".hrt")),
        hrt_header=8 + int.from_bytes(stem.with_suffix(".hrt").read_bytes()[:8], "little"),
        onnx_bytes=os.path.getsize(stem.with_suffix(".onnx")),
        parts=parts_of(proto),
        valid=_valid(proto),
        agreement=agreement,
        error=errors,
        missing=missing,
        refused=refused,
        default_precision=open_openvino(proto, default=True).precision if DEFAULT in errors else "-",
        seconds=seconds,
        note=network.note,
        nodes=dict(Counter(n.op_type for n in proto.graph.node).most_common()),
    )


def parts_of(proto: onnx.ModelProto) -> dict[str, int]:
    """What the bytes of a graph go to; the values sum to its size.

    numbers: weights and biases as stored.  integers: slices' bounds, sizes, orderings.  tensor overhead: names, types
    and dimensions of constants.  node names: the strings in nodes that only name values and nodes.  node overhead: the
    rest of the nodes.  certificate: metadata.  other: inputs, outputs, versions and message framing.
    """
    tensors, nodes = proto.graph.initializer, proto.graph.node
    raw = {t.name: len(t.raw_data) for t in tensors}
    integers = sum(raw[t.name] for t in tensors if t.data_type == onnx.TensorProto.INT64)
    names = sum(len(s.encode()) for n in nodes for s in (n.name, *n.input, *n.output))
    found = {
        "numbers": sum(raw.values()) - integers,
        "integers": integers,
        "tensor overhead": sum(_framed(t) - len(t.raw_data) for t in tensors),
        "node names": names,
        "node overhead": sum(_framed(n) for n in nodes) - names,
        "certificate": sum(_framed(p) for p in proto.metadata_props),
    }
    return found | {"other": proto.ByteSize() - sum(found.values())}


def _framed(message: onnx.TensorProto | onnx.NodeProto | onnx.StringStringEntryProto) -> int:
    """Bytes of a repeated field's entry: tag, length, content."""
    size = message.ByteSize()
    return 1 + max(1, -(-size.bit_length() // 7)) + size


def _valid(proto: onnx.ModelProto) -> str:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).strip().partition("\n")[0]
    return "yes"


def _telling(model: hrt.CompressedModel, x: Arrays) -> Arrays:
    """The same rows, those with the fewest outputs of exactly zero first (a clipped flux agrees with anything)."""
    zeros = sum((y.reshape(len(y), -1) == 0).sum(1) for y in _predicted(model, x))
    order = np.argsort(zeros, kind="stable")
    return tuple(a[order] for a in x)


def _judged(network: Network, model: hrt.CompressedModel) -> Arrays:
    """Rows on which the certificate's own quantity can be seen: fresh ones for an output's error, all unit vectors for
    a weight's Frobenius error (the outputs are then the columns of the weight, whatever computed them).
    """
    if model.certificate.kind == "output":
        return network.rows(FRESH, 2024)
    (value,) = model.program.inputs
    return (np.eye(value.shape[0], dtype=np.float32),)


def _predicted(model: hrt.CompressedModel, x: Arrays) -> list[np.ndarray]:
    found = model.predict(x)
    return [np.asarray(y) for y in (found if isinstance(found, tuple) else (found,))]


def _together(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Relative L2 difference of all outputs together, as the certificate counts."""
    y, e = (np.concatenate([np.asarray(a).reshape(-1) for a in arrays]) for arrays in (found, expected))
    return relative(y, e)


def as_arrays(*tensors: Tensor) -> Arrays:
    """Tensors as float32 arrays."""
    return tuple(t.detach().float().numpy() for t in tensors)
