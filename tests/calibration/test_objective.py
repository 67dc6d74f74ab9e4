"""Derivatives held to the tolerance of compress: moments, errors on fresh points against torch.func, certificates."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.objective import Aim, sobolev_moments
from hrt.calibration.output_error import OutputError, output_error
from hrt.calibration.samples import Split
from hrt.capture.torch_export import capture
from hrt.certificate.certificate import IN_PRECISION, Certificate
from hrt.cli.main import main
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.network_compression.verify import Original, served_limits
from hrt.program.dense_view import DenseView
from hrt.program.program import Program
from hrt.schedule.precision import EMULATED, emulate

from sobolev_cases import exact, relative, rows, seeded
from zoo import mlp

NAMES = ["d0", "d1", "d0d0", "d0d1"]
TOL = 1e-2


class Kinked(nn.Module):
    """ReLU, abs, clamp and maximum; derivatives jump at points, and the second one is not zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(2, 12), nn.Linear(12, 12), nn.Linear(12, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.relu(self.first(x)))
        return self.last(torch.maximum(torch.abs(h) * h.clamp(-2, 2), 0.1 * h))


@pytest.fixture(scope="module")
def tanh_net() -> nn.Module:
    return seeded(lambda: mlp(2, 24, 24, 1))


@pytest.fixture(scope="module")
def model(tanh_net):
    return hrt.compress(tanh_net, inputs=rows(1200, 1), tol=TOL, derivatives=NAMES, progress=False)


class TestAim:
    def test_replaced_weights_give_the_derivatives_of_the_network_that_has_them(self) -> None:
        """The first layer's weight acts on the unit tangents: nothing of it may have been computed beforehand."""
        make, x = (lambda: mlp(2, 8, 8, 2)), rows(5, 2)
        ours, other = (capture(seeded(make, k), [x.float()]) for k in (0, 1))
        aim = Aim.of(ours, NAMES)
        found = aim.parts(aim.outputs([x], DenseView(other).constants))
        for y, e in zip(found, exact(seeded(make, 1), x, NAMES), strict=True):
            assert relative(y, e) <= 1e-12

    def test_the_value_alone_is_the_program(self) -> None:
        program = capture(seeded(lambda: mlp(2, 4, 1)), [rows(2, 0).float()])
        aim = Aim.of(program)
        assert aim.graph is program and aim.served(program) is program and aim.names == ()

    def test_the_worst_of_all_counts(self) -> None:
        aim = replace(Aim.of(capture(seeded(lambda: mlp(2, 4, 1)), [rows(2, 0).float()])), names=("d0",))
        reference = torch.ones(64, 2, dtype=torch.float64)
        error = aim.error(reference, reference + torch.tensor([0.0, 0.1], dtype=torch.float64))
        assert error.value == 0 and error.largest == pytest.approx(0.1)
        assert error.limit == error.derivatives[0].upper_99 > 0.1
        assert aim.where(error) == " in d0"

    def test_the_error_of_the_value_alone_is_its_own_limit(self) -> None:
        assert OutputError(0.1, 0.2, (0.1,)).limit == 0.2 and OutputError(0.1, 0.2, (0.1,)).largest == 0.1


