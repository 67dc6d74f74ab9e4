"""The drift of the Burgers PINN's kernels: the residual against the solver's own, fits from figures, one small run."""

import json

import pytest
import torch

from hrt.perf.networks.burgers import NU, burgers_network, burgers_operator, burgers_points
from hrt.perf.networks.taylor_pass import jets
from hrt.perf.paper import ntk as ntk_study
from hrt.perf.paper.command import main
from hrt.perf.paper.ntk import Setting, fits
from hrt.tangent_kernel.ntk import ntk


def by_jet(net, points):
    """The residual by the Taylor pass that trains the network, another way to the same derivatives."""
    u, u_x, u_t, u_xx = jets(net.layers, points)[..., 0]
    return (u_t + u * u_x - NU * u_xx)[:, None]


def test_the_residuals_kernel_is_that_of_the_training():
    net, x = burgers_network(width=16, depth=3).double(), burgers_points(12, 0).double()
    a, b = (ntk(net, x, residual=r) for r in (burgers_operator, by_jet))
    assert float((a - b).abs().max()) <= 1e-11 * float(b.abs().max())


def test_fits_are_made_for_every_bound_and_kernel():
    rows = [
        {"bound": b, "kernel": k, "tol": 9 * t, "achieved": t, "drift": s * t**e}
        for b, k, e in (("weights", "value", 1.0), ("output", "value", 0.5))
        for t, s in zip((1e-1, 1e-2, 1e-3, 1e-4), (1.0, 1.05, 0.95, 1.0), strict=True)
    ]
    first, second = fits(rows)
    assert first["exponent"] == pytest.approx(1, abs=0.05) and first["verdict"] == "holds"
    assert second["exponent"] == pytest.approx(0.5, abs=0.05) and second["verdict"] == "violated"


def test_what_two_tolerances_store_alike_is_one_point():
    rows = [{"bound": "weights", "kernel": "value", "achieved": t, "drift": t} for t in (1e-1, 1e-2, 1e-3)]
    same = rows[:1] * 5 + rows + [rows[0] | {"achieved": 0.0, "drift": 0.0}]
    assert [f["points"] for f in (*fits(rows), *fits(same))] == [3, 3] and fits(rows[:2]) == []


def test_a_run_measures_prints_and_draws(monkeypatch, tmp_path, capsys):
    tiny = Setting((1e-1, 1e-2, 1e-3, 1e-4), 6, 1600)  # with 400 rows nothing may hold 1e-1, and the drift is 0
    monkeypatch.setattr(Setting, "quick", staticmethod(lambda: tiny))
    monkeypatch.setattr(ntk_study, "load_burgers", lambda: burgers_network(24))
    threads = torch.get_num_threads()
    assert main(["ntk", "--quick", "--out", str(tmp_path / "made")]) == 0
    torch.set_num_threads(threads)
    result = json.loads((tmp_path / "made" / "ntk.json").read_text("utf-8"))
    assert len(result["tolerance"]) == 4 * 2 * 2 and len(result["fits"]) == 4
    for r in result["tolerance"]:
        assert r["verdicts"]["NTK eigenvalues"] in ("holds", "vacuous") and 0 <= r["cosines"][-1] <= 1
        assert r["bound"] == "output" or r["achieved"] <= r["tol"]
    assert "drift <= C error" in capsys.readouterr().out
    assert (tmp_path / "made" / "ntk.png").read_bytes()[:4] == b"\x89PNG"
