"""Residuals of networks: against torch.func in float64, as text and as functions, in Python and on the command line."""

import math

import numpy as np
import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.certificate.certificate import Certificate
from hrt.cli.main import main
from hrt.derivatives.differentiate import differentiate
from hrt.model.model import CompressedModel
from hrt.model.residual import Summary, summarize
from hrt.perf.networks.burgers import NU, load_burgers
from hrt.program.program import Node, Program

from helpers import hierarchical, noise
from models import linear_model, mixed_model
from pinn import DERIVATIVES, ULPS, by_torch_func

BURGERS = f"d1 + u*d0 - {NU!r}*d0d0"


def burgers(u, d0, d1, d0d0, nu=NU):
    return d1 + u * d0 - nu * d0d0


def model_of(program: Program, **options) -> CompressedModel:
    return CompressedModel(program, Certificate(1e-3, "layers", ()), **options)


@pytest.fixture(scope="module")
def pinn() -> Program:
    return capture(load_burgers(), [torch.rand(2, 2)])


def points(rows: int, seed: int = 5) -> torch.Tensor:
    """In [-1, 1] x [0, 1], numbers of float32."""
    x = torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([2 * x[:, 0] - 1, x[:, 1]], 1)


def allowed(program: Program, x: torch.Tensor) -> float:
    """How far float32 may move the residual of Burgers' equation (L2 over rows), its own operations included."""
    derived = differentiate(program, DERIVATIVES).program
    u, d0, d1, d0d0 = derived.outputs
    steps = (("a", "mul", (u, d0)), ("b", "mul", ("nu", d0d0)), ("c", "add", (d1, "a")), ("r", "sub", ("c", "b")))
    nodes = tuple(Node(name, op, inputs, (1,), {}) for name, op, inputs in steps)
    constants = {**derived.constants, "nu": torch.tensor(NU, dtype=torch.float64)}
    (moved,) = noise(Program(derived.inputs, (*derived.nodes, *nodes), ("r",), constants), [x])
    return ULPS * moved


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
@pytest.mark.parametrize("rows", [1, 200])
def test_of_the_burgers_network_is_that_of_torch_func(pinn: Program, backend: str, rows: int) -> None:
    x = points(rows)
    u, d0, d1, d0d0 = (y[:, 0] for y in by_torch_func(load_burgers().double(), x))
    expected = d1 + u * d0 - NU * d0d0
    limit = allowed(pinn, x)
    for expression in (BURGERS, burgers):
        found = hrt.residual(model_of(pinn, backend=backend), x, expression)
        assert found.shape == (rows,) and found.dtype == torch.float64
        assert float((found - expected).norm()) <= limit
        wrong = hrt.residual(model_of(pinn, backend=backend), x, BURGERS.replace("u*", "1.001*u*"))
        assert float((wrong - expected).norm()) > limit, "a thousandth more would be seen"


def test_of_a_compressed_network_is_that_of_its_own_derivatives(pinn: Program) -> None:
    model = model_of(hierarchical(pinn, seed=2), backend="torch")
    x = points(50).numpy().astype(np.float64)
    u, d0, d1, d0d0 = (y[:, 0] for y in model.predict(x, derivatives=DERIVATIVES))
    found = hrt.residual(model, x, BURGERS)
    assert isinstance(found, np.ndarray) and found.dtype == np.float64
    np.testing.assert_array_equal(found, d1 + u * d0 - NU * d0d0)
    np.testing.assert_array_equal(found, hrt.residual(model, x, burgers))


def test_inputs_and_functions_are_there_too(pinn: Program) -> None:
    x = points(20).double()
    found = hrt.residual(model_of(pinn, backend="torch"), x, "u + sin(pi*x0)*exp(-x1)")
    value = model_of(pinn, backend="torch").predict(x)[:, 0]
    again = hrt.residual(
        model_of(pinn, backend="torch"), x, lambda u, x0, x1, pi: u + torch.sin(pi * x0) * torch.exp(-x1)
    )
    assert torch.equal(found, again)
    torch.testing.assert_close(
        found, value + torch.sin(math.pi * x[:, 0]) * torch.exp(-x[:, 1]), rtol=1e-15, atol=1e-15
    )


