"""The training experiments: their residual by rows is the trainer's, and the command writes what it prints."""

import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch

import hrt
from hrt.perf.networks.burgers import burgers_network, residuals, sample
from hrt.perf.paper import training
from hrt.perf.paper.command import main
from hrt.perf.paper.training import EXPERIMENTS, Options, row_residual


def test_residual_of_a_row_is_that_of_training() -> None:
    net, rows = burgers_network(width=12).double(), sample(64, torch.Generator().manual_seed(0))
    by_rows = torch.cat([row_residual(net, row) for row in rows])
    assert torch.allclose(by_rows, residuals(net, rows), rtol=1e-10, atol=1e-12)
    mapped = torch.func.vmap(lambda row: row_residual(net, row))(rows)[:, 0]
    assert torch.allclose(mapped, by_rows, rtol=1e-10, atol=1e-12)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments of a few steps."""
    for name in ("DYNAMIC_TRAINING", "PENALTY_TRAINING", "ALLEN_CAHN_TRAINING"):
        usual, few = getattr(training, name), {"adam": 20, "newton": 4, "width": 12, "batch": 32, "calibration": 1000}
        epochs = {"adam_epochs": 2, "newton_epochs": 2, "stored": 0.3}
        monkeypatch.setattr(training, name, replace(usual, **few, **epochs))


@pytest.mark.usefixtures("small")
def test_command_writes_what_it_prints(tmp_path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "penalty.json"
    options = ["--seeds", "0", "1", "--steps", "2", "--weights", "0.001", "--thresholds", "0.01", "--json", str(path)]
    assert main(["training", "penalty", *options]) == 0
    body = json.loads(path.read_text())
    assert [f["name"] for f in body["figures"]] == 2 * ["neither", "penalty 0.001", "proximal 0.01"]
    assert [f["seed"] for f in body["figures"]] == [0, 0, 0, 1, 1, 1] and body["facts"]["arguments"]["steps"] == 2
    shown = capsys.readouterr().out
    assert all(f"{f['nbytes']:,}" in shown and f["steps"] == 22 for f in body["figures"])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name, forms", [("dynamic", ["dense", "dynamic"]), ("allen-cahn", ["dense"])])
def test_experiments_give_a_figure_for_each_form(name, forms) -> None:
    figures = list(EXPERIMENTS[name](Options(), 0))
    assert [f.name for f in figures] == forms and all(0 < f.error < math.inf and f.nbytes > 0 for f in figures)
    assert all("ranks" in f.remark for f in figures if f.name == "dynamic")


def test_poisson_gives_both_forms_after_the_same_steps() -> None:
    figures = list(EXPERIMENTS["poisson"](Options(steps=12, width=8, batch=16), 0))
    assert [(f.name, f.steps, f.ratio) for f in figures] == [("dense", 12, 1.0), ("dynamic", 12, 1.0)]
    assert figures[0].error == figures[1].error and figures[0].nbytes == 4 * (16 + 72 + 72 + 9)


def test_poisson_tells_every_change_and_changes_no_more_often_than_asked(monkeypatch) -> None:
    """The last change told is to the ratio at the end, and each is a multiple of `every` after the first."""
    monkeypatch.setattr(hrt, "DynamicCompression", partial(hrt.DynamicCompression, first=20, finest=0.03))
    for every in (5, 30):
        _, dynamic = EXPERIMENTS["poisson"](Options(steps=80, width=16, batch=32, every=every), 0)
        epochs, ratios = zip(*re.findall(r"epoch (\d+) to ([\d.]+)x, error", dynamic.remark), strict=True)
        assert float(ratios[-1]) == pytest.approx(dynamic.ratio, abs=0.006) and dynamic.ratio > 1
        assert epochs[0] == "20" and all((int(epoch) - 20) % every == 0 for epoch in epochs)


@pytest.mark.slow
def test_poisson_ends_where_the_dense_network_does_at_a_fourth_of_its_size() -> None:
    dense, dynamic = EXPERIMENTS["poisson"](Options(), 0)
    assert dynamic.error <= 1.3 * dense.error and dynamic.ratio >= 4


@pytest.mark.slow
def test_too_few_steps_of_finetuning_are_refused_with_the_error_reached(capsys: pytest.CaptureFixture) -> None:
    """What finetuning gains is tested in tests/training; ten steps cannot bring this network to its tolerance."""
    assert main(["training", "finetune", "--steps", "10", "--batch", "96"]) == 2
    line = capsys.readouterr().err
    assert "After 10 steps the error against the teacher is at most" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["penalty", "--steps", "x"], ["finetune", "--ratio", "0"], ["penalty", "--width", "-1"], []],
)
def test_a_mistake_is_one_line_and_status_2(arguments, capsys: pytest.CaptureFixture) -> None:
    assert main(["training", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
