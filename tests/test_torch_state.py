"""Every public function under every state of torch that a caller may have set: the same answers, the state restored."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.support.torch_state import saved_hooks

TOL = 0.05
SLOW = {"compress_derivatives", "compress_box"}


@contextmanager
def setting(get: Callable[[], Any], put: Callable[[Any], None], value: Any) -> Iterator[None]:
    """A global setting of torch while the block lasts."""
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def device(value: str | None) -> None:
    torch.set_default_device(value)  # None takes the mode away again, "cpu" would not


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "bfloat16": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_meta": lambda: setting(lambda: None, device, "meta"),
    "with_meta": lambda: torch.device("meta"),
    "deterministic": lambda: setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "one_thread": lambda: setting(torch.get_num_threads, torch.set_num_threads, 1),
    "grad_disabled": lambda: setting(torch.is_grad_enabled, torch.set_grad_enabled, False),
    "anomaly": lambda: setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, True),
    "saved_tensors_hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    "inference_weights": lambda: setting(lambda: None, lambda _: None, None),
}


def state() -> tuple[Any, ...]:
    """All that a call might leave changed."""
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.is_anomaly_enabled(),
        saved_hooks(True),
    )


class Given:
    """What the calls start from. plain: made as usual; else all tensors are made in inference mode."""

    def __init__(self, folder: Path, plain: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode(not plain):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
            self.rows = torch.rand(64, 2, generator=generator)
            self.wide = self.rows.double().clone()
            self.points = torch.arange(32.0)
            self.matrix = 1 / (1 + (self.points[:, None] - self.points).abs())
        self.array = self.rows.numpy().copy()
        self.folder = folder
        self.model = hrt.compress(self.net, inputs=self.wide, tol=TOL, derivatives=["d0"], progress=False)
        self.model.save(folder / "net.hrt")
        self.h = hrt.compress_matrix(self.matrix, tol=1e-2)
        self.trainable = hrt.to_trainable(self.model)

    def copied(self) -> nn.Module:
        """The network, to be changed; its tensors may be inference tensors, too."""
        with torch.inference_mode(self.rows.is_inference()):
            return copy.deepcopy(self.net)


def loaded(g: Given, backend: str) -> hrt.CompressedModel:
    return hrt.load(g.folder / "net.hrt", backend=backend)


def dynamic(g: Given) -> Any:
    net = g.copied()
    if net[0].weight.is_inference():  # type: ignore[index]
        with pytest.raises(hrt.InputError, match=r"'0\.weight' made in inference mode"):
            hrt.DynamicCompression(net, g.rows)
        return True
    compression = hrt.DynamicCompression(net, g.rows, every=1, first=0, tol=TOL)
    compression.step(0, 1.0)
    return compression.ratio, compression.ranks


def proximal(g: Given) -> Any:
    net = g.copied()
    return hrt.proximal_step(net, 0.1), [p.detach() for p in net.parameters()]


def exported_c(g: "Given") -> str:
    path = g.folder / "net.c"
    hrt.export_c(g.model, path)
    return path.read_text()


def exported(g: Given) -> Any:
    hrt.export_onnx(loaded(g, "torch"), g.folder / "net.onnx", derivatives=["d0"])
    return (g.folder / "net.onnx").read_bytes()


def repository(g: Given) -> Any:
    hrt.export_repository(g.model, g.folder, name="served", force=True)
    return (g.folder / "served" / "1" / "model.onnx").read_bytes()


def saved(g: Given) -> Any:
    g.model.save(g.folder / "again.hrt")
    return (g.folder / "again.hrt").read_bytes()


def plotted(g: Given) -> Any:
    g.model.plot(g.folder / "net.png")
    return (g.folder / "net.png").stat().st_size > 1000


def gradients(g: Given) -> Any:
    y = g.trainable(g.rows.clone())
    if not torch.is_grad_enabled():
        return not y.requires_grad
    with torch.autocast("cpu", enabled=False):  # torch's own word: no backward pass under autocast
        return torch.autograd.grad(y.sum(), list(g.trainable.parameters()))


def compressed(g: Given, **options: Any) -> Any:
    model = hrt.compress(g.net, inputs=g.wide, tol=TOL, progress=False, **options)
    return model.nbytes, model.predict(g.rows)


def tuned(g: Given) -> Any:
    options: dict[str, Any] = {"inputs": g.wide, "teacher": g.net, "steps": 4, "batch": 16, "progress": False}
    return hrt.finetune(g.model, tol=0.5, **options).predict(g.rows)


def tuned_by_residual(g: Given) -> Any:
    options: dict[str, Any] = {"inputs": g.wide, "teacher": g.net, "steps": 2, "batch": 16, "progress": False}
    model = hrt.finetune(g.model, tol=0.9, residual=lambda u, x: u(x[None]) - 0.1, residual_weight=0.1, **options)
    return model.predict(g.rows)


FUNCTIONS: dict[str, Callable[[Given], Any]] = {
    "compress": compressed,
    "compress_derivatives": lambda g: compressed(g, derivatives=["d0", "d0d1"]),
    "compress_box": lambda g: hrt.compress(g.net, inputs=hrt.Box([0, 0], [1, 1]), tol=0.5, progress=False).nbytes,
    "compress_layers": lambda g: hrt.compress(g.net, tol=TOL, progress=False).predict(g.rows),
    "compress_matrix": lambda g: hrt.compress_matrix(g.matrix, tol=1e-2, row_points=g.points[:, None]).to_dense(),
    "compress_matrix_moment": lambda g: hrt.compress_matrix(g.matrix, second_moment=g.matrix @ g.matrix.T).to_dense(),
    "adaptive_partition": lambda g: hrt.adaptive_partition(g.matrix, 1e-2).to_dense(),
    "load_torch": lambda g: loaded(g, "torch").predict(g.array),
    "load_onnxruntime": lambda g: loaded(g, "onnxruntime").predict(g.array),
    "predict_tensor": lambda g: g.model.predict(g.rows),
    "predict_wide": lambda g: g.model.predict(g.wide),
    "predict_derivatives": lambda g: loaded(g, "torch").predict(g.rows, derivatives=["d0", "d1d1"]),
    "predict_array_derivatives": lambda g: loaded(g, "auto").predict(g.array, derivatives=["d0"]),
    "module": lambda g: g.model.module()(g.rows),
    "save": saved,
    "report": lambda g: g.model.report(),
    "plot": plotted,
    "export_onnx": exported,
    "export_c": exported_c,
    "export_repository": repository,
    "finetune": tuned,
    "finetune_residual": tuned_by_residual,
    "residual_text": lambda g: hrt.residual(g.model, g.rows, "d0 + 0.1*u"),
    "residual_function": lambda g: hrt.residual(g.model, g.array, lambda u, d0: d0 + 0.1 * u),
    "ntk": lambda g: hrt.ntk(g.net, g.rows[:8]),
    "ntk_model": lambda g: hrt.ntk(g.model, g.rows[:8]),
    "compare_ntk": lambda g: hrt.compare_ntk(g.net, g.model, g.rows[:8]).relative,
    "to_trainable": lambda g: hrt.to_trainable(g.model)(g.rows).detach(),
    "trainable_forward": lambda g: g.trainable(g.rows).detach(),
    "trainable_gradients": gradients,
    "trainable_compressed": lambda g: hrt.compress(g.trainable, tol=TOL, progress=False).nbytes,
    "DynamicCompression": dynamic,
    "rank_penalty": lambda g: hrt.rank_penalty(g.net).detach(),
    "rank_penalty_moments": lambda g: hrt.rank_penalty(
        g.net, second_moments=hrt.second_moments(g.net, g.rows)
    ).detach(),
    "proximal_step": proximal,
    "second_moments": lambda g: hrt.second_moments(g.net, g.rows),
    "HMatrix_apply": lambda g: (g.h.apply(g.matrix), g.h.apply(g.matrix.numpy().copy())),
    "HMatrix_figures": lambda g: (g.h.to_dense(), g.h.error(g.matrix), copy.copy(g.h).nbytes, g.h.table),
    "HMatrix_from_dense": lambda g: hrt.HMatrix.from_dense(g.matrix).to_dense(),
    "HLinear_from_dense": lambda g: hrt.HLinear.from_dense(g.matrix, tol=1e-2).to_hmatrix().to_dense(),
    "HLinear_from_linear": lambda g: hrt.HLinear.from_linear(g.net[0], tol=1e-2).to_hmatrix().to_dense(),
}

# Calls that must fail, each in a typed way, somewhere behind the door.
FAILURES: dict[str, Callable[[Given], Any]] = {
    "compress": lambda g: hrt.compress(nn.Sequential(g.net, nn.Softmax(0)), inputs=g.wide, progress=False),
    "compress_tolerance": lambda g: hrt.compress(g.net, inputs=g.wide, tol=1e-9, progress=False),
    "compress_matrix": lambda g: hrt.compress_matrix(g.matrix / 0),
    "load": lambda g: hrt.load(g.folder / "absent.hrt"),
    "predict": lambda g: g.model.predict(g.rows[:, :1]),
    "predict_derivatives": lambda g: g.model.predict(g.rows, derivatives=["d0d0d0d0"]),
    "finetune": lambda g: hrt.finetune(g.model, inputs=g.wide, teacher=g.net, steps=1, tol=1e-6, progress=False),
    "residual": lambda g: hrt.residual(g.model, g.rows, "d7 + u"),
    "ntk": lambda g: hrt.ntk(g.net, g.rows[:8], memory=1),
    "export_onnx": lambda g: hrt.export_onnx(g.model, g.folder / "net.onnx", opset=3),
    "export_c": lambda g: hrt.export_c(g.model, g.folder / "net.c", name="int"),
    "proximal_step": lambda g: hrt.proximal_step(g.copied(), -1.0),
    "DynamicCompression": lambda g: hrt.DynamicCompression(g.copied(), g.rows).step(0, float("nan")),
    "HMatrix": lambda g: g.h.apply(g.rows),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Given:
    return Given(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def unusual(tmp_path_factory) -> Given:
    return Given(tmp_path_factory.mktemp("inference"), plain=False)


@pytest.fixture(scope="module")
def expected(plain) -> dict[str, Any]:
    """Answers under the usual state, computed once each."""
    return {}


def same(actual: Any, usual: Any) -> bool:
    """Equal, numbers to the rounding of a few operations; dtypes, kinds and devices alike."""
    if isinstance(usual, (Tensor, np.ndarray)):
        a, b = (torch.as_tensor(v, device="cpu") for v in (actual, usual))
        return type(actual) is type(usual) and a.dtype == b.dtype and torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    if isinstance(usual, dict):
        return usual.keys() == actual.keys() and all(same(actual[k], v) for k, v in usual.items())
    if isinstance(usual, (tuple, list)):
        return len(actual) == len(usual) and all(same(a, u) for a, u in zip(actual, usual, strict=True))
    return actual == (pytest.approx(usual, rel=1e-4) if isinstance(usual, float) else usual)


@pytest.mark.parametrize("state_name", STATES)
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FUNCTIONS])
def test_answers_are_the_same_and_the_state_is_restored(name, state_name, plain, unusual, expected) -> None:
    if name not in expected:
        expected[name] = FUNCTIONS[name](plain)
    given = unusual if state_name == "inference_weights" else plain
    with STATES[state_name]():
        before = state()
        actual = FUNCTIONS[name](given)
        assert state() == before
        assert actual is True or same(actual, expected[name])


@pytest.mark.parametrize("state_name", STATES)
def test_the_state_is_restored_after_errors(state_name, plain, unusual) -> None:
    given = unusual if state_name == "inference_weights" else plain
    with STATES[state_name]():
        before = state()
        for name, call in FAILURES.items():
            with pytest.raises(hrt.HrtError):
                call(given)
            assert state() == before, name


def test_all_combinations_are_counted(capsys) -> None:
    with capsys.disabled():
        count = len(FUNCTIONS) * len(STATES)
        print(f"\n{len(FUNCTIONS)} calls x {len(STATES)} states = {count}, and {len(FAILURES) * len(STATES)} failures")


# Public names that hold data, are called above by another name, or do nothing but call DynamicCompression.step or copy.
ELSEWHERE = {"Box", "Certificate", "LayerRecord", "Leaf", "Drift", "Spectrum", "CompressedModel", "TrainableNetwork"}
ELSEWHERE |= {"deepxde_callback", "lightning_callback", "install_triton_backend"}


def test_no_public_function_is_left_out() -> None:
    names = " ".join(FUNCTIONS)
    left = {n for n in hrt.__all__ if n not in names and n not in ELSEWHERE and not n.endswith("Error")}
    assert not left
