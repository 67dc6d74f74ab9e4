"""The .hrt file: bit for bit the same after a round trip, and refused when anything at all is wrong with it."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import zlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrt
from hrt.certificate.certificate import BOX_BOUND, Certificate
from hrt.certificate.layer_records import layer_records
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.model.artifact import COLUMNS, DEFLATED, DIGEST, read_header
from hrt.model.model import CompressedModel
from hrt.program.dense_view import DenseView

from forked import forked
from models import any_hmatrix, linear_model, linear_program, many_bytes, many_model, mixed_bytes, mixed_model
from zoo import ZOO, captured

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


def with_constant(constant, name: str = "more") -> CompressedModel:
    """mixed_model with one constant more."""
    return CompressedModel(mixed_model().program.with_constants({name: constant}), Certificate(1e-3, "layers", ()))


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

    @pytest.mark.parametrize(
        "constant",
        [
            *(HMatrix.from_dense(torch.full((2, 3), special)) for special in (-0.0, 1e-45)),
            *(torch.tensor([0, 1, 1], dtype=dtype) for dtype in (torch.float64, torch.int64, torch.int16, torch.int8)),
            *(torch.tensor([0, 1, 1], dtype=dtype) for dtype in (torch.uint8, torch.bool)),
        ],
        ids=repr,
    )
    def test_keeps_special_numbers_and_other_types(self, constant, tmp_path):
        with_constant(constant).save(tmp_path / "m.hrt")
        assert_same_constant(constant, hrt.load(tmp_path / "m.hrt").program.constants["more"])

    def test_leaves_out_blocks_without_entries(self, tmp_path):
        empty = Leaf(0, 0, 0, 3, u=torch.ones(0, 2), vt=torch.ones(2, 3))
        h = HMatrix((2, 3), (empty, Leaf(0, 2, 0, 3, u=torch.ones(2, 1), vt=torch.ones(1, 3))))
        linear_model(h).save(tmp_path / "m.hrt")
        found = hrt.load(tmp_path / "m.hrt").program.constants["w"]
        assert len(found.leaves) == 1 and torch.equal(found.to_dense(), h.to_dense())

    @pytest.mark.parametrize("name", sorted(ZOO))
    def test_of_every_network_in_the_zoo(self, name, tmp_path):
        entry, program = ZOO[name], captured(name)
        CompressedModel(program, Certificate(1e-3, "layers", ())).save(tmp_path / "m.hrt")
        found = hrt.load(tmp_path / "m.hrt").program
        for a, b in zip(program.run(entry.inputs(4)), found.run(entry.inputs(4)), strict=True):
            assert torch.equal(a, b)

    def test_is_a_safetensors_file_that_others_can_read(self, mixed):
        with safetensors.safe_open(mixed, framework="numpy") as file:
            numbers, header = (file.get_tensor(name).tobytes() for name in ("numbers", "header"))
            assert json.loads(file.metadata()["hrt"]) == {"format": "hrt", "version": DEFLATED}
            assert file.metadata()["sha256"] == mixed_bytes()[DIGEST].decode()
        constants, table = mixed_model().program.constants, json.loads(zlib.decompress(header))["tensors"]

        def read(name: str, dtype: torch.dtype) -> torch.Tensor:
            return torch.frombuffer(bytearray(numbers[slice(*table[name]["data_offsets"])]), dtype=dtype)

        assert table["a/leaves/value"]["dtype"] == "F32" and table["a/rows"]["dtype"] == "I16"
        assert same_numbers(read("a/leaves/value", torch.float32), constants["a/leaves"])
        assert same_numbers(read("a/rows", torch.int16), constants["a"].row_order)
        assert same_numbers(
            read("__metadata__/bfloat16", torch.bfloat16), constants["__metadata__"].leaves[0].dense.view(-1)
        )

    @pytest.mark.parametrize("name", sorted(ZOO))
    def test_takes_little_more_than_what_is_stored(self, name, tmp_path):
        """1.1 times that and 4 KB, whatever the network; its weights rounded, as the records do not depend on how."""
        program = captured(name)
        view, tol = DenseView(program), 1e-2
        changed = {k: HMatrix.from_dense(view.constants[k], torch.float16) for k in program.weights}
        small = program.with_constants(changed)
        certificate = Certificate(tol, "layers", layer_records(view, DenseView(small), {}, tol)).brief()
        model = CompressedModel(small, certificate)
        model.save(tmp_path / "m.hrt")
        assert (tmp_path / "m.hrt").stat().st_size <= 1.1 * model.nbytes + 4096

    def test_of_many_outputs_takes_little_more_than_what_is_stored(self, tmp_path):
        """Each column has four figures in the certificate."""
        figures = np.exp(np.random.default_rng(0).normal(-6, 0.4, (4, 600))).tolist()
        measured = dict(zip(("per_output", "output_rms", "max_abs_error"), figures, strict=False))
        certificate = Certificate(1e-2, "output", (), measured, {}, {BOX_BOUND: figures[3]}).brief()
        model = CompressedModel(linear_program(torch.ones(600, 2), torch.zeros(600)), certificate)
        model.save(tmp_path / "m.hrt")
        assert (tmp_path / "m.hrt").stat().st_size <= 1.1 * model.nbytes + 4096

    def test_of_five_figures_for_each_of_100000_outputs(self, tmp_path):
        figures = dict.fromkeys(["per_output", "output_rms", "max_abs_error", "upper", "bound"], [0.5] * 100_000)
        model = replace(linear_model(torch.ones(1, 1)), certificate=Certificate(1e-3, "layers", (), measured=figures))
        model.save(tmp_path / "m.hrt")
        assert (tmp_path / "m.hrt").stat().st_size < 10_000  # whose bytes justify nothing
        assert hrt.load(tmp_path / "m.hrt", backend="torch").certificate.measured == figures

    def test_of_a_stack_of_matrices_is_in_columns(self, tmp_path):
        """Every matrix has a record and two nodes; the file is bit for bit the same after a round trip."""
        model, path = many_model(), tmp_path / "m.hrt"
        path.write_bytes(many_bytes())
        assert read_header(path)["version"] == COLUMNS and len(many_bytes()) <= 1.1 * model.nbytes + 4096
        loaded = hrt.load(path)
        assert loaded.certificate == model.certificate and loaded.program.nodes == model.program.nodes
        for name, value in model.program.constants.items():
            assert_same_constant(value, loaded.program.constants[name])
        loaded.save(path)
        assert path.read_bytes() == many_bytes()

    def test_of_version_1_still_loads(self, tmp_path):
        """The file of mixed_model as the first format had it."""
        old, model = hrt.load(Path(__file__).with_name("version1.hrt")), mixed_model()
        for name, value in model.program.constants.items():
            assert_same_constant(value, old.program.constants[name])
        assert old.program.nodes == model.program.nodes and old.report() == model.report()
        old.save(tmp_path / "m.hrt")
        assert (tmp_path / "m.hrt").read_bytes() == mixed_bytes()

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
        monkeypatch.setattr(f"hrt.support.atomic_files.os.{failing}", Mock(side_effect=error))
        full = isinstance(error, OSError)
        with pytest.raises(hrt.ArtifactError if full else KeyboardInterrupt, match="No space left" if full else None):
            mixed_model().save(old)
        assert self.contents(old.parent) == {"net.hrt": b"old"}

    def test_a_process_killed_before_the_rename_keeps_the_old_file(self, old, monkeypatch):
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert forked(lambda: str(mixed_model().save(old))) == ("", signal.SIGKILL)
        assert old.read_bytes() == b"old"
        hidden = [name for name in self.contents(old.parent) if name != "net.hrt"]
        assert all(name.startswith(".hrt-") and name.endswith(".tmp") for name in hidden)

    def test_permissions_follow_the_umask(self, tmp_path):
        mask = os.umask(0o027)
        try:
            mixed_model().save(tmp_path / "net.hrt")
        finally:
            os.umask(mask)
        assert (tmp_path / "net.hrt").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize(
        "constant, name",
        [
            (torch.ones(3, dtype=torch.complex64), "more"),
            (HMatrix.from_dense(torch.ones(3, 3), torch.float64), "more"),
            *((HMatrix.from_dense(torch.full((2, 3), bad)), "more") for bad in (float("nan"), float("inf"))),
            *((torch.full((3,), bad), "more") for bad in (float("nan"), float("-inf"))),
            pytest.param(torch.ones(3), "\udc80", id="no text"),
        ],
    )
    def test_what_the_format_does_not_know_is_refused(self, constant, name, tmp_path):
        with pytest.raises(hrt.ArtifactError, match="cannot be stored"):
            with_constant(constant, name).save(tmp_path / "m.hrt")
        assert not self.contents(tmp_path)


def test_no_file_is_read_by_pickle():
    """parallel.py pickles work for the user's own processes, and reads no file that way."""
    suspicious = re.compile(r"\bimport pickle\b|\b(pickle|dill|joblib)\.\w|torch\.load\(|np\.load\(|allow_pickle=True")
    for path in (ROOT / "hrt").rglob("*.py"):
        for line in filter(suspicious.search, path.read_text("utf-8").splitlines()):
            safe = "weights_only=True" in line or "allow_pickle=False" in line
            assert safe or (path.name == "parallel.py" and "load(" not in line), line
