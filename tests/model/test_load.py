"""A .hrt file is refused when anything at all is wrong with it, and loaded whatever torch's default device is."""

import hashlib
import json
import os
import pickle
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import hrt
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.artifact import COLUMNS, DEFLATED, DIGEST, FORMAT_VERSION, MAX_TEXT, read_header

from forked import forked, limit_memory
from models import deflated, file_bytes, linear_model, many_bytes, mixed_bytes, parts_of, resealed, sealed, small_bytes

VERSION_1 = Path(__file__).with_name("version1.hrt").read_bytes()


@pytest.fixture
def refused(tmp_path):
    """Checks that a file of these bytes is refused with an ArtifactError that names it; returns the message."""

    def check(data: bytes) -> str:
        path = tmp_path / "refused.hrt"
        path.write_bytes(data)
        with pytest.raises(hrt.ArtifactError) as error:
            hrt.load(path)
        assert str(path) in str(error.value)
        return str(error.value)

    return check


def spaced(data: bytes) -> bytes:
    """More white space behind the table."""
    end = 8 + int.from_bytes(data[:8], "little")
    return end.to_bytes(8, "little") + data[8:end] + b" " * 8 + data[end:]


def versioned(version) -> bytes:
    return resealed(mixed_bytes(), lambda table, header: header.update(version=version))


class TestDamage:
    @settings(max_examples=200, deadline=None)
    @given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(0, 255), old=st.booleans())
    def test_any_changed_byte_and_any_truncation_is_refused(self, place, flip, old, tmp_path_factory):
        data = bytearray(VERSION_1 if old else mixed_bytes())
        at = int(place * len(data))
        data[at] ^= flip
        path = tmp_path_factory.mktemp("damaged") / "m.hrt"
        path.write_bytes(data if flip else data[:at])
        with pytest.raises(hrt.ArtifactError):
            hrt.load(path)

    def test_every_byte_of_the_header_is_protected(self, tmp_path):
        data, path = small_bytes(), tmp_path / "s.hrt"
        for at in range(8 + int.from_bytes(data[:8], "little")):
            changed = bytearray(data)
            changed[at] ^= 0x29 if data[at : at + 1] == b" " else 0x01  # a space becomes a tab, also valid in JSON
            path.write_bytes(changed)
            with pytest.raises(hrt.ArtifactError):
                read_header(path)

    @pytest.mark.parametrize(
        "data, words",
        [
            *((mixed_bytes() + more, "appended") for more in (b"\0", b"x" * 1000)),
            (spaced(small_bytes()), "altered"),
            (versioned(FORMAT_VERSION + 1), f"format version {FORMAT_VERSION + 1}.*Upgrade"),
            *((versioned(version), "") for version in (0, -1, None, "one", [1], 1e400)),
            (save({"w": torch.ones(3)}, metadata={"format": "pt"}), "no hrt header"),
            *((data, "") for data in (b"", b"\0", b"\0" * 8, b"{}", b"PK\x03\x04" * 100, pickle.dumps({"a": 1}) * 20)),
        ],
    )
    def test_other_content_is_refused(self, data, words, refused):
        assert re.search(words, refused(data))

    def test_a_folder_a_missing_file_and_a_device_are_refused(self, tmp_path):
        for path in (tmp_path, tmp_path / "no.hrt", Path("/dev/zero"), tmp_path / "no" / "no.hrt"):
            with pytest.raises(hrt.ArtifactError, match=re.escape(str(path))):
                hrt.load(path)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(hrt.ArtifactError):  # and does not wait for a writer
            hrt.load(tmp_path / "pipe")

    @pytest.mark.parametrize("claim", [2**60, 2**63, 2**64 - 1, 10**9])
    def test_a_header_that_claims_too_much_allocates_nothing(self, claim, tmp_path):
        path = tmp_path / "m.hrt"
        path.write_bytes(struct.pack("<Q", claim) + mixed_bytes()[8:])
        tracemalloc.start()
        try:
            with pytest.raises(hrt.ArtifactError):
                hrt.load(path)
            assert tracemalloc.get_traced_memory()[1] < 100_000
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "shape, end",
        [
            ([2**40], 2**42),
            ([2**31, 2**31], 2**64),
            ([2**62, 2**62, 0], 0),
            ([-1], -4),
            ([True], 4),
            ([1.0], 4),
            ("4", 16),
        ],
    )
    def test_a_table_that_claims_too_much_allocates_nothing(self, shape, end, tmp_path):
        data, path = small_bytes(), tmp_path / "m.hrt"
        size = len(parts_of(data)[2])
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [size, size + end]}
        path.write_bytes(resealed(data, lambda table, header: table.update({"more/value": entry})))

        def refuses() -> str:
            limit_memory(2**27)
            with pytest.raises(hrt.ArtifactError):
                hrt.load(path)
            return "refused"

        assert forked(refuses) == ("refused", 0)


