"""Derivatives held to the tolerance of compress: moments, errors on fresh points against torch.func, certificates."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.objective import Aim, sobolev_moments
from hrt.calibration.output_error import RISK, output_error
from hrt.calibration.samples import Split
from hrt.capture.network import Captured
from hrt.capture.torch_export import capture
from hrt.model.model import CompressedModel
from hrt.network_compression.verify import Original, served_limits
from hrt.program.dense_view import DenseView
from hrt.program.program import Program
from hrt.schedule.precision import EMULATED, LOSS, emulate

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

    def test_the_worst_of_all_counts(self) -> None:
        aim = replace(Aim.of(capture(seeded(lambda: mlp(2, 4, 1)), [rows(2, 0).float()])), names=("d0",))
        reference = torch.ones(64, 2, dtype=torch.float64)
        error = aim.error(reference, reference + torch.tensor([0.0, 0.1], dtype=torch.float64))
        assert error.value == 0 and error.largest == pytest.approx(0.1)
        assert error.limit == error.derivatives[0].upper_99 > 0.1
        assert aim.where(error) == " in d0"


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


def test_a_gpus_arithmetic_is_judged_by_the_worst_of_all(tanh_net) -> None:
    x = rows(400, 6)
    program = capture(tanh_net, [x[:2].float()])
    aim = Aim.of(program, ["d0d0"])
    found = served_limits(Original(Captured(program), aim, (x,), (x,), Split((x,), (x,), (x,)), 1e-2), program, RISK)
    for precision in EMULATED:
        errors = []
        for p, loss in product((program, aim.served(program)), (0.0, LOSS)):
            ys = emulate(p, [x], precision, loss)[0]
            errors += [output_error(y, e.double()) for y, e in zip(aim.parts(aim.outputs([x])), ys, strict=False)]
        assert len(errors) == 6 and found[precision] == max(e.upper_99 for e in errors)


def test_finetuning_says_that_derivatives_are_no_longer_verified(tanh_net, model) -> None:
    found = hrt.finetune(model, teacher=tanh_net, inputs=rows(1200, 1), steps=20, batch=128, progress=False)
    assert found.certificate.derivatives == ()
    assert "no longer verified: the derivatives d0, d1, d0d0, d0d1" in found.certificate.context["remarks"]
