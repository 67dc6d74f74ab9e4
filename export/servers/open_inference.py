"""The Open Inference Protocol (v2) over HTTP, tensors as JSON or, by the binary extension, as bytes behind the JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrt.errors import InputError

HEADER = "Inference-Header-Content-Length"  # bytes of JSON before the tensors' bytes


@dataclass(frozen=True)
class Tensor:
    """A float32 input or output as servers name it; `shape` of one sample, without the batch."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a network, in the order of `predict`."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def described(self) -> dict[str, Any]:
        return {
            side: [{"name": t.name, "datatype": "FP32", "shape": [-1, *t.shape]} for t in tensors]
            for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
        }


@dataclass(frozen=True)
class Request:
    """inputs: float32 (rows, *shape), in the signature's order.  outputs: wanted names, each with whether as bytes."""

    id: str | None
    inputs: tuple[np.ndarray, ...]
    outputs: Mapping[str, bool]


def read_request(body: bytes, json_length: str | None, signature: Signature) -> Request:
    """The request in a POST's body. json_length: the binary extension's header. Raises InputError for any other."""
    length = str(len(body)) if json_length is None else json_length
    if not length.isascii() or not length.isdigit() or int(length) > len(body):
        raise InputError(f"Found {HEADER} {length!r}. Expected at most {len(body)}, the bytes of the body.")
    start = int(length)
    try:
        asked = json.loads(body[:start])
    except (ValueError, RecursionError) as error:
        raise InputError(f"Found a body that is not JSON: {error}. Expected an inference request.") from error
    given = asked.get("inputs") if isinstance(asked, dict) else None
    if not isinstance(given, list) or not all(isinstance(t, dict) for t in given):
        raise InputError("Found no list of inputs. Expected {'inputs': [{'name', 'shape', 'datatype', 'data'}, ...]}.")
    names, expected = [t.get("name") for t in given], [t.name for t in signature.inputs]
    if sorted(map(str, names)) != sorted(expected):
        raise InputError(f"Found inputs {names}. Expected {expected}, each once.")
    arrays = {}
    for tensor, name in zip(given, names, strict=True):
        size = _parameters(tensor).get("binary_data_size")
        if size is None:
            data = tensor.get("data")
        else:
            if not isinstance(size, int) or not 0 <= size <= len(body) - start:
                raise InputError(f"Input {name!r}: found binary_data_size {size!r}. Expected bytes that were sent.")
            data, start = body[start : start + size], start + size
        arrays[name] = _array(tensor, data, next(t for t in signature.inputs if t.name == name))
    if start != len(body):
        raise InputError(f"Found {len(body) - start} bytes behind the tensors. Expected none.")
    inputs = tuple(arrays[name] for name in expected)
    if len({len(x) for x in inputs}) > 1:
        raise InputError(f"Found batch sizes {[len(x) for x in inputs]}. Expected one for all inputs.")
    identifier = asked.get("id")
    return Request(None if identifier is None else str(identifier), inputs, _wanted(asked, signature))


def write_response(
    name: str, request: Request, outputs: Sequence[np.ndarray], signature: Signature
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of the answer. outputs: float32 (rows, *shape), in the signature's order."""
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for tensor, y in zip(signature.outputs, outputs, strict=True):
        if tensor.name not in request.outputs:
            continue
        entry: dict[str, Any] = {"name": tensor.name, "datatype": "FP32", "shape": list(y.shape)}
        if request.outputs[tensor.name]:
            parts.append(np.ascontiguousarray(y, dtype="<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = np.asarray(y, dtype=np.float32).reshape(-1).tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    text = json.dumps(answer).encode()
    if not parts:
        return text, {"Content-Type": "application/json"}
    return text + b"".join(parts), {"Content-Type": "application/octet-stream", HEADER: str(len(text))}


def metadata(name: str, signature: Signature) -> dict[str, Any]:
    """What GET /v2/models/<name> answers."""
    return {"name": name, "versions": ["1"], "platform": "hrt", **signature.described()}


def _parameters(value: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InputError(f"Found parameters {parameters!r}. Expected an object.")
    return parameters


def _array(tensor: Mapping[str, Any], data: Any, wanted: Tensor) -> np.ndarray:
    where, shape = f"Input {wanted.name!r}", tensor.get("shape")
    if tensor.get("datatype") != "FP32":
        raise InputError(f"{where}: found datatype {tensor.get('datatype')!r}. Expected 'FP32'.")
    sizes = shape if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) else []
    if not sizes or tuple(sizes[1:]) != wanted.shape:
        raise InputError(f"{where}: found shape {shape}. Expected ({', '.join(map(str, ('batch', *wanted.shape)))}).")
    try:
        if isinstance(data, bytes):
            values = np.frombuffer(data, dtype="<f4")
        else:
            values = np.asarray(data if isinstance(data, list) else None, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: found data that are no numbers: {error}. Expected FP32.") from error
    if values.size != math.prod(sizes):
        raise InputError(f"{where}: found {values.size} numbers. Expected {math.prod(sizes)}, as its shape says.")
    return values.astype(np.float32, copy=False).reshape(sizes)


def _wanted(asked: Mapping[str, Any], signature: Signature) -> dict[str, bool]:
    bytes_by_default = bool(_parameters(asked).get("binary_data_output", False))
    names = [t.name for t in signature.outputs]
    given = asked.get("outputs")
    if not given:
        return dict.fromkeys(names, bytes_by_default)
    if not isinstance(given, list) or not all(isinstance(t, dict) and t.get("name") in names for t in given):
        raise InputError(f"Found outputs {given!r}. Expected some of {names}.")
    return {t["name"]: bool(_parameters(t).get("binary_data", bytes_by_default)) for t in given}
