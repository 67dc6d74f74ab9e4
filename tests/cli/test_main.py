"""The command line: it does what it says, and a mistake is status 2 with one line that helps, nothing left behind."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import hrt
from hrt.cli import input_files as sources
from hrt.cli.main import main
from hrt.runtime.backends import on_cpu

from helpers import random_hmatrix
from models import linear_model, mixed_model

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(2, 24), nn.Linear(24, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 8), nn.Linear(3, 8)

    def forward(self, x, z):
        y = torch.tanh(self.a(x)) * self.b(z)
        return y, y.sum(-1, keepdim=True)

def build():
    return Net()

net = Net()
number = 5

def broken():
    raise RuntimeError("the lab is\\nclosed")

def needs(argument):
    return Net()

def stops():
    raise SystemExit("no network today")

def strange():
    return "a string"
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with net.py, a small artifact net.hrt and inputs, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(NETWORK)
    linear_model(random_hmatrix(0, 3, 2, depth=1)).save("net.hrt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def run(*arguments: object, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "hrt.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def mistake(lab, capsys):
    """Runs a command line that must fail as a user's mistake; returns its one line."""

    def check(*arguments: object) -> str:
        before = contents(lab)
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("hrt: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert contents(lab) == before
        return err

    return check


SLOW = """
import time
from pathlib import Path

from torch import nn


def builds():
    Path("started").touch()
    time.sleep(60)


class Large(nn.Sequential):
    def forward(self, x):
        Path("started").touch()
        return super().forward(x)


def compresses():
    sides = [300, *[512] * 8, 4]
    layers = [nn.Linear(a, b) for a, b in zip(sides, sides[1:])]
    return Large(*[part for layer in layers for part in (layer, nn.Tanh())])
"""


class TestCompress:
    @pytest.mark.parametrize("source", ["net.py:build", "net.py:Net", "net.py:net", "net:build"])
    def test_of_a_python_source(self, source, lab, capsys):
        assert (
            main(["compress", source, "--box", "-1,0 : 1,1", "--tol", "1e-2", "-o", "out.hrt", "--target", "bytes"])
            == 0
        )
        out, err = capsys.readouterr()
        assert "measured:" in out and "wrote out.hrt" in out and err == ""
        model = hrt.load("out.hrt")
        assert (model.certificate.tol, model.target) == (1e-2, "bytes")
        net = sources.read_network("net.py:build")
        x = torch.rand(2000, 2) * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
        y = net(x).detach()
        assert float((model.predict(x) - y).norm() / y.norm()) <= 1e-2

    def test_of_an_exported_program(self, lab):
        batch = torch.export.Dim("batch")
        net = sources.read_network("net.py:build").eval()
        exported = torch.export.export(net, (torch.ones(4, 2),), dynamic_shapes=({0: batch},))
        torch.export.save(exported, "net.pt2")
        assert main(["compress", "net.pt2", "--box", "-1,0 : 1,1", "--tol", "1e-2", "-o", "out.hrt"]) == 0
        x = torch.rand(500, 2)
        y = net(x).detach()
        assert float((hrt.load("out.hrt").predict(x) - y).norm() / y.norm()) <= 2e-2

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    def test_with_weights(self, suffix, lab):
        net = sources.read_network("net.py:build")
        state = {k: v * 3 for k, v in net.state_dict().items()}
        path = f"weights{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state, "epoch": 3}, path)
        assert main(["compress", "net.py:build", "--weights", path, "--tol", "1e-5", "-o", "out.hrt"]) == 0
        net.load_state_dict(state)
        x = torch.rand(50, 2)
        assert torch.allclose(hrt.load("out.hrt").predict(x), net(x).detach(), rtol=1e-3, atol=1e-4)

    def test_with_inputs_for_several_arguments(self, lab):
        g = np.random.default_rng(0)
        np.save("a.npy", g.standard_normal((300, 2)))
        np.savetxt("b.csv", g.standard_normal((300, 3)), delimiter=",")
        assert main(["compress", "net.py:Two", "-i", "a.npy", "-i", "b.csv", "--tol", "1e-2", "-o", "out.hrt"]) == 0
        assert main(["predict", "out.hrt", "a.npy", "b.csv", "-o", "y.npz"]) == 0
        with np.load("y.npz") as y:
            names = hrt.load("out.hrt").program.outputs
            assert y.files == list(names) and [y[n].shape for n in names] == [(300, 8), (300, 1)]

    def test_same_seed_gives_the_same_bytes(self, lab):
        for name in ("a.hrt", "b.hrt"):
            assert main(["compress", "net.py:build", "--box", "0,0:1,1", "--seed", "3", "-o", name]) == 0
        assert Path("a.hrt").read_bytes() == Path("b.hrt").read_bytes()

    def test_a_file_is_not_taken_for_an_installed_module_of_its_name(self, lab):
        Path("json.py").write_text(NETWORK)
        assert isinstance(sources.read_network("json.py:build"), nn.Module) and json.loads("1") == 1

    def test_siblings_of_the_source_can_be_imported(self, lab):
        Path("parts").mkdir()
        Path("parts/layers_of_lab.py").write_text(NETWORK)
        Path("parts/top.py").write_text("from layers_of_lab import build\n")
        assert isinstance(sources.read_network("parts/top.py:build"), nn.Module)

    def test_an_existing_output_is_replaced_with_force_alone(self, lab, mistake):
        assert "--force" in mistake("compress", "net.py:build", "-o", "net.hrt")
        assert main(["compress", "net.py:build", "-o", "net.hrt", "--force"]) == 0
        assert len(hrt.load("net.hrt").program.nodes) == 3

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["missing.py:build"], "missing.py does not exist"),
            (["net.py"], "file.py:name"),
            (["net.py:"], "file.py:name"),
            (["net.pt"], "pickle"),
            (["net.onnx"], "net.onnx cannot be read as ONNX"),
            (["missing.pt2"], "missing.pt2 does not exist"),
            (["x.npy.pt2"], "cannot be read as a torch.export.save file"),
            (["net.py:absent"], "absent"),
            (["net.py:number"], "net.py:number"),
            (["net.py:broken"], "RuntimeError: the lab is closed (line 30 of net.py)"),
            (["net.py:needs"], "argument"),
            (["net.py:stops"], "no network today"),
            (["net.py:strange"], "is a str"),
            (["wrong.py:net"], "SyntaxError"),
            (["no.such.module:net"], "No module named"),
            (["net.py:build", "--weights", "missing.pt"], "missing.pt do not exist"),
            (["net.py:build", "--weights", "x.npy"], "do not fit"),
            (["net.py:build", "--weights", "other.safetensors"], "Missing key(s) in state_dict"),
            (["net.py:build", "--weights", "evil.pt"], "do not fit"),
            (["net.pt2", "--weights", "other.safetensors"], "holds its own"),
            (["net.py:build", "--box", "1"], "'1'"),
            (["net.py:build", "--box", "a,b:c,d"], "low,low : high,high"),
            (["net.py:build", "--box", "1,1:0,0"], "low <= high"),
            (["net.py:build", "--box", "0:1,2"], "two equal lists"),
            (["net.py:build", "--box", "0,0:1,inf"], "finite"),
            (["net.py:build", "--box", "0,0,0:1,1,1"], "features"),
            (["net.py:build", "--box", "0,0:1,1", "-i", "x.npy"], "--inputs and --box"),
            (["net.py:build", "-i", "missing.npy"], "missing.npy does not exist"),
            (["net.py:build", "-i", "nan.npy"], "NaN"),
            (["net.py:build", "-i", "wide.npy"], "features"),
            (["net.py:build", "-i", "empty.npy"], "no rows"),
            (["net.py:build", "-i", "text.csv"], "cannot be read as numbers"),
            (["net.py:build", "-i", "net.py"], "Expected one of .npy, .npz, .csv"),
            (["net.py:build", "--target", "tpu"], "tpu"),
            (["net.py:build", "--storage", "int4"], "int4"),
            (["net.py:build", "--tol", "0"], "tol"),
            (["net.py:build", "--tol", "-1"], "tol"),
            (["net.py:build", "--tol", "nan"], "tol"),
            (["net.py:build", "--tol", "1e-12", "--box", "0,0:1,1"], "tol"),
            (["net.py:build", "--tol", "small"], "Invalid value for '--tol'"),
            (["net.py:build", "--bogus"], "--bogus"),
        ],
    )
    def test_a_mistake(self, arguments, words, lab, mistake):
        np.save("nan.npy", np.full((9, 2), np.nan))
        np.save("wide.npy", np.ones((9, 5)))
        np.save("empty.npy", np.ones((0, 2)))
        Path("x.npy.pt2").write_bytes(Path("x.npy").read_bytes())
        Path("text.csv").write_text("x,t\n1,2\n")
        Path("wrong.py").write_text("def net(:\n")
        save_file({"a.weight": torch.ones(2, 2)}, "other.safetensors")
        torch.save(os.system, "evil.pt")
        assert words in mistake("compress", *arguments, "-o", "out.hrt")

    @pytest.mark.parametrize("out", ["no/such/out.hrt", "."])
    def test_an_output_that_cannot_be_written_is_noticed_before_the_work(self, out, lab, mistake):
        assert out.partition("/")[0] in mistake("compress", "net.py:broken", "-o", out)


