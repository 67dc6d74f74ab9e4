"""Counting verdicts: what is violated is never hidden, matrices are reproducible, and one small real run."""

import json

import pytest
import torch

from hrt.calibration.samples import Box, as_samples
from hrt.capture.torch_export import capture
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.paper import bounds
from hrt.perf.paper.bounds import (
    KINDS,
    Subject,
    counted,
    matrix_statements,
    network_rows,
    random_matrix,
    random_rows,
    summary,
    violations,
)
from hrt.perf.paper.command import main


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
    assert found["condition (Weyl)"] == "holds" and len(found) == 8
    worse = HMatrix.from_dense(torch.diag(torch.tensor([1.1, 0.9])))
    found = {name: s.verdict for name, s in matrix_statements(w, worse, 0.5, torch.eye(2).double())}
    assert found["condition (theorem 1c)"] == "violated" and found["condition (Weyl)"] == "holds"
    rows = [row(), row("violated", measured=3.0), row("violated", measured=5.0), row("vacuous", "b", bound=None)]
    verdicts = {"holds": 1, "violated": 2, "vacuous": 0}
    assert counted(rows, "kind", "statement")[0] == {"kind": "k", "statement": "a"} | verdicts
    (line,) = violations(rows)
    assert line.startswith("violated 2x: a on random k") and "5 > 2" in line
    assert summary(rows).row_count == 2


def test_an_infinite_violation_is_said():
    (line,) = violations([row("violated", measured=None)])
    assert "infinite > 2" in line


@pytest.fixture(scope="module")
def seven():
    return random_rows(7, 3)


def test_random_rows_hold_every_statement_at_every_tolerance(seven):
    rows = seven
    assert len(rows) == 7 * 3 * 8 and {r["kind"] for r in rows} == set(KINDS)
    theorems = [r for r in rows if r["statement"] not in ("condition (paper)", "condition (theorem 1c)")]
    assert all(r["verdict"] in ("holds", "vacuous") for r in theorems)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1))
    x = torch.rand(200, 2)
    return Subject("small PINN", capture(net, [x]), as_samples(x, 0), Box([0.0, 0.0], [1.0, 1.0]))


@pytest.fixture(scope="module")
def of_network(small):
    return network_rows(small)


def test_networks_are_asked_about_kernels_and_box(of_network):
    rows = of_network
    names = {r["statement"] for r in rows}
    assert names >= {"NTK eigenvalues", "NTK definite (paper)", "NTK definite (Weyl)", "NTK eigenspaces"}
    assert "output over the box" in names
    assert all(r["verdict"] in ("holds", "vacuous") for r in rows if "paper" not in r["statement"])


def test_a_run_prints_counts_and_what_was_left_out_and_writes_them(
    small, seven, of_network, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(bounds, "subjects", lambda: ([small], ["QLKNN: not installed"]))
    monkeypatch.setattr(bounds, "network_rows", lambda _: list(of_network))
    monkeypatch.setattr(bounds, "random_rows", lambda count, seed: list(seven) if count == 7 else [])
    path = tmp_path / "absent" / "b.json"
    assert main(["bounds", "--count", "7", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "7 random matrices, 2 trained ones" in printed and "left out: QLKNN: not installed" in printed
    body = json.loads(path.read_text("utf-8"))
    assert body["facts"]["missing"] == ["QLKNN: not installed"]
    counts = [r for r in body["counts"] if r["source"] == "random"]
    assert sum(r["holds"] + r["violated"] + r["vacuous"] for r in counts) == 7 * 3 * 8
    assert len(body["violated"]) == sum(r["violated"] for r in body["counts"])


def test_packages_that_are_missing_are_named(monkeypatch):
    def missing(*_):
        raise FileNotFoundError("pip install it")

    monkeypatch.setattr(bounds, "load_neuralfoil", missing)
    monkeypatch.setattr(bounds, "qlknn_path", missing)
    monkeypatch.setattr(bounds, "train_deeponet", lambda: (None, 0.0))
    monkeypatch.setattr(bounds, "load_pinn", lambda name: None)
    monkeypatch.setattr(bounds, "captured", lambda name, *rest: name)
    here, left = bounds.subjects()
    assert here[0] == "Burgers PINN" and left == ["NeuralFoil: pip install it", "QLKNN: pip install it"]
