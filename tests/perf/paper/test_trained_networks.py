"""The trained parts of the paper's figures, on networks as small as can be: what rows say is what networks are."""

import json

import pytest
import torch

from hrt.matrix_compression.hlinear import HLinear
from hrt.perf.networks.burgers import burgers_points
from hrt.perf.networks.pinn_training import one_thread
from hrt.perf.paper import data
from hrt.perf.paper.command import PARTS, main
from hrt.perf.paper.data import Setting
from hrt.perf.paper.trained_networks import (
    DENSE,
    DYNAMIC,
    EQUATIONS,
    PROXIMAL,
    SERVED,
    Method,
    Training,
    directions,
    kernel_drift,
    rows_of,
    train,
    trained,
)

TINY = Training(
    seeds=(0,), width=12, depth=2, batch=48, adam=20, newton=8, adam_epochs=2, newton_epochs=4, calibration=1600,
    tols=(1e-1, 1e-2, 1e-3), points=6,
)  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    with one_thread():
        return trained(TINY)


def test_every_equation_seed_and_method_has_a_row_for_every_epoch(runs):
    assert len(runs) == 2 * 3
    for run in runs:
        assert [r["step"] for r in run.rows] == [0, 10, 20, 22, 24, 26, 28]
        assert {(r["case"], r["method"], r["seed"]) for r in run.rows} == {(run.equation.name, run.method, run.seed)}
        assert run.rows[-1]["error"] == run.equation.error(run.network)
        assert min(r["loss"] for r in run.rows[3:]) < run.rows[1]["loss"], "Gauss-Newton lowers what Adam began with"
        assert run.rows[-1]["served_error"] <= (1 + SERVED) * run.rows[-1]["error"] * 1.1
        assert ("ranks" in run.rows[-1]) == (run.method == DYNAMIC.name)


def test_methods_start_alike_and_the_others_do_what_they_say(runs):
    for equation in EQUATIONS:
        for seed in TINY.seeds:
            of_seed = {r.method: r for r in runs if (r.equation.name, r.seed) == (equation.name, seed)}
            dense, dynamic, proximal = (of_seed[m.name] for m in (DENSE, DYNAMIC, PROXIMAL))
            assert dense.rows[0]["error"] == dynamic.rows[0]["error"] == proximal.rows[0]["error"]
            assert [r["error"] for r in dense.rows[:2]] == [r["error"] for r in dynamic.rows[:2]]
            assert dense.rows[1]["error"] != proximal.rows[1]["error"]
            assert all(r["ratio"] == 1 for r in (*dense.rows, *proximal.rows))
            layers = [m for m in dynamic.network.modules() if isinstance(m, HLinear)]
            assert bool(layers) == (dynamic.rows[-1]["ratio"] > 1)
            dense_numbers = sum(p.numel() for p in dense.network.parameters())
            assert dynamic.rows[-1]["numbers"] == round(dense_numbers / dynamic.rows[-1]["ratio"])
    assert any(r.rows[-1]["ratio"] > 1 for r in runs if r.method == DYNAMIC.name)


def test_the_penalty_and_limited_proximal_steps_change_what_is_trained():
    methods = Method("neither"), Method("penalty", penalty=0.1), Method("proximal", newton_shrink=1e-2, shrunk=0.5)
    t = Training(width=8, depth=2, batch=32, adam=6, newton=4, adam_epochs=1, newton_epochs=2, stored=0.5,
                 calibration=400)  # fmt: skip
    plain, penalised, shrunk = (train(EQUATIONS[0], m, 0, t).rows for m in methods)
    assert plain[1]["error"] == shrunk[1]["error"] != penalised[1]["error"], "the penalty acts on Adam alone"
    assert plain[-1]["error"] != shrunk[-1]["error"]


def test_directions_are_the_least_ranks_that_keep_the_output():
    network, x = EQUATIONS[0].network(16, 2, 0), burgers_points(500, 0).double()
    before = directions(network, x)
    with torch.no_grad():
        middle = network.get_submodule("layers.2")
        middle.weight[3:] = middle.weight[:1]  # rank 3  # type: ignore[index]
    assert directions(network, x) == 2 + 3 + 1 < before


def test_parts_take_their_rows(runs):
    for methods in ((DENSE, DYNAMIC), (DENSE, PROXIMAL)):
        rows = rows_of(runs, *methods)
        assert {r["method"] for r in rows} == {m.name for m in methods} and len(rows) == 2 * 2 * 7


@pytest.mark.slow
def test_kernels_drift_by_what_compression_changes(runs):
    rows = kernel_drift(runs, TINY)
    assert len(rows) == 2 * len(TINY.tols) * 2 * 2 and {r["case"] for r in rows} == {e.name for e in EQUATIONS}
    for r in rows:
        assert r["bound"] == "output" or r["achieved"] <= r["tol"]
        assert r["drift"] >= 0 and len(r["cosines"]) == 5
    by_weights = [r for r in rows if (r["bound"], r["kernel"]) == ("weights", "value")]
    for case in {r["case"] for r in rows}:
        loose, *_, tight = [r["drift"] for r in by_weights if r["case"] == case]
        assert tight < loose


def test_the_command_writes_the_parts_that_are_asked_for(runs, monkeypatch, tmp_path, capsys):
    names = ["training", "regulariser"]
    tiny = Setting(training=TINY)
    monkeypatch.setattr(Setting, "quick", staticmethod(lambda: tiny))
    monkeypatch.setattr(data, "trained", lambda t: [r for r in runs if t is TINY])
    assert main(["figures", "--quick", "--out", str(tmp_path), "--only", *names]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*(f"{n}.json" for n in names), *(f"{n}.png" for n in names)]
    )
    for name in names:
        assert json.loads((tmp_path / f"{name}.json").read_text())["rows"]
    shown = capsys.readouterr().out
    titles = {p.name: p.title for p in PARTS}
    assert all(titles[n] in shown for n in names) and titles["speed"] not in shown