class TestInfo:
    def test_shows_layers_certificate_and_shapes(self, lab, capsys):
        mixed_model().save("m.hrt")
        assert main(["info", "m.hrt"]) == 0
        out = capsys.readouterr().out
        assert hrt.load("m.hrt").report().rstrip() in out
        assert "input x: (batch, 7)" in out and "output y2: (batch, 3)" in out
        assert f"on disk {Path('m.hrt').stat().st_size:,} bytes; on this machine predict takes the backend " in out
        assert all(f"resident on the CPU in {name}: " in out for name in on_cpu())

    def test_json_is_json_also_where_figures_are_not_finite(self, lab, capsys):
        mixed_model().save("m.hrt")
        assert main(["info", "m.hrt", "--json"]) == 0

        def refuse(word: str) -> None:
            raise AssertionError(f"{word} is no JSON")

        found = json.loads(capsys.readouterr().out, parse_constant=refuse)
        assert found["certificate"]["tol"] == 1e-3 and found["certificate"]["measured"]["runtime_error"] is None
        assert found["version"] == 1 and found["dense_nbytes"] == 12345

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_mistakes(self, options, lab, mistake):
        data = bytearray(Path("net.hrt").read_bytes())
        data[-1] ^= 1
        Path("altered.hrt").write_bytes(data)
        Path("cut.hrt").write_bytes(data[:-5])
        for path, word in (
            ("no.hrt", "cannot be read"),
            ("altered.hrt", "altered"),
            ("cut.hrt", "truncated"),
            (".", "folder"),
        ):
            assert word in mistake("info", path, *options)


