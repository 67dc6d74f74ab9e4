"""A .pt2 file of a stranger: what could run code is refused or left out, and networks come back as they were."""

import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hrt.capture.checkpoints import read_network
from hrt.capture.exported_file import MAX_JSON, read_exported
from hrt.capture.torch_export import capture
from hrt.capture.torch_export import exported as exported_program
from hrt.errors import CaptureError, InputError

from zoo import ZOO

GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, EXAMPLES = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"
CODE = "__import__('pathlib').Path('owned').touch()"


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 1)
        self.constant = torch.ones(2)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x * self.constant)))


class Runs:
    """Makes the file `owned` when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def pickled(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def exported(net: nn.Module, *inputs: torch.Tensor) -> bytes:
    shapes = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs)
    file = io.BytesIO()
    program = torch.export.export(net.eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, file, extra_files={"note.txt": "mine"})
    return file.getvalue()


@cache
def plain() -> bytes:
    torch.manual_seed(0)
    return exported(Scaled(), torch.zeros(3, 2))


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def archived(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(f"model/{name}", content)
    return file.getvalue()


def with_json(member: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    parts = members(plain())
    value = json.loads(parts[member])
    change(value)
    return {**parts, member: json.dumps(value).encode()}


def every(value: Any, key: str) -> list[dict]:
    """The objects of JSON that have `key`."""
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    here = [value] if isinstance(value, dict) and key in value else []
    return here + [v for b in below for v in every(b, key)]


def set_all(key: str, content: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        places = every(value, key)
        assert places
        for place in places:
            place[key] = content

    return change


def asks_for_pickle(weights: dict) -> None:
    weights["config"]["first.weight"]["use_pickle"] = True


def renamed_input(graph: dict) -> None:
    """Names are the words of a function that torch writes and runs."""
    for place in every(graph, "name"):
        place["name"] = f"x={CODE}" if place["name"] == "x" else place["name"]


def a_factory(graph: dict) -> None:
    context = json.dumps({"default_factory_module": "antigravity", "default_factory_name": "fly"})
    tree = {"type": "collections.defaultdict", "context": context, "children_spec": []}
    set_all("out_spec", json.dumps([1, tree]))(graph)


OLD = {f"serialized_{k}.pt": pickled(Runs()) for k in ("state_dict", "constants", "example_inputs")}
EVIL = {
    "a weight that asks for pickle": lambda: (
        with_json(WEIGHTS, asks_for_pickle) | {"data/weights/weight_0": pickled(Runs())}
    ),
    "a constant that asks for pickle": lambda: (
        with_json(CONSTANTS, set_all("use_pickle", True)) | {"data/constants/tensor_0": pickled(Runs())}
    ),
    "a custom object": lambda: (
        with_json(CONSTANTS, set_all("path_name", "custom_obj_0")) | {"data/constants/custom_obj_0": pickled(Runs())}
    ),
    "an opaque object": lambda: with_json(CONSTANTS, set_all("path_name", "opaque_obj_0")),
    "old weights": lambda: members(plain()) | {"data/weights/model.pt": pickled(Runs())},
    "old constants": lambda: members(plain()) | {"data/constants/model.pt": pickled(Runs())},
    "an old format": lambda: {"version": b"8.17"} | OLD,
    "a library": lambda: members(plain()) | {"data/aotinductor/model/model.so": b"\x7fELF"},
    "a size that is code": lambda: with_json(GRAPH, set_all("expr_str", CODE)),
    "a size that takes for ever": lambda: with_json(GRAPH, set_all("expr_str", "9**9**9**9")),
    "a size of powers": lambda: with_json(GRAPH, set_all("expr_str", "Pow(Pow(Pow(9, 16), 16), 16)")),
    "a name that is code": lambda: with_json(GRAPH, renamed_input),
    "an argument's name that is code": lambda: with_json(GRAPH, set_all("forward_arg_names", [f"x={CODE}"])),
    "an operator of another kind": lambda: with_json(GRAPH, set_all("target", "torch.os.system")),
    "a factory": lambda: with_json(GRAPH, a_factory),
    "a weight of no fixed size": lambda: with_json(WEIGHTS, set_all("sizes", [{"as_expr": {"expr_str": "s0"}}])),
    "weights of many numbers": lambda: with_json(WEIGHTS, set_all("sizes", [{"as_int": 10**11}])),
    "much JSON": lambda: members(plain()) | {GRAPH: b"[" + b"{}," * (MAX_JSON // 3) + b"{}]"},
    "nested JSON": lambda: members(plain()) | {GRAPH: b"[" * 100_000},
}


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", EVIL)
def test_what_could_run_code_is_refused_before_torch_sees_it(case, lab):
    Path("evil.pt2").write_bytes(archived(EVIL[case]()))
    with pytest.raises(InputError, match=r"^evil\.pt2 (was not opened: .*Expected|cannot be read as)") as caught:
        read_network("evil.pt2")
    assert not Path("owned").exists() and "\n" not in str(caught.value)


def test_a_pickle_is_named(lab):
    Path("evil.pt2").write_bytes(archived(EVIL["a weight that asks for pickle"]()))
    with pytest.raises(InputError, match="a weight in it asks for pickle, which may run code"):
        read_network("evil.pt2")


def test_compressed_and_doubled_members_are_refused(lab):
    Path("net.pt2").write_bytes(archived(members(plain()), zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match="is compressed"):
        read_network("net.pt2")
    with zipfile.ZipFile("twice.pt2", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/byteorder", b"little")
        archive.writestr("model/byteorder", b"little")
    with pytest.raises(InputError, match="one name"):
        read_network("twice.pt2")


def test_example_inputs_are_left_out(lab):
    """They are pickled in every file, and torch unpickles what it does not trust at a second try."""
    Path("net.pt2").write_bytes(archived(members(plain()) | {EXAMPLES: pickled(Runs())}))
    program = read_exported(Path("net.pt2"))
    assert program.example_inputs is None and not Path("owned").exists()


class Claims(nn.Module):
    def forward(self, x):
        return x + torch.zeros(2, 3).sum()


def test_a_constant_of_many_numbers_is_refused_whatever_the_file_says_of_its_shape(lab):
    parts = members(exported(Claims(), torch.zeros(3, 2)))
    graph = json.loads(parts[GRAPH])
    (zeros,) = (node for node in graph["graph_module"]["graph"]["nodes"] if "zeros" in node["target"])
    zeros["inputs"] = [zeros["inputs"][0] | {"arg": {"as_ints": [200_000, 300_000]}}]  # and nothing of a device
    Path("net.pt2").write_bytes(archived({**parts, GRAPH: json.dumps(graph).encode()}))
    with pytest.raises(CaptureError, match="its constants take more than"):
        capture(read_exported(Path("net.pt2")), ())


@pytest.mark.parametrize("cut", [10, 1000, -200, -1])
def test_a_damaged_file_is_a_typed_error(cut, lab):
    Path("net.pt2").write_bytes(plain()[:cut])
    with pytest.raises(InputError, match=r"net\.pt2 (cannot be read as a torch\.export\.save file|was not opened)"):
        read_network("net.pt2")


@pytest.mark.parametrize(
    "name", ["scaled", *(pytest.param(n, marks=pytest.mark.slow) for n in sorted(ZOO) if n != "scaled")]
)
def test_a_network_comes_back_as_it_was(name, lab):
    net, inputs = (Scaled(), (torch.zeros(3, 2),)) if name == "scaled" else (ZOO[name].build(), ZOO[name].inputs(3))
    torch.export.save(exported_program(net, inputs), "net.pt2")
    expected, program = capture(net, inputs), capture(read_exported(Path("net.pt2")), ())
    rows = [torch.rand(7, *x.shape[1:], dtype=torch.float64) for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(expected.run(rows), program.run(rows), strict=True))
    assert [n.module for n in program.nodes] == [n.module for n in expected.nodes]
