"""A .hrt file is refused when anything at all is wrong with it, and loaded whatever torch's default device is."""

import json
import os
import pickle
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import hrt
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.artifact import FORMAT_VERSION, read_header

from forked import forked, limit_memory
from models import file_bytes, linear_model, mixed_bytes, resealed, small_bytes, table_of


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


class TestDamage:
    @settings(max_examples=200, deadline=None)
    @given(at=st.integers(0, len(mixed_bytes()) - 1), flip=st.integers(0, 255))
    def test_any_changed_byte_and_any_truncation_is_refused(self, at, flip, tmp_path_factory):
        data = bytearray(mixed_bytes())
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

    def test_whitespace_in_the_table_is_protected_too(self, refused):
        data = bytearray(small_bytes())
        length = int.from_bytes(data[:8], "little")
        data[:8] = (length + 8).to_bytes(8, "little")
        assert "altered" in refused(bytes(data[: 8 + length] + b" " * 8 + data[8 + length :]))

    @pytest.mark.parametrize("more", [b"\0", b"x" * 1000])
    def test_appended_bytes_are_refused(self, more, refused):
        assert "appended" in refused(mixed_bytes() + more)

    def test_a_newer_version_asks_for_an_upgrade(self, refused):
        newer = resealed(mixed_bytes(), lambda table, header: header.update(version=FORMAT_VERSION + 1))
        assert "Upgrade" in refused(newer) and str(FORMAT_VERSION + 1) in refused(newer)

    @pytest.mark.parametrize("version", [0, -1, None, "one", [1], 1e400])
    def test_a_version_that_makes_no_sense_is_refused(self, version, refused):
        refused(resealed(mixed_bytes(), lambda table, header: header.update(version=version)))

    def test_another_safetensors_file_is_refused(self, tmp_path):
        save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
        with pytest.raises(hrt.ArtifactError, match="no hrt header"):
            hrt.load(tmp_path / "w.safetensors")

    @pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 8, b"{}", b"PK\x03\x04" * 100, pickle.dumps({"a": 1}) * 20])
    def test_other_content_is_refused(self, data, refused):
        refused(data)

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
        size = len(data) - 8 - int.from_bytes(data[:8], "little")
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [size, size + end]}
        path.write_bytes(resealed(data, lambda table, header: table.update({"more/value": entry})))

        def refuses() -> str:
            limit_memory(2**27)
            with pytest.raises(hrt.ArtifactError):
                hrt.load(path)
            return "refused"

        assert forked(refuses) == ("refused", 0)