class TestPredict:
    def test_prints_lines_of_numbers_that_lose_nothing(self, lab, capsys):
        assert main(["predict", "net.hrt", "x.npy"]) == 0
        out, err = capsys.readouterr()
        found = np.array([[float(v) for v in line.split(",")] for line in out.splitlines()], np.float32)
        assert np.array_equal(found, hrt.load("net.hrt").predict(np.load("x.npy"))) and err == ""

    @pytest.mark.parametrize("source", ["x.npy", "x.npz", "x.csv", "i.npy"])
    @pytest.mark.parametrize("target", ["y.npy", "y.npz", "y.csv"])
    def test_reads_and_writes_every_format(self, source, target, lab, capsys):
        x = np.load("x.npy")
        np.savez("x.npz", values=x)
        np.savetxt("x.csv", x, delimiter=",", fmt="%.9g")
        np.save("i.npy", np.ones((5, 2), int))
        assert main(["predict", "net.hrt", source, "-o", target]) == 0
        y = sources.read_array(Path(target))
        expected = hrt.load("net.hrt").predict(np.ones((5, 2), np.float32) if source == "i.npy" else x)
        assert np.array_equal(y.astype(np.float32), expected) and "(5, 3)" in capsys.readouterr().out

    def test_of_several_inputs_and_outputs(self, lab, capsys):
        mixed_model().save("m.hrt")
        np.save("x7.npy", np.ones((4, 7)))
        np.save("x5.npy", np.ones((4, 5)))
        assert main(["predict", "m.hrt", "x7.npy", "x5.npy", "-o", "y.csv"]) == 0
        assert sources.read_array(Path("y.csv")).shape == (4, 43)
        capsys.readouterr()
        assert main(["predict", "m.hrt", "x7.npy", "x5.npy"]) == 0
        assert capsys.readouterr().out == Path("y.csv").read_text()

    def test_arrays_of_an_npz_are_called_as_the_outputs_in_their_order(self, lab):
        mixed_model().save("m.hrt")
        x = tuple(np.random.default_rng(0).standard_normal((4, n)).astype(np.float32) for n in (7, 5))
        np.save("x7.npy", x[0])
        np.save("x5.npy", x[1])
        command = ["predict", "m.hrt", "x7.npy", "x5.npy", "-o", "y.npz", "--derivatives", "d9", "d0d0"]
        assert main(command) == 0
        value, first, second = hrt.load("m.hrt").predict(x, derivatives=["d9", "d0d0"])
        with np.load("y.npz") as y:
            assert y.files == ["y2", "h3", "d9_y2", "d9_h3", "d0d0_y2", "d0d0_h3"]
            assert all(np.array_equal(y[n], e) for n, e in zip(y.files, [*value, *first, *second], strict=True))

    def test_one_column_and_no_rows(self, lab, capsys):
        linear_model(random_hmatrix(0, 2, 1)).save("one.hrt")
        Path("one.csv").write_text("1\n2\n3\n")
        assert main(["predict", "one.hrt", "one.csv", "-o", "y.npy"]) == 0 and np.load("y.npy").shape == (3, 2)
        np.save("none.npy", np.zeros((0, 1)))
        capsys.readouterr()
        assert main(["predict", "one.hrt", "none.npy"]) == 0 and capsys.readouterr().out == ""

    def test_max_batch(self, lab):
        assert main(["predict", "net.hrt", "x.npy", "-o", "a.npy"]) == 0
        assert main(["predict", "net.hrt", "x.npy", "--max-batch", "2", "-o", "b.npy"]) == 0
        assert np.allclose(np.load("a.npy"), np.load("b.npy"), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["no.hrt", "x.npy"], "no.hrt cannot be read"),
            (["x.npy", "x.npy"], "not a usable .hrt file"),
            (["net.hrt", "no.npy"], "no.npy does not exist"),
            (["net.hrt", "wide.npy"], "(batch, 2)"),
            (["net.hrt", "flat.npy"], "one row a sample"),
            (["net.hrt", "x.npy", "x.npy"], "Expected 1"),
            (["net.hrt", "words.npy"], "Expected numbers"),
            (["net.hrt", "cut.npy"], "cannot be read as numbers"),
            (["net.hrt", "cut.npz"], "cannot be read as numbers"),
            (["net.hrt", "two.npz"], "holds 2 arrays"),
            (["net.hrt", "objects.npy"], "cannot be read as numbers"),
            (["net.hrt", "empty.csv"], "(batch, 2)"),
            (["net.hrt", "ragged.csv"], "cannot be read as numbers"),
            (["net.hrt", "x.txt"], "'.txt'"),
            (["net.hrt", "x.npy", "--backend", "abacus"], "abacus"),
            (["net.hrt", "x.npy", "--max-batch", "0"], "max_batch"),
            (["net.hrt", "x.npy", "-o", "y.txt"], "y.txt"),
            (["net.hrt", "x.npy", "-o", "x.npy"], "--force"),
            (["net.hrt", "x.npy", "-o", "no/y.npy"], "no"),
            (["m.hrt", "x7.npy", "x5.npy", "-o", "y.npy"], "2 output(s)"),
            (["net.hrt"], "Missing argument"),
        ],
    )
    def test_a_mistake(self, arguments, words, lab, mistake):
        mixed_model().save("m.hrt")
        np.save("x7.npy", np.ones((4, 7)))
        np.save("x5.npy", np.ones((4, 5)))
        np.save("wide.npy", np.ones((4, 3)))
        np.save("flat.npy", np.ones(4))
        np.save("words.npy", np.array([["a", "b"]]))
        np.save("objects.npy", np.array([[None, 1]]), allow_pickle=True)
        np.savez("two.npz", a=np.ones(2), b=np.ones(2))
        Path("cut.npy").write_bytes(Path("x.npy").read_bytes()[:-3])
        Path("cut.npz").write_bytes(Path("two.npz").read_bytes()[:-40])
        Path("empty.csv").write_text("")
        Path("ragged.csv").write_text("1,2\n3\n")
        Path("x.txt").write_text("1,2\n")
        assert words in mistake("predict", *arguments)

    def test_a_failure_while_writing_leaves_nothing(self, lab, monkeypatch, mistake):
        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("hrt.support.atomic_files.os.fsync", fail)
        for name in ("y.npy", "y.npz", "y.csv"):
            assert "No space left on device" in mistake("predict", "net.hrt", "x.npy", "-o", name)