def numbers_changed(data: bytes, name: str, change) -> bytes:
    """`data` with the numbers of the tensor `name`, as bytes, changed in place by `change`."""
    place = slice(*parts_of(data)[0][name]["data_offsets"])
    return resealed(data, lambda *_: None, lambda numbers: change(np.frombuffer(numbers, np.uint8)[place]))


def renamed(data: bytes, old: str) -> bytes:
    """`data` with one of its two tensors under a name as long, sealed."""
    out = bytearray(data.replace(f'"{old}":'.encode(), f'"{old.swapcase()}":'.encode(), 1))
    out[DIGEST] = b"0" * 64
    out[DIGEST] = hashlib.sha256(out).hexdigest().encode()
    return bytes(out)


GONE = object()
OPENING = json.dumps({"format": "hrt", "version": DEFLATED})


def set_header(path, value):
    """A change of what stands at `path` in the header."""

    def change(table, header):
        *parents, last = path
        for key in parents:
            header = header[key]
        if value is GONE:
            del header[last]
        else:
            header[last] = value

    return change


HEADERS = {
    "format": ["other"],
    "constants": [{}, [1]],
    "constants w": [None],
    "constants w shape": [[6], [5, 6], [6, -5]],
    "constants w buffers": [[], ["float32"], ["float32", "float16", "bfloat16", "int8"]],
    "constants v": [None, {"shape": [2, 2], "buffers": []}],
    "program": [None],
    "program outputs": [["z"], ["w"], 5],
    "program inputs": [[]],
    "program inputs 0 1": [[7], [-5], "5", None],
    "program nodes": [[]],
    "program nodes 0": [["y"]],
    "program nodes 0 1": ["eval", "matmul", "slice"],
    "program nodes 0 2": [["w", "x"], ["y", "w"], ["x", "missing"]],
    "program nodes 0 3": [[5]],
    "program nodes 0 4": [None],
    "certificate": [None],
    "certificate layers": [[{}], [{"unknown": 1}]],
    "certificate unknown": [1],
    "dense_nbytes": ["many"],
    "unknown": [1],
}
TOP = list(parts_of(small_bytes())[1])
EVERY = slice(None)


