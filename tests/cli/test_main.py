"""The command line: it does what it says, and a mistake is status 2 with one line that helps, nothing left behind."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

import hrt
from hrt.calibration.input_files import read_array
from hrt.cli.main import app, main
from hrt.export.c import toolchain
from hrt.export.c.toolchain import Compiler
from hrt.model.rows import say_float32
from hrt.runtime.backends import on_cpu, open_session

from helpers import random_hmatrix
from models import linear_model, mixed_model


class TestInfo:
    def test_shows_sizes_first_then_layers_certificate_and_shapes(self, lab, capsys):
        mixed_model().save("m.hrt")
        assert main(["info", "m.hrt"]) == 0
        out = capsys.readouterr().out
        model, top = hrt.load("m.hrt"), out.splitlines()[:10]
        assert f"stored: {model.nbytes:,} bytes, {model.compression_ratio:.2f}x smaller than dense" in "\n".join(top)
        assert f"file: {Path('m.hrt').stat().st_size:,} bytes" in top
        for name in on_cpu():
            resident = open_session(model.program, name).resident_bytes
            assert any(line.startswith(f"resident: {resident:,} bytes in {name}") for line in top)
        assert set(model.report().splitlines()) <= set(out.splitlines())
        assert "input x: (batch, 7)" in out and "output y2: (batch, 3)" in out

    def test_the_size_of_an_older_file_is_that_on_disk(self, lab, capsys):
        old = Path(__file__).parents[1] / "model/version1.hrt"
        assert main(["info", str(old)]) == 0 and f"file: {old.stat().st_size:,} bytes\n" in capsys.readouterr().out

    def test_verbose_adds_what_the_paper_says(self, lab, capsys):
        mixed_model().save("m.hrt")
        assert main(["info", "m.hrt"]) == 0 and "κ(W)" not in capsys.readouterr().out
        assert main(["info", "m.hrt", "--verbose"]) == 0 and "κ(W)" in capsys.readouterr().out

    def test_json_is_json_also_where_figures_are_not_finite(self, lab, capsys):
        mixed_model().save("m.hrt")
        assert main(["info", "m.hrt", "--json"]) == 0

        header = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert header["certificate"]["tol"] == 1e-3 and header["certificate"]["measured"]["runtime_error"] is None
        sizes = header["sizes"]
        assert next(iter(header)) == "sizes" and header["version"] == 2 and sizes["dense"] == 12345
        assert sizes["stored"] == mixed_model().nbytes and sizes["file"] == Path("m.hrt").stat().st_size
        assert sorted(sizes["resident"]) == sorted(on_cpu()) and all(sizes["resident"].values())

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_mistakes(self, options, lab, mistake):
        data = bytearray(Path("net.hrt").read_bytes())
        data[-1] ^= 1
        Path("altered.hrt").write_bytes(data)
        Path("cut.hrt").write_bytes(data[:-5])
        words = {"no.hrt": "cannot be read", "altered.hrt": "altered", "cut.hrt": "truncated", ".": "folder"}
        assert all(word in mistake("info", path, *options) for path, word in words.items())


class TestPredict:
    def test_prints_lines_of_numbers_that_lose_nothing(self, lab, capsys):
        assert main(["predict", "net.hrt", "x.npy"]) == 0
        out, err = capsys.readouterr()
        printed = np.array([[float(v) for v in line.split(",")] for line in out.splitlines()], np.float32)
        assert np.array_equal(printed, hrt.load("net.hrt").predict(np.load("x.npy"))) and err == ""

    @pytest.mark.parametrize("source, target", [("x.npz", "y.npy"), ("x.csv", "y.npz"), ("x.npy", "y.csv")])
    def test_reads_and_writes_every_format(self, source, target, lab, capsys):
        x = np.load("x.npy")
        np.savez("x.npz", values=x)
        np.savetxt("x.csv", x, delimiter=",", fmt="%.9g")
        assert main(["predict", "net.hrt", source, "-o", target]) == 0
        y = read_array(Path(target))
        expected = hrt.load("net.hrt").predict(x)
        assert np.array_equal(y.astype(np.float32), expected) and "(5, 3)" in capsys.readouterr().out

    def test_a_table_with_names_says_which_columns_it_took(self, lab, capsys, mistake):
        x = np.load("x.npy")
        np.savetxt("x.csv", x, delimiter=",", fmt="%.9g", header="position,time", comments="")
        assert main(["predict", "net.hrt", "x.csv"]) == 0
        out, err = capsys.readouterr()
        assert err == "x.csv has the columns 'position', 'time'\n"
        assert main(["predict", "net.hrt", "x.npy"]) == 0 and capsys.readouterr().out == out
        assert main(["residual", "net.hrt", "x.csv", "--expr", "u[0] - x0"]) == 0
        assert "'position', 'time'" in capsys.readouterr().err
        np.savetxt("wide.csv", np.c_[x, x[:, :1]], delimiter=",", header="x,t,u", comments="")
        assert "columns 'x', 't', 'u'" in mistake("predict", "net.hrt", "wide.csv")

    @pytest.mark.filterwarnings("error")
    def test_nothing_is_said_about_the_float64_that_text_becomes(self, lab, capsys):
        say_float32.cache_clear()
        np.savetxt("x.csv", np.load("x.npy"), delimiter=",")
        assert main(["predict", "net.hrt", "x.csv"]) == 0 and capsys.readouterr().err == ""

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

    @pytest.mark.parametrize(
        "arguments, words",
        [
            (["no.hrt", "x.npy"], "no.hrt cannot be read"),
            (["x.npy", "x.npy"], "not a usable .hrt file"),
            (["net.hrt", "no.npy"], "no.npy does not exist"),
            (["net.hrt", "wide.npy"], "(batch, 2)"),
            (["net.hrt", "x.npy", "x.npy"], "Expected 1"),
            (["net.hrt", "empty.csv"], "(batch, 2)"),
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
        if arguments[0] == "m.hrt":
            mixed_model().save("m.hrt")
        np.save("x7.npy", np.ones((4, 7)))
        np.save("x5.npy", np.ones((4, 5)))
        np.save("wide.npy", np.ones((4, 3)))
        Path("empty.csv").write_text("")
        assert words in mistake("predict", *arguments)

    def test_a_failure_while_writing_leaves_nothing(self, lab, monkeypatch, mistake):
        full = OSError(28, "No space left on device")
        monkeypatch.setattr("hrt.support.atomic_files.os.fsync", Mock(side_effect=full))
        for name in ("y.npy", "y.npz", "y.csv"):
            assert "No space left on device" in mistake("predict", "net.hrt", "x.npy", "-o", name)


LONG = "n" * 300
NAMELESS = [("a\0b", "NUL character"), (LONG, "too long"), ("d/" * 3000 + "n", "too long")]


class TestNamesThatNoFileHas:
    """NUL characters, and names and paths longer than the system takes: one line that says what was found."""

    @pytest.mark.parametrize("name, words", NAMELESS, ids=["nul", "name", "path"])
    @pytest.mark.parametrize(
        "command",
        [
            "info {}.hrt",
            "info {}.hrt --json",
            "predict {}.hrt x.npy",
            "predict net.hrt {}.npy",
            "predict net.hrt x.npy -o {}.npy",
            "residual net.hrt x.npy --expr u[0] -o {}.npy",
            *(f"compress {network} -o out.hrt" for network in ("{}.py:build", "{}.pt2", "{}.onnx")),
            "compress net.py:build -o {}.hrt",
            "compress net.py:build -o out.hrt --weights {}.pt",
            "compress net.py:build -o out.hrt -i {}.npy",
            "export net.hrt -o {}.onnx",
            "repository net.hrt {} --name m",
            "triton-backend {}",
            "plot net.hrt -o {}.png",
            "bench {}.hrt",
            "bench net.hrt --json {}.json",
        ],
    )
    def test_on_the_command_line(self, command, name, words, lab, mistake):
        line = mistake(*(word.replace("{}", name) for word in command.split()))
        assert words in line and "Found the " in line and "Expected" in line
        assert "\0" not in line and len(line) < 400

    @pytest.mark.parametrize("name, words", NAMELESS, ids=["nul", "name", "path"])
    def test_in_python(self, name, words, lab):
        model = hrt.load("net.hrt")
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
        ):
            with pytest.raises(error, match=f"Found the path .*{words}.*Expected") as caught:
                call()
            assert "\0" not in str(caught.value)
        with pytest.raises(hrt.ArtifactError, match="that is no name"):
            hrt.load("\ud800.hrt")  # letters that the system cannot write

    def test_names_as_long_as_the_system_takes_stay_possible(self, lab):
        name = "n" * 251 + ".hrt"
        hrt.load("net.hrt").save(name)
        assert main(["predict", name, "x.npy", "-o", "y" * 251 + ".npy"]) == 0


@pytest.mark.usefixtures("native")
class TestCompile:
    def test_what_it_compiled_is_loaded_after(self, lab, capsys, monkeypatch):
        assert main(["compile", "net.hrt", "--derivatives", "d0"]) == 0
        assert "compiled in" in capsys.readouterr().out
        monkeypatch.setattr(Compiler, "build", lambda *_: pytest.fail("compiled again"))
        model = hrt.load("net.hrt", backend="native")
        assert model.predict(np.zeros((2, 2)), derivatives=["d0"])[0].shape == (2, 3)
        assert main(["info", "net.hrt"]) == 0 and "native" not in capsys.readouterr().out  # it is not in use

    def test_a_copied_folder_serves_without_a_compiler(self, lab, monkeypatch, capsys):
        model = hrt.load("net.hrt", backend="torch")
        context = {**model.certificate.context, "runtimes": ["torch", "native"]}
        replace(model, certificate=replace(model.certificate, context=context)).save("net.hrt")
        assert main(["compile", "net.hrt", "-o", "ahead"]) == 0
        assert f"kept in {Path('ahead', 'native')}" in capsys.readouterr().out
        shutil.copytree("ahead", "elsewhere")
        monkeypatch.setenv("PATH", "")
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
        with pytest.raises(hrt.BackendError, match="There is no C compiler"):
            monkeypatch.setenv("HRT_CACHE", "nothing")
            hrt.load("net.hrt", backend="native")
        assert hrt.load("net.hrt").session.backend != "native"
        monkeypatch.setenv("HRT_CACHE", "elsewhere")
        x = np.zeros((2, 2), np.float32)
        expected = hrt.load("net.hrt", backend="torch").predict(x)
        assert np.allclose(hrt.load("net.hrt", backend="native").predict(x), expected, atol=1e-5)
        assert hrt.load("net.hrt").session.backend_at(1) == "native"

    def test_mistakes(self, lab, monkeypatch, mistake):
        monkeypatch.setenv("CC", "no-such-compiler")
        assert "no-such-compiler" in mistake("compile", "net.hrt")
        monkeypatch.setenv("HRT_CACHE", str(lab / "net.py"))
        assert "Set HRT_CACHE" in mistake("compile", "net.hrt")


class TestPlot:
    def test_draws(self, lab, capsys):
        assert main(["plot", "net.hrt", "-o", "net.png"]) == 0
        assert Path("net.png").read_bytes().startswith(b"\x89PNG") and "wrote net.png" in capsys.readouterr().out


class TestHelp:
    @pytest.mark.parametrize(
        "command, words",
        [
            ("", ["compress info predict plot", "hrt compress net.py:build"]),
            (
                "compress",
                [".onnx .pt2 mynets.py:build package.module:build .npy .npz .csv .safetensors", "hrt compress"],
            ),
            ("info", [".hrt --json", "hrt info net.hrt"]),
            ("predict", [".npy .npz .csv", "hrt predict net.hrt x.npy"]),
            ("plot", [".png .pdf .svg", "hrt plot net.hrt -o net.png"]),
            ("report", [".html --measure --force", "hrt report net.hrt --html report.html"]),
            ("bench", [".hrt .onnx .pt2 --inputs --tol --json", "hrt bench net.onnx"]),
        ],
    )
    def test_teaches(self, command, words, capsys):
        names, *examples = words
        assert main([*command.split(), "--help"]) == 0
        out, err = capsys.readouterr()
        assert err == "" and all(word in out for word in [*names.split(), *examples])
        assert max(map(len, out.splitlines())) <= 200

    def test_has_a_place_for_every_command(self, capsys):
        main(["--help"])
        out = capsys.readouterr().out
        names = [c.name or re.sub("_", "-", c.callback.__name__) for c in app.registered_commands if c.callback]
        assert len(names) >= 4 and all(name in out for name in names)

    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"hrt {hrt.__version__}\n"

    @pytest.mark.parametrize(
        "arguments", [["bogus"], ["--bogus"], ["compress"], ["plot", "net.hrt"], ["info", "a", "b"]]
    )
    def test_usage_errors_are_one_line(self, arguments, mistake):
        assert "--help" in mistake(*arguments)


class TestFilesToWrite:
    """One rule: what is there stays, but for --force, and a name says of what kind the file is."""

    def test_a_name_of_another_kind_is_warned_of(self, lab, capsys):
        assert main(["compress", "net.py:build", "-o", "net.txt", "--no-progress"]) == 0
        assert capsys.readouterr().err == (
            "hrt: net.txt ends with .txt, and what is written to it is a .hrt file. Expected .hrt.\n"
        )
        model = hrt.load("net.hrt")
        with pytest.warns(UserWarning, match=r"a \.hrt file") as saved:
            model.save("net.onnx")
        with pytest.warns(UserWarning, match=r"a \.onnx file") as exported:
            hrt.export_onnx(model, "other.hrt", check=False)
        assert {w.filename for w in (*saved, *exported)} == {__file__}  # the caller's line

    def test_an_export_is_an_onnx_file(self, lab, mistake):
        assert "Expected a name that ends with .onnx" in mistake("export", "net.hrt", "-o", "e.txt")

    @pytest.mark.parametrize(
        "write", [lambda m, p, f: m.save(p, force=f), lambda m, p, f: hrt.export_onnx(m, p, force=f)]
    )
    def test_python_replaces_unless_it_is_told_not_to(self, write, lab):
        model = hrt.load("net.hrt")
        Path("there.hrt").write_bytes(b"old")
        with pytest.raises(hrt.HrtError, match="was kept"):
            write(model, "there.hrt", False)
        assert Path("there.hrt").read_bytes() == b"old"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write(model, "there.hrt", True)
        assert Path("there.hrt").read_bytes() != b"old"


class TestLeftovers:
    @pytest.mark.parametrize("name", ["garbage.onnx", "garbage.hrt", "garbage.pt2"])
    def test_bench_of_what_is_no_network(self, name, lab, mistake):
        Path(name).write_text("garbage")
        assert name in mistake("bench", name)

    @pytest.mark.parametrize("folder", ["", "absent", "net.hrt"])
    def test_a_backend_goes_into_a_folder_that_is_there(self, folder, lab, mistake):
        assert "Expected the server's folder of backends" in mistake("triton-backend", folder)

    @pytest.mark.parametrize("path", [None, 5, ["net.hrt"]])
    def test_what_is_no_path(self, path, lab):
        model = hrt.load("net.hrt")
        for call in (hrt.load, model.save, model.plot, lambda p: hrt.export_onnx(model, p, check=False)):
            with pytest.raises(hrt.HrtError, match=r"Found (NoneType|int|list) where the name of a file is expected"):
                call(path)
