"""Arithmetic of the GPU kernels, emulated: it rounds what the kernels round, and the certificate picks from it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hrt
from hrt.calibration.moments import evaluate
from hrt.capture.torch_export import capture
from hrt.runtime.cuda_session import CudaSession
from hrt.schedule.precision import (
    EMULATED,
    EXACT_INPUTS,
    cut,
    default_precision,
    emulate,
    fastest_within,
    precision_limits,
    stays_exact,
)

from helpers import MIXED, hierarchical


def network(scale=1.0):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(24, 60), torch.nn.Tanh(), torch.nn.Linear(60, 60), torch.nn.GELU(), torch.nn.Linear(60, 4)
    )
    with torch.no_grad():
        net[4].weight.mul_(scale)
    return net


def program_and_inputs(seed=0, rows=40, **options):
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(seed))
    program = hierarchical(capture(network(), [x[:2]]), seed, storages=MIXED[:3], **options)
    return program, x


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_cut_keeps_ten_bits(value):
    t = torch.tensor([value], dtype=torch.float32)
    short = cut(t)
    assert torch.equal(cut(short), short) and short.abs() <= t.abs()
    assert (t.double() - short.double()).abs() <= 2.0**-10 * t.double().abs() + 2.0**-136
    assert torch.equal(cut(t.bfloat16().float()), t.bfloat16().float()), "every bfloat16 is a tf32"


@pytest.mark.parametrize("seed", range(2))
def test_float16_is_what_the_kernels_do(seed):
    """Against the kernels on the interpreter, whose float16 is right: both are off by the same rounding."""
    program, x = program_and_inputs(seed)
    (exact,) = program.run([x])
    (emulated,), _ = emulate(program, [x], "fp16")
    (kernels,) = CudaSession(program, precision="fp16", densify=False).run([x])
    error = (emulated.double() - exact).norm()
    assert 1e-5 < error / exact.norm() < 1e-2
    assert (kernels.double() - exact).norm() <= 1.5 * error
    assert (kernels.double() - emulated.double()).norm() <= 0.7 * error


def test_errors_have_the_size_of_their_roundoff():
    program, x = program_and_inputs()
    (exact,) = program.run([x])
    errors = {p: float((emulate(program, [x], p)[0][0].double() - exact).norm() / exact.norm()) for p in EMULATED}
    for precision, unit in (("bf16", 2.0**-9), ("fp16", 2.0**-12), ("tf32", 2.0**-11)):
        assert unit / 8 < errors[precision] < 8 * unit, errors


def test_layers_of_few_inputs_stay_exact_under_tf32():
    assert stays_exact(EXACT_INPUTS, "tf32") and not stays_exact(EXACT_INPUTS + 1, "tf32")
    assert not stays_exact(2, "bf16") and not stays_exact(2, "tf32x3")
    x = torch.randn(30, 3)
    program = capture(torch.nn.Linear(3, 5), [x[:2]])
    assert torch.allclose(emulate(program, [x], "tf32")[0][0].double(), program.run([x])[0], rtol=1e-6, atol=1e-6)


def test_the_fastest_that_keeps_the_bound_is_chosen():
    program, x = program_and_inputs(rows=300)
    reference = evaluate(program, (x.double(),))
    limits = precision_limits(program, (x,), reference)
    assert set(limits) == set(EMULATED) and limits["fp16"] < limits["tf32"] < limits["bf16"]
    for tol in (0.5, *limits.values(), 1e-5, 1e-7):
        expected = next((p for p in EMULATED if limits[p] <= tol), None)
        assert fastest_within(limits, tol) == (expected or default_precision(tol))
    assert default_precision(1e-3) == "tf32x3" and default_precision(1e-7) == "ieee"


def test_float16_is_not_taken_near_its_range():
    """A hidden value of 3e4 fits float16 on these inputs; the next input may not."""
    layer = torch.nn.Linear(24, 30, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1000.0)
    x = torch.rand(50, 24)
    program = capture(torch.nn.Sequential(layer, torch.nn.Linear(30, 2)), [x[:2]])
    reference = evaluate(program, (x.double(),))
    limits = precision_limits(program, (x,), reference)
    assert math.isinf(limits["fp16"]) and fastest_within(limits, 1e-3) != "fp16"


@pytest.mark.parametrize("tol, possible", [(5e-2, {"bf16"}), (1e-4, {"tf32", "tf32x3", "fp16"})])
def test_a_network_compressed_for_the_gpu_says_its_precision(tol, possible, tmp_path):
    x = torch.randn(600, 24, generator=torch.Generator().manual_seed(1))
    model = hrt.compress(network(), inputs=x, tol=tol, target="cuda", progress=False)
    assert model.precision == model.certificate.precision and model.precision in possible
    limit = model.certificate.estimated.get(f"output_error_upper_99_in_{model.precision}", 0.0)
    assert limit <= tol
    assert f"on a GPU: {model.precision} arithmetic; estimated limits with its rounding: bf16" in model.report()
    model.save(tmp_path / "m.hrt")
    assert hrt.load(tmp_path / "m.hrt", backend="torch").precision == model.precision


def test_a_network_compressed_for_the_cpu_is_near_float32_on_a_gpu():
    model = hrt.compress(network(), tol=1e-2, progress=False)
    assert model.certificate.precision is None and model.precision == "tf32x3"
