"""The .hrt file: bit for bit the same after a round trip, and refused when anything at all is wrong with it."""

import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.certificate.certificate import Certificate
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.artifact import DIGEST, FORMAT_VERSION, read_header
from hrt.model.model import CompressedModel

from models import any_hmatrix, linear_model, mixed_model, resealed
from zoo import ZOO

ROOT = Path(__file__).resolve().parents[2]


def same_numbers(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, NaN and the sign of zero included."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and a.contiguous().reshape(-1).view(torch.uint8).equal(b.contiguous().reshape(-1).view(torch.uint8))
    )


def assert_same_constant(a, b) -> None:
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert same_numbers(a, b)
        return
    assert a.shape == b.shape and len(a.leaves) == len(b.leaves) and a.nbytes == b.nbytes
    for x, y in zip(a.leaves, b.leaves, strict=True):
        assert (x.row, x.rows, x.col, x.cols, x.rank) == (y.row, y.rows, y.col, y.cols, y.rank)
        assert all(same_numbers(s, t) for s, t in zip(x.tensors, y.tensors, strict=True))
        assert (x.scale is None and y.scale is None) or same_numbers(x.scale, y.scale)
    for x, y in ((a.row_order, b.row_order), (a.col_order, b.col_order)):
        assert (x is None and y is None) or same_numbers(x, y)


