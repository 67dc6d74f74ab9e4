"""Derivatives carried by the GPU backend's kernels, on Triton's interpreter: against torch.func in float64."""

import copy
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import hessian, jacfwd, vmap

import hrt
from hrt.capture.torch_export import capture
from hrt.derivatives.differentiate import differentiate
from hrt.kernels import launch
from hrt.program.program import Program
from hrt.runtime import BACKENDS, Backend, TorchSession, open_session
from hrt.runtime import cuda_session as cuda
from hrt.runtime import kernel_derivatives as carried
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.kernel_derivatives import Carried, NotCarriedError
from hrt.schedule.precision import emulate

from helpers import MIXED, hierarchical, noise

CudaSession = partial(cuda.CudaSession, densify=False)
NAMES = ["d0", "d1", "d0d0"]
FUNCTIONS = {
    "tanh": torch.nn.Tanh,
    "silu": torch.nn.SiLU,
    "gelu": torch.nn.GELU,
    "mish": torch.nn.Mish,
    "softplus": torch.nn.Softplus,
    "sigmoid": torch.nn.Sigmoid,
    "relu": torch.nn.ReLU,
}


class Sine(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x)


def network(sizes=(2, 40, 40, 3), activation=torch.nn.Tanh, seed=0):
    torch.manual_seed(seed)
    layers = []
    for a, b in pairwise(sizes):
        layers += [torch.nn.Linear(a, b), activation()]
    return torch.nn.Sequential(*layers[:-1])


def program_of(net, width=2) -> Program:
    return capture(net, [torch.zeros(2, width)])


def points(batch, width=2, seed=0):
    return torch.rand(batch, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_torch_func(program, x, names):
    """Value, then derivatives, of every sample in float64: jacfwd, hessian, jacfwd of hessian."""
    f = lambda z: program.run([z[None]])[0][0]  # noqa: E731
    values, z = [vmap(f)(x.double())], x.double()
    orders = {1: jacfwd(f), 2: hessian(f), 3: jacfwd(hessian(f))}
    arrays = {r: vmap(orders[r])(z) for r in {name.count("d") for name in names}}
    for name in names:
        index = tuple(int(k) for k in name[1:].split("d"))
        values.append(arrays[len(index)][(..., *index)])
    return values


def compare(program, session, x, names, kernel=None):
    """Within 16 times what roundings of half an ulp do at random, as other backends: functions err by a few ulps.

    kernel: which of the program's kernels runs, in a bucket of its own; None: whichever the session takes.
    """
    derived = differentiate(program, names).program
    outputs = Bucket(session.program, len(x), kernel=kernel).run([x], len(x)) if kernel else session.run([x])
    limits, written = noise(derived, [x]), derived.run([x.double()])
    for y, e, w, limit, name in zip(
        outputs, by_torch_func(program, x, names), written, limits, ["u", *names], strict=True
    ):
        e = torch.where(e.isnan(), w, e)  # torch's second derivative of mish is NaN beyond 745, in float64
        assert y.dtype == torch.float32 and y.shape == e.shape and y.is_contiguous()
        assert float((y - e).norm()) <= 16 * limit, name


class Counted:
    """A kernel that says its name when it is launched."""

    def __init__(self, kernel, name, names):
        self.kernel, self.name, self.names = kernel, name, names

    def __getitem__(self, grid):
        def launch(*arguments, **constants):
            self.names.append(self.name)
            return self.kernel[grid](*arguments, **constants)

        return launch


@pytest.fixture
def launched(monkeypatch):
    """Names of everything that a session launches between its copies in and out."""
    names: list[str] = []
    for name in ("step_kernel", "finish_kernel", "network_kernel"):
        monkeypatch.setattr(launch, name, Counted(getattr(launch, name), name, names))
    run_stage = carried.run_stage
    monkeypatch.setattr(carried, "run_stage", lambda *a: (names.append(type(a[0]).__name__), run_stage(*a)))
    return names


def test_four_layers_of_128_with_derivatives_are_one_launch(launched):
    """u, u_x, u_t and u_xx: one, or one per layer where that is faster (a card times both). As a Program they take 56,
    launches and ops of torch.
    """
    program = program_of(network((2, 128, 128, 128, 128, 1)))
    session, x = CudaSession(program, derivatives=NAMES), points(16)
    for kernel, count in (("network", 1), ("step", 5)):
        launched.clear()
        compare(program, session, x, NAMES, kernel)
        assert launched == [f"{kernel}_kernel"] * count
    launched.clear()
    written = CudaSession(differentiate(program, NAMES).program)
    written.run([x])
    assert len(launched) == 56


@pytest.mark.parametrize(("kind", "batch"), [("dense", 1), ("dense", 16), ("hierarchical", 3), ("ordered", 20)])
def test_networks(kind, batch):
    """One point, ragged numbers of them, and more than a block holds."""
    program = program_of(network())
    if kind != "dense":
        program = hierarchical(program, 1, storages=MIXED, ordered=kind == "ordered")
    compare(program, CudaSession(program, derivatives=NAMES), points(batch), NAMES)


NAMES_OF = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=1, max_size=3)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=3),
    st.sampled_from([*FUNCTIONS.values(), Sine]),
    NAMES_OF,
    st.integers(1, 9),
    st.integers(0, 99),
    st.booleans(),
)
def test_random_networks(hidden, activation, indices, batch, seed, compressed):
    names = ["".join(f"d{k}" for k in i) for i in {tuple(sorted(i)) for i in indices}]
    program = program_of(network((2, *hidden, 2), activation, seed))
    if compressed:
        program = hierarchical(program, seed, storages=MIXED)
    compare(program, CudaSession(program, precision="ieee", derivatives=names), points(batch, seed=seed), names)