def test_one_spelling_of_mixed_derivatives_suffices(pinn: Program) -> None:
    model, x = model_of(pinn, backend="torch"), points(9)
    assert not hrt.residual(model, x, "d0d1 - d1d0").any()
    assert not hrt.residual(model, x, lambda d0d1, d1d0: d0d1 - d1d0).any()


def test_components_count_through_all_outputs_and_inputs() -> None:
    model = mixed_model()
    x = (np.random.default_rng(0).random((6, 7)), np.random.default_rng(1).random((6, 5)))
    (y, h), (dy, dh) = model.predict(x, derivatives=["d8"])
    found = hrt.residual(model, x, "u[2] * d8[0] - u[3] + d8[42] * x7")
    np.testing.assert_array_equal(found, y[:, 2] * dy[:, 0] - h[:, 0] + dh[:, 39] * x[1][:, 0])
    again = hrt.residual(model, x, lambda u, d8, x7: u[2] * d8[0] - u[3] + d8[42] * x7)
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_shapes_and_constants(rows: int) -> None:
    model = linear_model(torch.tensor([[2.0, 3.0]]), backend="torch")
    x = np.zeros((rows, 2), dtype=np.float32)
    assert np.array_equal(hrt.residual(model, x, "d0 - d1"), np.full(rows, -1.0))
    assert np.array_equal(hrt.residual(model, x, "2"), np.full(rows, 2.0))
    assert np.array_equal(hrt.residual(model, x, lambda: 2), np.full(rows, 2.0))


def test_narrow_inputs_do_not_round_what_is_computed(pinn: Program) -> None:
    """predict answers in the inputs' type; a residual of rounded derivatives would be noise."""
    model, x = model_of(pinn, backend="torch"), points(30).half()
    torch.testing.assert_close(hrt.residual(model, x, BURGERS), hrt.residual(model, x.float(), BURGERS), rtol=0, atol=0)
    assert hrt.residual(model, x.numpy(), BURGERS).dtype == np.float64