def saved(model: CompressedModel) -> bytes:
    """The bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.hrt")
        return (Path(folder) / "m.hrt").read_bytes()


@cache
def mixed_bytes() -> bytes:
    return saved(mixed_model())


@cache
def small_bytes() -> bytes:
    return saved(linear_model(any_hmatrix(5, 6, 5, depth=2, ordered=True)))


def table_of(data: bytes) -> dict:
    """The JSON of a file: its tensors and the metadata."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def forked(work: Callable[[], str]) -> tuple[str, int]:
    """What `work` answers in a process of its own, and the signal that ended it: limits are the process's own."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, work().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    return text, os.waitpid(child, 0)[1]


def limit_memory(more: int) -> None:
    """This process may take `more` bytes than it has."""
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


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


@pytest.fixture
def mixed(tmp_path) -> Path:
    """The file of mixed_model."""
    (tmp_path / "m.hrt").write_bytes(mixed_bytes())
    return tmp_path / "m.hrt"


class TestRoundTrip:
    def test_is_bit_exact(self, mixed):
        found, model = hrt.load(mixed), mixed_model()
        assert list(found.program.constants) == list(model.program.constants)
        for name, value in model.program.constants.items():
            assert_same_constant(value, found.program.constants[name])
        assert (found.program.inputs, found.program.nodes) == (model.program.inputs, model.program.nodes)
        assert found.program.outputs == model.program.outputs
        assert (found.target, found.dense_nbytes, found.nbytes) == ("bytes", 12345, model.nbytes)
        found.save(mixed)
        assert mixed.read_bytes() == mixed_bytes()

    def test_keeps_the_certificate_and_its_figures_that_are_not_finite(self, mixed):
        found, model = hrt.load(mixed), mixed_model()
        assert found.certificate.layers == model.certificate.layers
        figures = found.certificate.measured
        assert figures["runtime_error"] == float("inf") and np.isnan(figures["per_output"][0])
        assert found.certificate.estimated == model.certificate.estimated
        assert found.certificate.context == model.certificate.context and found.report() == model.report()

    def test_gives_the_same_numbers(self, mixed):
        x, z = np.random.default_rng(0).standard_normal((2, 9, 7))
        for a, b in zip(mixed_model().predict((x, z[:, :5])), hrt.load(mixed).predict((x, z[:, :5])), strict=True):
            assert np.array_equal(a, b)

    @settings(max_examples=40, deadline=None)
    @given(
        m=st.integers(0, 40),
        n=st.integers(0, 40),
        seed=st.integers(0, 2**32 - 1),
        depth=st.integers(0, 4),
        ordered=st.booleans(),
    )
    def test_of_any_hmatrix(self, m, n, seed, depth, ordered, tmp_path_factory):
        path = tmp_path_factory.mktemp("round") / "m.hrt"
        model = linear_model(any_hmatrix(seed, m, n, depth=depth, ordered=ordered))
        model.save(path)
        assert_same_constant(model.program.constants["w"], hrt.load(path).program.constants["w"])

    @pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 1e-45])
    def test_keeps_special_numbers(self, special, tmp_path):
        h = HMatrix.from_dense(torch.full((2, 3), special))
        linear_model(h).save(tmp_path / "m.hrt")
        assert_same_constant(h, hrt.load(tmp_path / "m.hrt").program.constants["w"])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.int16, torch.int8, torch.uint8, torch.bool])
    def test_keeps_plain_constants_of_other_types(self, dtype, tmp_path):
        program = mixed_model().program.with_constants({"whole": torch.tensor([0, 1, 1], dtype=dtype)})
        CompressedModel(program, Certificate(1e-3, "layers", ())).save(tmp_path / "m.hrt")
        found = hrt.load(tmp_path / "m.hrt").program.constants["whole"]
        assert same_numbers(found, torch.tensor([0, 1, 1], dtype=dtype))

    def test_leaves_out_blocks_without_entries(self, tmp_path):
        empty = Leaf(0, 0, 0, 3, u=torch.ones(0, 2), vt=torch.ones(2, 3))
        h = HMatrix((2, 3), (empty, Leaf(0, 2, 0, 3, u=torch.ones(2, 1), vt=torch.ones(1, 3))))
        linear_model(h).save(tmp_path / "m.hrt")
        found = hrt.load(tmp_path / "m.hrt").program.constants["w"]
        assert len(found.leaves) == 1 and torch.equal(found.to_dense(), h.to_dense())

    @pytest.mark.parametrize("name", sorted(ZOO))
    def test_of_every_network_in_the_zoo(self, name, tmp_path):
        entry = ZOO[name]
        program = capture(entry.build(torch.float64), entry.inputs(3))
        CompressedModel(program, Certificate(1e-3, "layers", ())).save(tmp_path / "m.hrt")
        found = hrt.load(tmp_path / "m.hrt").program
        for a, b in zip(program.run(entry.inputs(4)), found.run(entry.inputs(4)), strict=True):
            assert torch.equal(a, b)

    def test_is_a_safetensors_file_that_others_can_read(self, mixed):
        with safetensors.safe_open(mixed, framework="pt") as file:
            constants = mixed_model().program.constants
            assert same_numbers(file.get_tensor("a/leaves/value"), constants["a/leaves"])
            assert same_numbers(file.get_tensor("a/rows"), constants["a"].row_order)
            assert same_numbers(
                file.get_tensor("__metadata__/bfloat16"), constants["__metadata__"].leaves[0].dense.view(-1)
            )
            assert json.loads(file.metadata()["hrt"])["version"] == FORMAT_VERSION
        assert table_of(mixed_bytes())["__metadata__"]["sha256"] == mixed_bytes()[DIGEST].decode()

    def test_by_any_kind_of_path_and_through_a_link(self, tmp_path):
        path, link = tmp_path / "ü 雪.hrt", tmp_path / "link.hrt"
        link.symlink_to(path)
        mixed_model().save(str(link))
        assert link.is_symlink() and path.read_bytes() == mixed_bytes()
        assert repr(read_header(path)) == repr(read_header(str(link)))

    def test_in_another_process_where_the_class_cannot_be_imported(self, tmp_path):
        """It predicts bitwise the same, and another seed of hashes writes the same bytes."""
        source = (
            "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        torch.manual_seed(0)\n"
            "        self.a, self.b = torch.nn.Linear(3, 64), torch.nn.Linear(64, 2)\n"
            "    def forward(self, x):\n        return self.b(torch.tanh(self.a(x)))\n"
        )
        namespace: dict = {"__name__": "vanishing"}
        exec(source, namespace)
        model = hrt.compress(namespace["Net"](), tol=1e-2, progress=False)
        model.save(tmp_path / "net.hrt")
        x = np.random.default_rng(0).standard_normal((17, 3)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        code = textwrap.dedent("""
            import importlib.util, sys, numpy as np, hrt
            sys.path.insert(0, sys.argv[1])
            from models import mixed_model
            assert importlib.util.find_spec("vanishing") is None
            np.save("y.npy", hrt.load("net.hrt").predict(np.load("x.npy")))
            mixed_model().save("mixed.hrt")
        """)
        environment = {**os.environ, "PYTHONHASHSEED": "1"}
        subprocess.run([sys.executable, "-c", code, ROOT / "tests"], check=True, cwd=tmp_path, env=environment)
        assert model.predict(x).tobytes() == np.load(tmp_path / "y.npy").tobytes()
        assert (tmp_path / "mixed.hrt").read_bytes() == mixed_bytes()

    def test_tied_weights_are_stored_once(self, tmp_path):
        net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        net[2].weight = net[0].weight
        hrt.compress(net, tol=1e-3, progress=False).save(tmp_path / "m.hrt")
        assert len(hrt.load(tmp_path / "m.hrt").program.weights) == 1


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

    def test_two_exchanged_tensors_are_refused(self, refused):
        data = small_bytes()
        assert "altered" in refused(data[:-8] + data[-4:] + data[-8:-4])

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
        assert "malformed" in refused(leaf_table(saved(linear_model(HMatrix((6, 5), leaves))), change))

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


class TestAtomicity:
    @pytest.fixture
    def old(self, tmp_path):
        (tmp_path / "net.hrt").write_bytes(b"old")
        return tmp_path / "net.hrt"

    @staticmethod
    def contents(folder: Path) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in folder.iterdir()}

    def test_an_existing_file_is_replaced_only_when_asked(self, old):
        with pytest.raises(hrt.ArtifactError, match="kept"):
            mixed_model().save(old, force=False)
        assert self.contents(old.parent) == {"net.hrt": b"old"}
        mixed_model().save(old)
        assert self.contents(old.parent) == {"net.hrt": mixed_bytes()}

    @pytest.mark.parametrize("failing", ["fsync", "replace"])
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_leaves_the_folder_as_it_was(self, failing, error, old, monkeypatch):
        def fail(*_):
            raise error

        monkeypatch.setattr(f"hrt.support.atomic_files.os.{failing}", fail)
        expected = hrt.ArtifactError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            mixed_model().save(old)
        assert self.contents(old.parent) == {"net.hrt": b"old"}
        if isinstance(error, OSError):
            assert "No space left on device" in str(caught.value)

    def test_a_full_disk(self, old):
        model = linear_model(HMatrix.from_dense(torch.ones(300, 300)))

        def saves() -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with pytest.raises(hrt.ArtifactError) as error:
                model.save(old)
            return str(error.value)

        assert "cannot be written" in forked(saves)[0]
        assert self.contents(old.parent) == {"net.hrt": b"old"}

    def test_a_process_killed_before_the_rename_keeps_the_old_file(self, old, monkeypatch):
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert forked(lambda: str(mixed_model().save(old))) == ("", signal.SIGKILL)
        assert old.read_bytes() == b"old"
        hidden = [name for name in self.contents(old.parent) if name != "net.hrt"]
        assert all(name.startswith(".hrt-") and name.endswith(".tmp") for name in hidden)

    def test_a_folder_that_cannot_be_written(self, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("hrt.support.atomic_files.open", refuse, raising=False)
        with pytest.raises(hrt.ArtifactError, match="Permission denied"):
            mixed_model().save(tmp_path / "net.hrt")
        assert not self.contents(tmp_path)

    def test_a_missing_folder_a_folder_and_a_device_are_refused(self, tmp_path):
        for path in (tmp_path / "no" / "net.hrt", tmp_path, Path("/dev/null")):
            with pytest.raises(hrt.ArtifactError, match=re.escape(str(path))):
                mixed_model().save(path)
        assert not self.contents(tmp_path) and not Path("/dev/null").is_file()

    def test_a_long_name_is_possible(self, tmp_path):
        path = tmp_path / ("n" * 251 + ".hrt")
        mixed_model().save(path)
        assert path.read_bytes() == mixed_bytes()

    def test_permissions_follow_the_umask(self, tmp_path):
        mask = os.umask(0o027)
        try:
            mixed_model().save(tmp_path / "net.hrt")
        finally:
            os.umask(mask)
        assert (tmp_path / "net.hrt").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize(
        "constant", [torch.ones(3, dtype=torch.complex64), HMatrix.from_dense(torch.ones(3, 3), torch.float64)]
    )
    def test_numbers_that_the_format_does_not_know_are_refused(self, constant, tmp_path):
        program = mixed_model().program.with_constants({"whole": constant})
        with pytest.raises(hrt.ArtifactError, match="cannot be stored"):
            CompressedModel(program, Certificate(1e-3, "layers", ())).save(tmp_path / "m.hrt")
        assert not self.contents(tmp_path)

    def test_a_name_that_is_no_text_is_refused(self, tmp_path):
        program = mixed_model().program.with_constants({"\udc80": torch.ones(3)})
        with pytest.raises(hrt.ArtifactError, match="cannot be stored"):
            CompressedModel(program, Certificate(1e-3, "layers", ())).save(tmp_path / "m.hrt")


def unpickling_calls(source: str) -> list[str]:
    """Lines that could run code from a file."""
    suspicious = re.compile(
        r"\bimport pickle|\bpickle\.\w|\bdill\b|\bjoblib\b|torch\.load\(|np\.load\(|allow_pickle=True"
    )
    safe = ("weights_only=True", "allow_pickle=False")
    lines = [line.strip() for line in source.splitlines()]
    return [line for line in lines if suspicious.search(line) and not any(s in line for s in safe)]


def test_no_file_is_read_by_pickle():
    """parallel.py pickles work for the user's own processes, and reads no file that way."""
    calls = {p: unpickling_calls(p.read_text("utf-8")) for p in (ROOT / "hrt").rglob("*.py")}
    assert {p.name for p, lines in calls.items() if lines} <= {"parallel.py"}
    assert not any("load(" in line for lines in calls.values() for line in lines)
    assert unpickling_calls("import pickle\nx = torch.load(p)\ntorch.load(p, weights_only=True)") == [
        "import pickle",
        "x = torch.load(p)",
    ]