def test_large_arguments_where_torch_itself_has_no_derivative():
    program = hierarchical(program_of(network((2, 19, 1, 14, 2), torch.nn.Mish, 1)), 1, storages=MIXED)
    assert by_torch_func(program, points(3, seed=1), ["d0d0"])[1].isnan().any()
    session = CudaSession(program, precision="ieee", derivatives=["d0d0"])
    compare(program, session, points(3, seed=1), ["d0d0"])


def test_all_second_derivatives_by_three_coordinates():
    program = program_of(network((3, 20, 20, 2)), 3)
    names = [f"d{i}" for i in range(3)] + [f"d{i}d{j}" for i, j in product(range(3), repeat=2) if i <= j]
    session = CudaSession(program, derivatives=names)
    assert session.program.point_rows == 16
    compare(program, session, points(5, 3), names)


def test_functions_that_differ_from_layer_to_layer():
    layers = [torch.nn.Linear(2, 20), Sine(), torch.nn.Linear(20, 20), torch.nn.Tanh(), torch.nn.Linear(20, 1)]
    program = program_of(torch.nn.Sequential(*layers))
    session = CudaSession(program, derivatives=NAMES)
    assert session.program.kernels == ("step",)
    compare(program, session, points(9), NAMES)


class Units(torch.nn.Module):
    """Outputs in units, by gains and shifts that the last wave applies."""

    def __init__(self):
        super().__init__()
        self.net, self.scale = network(), torch.nn.Buffer(torch.tensor([0.5, -3.0, 2.0]))

    def forward(self, x):
        return 1.5 - self.net(x) * self.scale


def test_a_shift_is_for_the_value_alone():
    program = program_of(Units())
    session = CudaSession(program, derivatives=NAMES)
    assert session.program.plan.rescaling
    compare(program, session, points(5), NAMES)


class Normalised(torch.nn.Module):
    """Inputs brought to [-1, 1], a skip, and two branches next to each other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.a, self.b, self.c = torch.nn.Linear(2, 20), torch.nn.Linear(20, 20), torch.nn.Linear(40, 2)
        self.low, self.span = torch.nn.Buffer(torch.tensor([0.5, -2.0])), torch.nn.Buffer(torch.tensor([3.0, 0.25]))

    def forward(self, x):
        h = torch.tanh(self.a(2.0 * (x - self.low) / self.span - 1.0))
        return self.c(torch.cat([torch.tanh(self.b(h)) + h, -h], -1))


def test_affine_ops_between_layers():
    program = program_of(Normalised())
    session = CudaSession(program, derivatives=[*NAMES, "d0d1"])
    compare(program, session, points(5), [*NAMES, "d0d1"])


class Two(torch.nn.Module):
    """Two inputs, two outputs, one of them of an inner layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = torch.nn.Linear(3, 20), torch.nn.Linear(2, 4), torch.nn.Linear(20, 2)

    def forward(self, x, y):
        h = torch.tanh(self.a(x))
        return self.c(h), torch.sin(self.b(y))


def test_several_inputs_and_outputs():
    x, y = points(5, 3), points(5, 2, 1)
    program, names = capture(Two(), [x, y]), ["d3", "d1d1"]
    session = CudaSession(program, derivatives=names)
    derived = differentiate(program, names).program
    for found, e, limit in zip(session.run([x, y]), derived.run([x, y]), noise(derived, [x, y]), strict=True):
        assert found.shape == e.shape and float((found - e).norm()) <= 16 * limit


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_workspaces_round_no_more_than_was_emulated(precision):
    """Between layers only: a differentiated program, which the certificate speaks of, rounds after every node."""
    program, x = program_of(network()), points(20)
    derived = differentiate(program, NAMES).program
    emulated, _ = emulate(derived, [x], precision)
    exact = by_torch_func(program, x, NAMES)
    session = CudaSession(program, precision=precision, derivatives=NAMES)
    for y, rounded, e in zip(session.run([x]), emulated, exact, strict=True):
        moved = float((rounded.double() - e).norm() / e.norm())
        # the interpreter truncates to bfloat16 where a card rounds: twice the error
        assert float((y - e).norm() / e.norm()) <= 3 * moved < 0.5