def leaf_table(file_bytes: bytes, change):
    """`file_bytes` with its leaf table (leaves, 5) changed in place by `change`."""
    start, end = table_of(file_bytes)["w/leaves"]["data_offsets"]

    def payload(numbers: bytearray) -> None:
        change(np.frombuffer(numbers, np.int16, (end - start) // 2, start).reshape(-1, 5))

    return resealed(file_bytes, lambda table, header: None, payload)


def set_leaf(row, column, value):
    def change(leaves):
        leaves[row, column] = value

    return change


GONE = object()


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


class TestForgery:
    """The digest is right, the content is not: a typed error, never a crash."""

    def test_resealing_nothing_is_accepted(self, mixed):
        mixed.write_bytes(resealed(mixed_bytes(), lambda table, header: None))
        hrt.load(mixed)

    @pytest.mark.parametrize(
        "change",
        [
            set_leaf(0, 0, -1),
            set_leaf(0, 0, 30000),
            set_leaf(0, 1, 0),
            set_leaf(0, 1, -3),
            set_leaf(0, 2, -1),
            set_leaf(0, 3, 32767),
            set_leaf(0, 3, 0),
            set_leaf(0, 4, -2),
            set_leaf(0, 4, 32767),
            set_leaf(1, 4, 0),
            set_leaf(slice(None), 0, 0),
            set_leaf(slice(None), slice(None), 0),
        ],
    )
    def test_of_the_leaf_table(self, change, refused):
        leaves = (
            Leaf(0, 4, 0, 3, dense=torch.ones(4, 3)),
            Leaf(0, 4, 3, 2, u=torch.ones(4, 1), vt=torch.ones(1, 2)),
            Leaf(4, 2, 0, 5, u=torch.ones(2, 0), vt=torch.ones(0, 5)),
        )
        assert "malformed" in refused(leaf_table(file_bytes(linear_model(HMatrix((6, 5), leaves))), change))

    @pytest.mark.parametrize(
        "name, value", [("w/codes", 4), ("w/codes", 3), ("w/codes", 255), ("w/rows", 0), ("w/cols", 77)]
    )
    def test_of_codes_and_orderings(self, name, value, refused):
        start, end = table_of(small_bytes())[name]["data_offsets"]

        def payload(numbers: bytearray) -> None:
            numbers[start:end] = bytes([value] * (end - start))

        assert "malformed" in refused(resealed(small_bytes(), lambda table, header: None, payload))

    @pytest.mark.parametrize("place", ["dtype", "data_offsets", "shape"])
    @pytest.mark.parametrize("value", ["F7", None, [0], [8, 0], {}, [[]], 5])
    def test_of_the_table(self, place, value, refused):
        refused(resealed(small_bytes(), lambda table, header: table["w/leaves"].update({place: value})))

    @pytest.mark.parametrize("start, end", [(0, 2), (-2, 0), (2, 0)])
    def test_of_the_places_of_a_tensor(self, start, end, refused):
        def move(table, header):
            old = table["w/leaves"]["data_offsets"]
            table["w/leaves"]["data_offsets"] = [old[0] + start, old[1] + end]

        assert "stands at" in refused(resealed(small_bytes(), move))

    @pytest.mark.parametrize("entry", [None, [], 5, {}, "F32"])
    def test_of_a_table_entry(self, entry, refused):
        refused(resealed(small_bytes(), lambda table, header: table.update({"w/leaves": entry})))

    @pytest.mark.parametrize(
        "change",
        [
            set_header(("format",), "other"),
            set_header(("constants",), {}),
            set_header(("constants",), [1]),
            set_header(("constants", "w", "shape"), [6]),
            set_header(("constants", "w", "shape"), [5, 6]),
            set_header(("constants", "w", "shape"), [6, -5]),
            set_header(("constants", "w", "buffers"), []),
            set_header(("constants", "w", "buffers"), ["float32"]),
            set_header(("constants", "w", "buffers"), ["float32", "float16", "bfloat16", "int8"]),
            set_header(("constants", "w"), None),
            set_header(("constants", "v"), None),
            set_header(("constants", "v"), {"shape": [2, 2], "buffers": []}),
            set_header(("program",), None),
            set_header(("program", "outputs"), ["z"]),
            set_header(("program", "outputs"), ["w"]),
            set_header(("program", "outputs"), 5),
            set_header(("program", "inputs"), []),
            set_header(("program", "inputs", 0, 1), [7]),
            set_header(("program", "inputs", 0, 1), [-5]),
            set_header(("program", "inputs", 0, 1), "5"),
            set_header(("program", "inputs", 0, 1), None),
            set_header(("program", "nodes", 0, 1), "eval"),
            set_header(("program", "nodes", 0, 1), "matmul"),
            set_header(("program", "nodes", 0, 1), "slice"),
            set_header(("program", "nodes", 0, 2), ["w", "x"]),
            set_header(("program", "nodes", 0, 2), ["y", "w"]),
            set_header(("program", "nodes", 0, 2), ["x", "missing"]),
            set_header(("program", "nodes", 0, 3), [5]),
            set_header(("program", "nodes", 0, 4), None),
            set_header(("program", "nodes", 0), ["y"]),
            set_header(("program", "nodes"), []),
            set_header(("certificate",), None),
            set_header(("certificate", "layers"), [{}]),
            set_header(("certificate", "unknown"), 1),
            set_header(("dense_nbytes",), "many"),
            *(set_header((key,), GONE) for key in json.loads(table_of(small_bytes())["__metadata__"]["hrt"])),
            set_header(("unknown",), 1),
            set_header(("certificate", "layers"), [{"unknown": 1}]),
        ],
    )
    def test_of_the_header(self, change, refused):
        refused(resealed(small_bytes(), change))

    @pytest.mark.parametrize("header", ["[]", "null", "5", '"hrt"', "{", "[" * 100_000, "1" * 5000, ""])
    def test_of_the_whole_header(self, header, refused):
        length, table = int.from_bytes(small_bytes()[:8], "little"), table_of(small_bytes())
        table["__metadata__"]["hrt"] = header
        text = json.dumps(table, separators=(",", ":")).encode()
        refused(len(text).to_bytes(8, "little") + text + small_bytes()[8 + length :])

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
        def fail(_):
            raise error

        monkeypatch.setattr("hrt.model.artifact.check_program", fail)
        with pytest.raises(expected) as caught:
            hrt.load(mixed)
        assert not isinstance(caught.value, hrt.HrtError)

    def test_a_disk_that_fails_is_an_error_of_reading(self, mixed, monkeypatch):
        def fail(*_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("hrt.model.artifact.torch.empty", fail)
        with pytest.raises(hrt.ArtifactError, match=r"m\.hrt cannot be read: Input/output error"):
            hrt.load(mixed)

    def test_a_network_larger_than_the_memory_that_is_left(self, tmp_path):
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