class TestMoments:
    """For E of independent entries the Kronecker product's prediction is exact in expectation, to first order."""

    DRAWS, SIZE = 200, 1e-6

    def mean_squared_error(self, aim: Aim, program: Program, x: Tensor, name: str, bias: str | None = None) -> float:
        generator, total = torch.Generator().manual_seed(3), 0.0
        constants, wanted = DenseView(program).constants, aim.parts(aim.outputs([x]))
        moments = sobolev_moments(aim, [x])[name]
        for _ in range(self.DRAWS):
            e = self.SIZE * torch.randn(constants[name].shape, generator=generator, dtype=torch.float64)
            changed = {**constants, name: constants[name] - e}
            if bias is not None:
                changed[bias] = constants[bias] + e @ moments.mean
            found = aim.parts(aim.outputs([x], changed))
            total += sum(relative(y, r) ** 2 for y, r in zip(found, wanted, strict=True))
        return total / self.DRAWS

    @pytest.mark.parametrize("layer", [0, 1, 2])
    @pytest.mark.parametrize("with_bias", [False, True])
    def test_predict_the_sum_of_relative_squared_errors(self, layer: int, with_bias: bool) -> None:
        """Both sides are means: over 200 draws of E here, over 4000 signs there. Each scatters by some per cent."""
        x = rows(4000, 4)
        program = capture(seeded(lambda: mlp(2, 6, 6, 1)), [x[:2].float()])
        name, bias = program.linear_nodes[layer].inputs[1:]
        aim = Aim.of(program, NAMES)
        moments = sobolev_moments(aim, [x])[name]
        second = moments.covariance if with_bias else moments.second
        predicted = self.SIZE**2 * float(moments.left.trace() * second.trace())
        measured = self.mean_squared_error(aim, program, x[:500], name, bias if with_bias else None)
        assert measured == pytest.approx(predicted, rel=0.25)

    def test_a_bias_takes_some_of_the_error(self) -> None:
        x = rows(500, 4) + 3
        program = capture(seeded(lambda: mlp(2, 6, 1)), [x[:2].float()])
        moments = sobolev_moments(Aim.of(program, ["d0"]), [x])[program.linear_nodes[0].inputs[1]]
        assert 0 < float(moments.covariance.trace()) < 0.5 * float(moments.second.trace())
        assert float(torch.linalg.eigvalsh(moments.covariance).min()) >= -1e-12 * float(moments.second.trace())

    def test_a_layer_that_nothing_depends_on_has_no_sensitivity(self) -> None:
        class Dead(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.unused = nn.Linear(2, 4), nn.Linear(2, 4)

            def forward(self, x: Tensor) -> Tensor:
                return torch.sin(self.used(x)) + 0.0 * torch.sin(self.unused(x))

        x = rows(50, 0)
        program = capture(seeded(Dead), [x[:2].float()])
        moments = sobolev_moments(Aim.of(program, ["d0"]), [x])
        dead = moments["unused.weight"]
        assert not bool(dead.left.any()) and bool(torch.isfinite(dead.second).all())

    def test_a_derivative_that_is_zero_everywhere_weighs_nothing(self) -> None:
        x = rows(50, 0)
        program = capture(seeded(lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))), [x[:2].float()])
        alone, both = (sobolev_moments(Aim.of(program, n), [x]) for n in (["d0"], ["d0", "d0d0"]))
        assert all(bool(torch.isfinite(m.left).all()) for m in both.values())
        assert set(alone) == set(both)


def test_every_derivative_holds_on_fresh_points(tanh_net, model) -> None:
    x = rows(4000, 99)
    found = model.predict(x.float(), derivatives=NAMES)
    for name, y, e in zip(["u", *NAMES], found, exact(tanh_net, x.float().double(), NAMES), strict=True):
        assert relative(y, e) <= TOL, name
    assert model.compression_ratio > 2
    assert {o.split("_")[0] for o in model.program.outputs}.isdisjoint(NAMES)  # the stored network is the value's


def test_the_value_alone_would_not_have_held_them(tanh_net, model) -> None:
    """Otherwise the test above would say nothing."""
    x = rows(4000, 99)
    alone = hrt.compress(tanh_net, inputs=rows(1200, 1), tol=TOL, progress=False)
    found = alone.predict(x.float(), derivatives=NAMES)
    wanted = exact(tanh_net, x.float().double(), NAMES)
    assert max(relative(y, e) for y, e in zip(found, wanted, strict=True)) > TOL
    assert alone.nbytes < model.nbytes
    assert alone.certificate.derivatives == () and "derivative_error" not in alone.certificate.measured