def test_inputs_whose_columns_are_used_again():
    """A hidden layer as wide as the input takes its columns: tangents must be there again for the next request."""
    program = program_of(network((5, 40, 5, 40, 2)), 5)
    session = CudaSession(program, derivatives=["d0", "d4d4"])
    assert session.program.reseeds
    for seed in range(2):
        compare(program, session, points(4, 5, seed), ["d0", "d4d4"])


def test_batches():
    """None, more than a bucket's, fewer than before: nothing is left of an earlier request, NaN stays in its point."""
    program = program_of(network())
    session = CudaSession(program, derivatives=NAMES, largest=8)
    x = points(20)
    empty = session.run([x[:0]])
    assert [tuple(y.shape) for y in empty] == [(0, 3)] * 4
    whole = session.run([x])
    for k in (0, 8, 16):
        for a, b in zip(session.run([x[k : k + 8]]), whole, strict=True):
            assert torch.equal(a, b[k : k + 8])
    spoilt = x.clone()
    spoilt[3, 1] = float("nan")
    for a, b in zip(session.run([spoilt]), whole, strict=True):
        assert bool(a[3].isnan().all()) and torch.equal(a[torch.arange(20) != 3], b[torch.arange(20) != 3])
    assert all(torch.equal(a, b) for a, b in zip(session.run([x]), whole, strict=True))
    copied = Bucket(session.program.copy(), 4).run([x[:3]], 3)
    assert all(torch.equal(a, b[:3]) for a, b in zip(copied, whole, strict=True))


class Product(torch.nn.Module):
    def __init__(self, last):
        super().__init__()
        self.net, self.last = network(), last

    def forward(self, x):
        return self.last(self.net(x))


@pytest.mark.parametrize("last", [torch.atan, lambda y: y * y, lambda y: torch.maximum(y, -y)])
def test_what_kernels_cannot_carry_runs_as_a_program(last):
    program = program_of(Product(last))
    with pytest.raises(NotCarriedError, match="between layers"):
        CudaSession(program, derivatives=["d0"])
    with pytest.raises(hrt.InputError, match="d7"):
        Carried.of(program, ["d7"])


def test_orders_and_numbers_that_are_too_high():
    program = program_of(network((5, 20, 1)), 5)
    with pytest.raises(NotCarriedError, match="order 4"):
        Carried.of(program, ["d0d0d0d0"])
    with pytest.raises(NotCarriedError, match="21 streams"):
        Carried.of(program, [f"d{i}d{j}" for i in range(5) for j in range(i, 5)])


@pytest.fixture
def interpreted(monkeypatch):
    """The backend as it is, allowed to run without a card."""
    monkeypatch.setitem(BACKENDS, "cuda", Backend(BACKENDS["cuda"].opens))


def model_of(program, backend):
    return hrt.CompressedModel(program, hrt.Certificate(1e-3, "layers", ()), backend=backend)


@pytest.mark.parametrize("last", [torch.tanh, lambda y: y * y])
def test_predict_takes_what_there_is(interpreted, last):
    """The same answers as on the reference backend, carried by the kernels or not."""
    program = program_of(Product(last))
    model, x = model_of(program, "cuda"), points(7).numpy()
    found, expected = (m.predict(x, derivatives=NAMES) for m in (model, model_of(program, "torch")))
    session = model.differentiated(NAMES).session
    assert isinstance(session, cuda.CudaSession) and (session.program.point_rows == 4) == (last is torch.tanh)
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, np.ndarray) and np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    again = copy.deepcopy(model.differentiated(NAMES))
    assert np.array_equal(again.predict(x)[1], found[1])


def test_a_changed_program_is_not_taken_for_the_old_one(interpreted):
    """What a model came from counts only as long as its program is the one that was written for it."""
    program = program_of(network())
    derived = model_of(program, "cuda").differentiated(NAMES)
    changed = {k: torch.zeros_like(c) for k, c in derived.program.constants.items() if k in program.constants}
    other = hrt.CompressedModel(
        derived.program.with_constants(changed), derived.certificate, backend="cuda", origin=derived.origin
    )
    assert not other.predict(points(3).numpy())[1].any()


def test_other_backends_run_the_program():
    program = program_of(network())
    derived = differentiate(program, NAMES)
    assert isinstance(open_session(derived.program, "torch", differentiated=derived), TorchSession)