def test_only_what_is_named_is_computed(pinn: Program, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("hrt.model.model.differentiate", lambda *a: asked.append(a[1]) or differentiate(*a))
    model = model_of(pinn, backend="torch")
    hrt.residual(model, points(3), "d1 + x0 - d1*u")
    hrt.residual(model, points(3), lambda d1, own=0, *more, **others: d1)
    assert asked == [("d1",)], "once for equal sets of names"


FUNCTION = "Found a function "


@pytest.mark.parametrize(
    "expression, message",
    [
        ("d0 + v", "Found the name 'v' at column 6.*Expected"),
        ("u[1]", "Found u with the index 1"),
        (3, "Found int. Expected an expression as text, or a function"),
        (None, "Found NoneType"),
        (lambda w: w, FUNCTION + "with the argument 'w'. Expected arguments called as u, derivatives d0 to d1"),
        (lambda u, /: u, FUNCTION + "with the argument 'u'"),
        (lambda d9: d9, FUNCTION + "with the argument 'd9'"),
        (lambda u: None, FUNCTION + "that returns NoneType. Expected numbers"),
        (lambda u: "text", FUNCTION + "that returns str. Expected numbers"),
        (lambda u: u + 1j, FUNCTION + "that returns complex numbers. Expected real ones"),
        (lambda u: u[:2], r"shape \(2,\). Expected \(4,\), one number a row"),
        (lambda u: np.outer(u, u), r"shape \(4, 4\). Expected \(4,\)"),
        (dict, FUNCTION + "(whose arguments cannot be read|that returns dict)"),
    ],
)
def test_mistakes(expression, message: str) -> None:
    with pytest.raises(hrt.InputError, match=message):
        hrt.residual(linear_model(torch.rand(1, 2), backend="torch"), np.random.rand(4, 2), expression)


def test_mistakes_that_show_late() -> None:
    x = np.random.rand(4, 2)
    with pytest.raises(hrt.InputError, match=r"shape \(3, 4\). Expected \(4,\)"):
        hrt.residual(linear_model(torch.rand(3, 2), backend="torch"), x, lambda u: u)
    with pytest.raises(hrt.InputError):
        hrt.residual(linear_model(torch.zeros(0, 2), backend="torch"), x, "u")
    with pytest.raises(ZeroDivisionError):  # errors of a function are its own
        hrt.residual(linear_model(torch.rand(1, 2), backend="torch"), x, lambda u: 1 / 0)


class TestSummary:
    def test_figures(self) -> None:
        r = np.linspace(-100, 99, 200)
        assert summarize(r) == Summary(200, np.sqrt(np.mean(r**2)), np.percentile(abs(r), 99), 100.0, 0, 0)
        figures = summarize(np.array([np.nan, 3.0, np.inf, -4.0]))
        assert (figures.rows, figures.maximum, figures.row, figures.not_finite) == (4, 4.0, 3, 2)

    @pytest.mark.parametrize("scale", [1.0, 1e200, 1e-300, 0.0])
    def test_huge_and_vanishing_ones_and_some_that_are_not_finite(self, scale) -> None:
        assert summarize(scale * np.array([3.0, np.nan, 4.0])).rms == pytest.approx(12.5**0.5 * scale, rel=1e-15)

    @pytest.mark.parametrize("r", [np.zeros(0), np.array([np.nan])])
    def test_nothing_to_say(self, r) -> None:
        with pytest.raises(hrt.InputError, match=f"Found {len(r)} rows, none with a finite residual"):
            summarize(r)


class TestCommandLine:
    @pytest.fixture
    def files(self, tmp_path, pinn):
        model = model_of(pinn)
        model.save(tmp_path / "net.hrt")
        np.save(tmp_path / "x.npy", points(100).numpy())
        return str(tmp_path / "net.hrt"), str(tmp_path / "x.npy")

    def test_it_says_how_large_and_where(self, files, tmp_path, capsys) -> None:
        command = ["residual", *files, "--expr", BURGERS]
        assert main([*command, "-o", str(tmp_path / "r.npy")]) == 0
        lines = capsys.readouterr().out.splitlines()
        r, x = np.load(tmp_path / "r.npy"), np.load(files[1])
        assert np.array_equal(r, hrt.residual(hrt.load(files[0]), x, BURGERS))
        row = int(abs(r).argmax())
        assert lines[0].split() == ["rows", "100"]
        assert lines[1].split() == ["rms", f"{np.sqrt(np.mean(r**2)):.6e}"]
        assert lines[2].split() == ["99", "%", f"{np.percentile(abs(r), 99):.6e}"]
        place = f"x0 = {x[row, 0]:.6g}, x1 = {x[row, 1]:.6g}"
        assert lines[3] == f"max   {abs(r[row]):.6e} in row {row}, counted from 0 ({place})"
        assert lines[4].startswith("wrote ")
        assert main([*command, "-o", str(tmp_path / "r.npy")]) == 2 and "exists" in capsys.readouterr().err
        assert main([*command, "-o", str(tmp_path / "r.csv")]) == 0
        assert np.allclose(np.loadtxt(tmp_path / "r.csv"), r, rtol=1e-8)

    def test_an_expression_may_begin_with_a_sign(self, files, capsys) -> None:
        assert main(["residual", *files, "--expr", "-d0 + u"]) == 0
        assert main(["residual", *files, "--expr", "log(u)"]) == 0
        assert "not finite in" in capsys.readouterr().out

    @pytest.mark.parametrize("text", ["__import__('os').mkdir('here')", "d0 +", "v", "d0d0d0d0", "log(-1)"])
    def test_mistakes_are_one_line_and_nothing_is_written(self, files, tmp_path, capsys, monkeypatch, text) -> None:
        monkeypatch.chdir(tmp_path)
        before = sorted(tmp_path.iterdir())
        assert main(["residual", *files, "--expr", text, "-o", "r.npy"]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("hrt: Found ") and err.count("\n") == 1 and not out
        assert sorted(tmp_path.iterdir()) == before

    def test_several_inputs_and_places_of_many_coordinates(self, tmp_path, capsys) -> None:
        mixed_model().save(tmp_path / "net.hrt")
        np.save(tmp_path / "x.npy", np.random.rand(4, 7))
        np.save(tmp_path / "z.npy", np.random.rand(4, 5))
        files = [str(tmp_path / name) for name in ("net.hrt", "x.npy", "z.npy")]
        assert main(["residual", *files, "--expr", "d11[0] - u[1]"]) == 0
        assert "x5 = " in (text := capsys.readouterr().out) and "x6" not in text and ", ...)" in text
        assert main(["residual", *files[:2], "--expr", "u[0]"]) == 2
