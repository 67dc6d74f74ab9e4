"""A .hrt file written by hand, checksum right: it mixes no rows, costs little, and says nothing to the terminal."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hrt
from hrt.cli.main import main
from hrt.model.artifact import DIGEST, OPENING
from hrt.model.packing import MAX_LEAVES
from hrt.program.check_program import MAX_NODES

from forked import assert_cheap
from models import file_bytes, linear_model, mixed_bytes, resealed, small_bytes

NOTHING: dict[str, Any] = {"measured": {}, "estimated": {}, "guaranteed": {}, "context": {}, "statements": []}


def written(
    nodes: list,
    inputs: list,
    constants: dict | None = None,
    tensors: dict[str, tuple[str, list[int], bytes]] | None = None,
) -> bytes:
    """A file of these nodes, the last of which is the output. tensors: (type, shape, numbers) by name."""
    header = {
        **{"format": "hrt", "version": 1, "target": "cpu", "dense_nbytes": 8, "constants": constants or {}},
        "program": {"inputs": inputs, "nodes": nodes, "outputs": [nodes[-1][0]]},
        "certificate": {"tol": 1e-3, "kind": "layers", "layers": [], **NOTHING},
    }
    table: dict[str, Any] = {"__metadata__": {"sha256": "0" * 64, "hrt": json.dumps(header)}}
    numbers = b""
    for name, (dtype, shape, data) in (tensors or {}).items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(numbers), len(numbers) + len(data)]}
        numbers += data
    return sealed(json.dumps(table, separators=(",", ":")).encode(), numbers)


def sealed(text: bytes, numbers: bytes = b"") -> bytes:
    assert text.startswith(OPENING)
    data = bytearray(len(text).to_bytes(8, "little") + text + numbers)
    data[DIGEST] = hashlib.sha256(data).hexdigest().encode()
    return bytes(data)


def one(op: str, arguments: list[str], result: list[int], /, width: int = 2, **attrs: Any) -> bytes:
    """A network of one node over one input."""
    return written([["y", op, arguments, result, attrs, ""]], [["x", [width]]])


@pytest.fixture
def refused(tmp_path):
    def check(data: bytes) -> str:
        path = tmp_path / "forged.hrt"
        path.write_bytes(data)
        with pytest.raises(hrt.ArtifactError) as error:
            hrt.load(path, backend="torch")
        return str(error.value)

    return check


PAIR = [["x", [2]], ["z", [2]], ["v", [2]], ["w", [2]]]
MIXING = {
    "a slice of the batch": one("slice", ["x"], [2], axis=0, start=0, stop=2, step=1),
    "a slice of many rows": one("slice", ["x"], [2], axis=-2, start=0, stop=1000, step=1),
    "a sum over rows": one("einsum", ["x", "x"], [2], equation="ab,cb->ab"),
    "an implied sum over rows": one("einsum", ["x", "x"], [2], equation="...b,cb"),
    "pairs of values": written([["y", "einsum", ["x", "z", "v", "w"], [2], {"equation": "ab,ab,cd,cd->ab"}, ""]], PAIR),
    "a product of rows": one("matmul", ["x", "x"], [2]),
    "rows one after another": one("concat", ["x"], [2], axis=0),
    "rows one after another, counted from behind": one("concat", ["x"], [2], axis=-2),
    "a norm over two rows": one("layer_norm", ["x"], [2], shape=[2, 2], eps=1e-5),
    "a mean over rows": one("mean", ["x"], [2], axes=[0], keep=False),
    "a mean over everything": one("mean", ["x"], [1], width=1, axes=[], keep=True),
    "rows as columns": written([["y", "add", ["x", "z"], [3], {}, ""]], [["x", []], ["z", [3]]]),
    "rows repeated": one("expand", ["x"], [3, 2], shape=[3, 2]),
}


@pytest.mark.parametrize("case", MIXING)
def test_programs_that_mix_rows_are_refused(case, refused):
    assert "malformed" in refused(MIXING[case])


@pytest.mark.parametrize(
    "equation, shapes, result",
    [
        ("ab,ab->a", [[3], [3]], []),
        ("zab,zbc->zac", [[2, 3], [3, 4]], [2, 4]),
        ("...ab,...bc->...ac", [[2, 3], [3, 4]], [2, 4]),
        ("...a,...a", [[3], [3]], []),
        ("za,zb,zc->zabc", [[2], [3], [4]], [2, 3, 4]),
    ],
)
def test_products_of_samples_are_accepted(equation, shapes, result, tmp_path):
    inputs = [[f"x{k}", shape] for k, shape in enumerate(shapes)]
    nodes = [["y", "einsum", [name for name, _ in inputs], result, {"equation": equation}, ""]]
    (tmp_path / "m.hrt").write_bytes(written(nodes, inputs))
    x = tuple(torch.rand(5, *shape) for shape in shapes)
    answer = hrt.load(tmp_path / "m.hrt", backend="torch").predict(x)
    assert torch.equal(answer, torch.einsum(equation, *x))


WIDE = {"w": {"shape": [2, 2], "buffers": ["float32"]}}
ZEROS = {
    "w/float32": ("F32", [0], b""),
    "w/leaves": ("I16", [MAX_LEAVES + 1, 5], np.tile(np.array([0, 2, 0, 2, 0], "<i2"), MAX_LEAVES + 1).tobytes()),
    "w/codes": ("U8", [MAX_LEAVES + 1], b"\0" * (MAX_LEAVES + 1)),
}
CHAIN = [[f"n{k}", "tanh", [f"n{k - 1}" if k else "x"], [2], {}, ""] for k in range(MAX_NODES + 1)]
BOMBS = {
    "a wide value": lambda: one("expand", ["x"], [10**9], width=1, shape=[10**9]),
    "a wide input": lambda: one("tanh", ["x"], [10**10], width=10**10),
    "a product": lambda: _square(9000),
    "an outer product": lambda: one("einsum", ["x"] * 3, [], width=2000, equation="za,zb,zc->z"),
    "many nodes": lambda: written(CHAIN, [["x", [2]]]),
    "many leaves": lambda: written([["y", "linear", ["x", "w"], [2], {}, ""]], [["x", [2]]], WIDE, ZEROS),
    "many inputs of one name": lambda: written([["y", "tanh", ["x"], [2], {}, ""]], [["x", [2]]] * 200_000),
    "JSON that was not sealed": lambda: _json(b'"z":[' + b"{}," * 30_000_000 + b"{}]", seal=False),
    "much JSON": lambda: _json(b'"z":[' + b"{}," * 5_000_000 + b"{}]"),
    "nested JSON": lambda: _json(b'"z":' + b"[" * 1_000_000),
}


def _square(n: int) -> bytes:
    nodes = [["e", "expand", ["x"], [n, n], {"shape": [n, n]}, ""], ["y", "matmul", ["e", "e"], [n, n], {}, ""]]
    return written(nodes, [["x", [1, 1]]])


def _json(more: bytes, seal: bool = True) -> bytes:
    text = OPENING + b"0" * 64 + b'","hrt":"{}"},' + more + b"}"
    return sealed(text) if seal else len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize("case", BOMBS)
def test_few_bytes_that_ask_for_much_are_refused_soon_and_cheaply(case, tmp_path):
    path = tmp_path / "bomb.hrt"
    path.write_bytes(BOMBS[case]())

    def refuses() -> None:
        with pytest.raises(hrt.ArtifactError):
            hrt.load(path)

    assert_cheap(refuses, path)


def test_a_large_matrix_of_few_numbers_costs_no_more_than_these(tmp_path):
    n = 100_000
    leaf = np.array([0, n, 0, n, 0], "<i4").tobytes()
    tensors = {"w/float32": ("F32", [0], b""), "w/leaves": ("I32", [1, 5], leaf), "w/codes": ("U8", [1], b"\0")}
    constants = {"w": {"shape": [n, n], "buffers": ["float32"]}}
    data = written([["y", "linear", ["x", "w"], [n], {}, ""]], [["x", [n]]], constants, tensors)
    path = tmp_path / "m.hrt"
    path.write_bytes(data)

    def uses() -> None:
        model = hrt.load(path, backend="torch")
        assert not model.predict(np.ones((1, n), np.float32)).any()
        model.report()
        model.plot(tmp_path / "m.png")

    assert_cheap(uses, path)


BAD_NUMBERS = [float("nan"), {"not finite": "nan"}, {"not finite": "inf"}]


@pytest.mark.parametrize("value", BAD_NUMBERS, ids=str)
@pytest.mark.parametrize(
    "op, attrs", [("leaky_relu", "slope"), ("elu", "alpha"), ("softplus", "beta"), ("power", "exponent")]
)
def test_attributes_that_are_not_finite_are_refused(op, attrs, value, refused):
    refused(one(op, ["x"], [2], **{attrs: value}))


def test_bounds_may_be_infinite_and_not_nan(refused, tmp_path):
    refused(one("clamp", ["x"], [2], low={"not finite": "nan"}, high=1.0))
    (tmp_path / "m.hrt").write_bytes(one("clamp", ["x"], [2], low={"not finite": "-inf"}, high=1.0))
    assert hrt.load(tmp_path / "m.hrt").predict(torch.tensor([[-5.0, 5.0]])).tolist() == [[-5.0, 1.0]]


@pytest.mark.parametrize("name", ["w/float32", "w/bfloat16", "w/scales"])
@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_numbers_that_are_not_finite_are_refused(name, byte, refused):
    place: list[int] = []

    def find(table: dict, header: dict) -> None:
        place.extend(table[name]["data_offsets"])

    def fill(numbers: bytearray) -> None:
        bits = (b"\0\0\x80" if name == "w/float32" else b"\x80") + bytes([byte])
        numbers[place[0] : place[0] + len(bits)] = bits

    assert "NaN or infinite" in refused(resealed(small_bytes(), find, fill))


FIELDS = {
    "measured": {"output_error": "x", "per_output": [None], "max_abs_error": 3, "runtime_error": None},
    "estimated": {"output_error_upper_99": [], "unseen_probability_99": "", "derivative_error_upper_99": 1},
    "guaranteed": {"max_abs_error_over_box_exact_arithmetic": ["x"]},
    "context": {"remarks": 5, "runtimes": "torch", "derivatives": ["d0"], "kinks": [1], "outputs": {"y": 1}}
    | {"precision": "none", "no_output_bound": 1, "held_out_rows": "many", "ntk_points": -1},
}
WRONG = [(section, key, value) for section, fields in FIELDS.items() for key, value in fields.items()]


@pytest.mark.parametrize(
    "section, key, value",
    [
        *WRONG,
        ("measured", "ntk_drift", 0.1),
        ("measured", "capture_difference", None),
        ("estimated", "output_error_upper_99", -1.0),
        ("estimated", "output_error_upper_99_in_bf16", "x"),
        ("context", "runtimes", ["x" * 100_000]),
    ],
)
def test_a_certificate_that_its_readers_could_not_read_is_refused(section, key, value, refused):
    assert "malformed" in refused(
        resealed(mixed_bytes(), lambda table, header: header["certificate"][section].update({key: value}))
    )


@pytest.mark.parametrize("key, value", [("tol", "x"), ("kind", "all"), ("measured", []), ("layers", [{"name": 1}])])
def test_a_certificate_of_other_types_is_refused(key, value, refused):
    refused(resealed(mixed_bytes(), lambda table, header: header["certificate"].update({key: value})))


@pytest.mark.parametrize("key, value", [("frobenius", "x"), ("nbytes", -1), ("shape", [2]), ("statements", [{}])])
def test_a_layer_record_of_other_types_is_refused(key, value, refused):
    refused(resealed(mixed_bytes(), lambda table, header: header["certificate"]["layers"][0].update({key: value})))


EVIL = "\x1b]0;owned\x07\x9b2J\u202e\r\nguaranteed: everything"


def named_badly() -> bytes:
    """Every name and word of a file is one that a terminal would obey."""

    def change(table: dict, header: dict) -> None:
        table[f"{EVIL}/value"] = table.pop("w/value")
        header["constants"] = {EVIL: header["constants"]["w"]}
        header["program"] = {
            "inputs": [[EVIL + "x", [3]]],
            "nodes": [[EVIL + "y", "linear", [EVIL + "x", EVIL], [3], {}, EVIL]],
            "outputs": [EVIL + "y"],
        }
        header["certificate"]["context"] = {"remarks": [EVIL], "no_output_bound": EVIL, "kinks": [EVIL]}
        record = {"name": EVIL, "shape": [3, 3], "structure": EVIL, "nbytes": 1, "dense_nbytes": 2, "frobenius": 0.1}
        header["certificate"]["layers"] = [{**record, "weighted": None, "spectral_estimate": None, "reason": EVIL}]

    return resealed(file_bytes(linear_model(torch.eye(3))), change)


def test_no_word_of_a_file_reaches_the_terminal_as_it_is(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("m.hrt").write_bytes(named_badly())
    assert main(["info", "m.hrt"]) == 0 and main(["info", "m.hrt", "--json"]) == 0
    np.save("x.npy", np.ones((2, 4), np.float32))
    assert main(["predict", "m.hrt", "x.npy"]) == 2  # the error names the input
    out, err = capfd.readouterr()
    assert all(c.isprintable() or c == "\n" for c in out + err) and "owned" in out and "owned" in err
    assert not any(line.startswith("guaranteed: everything") for line in out.splitlines())
