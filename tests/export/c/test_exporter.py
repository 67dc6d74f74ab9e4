"""export_c: files that compile, answers within what float32 rounding may do, and what is refused."""

import numpy as np
import pytest
import torch

import hrt
from hrt.export.c.exporter import generate
from hrt.program.program import Program

from compiled import build, call, chain
from helpers import densified, noise
from models import allowed, any_hmatrix, linear_program


@pytest.fixture(scope="module")
def program() -> Program:
    return chain(7, 70, 33, 3)


@pytest.fixture(scope="module")
def library(program, tmp_path_factory):
    return build(generate(program, "net"), tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize("rows", [0, 1, 9, 45])
def test_answers_are_those_of_float64_within_rounding(program, library, rows: int) -> None:
    x = torch.randn(rows, 7, generator=torch.Generator().manual_seed(1)).float()
    (y,) = call(library, "net", program, [x])
    (expected,) = program.run([x])
    (bound,) = noise(densified(program), [x])
    assert y.shape == (rows, 3)
    assert np.linalg.norm(y - expected.numpy()) <= 8 * bound


def test_a_product_errs_no_more_than_sums_of_float32(tmp_path) -> None:
    h = any_hmatrix(3, 130, 90)
    program, x = linear_program(h), torch.randn(12, 90)
    library = build(generate(program, "net"), tmp_path)
    for rows in (x, x[:1]):
        (y,) = call(library, "net", program, [rows])
        assert (abs(torch.from_numpy(y) - rows.double() @ h.to_dense().T) <= allowed(rows, h)).all()


def test_an_op_without_a_lowering_is_named_and_nothing_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.delitem(__import__("hrt.export.c.operators", fromlist=["x"]).EXPRESSIONS, "tanh")
    model = hrt.compress(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), progress=False)
    with pytest.raises(hrt.ExportError, match="op tanh"):
        hrt.export_c(model, tmp_path / "net.c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["2d", "a-b", "int", "class", "", "hrt_x", "a" * 99])
def test_names_that_c_does_not_know_are_refused(tmp_path, name: str) -> None:
    model = hrt.compress(torch.nn.Linear(2, 3), progress=False)
    with pytest.raises(hrt.InputError, match="C identifier"):
        hrt.export_c(model, tmp_path / "net.c", name=name)
    assert not list(tmp_path.iterdir())


def test_the_same_model_gives_the_same_bytes(tmp_path) -> None:
    model = hrt.compress(torch.nn.Linear(2, 3), progress=False)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        hrt.export_c(model, folder / "net.c", example=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
