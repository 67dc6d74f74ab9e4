"""Counting verdicts: what is violated is never hidden, matrices are reproducible, and one small real run."""

import json

import pytest
import torch

from hrt.calibration.samples import Box, as_samples
from hrt.capture.torch_export import capture
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.paper import bounds, bounds_cases
from hrt.perf.paper.bounds import by_kind, counts, main, summary, violations
from hrt.perf.paper.bounds_cases import KINDS, Subject, matrix_statements, network_rows, random_matrix, random_rows


def row(verdict="holds", statement="a", kind="k", measured=1.0, bound=2.0):
    return {
        "source": "random", "kind": kind, "of": "3", "shape": [2, 2], "tol": 0.1, "norm": "Frobenius",
        "statement": statement, "verdict": verdict, "measured": measured, "bound": bound, "remark": "",
    }  # fmt: skip


def test_matrices_depend_on_index_and_seed_alone_and_take_every_kind_and_size():
    found = [random_matrix(k, 0) for k in range(70)]
    assert {kind for kind, _ in found} == set(KINDS)
    assert all(torch.equal(w, random_matrix(k, 0)[1]) for k, (_, w) in enumerate(found))
    assert not torch.equal(random_matrix(0, 0)[1], random_matrix(0, 1)[1])
    sides = [side for _, w in found for side in w.shape]
    assert 16 <= min(sides) < 32 and 200 < max(sides) <= 256
    assert all(w.isfinite().all() and w.any() for _, w in found)


def test_violations_are_found_counted_and_said_with_figures():
    """W = I and H = diag(1, 0.9) violate the paper's bound on condition numbers, and a tolerance of 0.01."""
    w, h = torch.eye(2).double(), HMatrix.from_dense(torch.diag(torch.tensor([1.0, 0.9])))
    found = {name: s.verdict for name, s in matrix_statements(w, h, 0.01, torch.eye(2).double())}
    assert [name for name, v in found.items() if v == "violated"] == ["||E||_F <= tol ||W||_F", "condition (paper)"]
    assert found["condition (Weyl)"] == "holds" and len(found) == 7
    rows = [row(), row("violated", measured=3.0), row("violated", measured=5.0), row("vacuous", "b", bound=None)]
    assert counts(rows) == {("random", "a"): {"holds": 1, "violated": 2}, ("random", "b"): {"vacuous": 1}}
    assert by_kind(rows)[0] == {
        "source": "random",
        "kind": "k",
        "statement": "a",
        "holds": 1,
        "violated": 2,
        "vacuous": 0,
    }
    (line,) = violations(rows)
    assert line.startswith("violated 2x: a on random k") and "5 > 2" in line
    assert summary(rows).row_count == 2


def test_an_infinite_violation_is_said():
    (line,) = violations([row("violated", measured=None)])
    assert "infinite > 2" in line


def test_random_rows_hold_every_statement_at_every_tolerance():
    rows = random_rows(7, 3)
    assert len(rows) == 7 * 3 * 7 and {r["kind"] for r in rows} == set(KINDS)
    theorems = [r for r in rows if r["statement"] != "condition (paper)"]
    assert all(r["verdict"] in ("holds", "vacuous") for r in theorems)


@pytest.fixture
def small():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1))
    x = torch.rand(200, 2)
    return Subject("small PINN", capture(net, [x]), as_samples(x, 0), Box([0.0, 0.0], [1.0, 1.0]))


def test_networks_are_asked_about_kernels_and_box(small):
    rows = network_rows(small)
    names = {r["statement"] for r in rows}
    assert names >= {"NTK eigenvalues", "NTK definite (paper)", "NTK definite (Weyl)", "NTK eigenspaces"}
    assert "output over the box" in names
    assert all(r["verdict"] in ("holds", "vacuous") for r in rows if "paper" not in r["statement"])


def test_a_run_prints_counts_and_what_was_left_out_and_writes_them(small, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bounds, "subjects", lambda: ([small], ["QLKNN: not installed"]))
    assert main(["--count", "7", "--json", str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "7 random matrices, 2 trained ones" in said and "left out: QLKNN: not installed" in said
    kept = json.loads((tmp_path / "b.json").read_text("utf-8"))
    assert kept["facts"]["missing"] == ["QLKNN: not installed"]
    assert (
        sum(r["holds"] + r["violated"] + r["vacuous"] for r in kept["counts"] if r["source"] == "random") == 7 * 3 * 7
    )
    assert len(kept["violated"]) == sum(r["violated"] for r in kept["counts"])


def test_packages_that_are_missing_are_named(monkeypatch, small):
    def missing(*_):
        raise FileNotFoundError("pip install it")

    monkeypatch.setattr(bounds_cases, "load_neuralfoil", missing)
    monkeypatch.setattr(bounds_cases, "qlknn_path", missing)
    monkeypatch.setattr(bounds_cases, "train_deeponet", lambda: (None, 0.0))
    monkeypatch.setattr(bounds_cases, "load_pinn", lambda name: None)
    monkeypatch.setattr(bounds_cases, "_captured", lambda name, *rest: name)
    found, left = bounds_cases.subjects()
    assert found[0] == "Burgers PINN" and left == ["NeuralFoil: pip install it", "QLKNN: pip install it"]


def test_a_file_that_cannot_be_written_is_a_mistake_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--json", str(tmp_path / "file" / "b.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_folder_of_its_figures_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(bounds, "random_rows", lambda *_: [])
    monkeypatch.setattr(bounds, "summary", lambda _: "")
    assert main(["--random-only", "--json", str(tmp_path / "absent" / "deeper" / "b.json")]) == 0
    assert "counts" in json.loads((tmp_path / "absent" / "deeper" / "b.json").read_text())
