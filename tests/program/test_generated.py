"""Constants made from recipes: right against torch.fft, never stored, no weights, and no room for a hostile header."""

import tracemalloc
from dataclasses import replace

import msgspec
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrt
from hrt.certificate.certificate import Certificate
from hrt.errors import ArtifactError
from hrt.model.artifact import EXTENDED, read_header
from hrt.model.model import CompressedModel
from hrt.program.dense_view import DenseView, stored
from hrt.program.generated import MOST_NUMBERS, NOTHING, Recipe, check_recipes, runs_of
from hrt.program.program import Node, Program, Value, program_nbytes
from hrt.tangent_kernel.ntk import ntk


def recipe_of(n, sign, rows, cols, powers=(0,), **options):
    options = {"norm": 0, "half": False, "real": False} | options
    return Recipe(n, sign, rows=runs_of(rows), cols=runs_of(cols), powers=tuple(powers), **options)


@settings(deadline=None)
@given(data=st.data())
def test_matrix_is_the_transform_of_what_stands_at_its_columns(data):
    n, sign = data.draw(st.integers(1, 17)), data.draw(st.sampled_from([-1, 1]))
    norm, real = data.draw(st.sampled_from([0, 1, 2])), data.draw(st.booleans())
    index = st.integers(NOTHING, n - 1)
    rows = data.draw(st.lists(index, min_size=1, max_size=9))
    cols = data.draw(st.lists(index, min_size=1, max_size=9))
    powers = data.draw(st.sampled_from([(0,), (0, 1), (0, 3), (0, 1, 1, 2), (2, 3)]))
    matrix = recipe_of(n, sign, rows, cols, powers, norm=norm, real=real).matrix()
    x = torch.randn(len(powers), len(cols), generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    z = sum(1j**p * x[k] for k, p in enumerate(powers))
    spread = torch.zeros(n, dtype=torch.complex128)
    for value, place in zip(z, cols, strict=True):
        if place != NOTHING:
            spread[place] += value
    whole = (torch.fft.fft(spread) if sign < 0 else torch.fft.ifft(spread, norm="forward")) / n ** (norm / 2)
    expected = torch.stack([torch.zeros((), dtype=whole.dtype) if r == NOTHING else whole[r] for r in rows])
    expected = expected.real if real else torch.cat([expected.real, expected.imag])
    assert tuple(matrix.shape) == recipe_of(n, sign, rows, cols, powers, norm=norm, real=real).shape
    torch.testing.assert_close(matrix @ x.reshape(-1), expected, rtol=0, atol=1e-12 * max(1.0, float(z.abs().sum())))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_half_of_a_spectrum_gives_the_real_signal(n):
    spectrum = torch.fft.rfft(torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64))
    spectrum = spectrum + 0.3j  # what is imaginary at the ends plays no part
    count = n // 2 + 1
    matrix = recipe_of(n, 1, range(n), range(count), (0, 1), norm=2, half=True, real=True).matrix()
    y = matrix @ torch.cat([spectrum.real, spectrum.imag])
    torch.testing.assert_close(y, torch.fft.irfft(spectrum, n=n), rtol=0, atol=1e-12)


def test_roots_of_unity_are_exact_at_quarters():
    matrix = recipe_of(8, -1, range(8), range(8)).matrix()
    assert set(matrix[2].tolist()) == {1.0, 0.0, -1.0}


def test_equal_recipes_share_one_matrix():
    assert recipe_of(8, -1, range(3), range(8)).matrix() is recipe_of(8, -1, range(3), range(8)).matrix()


@pytest.fixture(scope="module")
def program():
    """x (6) -> the first two frequencies -> a weight (3, 4)."""
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nodes = (Node("f", "linear", ("x", "dft"), (4,), {}), Node("y", "linear", ("f", "w"), (3,), {}))
    return Program((Value("x", (6,)),), nodes, ("y",), {"w": weight}, {"dft": recipe_of(6, -1, range(2), range(6))})


@pytest.fixture(scope="module")
def model(program):
    return CompressedModel(stored(program), Certificate(1e-3, "layers", ()), dense_nbytes=48, backend="torch")


