"""The examples: built plainly and by CMake they print what predict gives; foreign files of their names are kept."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import hrt
from hrt.cli.main import main

from compiled import compiler

BESIDE = {"net.h", "net.f90", "CMakeLists.txt", "net_example.c", "net_example.cpp", "net_example.f90"}
NEEDED = {"c": ["cc"], "cpp": ["cc", "c++"], "f90": ["cc", "gfortran"]}  # by suffix of an example


class Lookup(torch.nn.Module):
    """A field that depends on a table: one input of whole numbers."""

    def __init__(self):
        super().__init__()
        self.table, self.field = torch.nn.Embedding(2, 3), torch.nn.Linear(2, 3)

    def forward(self, x, k):
        return torch.tanh(self.field(x)) * self.table(k)


@pytest.fixture(scope="module", params=["plain", "derivatives", "lookup", "file"])
def exported(request, tmp_path_factory) -> tuple[Path, np.ndarray]:
    """A folder with the files, and the numbers that their programs should print."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    x = torch.arange(4).reshape(2, 2) % 8 / 8
    if request.param == "lookup":
        network, inputs, example = Lookup(), (torch.randn(64, 2), torch.arange(64) % 2), (x, torch.arange(2) % 2)
    else:
        network = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
        inputs, example = torch.randn(64, 2), x
    options = ["--derivatives", "d0", "d1d1"] if request.param == "derivatives" else []
    if request.param == "file":  # more than 1 MB of numbers
        wide = 1400
        factors = torch.nn.Linear(2, wide), torch.nn.Linear(wide, 200), torch.nn.Linear(200, 3)
        network = torch.nn.Sequential(factors[0], torch.nn.Tanh(), factors[1], torch.nn.Tanh(), factors[2])
        inputs = None
    model = hrt.compress(network, inputs=inputs, tol=1e-6 if inputs is None else 1e-2, progress=False)
    model.save(folder / "net.hrt")
    assert main(["export", str(folder / "net.hrt"), "-o", str(folder / "net.c"), "--with-example", *options]) == 0
    files = {path.name for path in folder.iterdir()}
    assert files == {"net.hrt", "net.c", *BESIDE, *(["net.bin"] if request.param == "file" else [])}
    answer = model.predict(example, derivatives=options[1:] or None)
    return folder, np.concatenate([np.ravel(v) for v in (answer if isinstance(answer, tuple) else (answer,))])


def run(folder: Path, command: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(command, cwd=folder, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr[:3000]}"
    return done.stdout


def printed(text: str) -> np.ndarray:
    return np.array([float(word) for word in text.split()])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", NEEDED)
def test_the_command_in_its_first_lines_builds_it_and_it_prints_the_answer(exported, suffix: str) -> None:
    folder, expected = exported
    for tool in NEEDED[suffix]:
        compiler(tool)
    line = (folder / f"net_example.{suffix}").read_text().splitlines()[1]
    command = line.strip("!/* ")
    assert command.startswith("cc -O3 -march=native") and command.endswith("./example")
    np.testing.assert_allclose(printed(run(folder, command)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_cmake_builds_all_of_them(exported) -> None:
    folder, expected = exported
    compiler("cmake")
    compiler("g++")
    run(folder, "cmake -S . -B build && cmake --build build")
    languages = ["c", "cpp"] + ["fortran"] * (shutil.which("gfortran") is not None)
    for language in languages:
        text = run(folder, f"./build/net_example_{language}")
        np.testing.assert_allclose(printed(text), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("derivatives", [None, ["d0"]])
def test_they_are_strictly_c99_and_cpp17(tmp_path, derivatives) -> None:
    rows = torch.rand(64, 2), torch.arange(64) % 2
    lookup = hrt.compress(Lookup(), inputs=rows, tol=1e-2, progress=False)
    hrt.export_c(lookup, tmp_path / "net.c", example=True, derivatives=derivatives)
    for command, standard in (("cc", "c99"), ("c++", "c++17")):
        file = tmp_path / ("net_example.c" if command == "cc" else "net_example.cpp")
        strict = f"-std={standard} -Wall -Wextra -Werror -pedantic -fsyntax-only"
        run(tmp_path, f"{compiler(command)} {strict} {file.name}")


@pytest.fixture(scope="module")
def model():
    return hrt.compress(torch.nn.Linear(2, 3), progress=False)


def test_a_file_that_is_not_ours_is_kept_and_nothing_is_written(model, tmp_path) -> None:
    (tmp_path / "CMakeLists.txt").write_text("project(solver)\n")
    with pytest.raises(hrt.InputError, match=r"not one of hrt's examples"):
        hrt.export_c(model, tmp_path / "net.c", example=True)
    assert [path.name for path in tmp_path.iterdir()] == ["CMakeLists.txt"]


def test_examples_are_written_again_where_forced_and_kept_where_not(model, tmp_path) -> None:
    for _ in range(2):
        hrt.export_c(model, tmp_path / "net.c", example=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(hrt.InputError, match="exists and was kept"):
        hrt.export_c(model, tmp_path / "net.c", example=True, force=False)
    (tmp_path / "net.c").unlink()
    with pytest.raises(hrt.InputError, match=r"net\.h exists and was kept"):
        hrt.export_c(model, tmp_path / "net.c", example=True, force=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()}.items() <= before.items()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no folder here that not even root may write to")
def test_a_folder_that_may_not_be_written_to(model) -> None:
    with pytest.raises(hrt.InputError, match="cannot be written"):
        hrt.export_c(model, "/proc/net.c")


def test_options_of_the_other_kind_of_file_are_refused(model, tmp_path, capsys) -> None:
    model.save(tmp_path / "net.hrt")
    for out, options in (("net.c", ["--opset", "18"]), ("net.c", ["--no-check"]), ("net.onnx", ["--with-example"])):
        assert main(["export", str(tmp_path / "net.hrt"), "-o", str(tmp_path / out), *options]) == 2
        assert f"Found {options[0]} with -o" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.hrt"]