class TestNames:
    def test_no_name_is_lost(self, tmp_path):
        names = ["file", "allow_pickle", "a/b", "", "u", "u", "", "u.2", "arr_0", "a\0b"]
        expected = ["file", "allow_pickle", "a/b", "output", "u", "u.2", "output.2", "u.2.2", "arr_0", "a_b"]
        assert sources.distinct(names) == expected
        arrays = [np.full((2, 1), k) for k in range(len(names))]
        sources.write_arrays(tmp_path / "y.npz", arrays, names)
        with np.load(tmp_path / "y.npz") as y:
            assert y.files == expected and [int(y[n][0, 0]) for n in y.files] == list(range(len(names)))

    def test_a_residual_is_called_so(self, lab):
        assert main(["residual", "net.hrt", "x.npy", "--expr", "u[0] + d0[1]", "-o", "r.npz"]) == 0
        with np.load("r.npz") as r:
            assert r.files == ["residual"] and r["residual"].shape == (5,)


LONG = "n" * 300
NAMELESS = [("a\0b", "NUL character"), (LONG, "too long"), ("d/" * 3000 + "n", "too long")]


class TestNamesThatNoFileHas:
    """NUL characters, and names and paths longer than the system takes: one line that says what was found."""

    @pytest.mark.parametrize("name, words", NAMELESS, ids=["nul", "name", "path"])
    @pytest.mark.parametrize(
        "command",
        [
            ["info", "{}.hrt"],
            ["info", "{}.hrt", "--json"],
            ["predict", "{}.hrt", "x.npy"],
            ["predict", "net.hrt", "{}.npy"],
            ["predict", "net.hrt", "x.npy", "-o", "{}.npy"],
            ["residual", "net.hrt", "x.npy", "--expr", "u[0]", "-o", "{}.npy"],
            ["compress", "{}.py:build", "-o", "out.hrt"],
            ["compress", "{}.pt2", "-o", "out.hrt"],
            ["compress", "{}.onnx", "-o", "out.hrt"],
            ["compress", "net.py:build", "-o", "{}.hrt"],
            ["compress", "net.py:build", "-o", "out.hrt", "--weights", "{}.pt"],
            ["compress", "net.py:build", "-o", "out.hrt", "-i", "{}.npy"],
            ["export", "net.hrt", "-o", "{}.onnx"],
            ["repository", "net.hrt", "{}", "--name", "m"],
            ["triton-backend", "{}"],
            ["plot", "net.hrt", "-o", "{}.png"],
            ["bench", "{}.hrt"],
            ["bench", "net.hrt", "--json", "{}.json"],
        ],
        ids=" ".join,
    )
    def test_on_the_command_line(self, command, name, words, lab, mistake):
        found = mistake(*(word.replace("{}", name) for word in command))
        assert words in found and "Found the " in found and "Expected" in found
        assert "\0" not in found and len(found) < 400

    @pytest.mark.parametrize("name, words", NAMELESS, ids=["nul", "name", "path"])
    def test_in_python(self, name, words, lab):
        model = hrt.load("net.hrt")
        net = sources.read_network("net.py:build")
        for error, call in (
            (hrt.ArtifactError, lambda: hrt.load(name + ".hrt")),
            (hrt.ArtifactError, lambda: hrt.load(Path(name))),
            (hrt.ArtifactError, lambda: model.save(name + ".hrt")),
            (hrt.CaptureError, lambda: hrt.compress(name + ".onnx", progress=False)),
            (hrt.CaptureError, lambda: hrt.compress(name, progress=False)),
            (hrt.InputError, lambda: model.plot(name + ".png")),
            (hrt.InputError, lambda: hrt.export_onnx(model, name + ".onnx")),
            (hrt.InputError, lambda: hrt.export_repository(model, name, name="m")),
            (hrt.InputError, lambda: hrt.install_triton_backend(name)),
            (hrt.InputError, lambda: sources.load_weights(net, Path(name + ".pt"))),
        ):
            with pytest.raises(error, match=f"Found the path .*{words}.*Expected") as caught:
                call()
            assert "\0" not in str(caught.value)

    def test_letters_that_the_system_cannot_write(self, lab):
        with pytest.raises(hrt.ArtifactError, match="that is no name"):
            hrt.load("\ud800.hrt")

    def test_names_as_long_as_the_system_takes_stay_possible(self, lab):
        name = "n" * 251 + ".hrt"
        hrt.load("net.hrt").save(name)
        assert main(["predict", name, "x.npy", "-o", "y" * 251 + ".npy"]) == 0


