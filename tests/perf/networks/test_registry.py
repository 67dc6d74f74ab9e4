"""What the harness measures on: names, rows that are apart, what is missing or too large."""

import pytest
import torch

from hrt.errors import InputError
from hrt.perf.methods.matched_error import joined
from hrt.perf.networks import registry as workloads
from hrt.perf.networks.registry import MissingError


class TestRegistry:
    def test_names_what_the_project_measures(self):
        wanted = {
            "burgers",
            "burgers-derivatives",
            "helmholtz",
            "navier-stokes",
            "log-1d",
            "green-1d",
            "laplace-2d",
            "deeponet",
            "emulator",
            "qlknn",
        }
        assert wanted | {"fno", "unet-poisson", "cnn-poisson", "transformer-pendulum", "pinn-ensemble"} | {
            "neuralfoil-xlarge",
            "neuralfoil-xxxlarge",
            "random",
        } == set(workloads.REGISTRY)
        assert all(entry.about for entry in workloads.REGISTRY.values())
        assert set(workloads.QUICK) <= set(workloads.REGISTRY)

    @pytest.mark.parametrize("name", ["burgers", "log-1d:64", "green-1d:64", "laplace-2d:64", "random:64"])
    def test_sets_of_rows_are_distinct_and_fit(self, name):
        w = workloads.build(name)
        for rows in (w.calibration, w.search, w.fresh):
            w.program.check_inputs(rows)
            assert all(x.dtype == torch.float32 for x in rows)
        assert not torch.equal(w.calibration[0][:64], w.search[0][:64])
        assert not torch.equal(w.search[0][:64], w.fresh[0][:64])
        with torch.no_grad():
            answers = joined(w.net(*w.fresh))
        assert (answers - w.reference("fresh")).norm() < 1e-5 * answers.norm()

    @pytest.mark.parametrize("name", ["nothing", "burgers:64", "log-1d:0", "log-1d:x", "gone.onnx", "gone.hrt"])
    def test_an_unknown_name_is_a_mistake(self, name):
        with pytest.raises(InputError, match="Expected"):
            workloads.check(name)

    def test_what_does_not_fit_memory_says_how_much(self):
        with pytest.raises(MemoryError, match="GB"):
            workloads.build("log-1d:10000000")

    def test_a_missing_wheel_says_how_to_get_it(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HRT_NEURALFOIL", str(tmp_path))
        with pytest.raises(MissingError, match="pip install --no-deps neuralfoil"):
            workloads.build("neuralfoil-xlarge")
