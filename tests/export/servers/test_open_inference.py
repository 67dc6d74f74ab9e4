"""The Open Inference Protocol as tritonclient speaks it, and whatever else may arrive at a port."""

import json

import numpy as np
import pytest
import tritonclient.http as client
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt.errors import InputError
from hrt.export.servers.open_inference import HEADER, Signature, Tensor, metadata, read_request, write_response

SIGNATURE = Signature((Tensor("x", (3,)), Tensor("z", (2, 2))), (Tensor("y", (5,)), Tensor("w", ())))


def body(rows: int, binary: bool, outputs=None, seed: int = 0, order=("x", "z")):
    g = np.random.default_rng(seed)
    arrays = {t.name: g.standard_normal((rows, *t.shape), dtype=np.float32) for t in SIGNATURE.inputs}
    tensors = []
    for name in order:
        tensors.append(client.InferInput(name, list(arrays[name].shape), "FP32"))
        tensors[-1].set_data_from_numpy(arrays[name], binary_data=binary)
    text, length = client.InferenceServerClient.generate_request_body(tensors, outputs=outputs, request_id="7")
    return arrays, text, None if length is None else str(length)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("order", [("x", "z"), ("z", "x")])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_requests_of_tritonclient(rows, order, binary):
    arrays, text, length = body(rows, binary, order=order)
    assert (length is not None) == binary
    request = read_request(text, length, SIGNATURE)
    assert request.id == "7" and set(request.outputs) == {"y", "w"}
    for x, t in zip(request.inputs, SIGNATURE.inputs, strict=True):
        assert x.dtype == np.float32 and x.shape == (rows, *t.shape) and np.array_equal(x, arrays[t.name])


@pytest.mark.parametrize("wanted", [{"y": True}, {"y": False, "w": True}, {"w": False}, None])
def test_answers_are_read_by_tritonclient(wanted):
    outputs = wanted and [client.InferRequestedOutput(n, binary_data=b) for n, b in wanted.items()]
    _, text, length = body(3, True, outputs)
    request = read_request(text, length, SIGNATURE)
    assert request.outputs == (wanted or {"y": True, "w": True}), "without a list tritonclient wants bytes"
    g = np.random.default_rng(1)
    answers = [g.standard_normal((3, *t.shape)).astype(np.float32) for t in SIGNATURE.outputs]
    answer, headers = write_response("m", request, answers, SIGNATURE)
    length = headers.get(HEADER)
    found = client.InferResult.from_response_body(answer, header_length=None if length is None else int(length))
    for t, y in zip(SIGNATURE.outputs, answers, strict=True):
        if t.name in request.outputs:
            assert np.array_equal(found.as_numpy(t.name), y)
        else:
            assert found.as_numpy(t.name) is None
    assert found.get_response()["id"] == "7" and found.get_response()["model_name"] == "m"


def test_metadata():
    found = metadata("m", SIGNATURE)
    assert found["inputs"][1] == {"name": "z", "datatype": "FP32", "shape": [-1, 2, 2]}
    assert found["outputs"][1] == {"name": "w", "datatype": "FP32", "shape": [-1]}


def plain(**changes):
    x = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    z = {"name": "z", "shape": [1, 2, 2], "datatype": "FP32", "data": [[[1, 2], [3, 4]]]}
    return {"inputs": [{**x, **changes}, z]}


@pytest.mark.parametrize(
    "asked, message",
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "no list of inputs"),
        ({}, "no list of inputs"),
        ({"inputs": [1]}, "no list of inputs"),
        ({"inputs": plain()["inputs"][:1]}, "Expected .'x', 'z'., each once"),
        ({"inputs": plain()["inputs"][:1] * 2}, "each once"),
        ({"inputs": [*plain()["inputs"], {"name": "x"}]}, "each once"),
        (plain(datatype="FP64"), "datatype 'FP64'. Expected 'FP32'"),
        (plain(shape=[1, 4]), r"found shape \[1, 4\]. Expected \(batch, 3\)"),
        (plain(shape=[3]), "found shape"),
        (plain(shape=[-1, 3]), "found shape"),
        (plain(shape=[True, 3]), "found shape"),
        (plain(shape="1, 3"), "found shape"),
        (plain(shape=[2, 3]), "found 3 numbers. Expected 6"),
        (plain(shape=[10**30, 3]), "found 3 numbers"),
        (plain(data=[1, 2]), "found 2 numbers"),
        (plain(data=["a", 2, 3]), "no numbers"),
        (plain(data=[[1, 2], 3]), "no numbers"),
        (plain(data=None), "found 1 numbers"),
        (plain(data="123"), "found 1 numbers"),
        (plain(shape=[2, 3], data=[0] * 6), "batch sizes"),
        (plain(parameters={"binary_data_size": 12}), "binary_data_size 12"),
        (plain(parameters={"binary_data_size": -4}), "binary_data_size -4"),
        (plain(parameters={"binary_data_size": "4"}), "binary_data_size '4'"),
        (plain(parameters=3), "Found parameters 3"),
        ({**plain(), "outputs": [{"name": "nothing"}]}, "Found outputs"),
        ({**plain(), "outputs": "y"}, "Found outputs"),
    ],
)
def test_what_is_refused(asked, message):
    text = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    with pytest.raises(InputError, match=message):
        read_request(text, None, SIGNATURE)


@pytest.mark.parametrize("length", ["-1", "x", "", "99999", "²", "1e2"])
def test_a_length_that_makes_no_sense(length):
    _, text, _ = body(1, True)
    with pytest.raises(InputError, match="Inference-Header-Content-Length"):
        read_request(text, length, SIGNATURE)


def test_bytes_that_belong_to_nothing():
    _, text, length = body(1, True)
    with pytest.raises(InputError, match="4 bytes behind the tensors"):
        read_request(text + b"1234", length, SIGNATURE)
    with pytest.raises(InputError, match="binary_data_size"):
        read_request(text[:-4], length, SIGNATURE)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_requests_are_refused_or_read_never_worse(data):
    _, text, length = body(2, data.draw(st.booleans()))
    damaged = bytearray(text)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        request = read_request(bytes(damaged), length, SIGNATURE)
    except InputError:
        return
    for x, t in zip(request.inputs, SIGNATURE.inputs, strict=True):
        assert x.dtype == np.float32 and x.shape[1:] == t.shape