def test_generated_constants_are_computed_with_and_no_weights(program):
    x = torch.randn(5, 6, dtype=torch.float64)
    f = torch.fft.rfft(x)[:, :2]
    (y,) = program.run([x])
    torch.testing.assert_close(y, torch.cat([f.real, f.imag], 1) @ program.constants["w"].T)
    assert set(program.weights) == {"w"}
    assert program_nbytes(program) == 8 * 12


def test_generated_constants_are_never_replaced_or_rounded(program):
    changed = program.with_constants({"dft": torch.zeros(4, 6), "w": torch.zeros(3, 4)})
    assert changed.constants["dft"] is program.constants["dft"] and not changed.constants["w"].any()
    assert stored(program).constants["dft"].dtype == torch.float64


def test_what_no_output_needs_loses_its_recipe(program):
    assert not replace(program, outputs=("f",)).simplified().stored_constants
    assert not replace(program, nodes=(Node("y", "neg", ("x",), (6,), {}),)).simplified().generated


def test_a_file_holds_the_recipe_alone_and_gives_the_same_bits(model, tmp_path):
    model.save(tmp_path / "net.hrt")
    header = read_header(tmp_path / "net.hrt")
    assert header["version"] == EXTENDED and set(header["constants"]) == {"w"}
    assert set(header["program"]["generated"]) == {"dft"}
    loaded, x = hrt.load(tmp_path / "net.hrt", backend="torch"), torch.randn(7, 6)
    assert torch.equal(loaded.predict(x), model.predict(x))
    assert loaded.nbytes == model.nbytes == 48
    assert torch.equal(loaded.program.constants["dft"], model.program.constants["dft"])


def test_resident_bytes_count_what_is_generated(model):
    assert model.sizes().resident["torch"] == 48 + 4 * 24


def test_onnx_holds_the_matrix(model, tmp_path):
    hrt.export_onnx(model, tmp_path / "net.onnx")
    sizes = {tuple(t.dims) for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert (4, 6) in sizes


def test_derivatives_and_kernels_know_it_for_no_parameter(program, model):
    x = torch.randn(4, 6, dtype=torch.float64)
    (_, d0) = model.predict(x.float(), derivatives=["d0"])
    slope = program.constants["w"] @ program.constants["dft"][:, 0]
    torch.testing.assert_close(d0.double(), slope.expand(4, 3), rtol=1e-5, atol=1e-5)
    kernel = ntk(program, x)
    f = x @ program.constants["dft"].T
    torch.testing.assert_close(kernel[::3, ::3], f @ f.T)  # by the rows of w alone
    assert "dft" not in dict(hrt.to_trainable(model).named_parameters())


GOOD = msgspec.to_builtins(recipe_of(6, -1, range(2), range(6)))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [[0, 1 << 40]], "length": 1 << 41},
        {"rows": [[NOTHING, 1 << 50]]},
        {"length": 1 << 30},
        {"rows": [[0, 7]]},
        {"cols": [[-2, 1]]},
        {"cols": [[0, -1]]},
        {"powers": [4]},
        {"powers": []},
        {"powers": [0] * 65, "rows": [[NOTHING, MOST_NUMBERS // 64]]},
        {"sign": 2},
        {"norm": 3},
        {"length": 0},
        {"surprise": 1},
    ],
)
def test_hostile_recipes_are_refused_and_nothing_is_allocated(model, tmp_path, monkeypatch, change):
    header = model.program.to_header()
    header["generated"]["dft"] = {**GOOD, **change}
    with monkeypatch.context() as patched:
        patched.setattr(Program, "to_header", lambda self: header)
        model.save(tmp_path / "net.hrt")
    tracemalloc.start()
    with pytest.raises(ArtifactError):
        hrt.load(tmp_path / "net.hrt")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


def test_all_recipes_share_one_budget():
    large = recipe_of(4096, -1, range(2048), range(4096))  # half of it
    check_recipes([large, large])
    with pytest.raises(ValueError, match="numbers"):
        check_recipes([large, large, recipe_of(2, -1, [0], [0])])


def test_a_stored_constant_cannot_be_generated_too(program):
    with pytest.raises(ValueError, match="both stored and generated"):
        Program.from_header(program.to_header(), {"w": program.constants["w"], "dft": torch.zeros(4, 6)})


def test_dense_view_writes_it_out(program):
    assert DenseView(program).constants["dft"].shape == (4, 6)