def test_the_certificate_lists_every_derivative_in_its_section(model) -> None:
    c = model.certificate
    assert c.derivatives == tuple(NAMES) and c.context["kinks"] == [] and c.kind == "output"
    for section, field in (
        (c.measured, "derivative_error"),
        (c.measured, "derivative_runtime_error"),
        (c.measured, "derivative_rms"),
        (c.estimated, "derivative_error_upper_99"),
    ):
        assert list(section[field]) == NAMES and all(0 < v < 10 for v in section[field].values())
    assert not any("derivative" in key for key in c.guaranteed)
    for name in NAMES:
        limit = c.estimated["derivative_error_upper_99"][name]
        assert c.measured["derivative_runtime_error"][name] < limit <= TOL
    text = model.report()
    assert all(f"{name}: measured" in text for name in NAMES) and "kinks" not in text


def test_the_file_keeps_it_and_files_without_it_are_read(model, tmp_path: Path) -> None:
    model.save(tmp_path / "net.hrt")
    back = load(tmp_path / "net.hrt")
    assert back.certificate == model.certificate
    x = rows(64, 5).float()
    for a, b in zip(back.predict(x, derivatives=NAMES), model.predict(x, derivatives=NAMES), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    context = {k: v for k, v in model.certificate.context.items() if k not in ("derivatives", "kinks")}
    old = Certificate.from_header({**model.certificate.to_header(), "context": context})
    assert old.derivatives == ()
    assert "d0:" not in replace(model, certificate=old).report()


def test_an_empty_list_is_the_value_alone(tmp_path: Path) -> None:
    net, files = seeded(lambda: mlp(2, 8, 1)), []
    for k, names in enumerate((None, [])):
        found = hrt.compress(net, inputs=rows(200, 1), tol=TOL, derivatives=names, progress=False)
        found.save(tmp_path / f"{k}.hrt")
        files.append((tmp_path / f"{k}.hrt").read_bytes())
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def kinked() -> CompressedModel:
    names, net = TestKinks.NAMES, seeded(Kinked)
    return hrt.compress(net, inputs=rows(1200, 1), tol=0.05, derivatives=names, target="bytes", progress=False)


class TestKinks:
    NAMES = ("d0", "d0d0")

    def test_hold_on_fresh_points_as_torch_has_them(self, kinked) -> None:
        x = rows(4000, 98)
        found = kinked.predict(x.float(), derivatives=self.NAMES)
        for y, e in zip(found, exact(seeded(Kinked), x.float().double(), self.NAMES), strict=True):
            assert bool(e.any()) and relative(y, e) <= 0.05

    def test_are_said_in_the_certificate_and_the_report(self, kinked) -> None:
        said = kinked.certificate.context["kinks"]
        assert {text.split()[0] for text in said} == {"relu", "abs", "clamp", "maximum"}
        assert "kinks: relu" in kinked.report() and "zero almost everywhere" not in kinked.certificate.guaranteed

    def test_a_second_derivative_that_is_zero_is_met_exactly(self) -> None:
        net = seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)))
        found = hrt.compress(net, inputs=rows(400, 1), tol=0.05, derivatives=["d0d0"], progress=False)
        assert found.certificate.measured["derivative_error"] == {"d0d0": 0.0}
        assert found.certificate.measured["derivative_rms"] == {"d0d0": 0.0}
        assert found.compression_ratio > 1


