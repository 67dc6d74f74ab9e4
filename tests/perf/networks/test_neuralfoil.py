"""Loading NeuralFoil's arrays without the package: from folders, wheels and an installation that is never imported."""

import importlib.util
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from hrt.perf.networks import neuralfoil
from hrt.perf.networks.neuralfoil import DISTRIBUTION, FOLDER, find_weights, load_neuralfoil, read_arrays, sample_inputs


def flow_deviations() -> np.ndarray:
    """Standard deviations that the published generator gives the 7 flow features."""
    rng = np.random.default_rng(9)
    degrees = rng.choice(np.linspace(-15, 15, 7), 10**5) + rng.uniform(-2.5, 2.5, 10**5) + 2.5 * rng.normal(size=10**5)
    alpha = np.radians(degrees)
    place = np.where(rng.random(10**5) < 0.2, rng.random(10**5), 1.0)
    angle = [np.sin(2 * alpha), np.cos(alpha), np.sin(alpha) ** 2]
    return np.cov(np.stack([*angle, np.log(10) * 1.5 / 3.5 * rng.normal(size=10**5), *rng.uniform(-2, 2, (1, 10**5)),
                            place, rng.permutation(place)]))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arrays of the wheel's names, shapes and dtypes: 25 -> 48 -> 48 -> 198 (`xxsmall`) and the inputs' moments."""
    folder = tmp_path_factory.mktemp("package") / "neuralfoil" / FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {}
    for k, (m, n) in enumerate([(48, 25), (48, 48), (198, 48)]):
        arrays[f"net.{2 * k}.weight"] = rng.standard_normal((m, n)).astype(np.float32) / np.sqrt(n).astype(np.float32)
        arrays[f"net.{2 * k}.bias"] = rng.standard_normal(m).astype(np.float32)
    np.savez(folder / "nn-xxsmall.npz", **arrays)
    factor = 0.1 * rng.standard_normal((18, 18))
    covariance = np.zeros((25, 25))
    covariance[:18, :18] = factor @ factor.T
    covariance[18:, 18:] = flow_deviations()
    mean = np.concatenate([rng.standard_normal(18), [0, 0.9836, 0.0323, 0.047, 0, 0.9, 0.9]]).astype(np.float32)
    np.savez(folder / f"{DISTRIBUTION}.npz", mean_inputs_scaled=mean, cov_inputs_scaled=covariance)
    return folder


@pytest.fixture(scope="module")
def wheel(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("download") / "neuralfoil-0.3.3-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as out:
        for file in folder.iterdir():
            out.write(file, f"neuralfoil/{FOLDER}/{file.name}")
    return path


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No installed package, no wheel in perf/data, no variable: every test says what there is."""
    monkeypatch.delenv(neuralfoil.VARIABLE, raising=False)
    monkeypatch.setattr(neuralfoil, "DATA", tmp_path / "data")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(neuralfoil.VARIABLE, str(folder))


class TestFinding:
    def test_absence_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(FileNotFoundError, match=r"pip install --no-deps neuralfoil==0\.3\.3"):
            find_weights()
        monkeypatch.setenv(neuralfoil.VARIABLE, str(tmp_path))
        with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*pip install --no-deps"):
            find_weights()

    def test_folders_at_every_depth_and_wheels(self, folder: Path, wheel: Path, monkeypatch) -> None:
        places = [(folder.parents[k], folder) for k in range(2)] + [(folder, folder), (wheel, wheel)]
        for given, expected in [*places, (wheel.parent, wheel)]:
            monkeypatch.setenv(neuralfoil.VARIABLE, str(given))
            assert Path(str(find_weights())).is_relative_to(expected)

    def test_data_folder_of_the_checkout(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(neuralfoil, "DATA", wheel.parent)
        assert Path(str(find_weights())).is_relative_to(wheel)

    def test_installed_package_is_found_and_not_imported(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder.parent / "__init__.py").write_text("raise ImportError('must not be imported')")
        monkeypatch.undo()  # the real find_spec
        monkeypatch.delenv(neuralfoil.VARIABLE, raising=False)
        monkeypatch.setattr(sys, "path", [str(folder.parent.parent), *sys.path])
        importlib.invalidate_caches()
        assert find_weights() == folder
        assert load_neuralfoil("xxsmall").net[0].in_features == 25
        assert "neuralfoil" not in sys.modules


class TestNetwork:
    @pytest.mark.parametrize("kind", ["folder", "wheel"])
    def test_is_the_package_s_own_forward_pass(self, kind: str, request, folder: Path, monkeypatch) -> None:
        monkeypatch.setenv(neuralfoil.VARIABLE, str(request.getfixturevalue(kind)))
        net = load_neuralfoil("xxsmall")
        arrays = np.load(folder / "nn-xxsmall.npz")
        x = np.random.default_rng(1).standard_normal((9, 25)).astype(np.float32)
        y = x.T
        for k in (0, 2, 4):
            y = arrays[f"net.{k}.weight"] @ y + arrays[f"net.{k}.bias"][:, None]
            if k < 4:
                y = y / (1 + np.exp(-y))  # swish
        with torch.no_grad():
            torch.testing.assert_close(net(torch.from_numpy(x)), torch.from_numpy(y.T), rtol=1e-4, atol=1e-5)
        assert not net.training

    def test_sizes_that_are_not_there(self, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(neuralfoil.VARIABLE, str(wheel))
        with pytest.raises(ValueError, match=r"Found size 'huge'.*xxxlarge"):
            load_neuralfoil("huge")
        with pytest.raises(FileNotFoundError, match=r"nn-xlarge\.npz"):
            load_neuralfoil("xlarge")


@pytest.mark.usefixtures("here")
class TestSamples:
    def test_have_the_stated_moments(self) -> None:
        x, stated = sample_inputs(20_000, 0), read_arrays(DISTRIBUTION)
        covariance = stated["cov_inputs_scaled"]
        deviation = np.sqrt(np.diag(covariance))
        scaled = (x.double().numpy() - stated["mean_inputs_scaled"]) / deviation
        correlations = covariance / np.outer(deviation, deviation)
        assert x.shape == (20_000, 25) and x.dtype == torch.float32
        assert np.abs(scaled.mean(0)).max() < 0.1
        assert np.abs(scaled.T @ scaled / len(scaled) - correlations).max() < 0.1

    def test_depend_on_the_seed_alone(self) -> None:
        assert torch.equal(sample_inputs(10, 3), sample_inputs(10, 3))
        assert not torch.equal(sample_inputs(10, 3), sample_inputs(10, 4))

    def test_angles_lie_on_their_curve_and_transitions_on_the_airfoil(self) -> None:
        x = sample_inputs(5000, 0)
        sine2, cosine, square = x[:, 18:21].double().T
        torch.testing.assert_close(square, 1 - cosine**2, rtol=0, atol=1e-6)
        torch.testing.assert_close(sine2**2, 4 * square * cosine**2, rtol=0, atol=1e-5)
        transition = x[:, 23:]
        assert float(transition.min()) >= 0 and float(transition.max()) == 1
        assert float((transition == 1).float().mean()) == pytest.approx(0.8, abs=0.02)