class TestForgery:
    """The digest is right, the content is not: a typed error, never a crash."""

    def test_resealing_nothing_is_accepted(self, mixed):
        mixed.write_bytes(resealed(mixed_bytes(), lambda table, header: None))
        hrt.load(mixed)

    def test_of_the_leaf_table(self, refused):
        leaves = (
            Leaf(0, 4, 0, 3, dense=torch.ones(4, 3)),
            Leaf(0, 4, 3, 2, u=torch.ones(4, 1), vt=torch.ones(1, 2)),
            Leaf(4, 2, 0, 5, u=torch.ones(2, 0), vt=torch.ones(0, 5)),
        )
        data = file_bytes(linear_model(HMatrix((6, 5), leaves)))
        columns = {0: [-1, 30000], 1: [0, -3], 2: [-1], 3: [32767, 0], 4: [-2, 32767]}
        cases = [(0, column, value) for column, values in columns.items() for value in values]
        for row, column, value in [*cases, (1, 4, 0), (EVERY, 0, 0), (EVERY, EVERY, 0)]:

            def change(numbers, place=(row, column), value=value):
                numbers.view(np.int16).reshape(-1, 5)[place] = value

            assert "malformed" in refused(numbers_changed(data, "w/leaves", change)), (row, column, value)

    @pytest.mark.parametrize("name, value", [("codes", 4), ("codes", 3), ("codes", 255), ("rows", 0), ("cols", 77)])
    def test_of_codes_and_orderings(self, name, value, refused):
        assert "malformed" in refused(numbers_changed(small_bytes(), f"w/{name}", lambda v: v.fill(value)))

    @pytest.mark.parametrize("place", ["dtype", "data_offsets", "shape"])
    @pytest.mark.parametrize("value", ["F7", None, [0], [8, 0], {}, [[]], 5])
    def test_of_the_table(self, place, value, refused):
        refused(resealed(small_bytes(), lambda table, header: table["w/leaves"].update({place: value})))
        refused(resealed(small_bytes(), lambda table, header: table.update({"w/leaves": value})))

    @pytest.mark.parametrize("start, end", [(0, 2), (-2, 0), (2, 0)])
    def test_of_the_places_of_a_tensor(self, start, end, refused):
        def move(table, header):
            old = table["w/leaves"]["data_offsets"]
            table["w/leaves"]["data_offsets"] = [old[0] + start, old[1] + end]

        assert "stands at" in refused(resealed(small_bytes(), move))

    @pytest.mark.parametrize("path", dict.fromkeys([*HEADERS, *TOP]))
    def test_of_the_header(self, path, refused):
        keys = [int(key) if key.isdigit() else key for key in path.split()]
        for value in HEADERS.get(path, []) + [GONE] * (path in TOP):
            refused(resealed(small_bytes(), set_header(keys, value)))

    @pytest.mark.parametrize("header", ["[]", "null", "5", '"hrt"', "{", "[" * 100_000, "1" * 5000, ""])
    def test_of_the_whole_header(self, header, refused):
        numbers = parts_of(small_bytes())[2]
        refused(sealed(header, zlib.compress(b"{}"), numbers))
        refused(sealed(OPENING, zlib.compress(header.encode()), numbers))

    @pytest.mark.parametrize(
        "header", [b"", b"{}", zlib.compress(b"{}")[:-1], zlib.compress(b"{}") + b"x", zlib.compress(b" " * 2**26)]
    )
    def test_of_what_is_deflated(self, header, refused):
        tracemalloc.start()
        try:
            assert "its header is malformed" in refused(sealed(OPENING, header, b""))
            assert tracemalloc.get_traced_memory()[1] < 3 * MAX_TEXT
        finally:
            tracemalloc.stop()

    def test_of_columns(self, refused, monkeypatch):
        """A few bytes that stand for a text of 32 MB, and for 100 lists of 100,000 entries in each other."""
        monkeypatch.setattr("hrt.model.artifact.VALUES", 2**18)
        opening, numbers = json.dumps({"format": "hrt", "version": COLUMNS}), parts_of(many_bytes())[2]
        deep = b'{"tensors":' + b'{"|rows":[' * 100 + json.dumps([0] * 10**5).encode() + b"]}" * 100 + b"}"
        for text, most in ((b" " * 2**25, 3 * MAX_TEXT), (deep, 2**26), (b"{}", 2**22), (b"[]", 2**22)):
            header = deflated(text, COLUMNS)
            tracemalloc.start()
            try:
                assert "its header is malformed" in refused(sealed(opening, header, numbers))
                assert tracemalloc.get_traced_memory()[1] < most
            finally:
                tracemalloc.stop()
        for header in (b"", b"x", deflated(b"{}", COLUMNS)[:-1], deflated(b"{}", COLUMNS) + b"x", zlib.compress(b"{}")):
            assert "its header is malformed" in refused(sealed(opening, header, numbers))

    @pytest.mark.parametrize("version", [DEFLATED, COLUMNS])
    @pytest.mark.parametrize("value", [b"{}", b"[]", b'{"a":[]}', b"0"])
    def test_of_more_values_than_the_bytes_of_the_file_justify(self, value, version, refused):
        header = deflated(b"[" + (value + b",") * 1_500_000 + value + b"]", version)
        data = sealed(json.dumps({"format": "hrt", "version": version}), header, b"")
        tracemalloc.start()
        try:
            message = refused(data)
            assert len(data) < 30_000 and tracemalloc.get_traced_memory()[1] < 3 * MAX_TEXT
        finally:
            tracemalloc.stop()
        assert "values, objects counted" in message or f"more than {MAX_TEXT + len(header) // 8} bytes" in message

    @pytest.mark.parametrize("row", [["more/value", "F32", [2**62]], ["more/value", "F7", [1]], ["a", "F32", 3], [5]])
    def test_of_the_tensors_of_columns(self, row, refused):
        def change(table, header):
            table.clear()
            table.update({"|lists": [[len(row)], row]})

        assert "malformed" in refused(resealed(many_bytes(), change))

    def test_of_the_tensors_of_the_file_itself(self, refused):
        data = small_bytes()
        for old in ("numbers", "header"):
            assert "expected" in refused(renamed(data, old))

    def test_of_an_attribute(self, refused):
        clamp = 1  # the place of a node with attributes in mixed_model
        for attributes in ({}, {"low": "x", "high": 1}, {"low": [1, 2], "high": {}}, []):
            refused(resealed(mixed_bytes(), set_header(("program", "nodes", clamp, 4), attributes)))


