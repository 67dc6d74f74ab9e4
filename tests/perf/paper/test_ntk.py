"""The drift of the Burgers PINN's kernels: the residual against the solver's own, fits from figures, one small run."""

import json

import pytest
import torch

from hrt.perf.bench.charts import as_png
from hrt.perf.networks.burgers import NU, burgers_network, burgers_points, jet
from hrt.perf.paper import ntk as study
from hrt.perf.paper.ntk import Setting, burgers_residual, fits, main
from hrt.perf.paper.ntk_figures import picture
from hrt.tangent_kernel.ntk import ntk


def by_jet(net, points):
    """The residual by the Taylor pass that trains the network, another way to the same derivatives."""
    u, u_x, u_t, u_xx = jet(net, points)
    return (u_t + u * u_x - NU * u_xx)[:, None]


def test_residual_and_its_kernel_are_those_of_the_training():
    net, x = burgers_network(width=16, depth=3).double(), burgers_points(12, 0).double()
    assert torch.allclose(burgers_residual(net, x), by_jet(net, x), rtol=1e-11, atol=1e-13)
    a, b = (ntk(net, x, residual=r) for r in (burgers_residual, by_jet))
    assert float((a - b).abs().max()) <= 1e-11 * float(b.abs().max())


def test_fits_are_made_for_every_bound_and_kernel():
    tols = (1e-1, 1e-2, 1e-3, 1e-4)
    rows = [
        {"bound": b, "kernel": k, "tol": t, "drift": s * t**e}
        for b, k, e in (("weights", "value", 1.0), ("output", "value", 0.5))
        for t, s in zip(tols, (1.0, 1.05, 0.95, 1.0), strict=True)
    ]
    first, second = fits(rows)
    assert first["exponent"] == pytest.approx(1, abs=0.05) and first["verdict"] == "holds"
    assert second["exponent"] == pytest.approx(0.5, abs=0.05) and second["verdict"] == "violated"


def test_a_run_measures_prints_and_draws(monkeypatch, tmp_path, capsys):
    tiny = Setting((1e-1, 1e-2, 1e-3), 6, 4, 1, (2, 5))
    monkeypatch.setattr(Setting, "quick", staticmethod(lambda: tiny))
    monkeypatch.setattr(study, "CALIBRATION", 1600)  # with 400 rows nothing may hold 1e-1, and the drift is 0
    assert main(["--quick", "--out", str(tmp_path / "made")]) == 0
    result = json.loads((tmp_path / "made" / "ntk.json").read_text("utf-8"))
    assert len(result["tolerance"]) == 3 * 2 * 2 and len(result["fits"]) == 4
    assert [r["step"] for r in result["training"]] == [0, 2, 5] * 2
    assert result["training"][0]["from_start"] == 0 < result["training"][1]["from_start"]
    for r in result["tolerance"]:
        assert r["verdicts"]["NTK eigenvalues"] in ("holds", "vacuous") and 0 <= r["cosines"][-1] <= 1
        assert r["bound"] == "output" or r["weight_error"] <= r["tol"]
    assert "drift <= C tol" in capsys.readouterr().out
    as_png(lambda: picture(result), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes()[:4] == (tmp_path / "made" / "ntk.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--out", str(tmp_path / "file" / "below")]) == 2
    assert "hrt.perf.paper.ntk:" in capsys.readouterr().err