class TestPlot:
    def test_draws(self, lab, capsys):
        assert main(["plot", "net.hrt", "-o", "net.png"]) == 0
        assert Path("net.png").read_bytes().startswith(b"\x89PNG") and "wrote net.png" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "out, words", [("p.foo", ".png"), ("no/p.png", "no"), ("x.npy", "--force"), (".", "folder")]
    )
    def test_a_mistake(self, out, words, lab, mistake):
        assert words in mistake("plot", "net.hrt", "-o", out)


class TestHelp:
    @pytest.mark.parametrize(
        "command, words",
        [
            ([], ["compress", "info", "predict", "plot", "hrt compress net.py:build"]),
            (
                ["compress"],
                [".pt2", "file.py:name", "package.module:name", ".npy", ".npz", ".csv", ".safetensors", "hrt compress"],
            ),
            (["info"], [".hrt", "--json", "hrt info net.hrt"]),
            (["predict"], [".npy", ".npz", ".csv", "hrt predict net.hrt x.npy"]),
            (["plot"], [".png", ".pdf", ".svg", "hrt plot net.hrt -o net.png"]),
            (["bench"], [".hrt", ".onnx", ".pt2", "--inputs", "--tol", "--json", "hrt bench net.onnx"]),
        ],
    )
    def test_teaches(self, command, words, capsys):
        assert main([*command, "--help"]) == 0
        out, err = capsys.readouterr()
        assert err == "" and [w for w in words if w not in out] == []
        assert max(map(len, out.splitlines())) <= 200

    def test_no_command_shows_the_help(self, capsys):
        assert main([]) in (0, 2)
        out, err = capsys.readouterr()
        assert "hrt compress" in out + err

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"hrt {hrt.__version__}\n"

    @pytest.mark.parametrize(
        "arguments", [["bogus"], ["--bogus"], ["compress"], ["plot", "net.hrt"], ["info", "a", "b"]]
    )
    def test_usage_errors_are_one_line(self, arguments, mistake):
        assert "--help" in mistake(*arguments)