class TestWhatIsNotTheFilesFault:
    """Errors of the machine pass as what they are: nobody shall write a good file again for them."""

    @pytest.mark.parametrize(
        "error, expected",
        [
            (ModuleNotFoundError("No module named 'sympy'"), ModuleNotFoundError),
            (ImportError("libgomp.so.1: cannot open shared object file"), ImportError),
            (MemoryError(), MemoryError),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), MemoryError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_passes(self, error, expected, mixed, monkeypatch):
        monkeypatch.setattr("hrt.model.artifact.check_program", Mock(side_effect=error))
        with pytest.raises(expected) as caught:
            hrt.load(mixed)
        assert not isinstance(caught.value, hrt.HrtError)

    def test_a_disk_that_fails_is_an_error_of_reading(self, mixed, monkeypatch):
        monkeypatch.setattr("hrt.model.artifact.torch.empty", Mock(side_effect=OSError(5, "Input/output error")))
        with pytest.raises(hrt.ArtifactError, match=r"m\.hrt cannot be read: Input/output error"):
            hrt.load(mixed)

    def test_a_network_larger_than_the_memory_that_is_left(self, mixed, tmp_path):
        hrt.load(mixed, backend="torch")  # code loaded on first use shall not be what finds no room
        path = tmp_path / "m.hrt"
        linear_model(torch.zeros(4096, 8192)).save(path)  # 134 MB

        def loads() -> str:
            limit_memory(2**26)
            with pytest.raises(MemoryError) as error:
                hrt.load(path, backend="torch")
            return str(error.value)

        assert forked(loads)[0].startswith(f"{path} needs more memory than there is")


@pytest.mark.parametrize("default", ["meta", "cuda"])
@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_torchs_default_device_plays_no_part(default, backend, mixed, tmp_path):
    x, z = np.random.default_rng(0).standard_normal((2, 9, 7)).astype(np.float32)
    given = (x, z[:, :5].copy())
    plain = hrt.load(mixed, backend=backend)
    expected = [*plain.predict(given), *plain.predict(given, derivatives=["d0"])[1]]
    torch.set_default_device(default)
    try:
        model = hrt.load(mixed, backend=backend)
        found = [*model.predict(given), *model.predict(given, derivatives=["d0"])[1]]
        model.save(tmp_path / "again.hrt")
    finally:
        torch.set_default_device(None)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (tmp_path / "again.hrt").read_bytes() == mixed_bytes()
    with torch.device(default):
        model = hrt.load(mixed, backend=backend)
    assert np.array_equal(model.predict(given)[0], expected[0])
