"""What cannot be served so is refused before anything is loaded."""

import pytest

import hrt
from hrt.export.servers.server_files import Settings

MISTAKES = [
    ({"name": ""}, "name ''"),
    ({"name": "."}, "name '.'"),
    ({"name": ".."}, r"name '\.\.'"),
    ({"name": "a/b"}, "name 'a/b'"),
    ({"name": "a\\b"}, "name"),
    ({"name": "../up"}, "name"),
    ({"name": "/tmp/x"}, "name"),
    ({"name": "a\0b"}, "name"),
    ({"name": "a b"}, "name"),
    ({"name": ".hidden"}, "name"),
    ({"name": "a" * 129}, "name"),
    ({"name": "name\n"}, "name"),
    ({"name": 5}, "name 5"),
    ({"server": "bentoml"}, "server 'bentoml'. Expected one of triton, mlserver, ray"),
    ({"server": None}, "server None"),
    ({"backend": "tensorflow"}, "backend 'tensorflow' for triton"),
    ({"server": "ray", "backend": "onnxruntime"}, "backend 'onnxruntime' for ray"),
    ({"max_batch": 0}, "max_batch 0"),
    ({"max_batch": 2.5}, "max_batch 2.5"),
    ({"instances": -1}, "instances -1"),
    ({"instances": True}, "instances True"),
    ({"device": "tpu"}, "device 'tpu'"),
    ({"server": "mlserver", "device": "gpu"}, "device 'gpu' for mlserver"),
    ({"accelerator": "openvino", "device": "gpu"}, "accelerator 'openvino'"),
    ({"accelerator": "tensorrt"}, "accelerator 'tensorrt'"),
    ({"accelerator": "tensorrt", "device": "gpu", "backend": "hrt"}, "accelerator 'tensorrt'"),
]


@pytest.mark.parametrize("options, message", MISTAKES, ids=[repr(o) for o, _ in MISTAKES])
def test_what_is_refused(options, message):
    with pytest.raises(hrt.InputError, match=message):
        Settings(**{"name": "m", **options})


LEFT_OPEN = [
    ("triton", "cuda", "onnxruntime", "gpu"),
    ("triton", "bytes", "onnxruntime", "cpu"),
    ("ray", "cuda", "hrt", "cpu"),
]


@pytest.mark.parametrize("server, target, backend, device", LEFT_OPEN)
def test_what_is_left_open_follows_the_network(server, target, backend, device):
    settings = Settings("m", server).resolved(target)
    assert (settings.backend, settings.device) == (backend, device)
    assert Settings("m", backend="hrt", device="cpu").resolved(target).device == "cpu"