class TestProcess:
    """What only a process of its own can show."""

    def test_works_where_nothing_is_a_terminal(self, lab):
        done = run("compress", "net.py:build", "--box", "-1,0 : 1,1", "-o", "out.hrt")
        assert (
            (done.returncode, done.stderr) == (0, "") and "wrote out.hrt" in done.stdout and "\x1b" not in done.stdout
        )

    def test_a_mistake_is_status_2_and_one_line(self, lab):
        done = run("predict", "net.hrt", "no.npy")
        assert (done.returncode, done.stdout) == (2, "") and done.stderr == "hrt: no.npy does not exist.\n"

    def test_the_installed_command(self, lab):
        command = Path(sys.executable).parent / "hrt"
        done = subprocess.run([command, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"hrt {hrt.__version__}\n")

    def test_a_reader_that_stops_reading_is_no_error_of_ours(self, lab):
        np.save("long.npy", np.ones((200_000, 2)))
        command = [sys.executable, "-m", "hrt.cli", "predict", "net.hrt", "long.npy"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert "Traceback" not in process.stderr.read() and process.wait(60) in (0, 1)
        process.stderr.close()

    @pytest.mark.parametrize("while_it", ["builds", "compresses"])
    def test_an_interruption_leaves_nothing(self, lab, while_it):
        Path("slow.py").write_text(SLOW)
        np.save("x.npy", np.random.default_rng(0).standard_normal((4000, 300)).astype(np.float32))
        before = contents(lab)
        command = [sys.executable, "-m", "hrt.cli", "compress", f"slow.py:{while_it}", "-o", "out.hrt"]
        command += ["--inputs", "x.npy", "--tol", "1e-3"]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        deadline = time.monotonic() + 60
        while not Path("started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(3 if while_it == "compresses" else 0)
        assert process.poll() is None, "it was done before it could be interrupted"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        Path("started").unlink()
        assert (process.returncode, out, err) == (130, "", "hrt: interrupted; nothing was written\n")
        assert contents(lab) == before


class TestReason:
    def test_a_foreign_error_becomes_one_short_line(self):
        text = sources.reason(ValueError("a\n  b\n" + "c" * 1000))
        assert text.startswith("ValueError: a b c") and len(text) < 400 and "\n" not in text
        assert sources.reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_every_command_has_its_place_in_the_help_of_the_whole(capsys):
    main(["--help"])
    out = capsys.readouterr().out
    from hrt.cli.main import app

    names = [re.sub("_", "-", c.callback.__name__) for c in app.registered_commands if c.callback]
    assert len(names) >= 4 and all(name in out for name in names)