class TestBadInput:
    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["d2"], "Found the derivative 'd2' of a network of 2 input coordinates"),
            (["u_x"], "Found the derivative 'u_x'"),
            (["d0", "d0"], "more than once"),
            ("d0", "Expected a list of names"),
            ([0], "Expected a list of names"),
            (5, "Expected a list of names"),
        ],
    )
    def test_names(self, names, words: str) -> None:
        with pytest.raises(hrt.InputError, match=words):
            hrt.compress(mlp(2, 4, 1), inputs=rows(50, 0), derivatives=names, progress=False)

    def test_an_order_beyond_the_table_names_the_op(self) -> None:
        with pytest.raises(hrt.DerivativeError, match="order 4 of the op tanh"):
            hrt.compress(mlp(2, 4, 1), inputs=rows(50, 0), derivatives=["d0d0d0d0"], progress=False)

    def test_a_tol_that_float32_cannot_hold_names_the_derivative(self) -> None:
        class Rough(nn.Module):
            """A large value whose derivative is a small difference."""

            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(1, 4)

            def forward(self, x: Tensor) -> Tensor:
                return 1000.0 + torch.sin(1000 * self.linear(x))

        with pytest.raises(hrt.ToleranceError, match="in d0"):
            hrt.compress(seeded(Rough), inputs=rows(100, 0, 1), tol=1e-6, derivatives=["d0"], progress=False)

    def test_a_derivative_that_is_infinite_is_named(self) -> None:
        class Root(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(1, 1)

            def forward(self, x: Tensor) -> Tensor:
                return torch.sqrt(x) + self.linear(x)

        points = torch.cat([torch.zeros(40, 1), rows(40, 0, 1).float()])
        points[:40, 0] = torch.linspace(0, 1, 40)
        points[:8, 0] = -0.0  # the same row: one point at zero stays
        with pytest.raises(hrt.InputError, match="output, or one of d0, is NaN or infinite"):
            for seed in range(8):  # the one point must fall among the rows that are looked at
                hrt.compress(Root(), inputs=points, tol=0.1, derivatives=["d0"], seed=seed, progress=False)


def test_a_gpus_arithmetic_is_judged_by_the_worst_of_all(tanh_net) -> None:
    x = rows(400, 6)
    program = capture(tanh_net, [x[:2].float()])
    aim = Aim.of(program, ["d0d0"])
    found = served_limits(Original(program, aim, (x,), (x,), Split((x,), (x,), (x,))), program)
    for precision in EMULATED:
        errors = []
        for p in (program, aim.served(program)):
            ys = emulate(p, [x], precision)[0]
            errors += [output_error(y, e.double()) for y, e in zip(aim.parts(aim.outputs([x])), ys, strict=False)]
        assert len(errors) == 3 and found[precision] == max(e.upper_99 for e in errors)


def test_a_network_for_a_gpu_keeps_its_figures(tanh_net) -> None:
    found = hrt.compress(
        tanh_net, inputs=rows(600, 1), tol=2e-2, derivatives=["d0"], target="cuda", storage="float32", progress=False
    )
    limits = {k: v for k, v in found.certificate.estimated.items() if k.startswith(IN_PRECISION)}
    assert limits and found.precision is not None
    if IN_PRECISION + found.precision in limits:
        assert limits[IN_PRECISION + found.precision] <= 2e-2


def test_the_command_line(tmp_path: Path, capsys) -> None:
    source = tmp_path / "net.py"
    source.write_text(
        "import torch\n"
        "def build():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))\n"
    )
    np.save(tmp_path / "x.npy", rows(300, 1).numpy())
    arguments = [f"{source}:build", "-i", str(tmp_path / "x.npy"), "--tol", "1e-2", "--no-progress"]
    out = tmp_path / "net.hrt"
    assert main(["compress", *arguments, "--derivatives", "d0", "d1", "d0d0", "-o", str(out)]) == 0
    assert load(out).certificate.derivatives == ("d0", "d1", "d0d0")
    assert main(["info", str(out)]) == 0
    assert "d0d0: measured" in capsys.readouterr().out
    assert main(["compress", *arguments, "--derivatives", "d7", "-o", str(tmp_path / "no.hrt")]) == 2
    assert "d7" in capsys.readouterr().err


def test_finetuning_says_that_derivatives_are_no_longer_verified(tanh_net, model) -> None:
    found = hrt.finetune(model, teacher=tanh_net, inputs=rows(1200, 1), steps=20, batch=128, progress=False)
    assert found.certificate.derivatives == ()
    assert "no longer verified: the derivatives d0, d1, d0d0, d0d1" in found.certificate.context["remarks"]
