"""NeuralFoil (Sharpe and Hansman, arXiv 2503.16323; MIT licence): the learned core, 25 inputs to 198 outputs.

    pip install --no-deps neuralfoil==0.3.3

Only the arrays in the wheel are read; the package, which needs AeroSandbox, is never imported.
"""

import io
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hrt.perf.networks.qlknn import package_folders

SIZES = ("xxsmall", "xsmall", "small", "medium", "large", "xlarge", "xxlarge", "xxxlarge")
FOLDER = "nn_weights_and_biases"
DISTRIBUTION = "scaled_input_distribution"
VARIABLE = "HRT_NEURALFOIL"  # environment: a wheel, or a folder that holds the wheel or the arrays
DATA = Path(__file__).parent.parent / "data"
SHAPE_FEATURES = 18  # of the 25 inputs: the airfoil; the others are the flow

Arrays = dict[str, np.ndarray]


class NeuralFoil(nn.Module):
    """`weights` and `biases` in order, swish in between: latent inputs (batch, 25) to latent outputs (batch, 198)."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for weight, bias in zip(weights, biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            layers += [linear, nn.SiLU()]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def find_weights() -> Path | zipfile.Path:
    """The folder of .npz files, in a wheel or not: by HRT_NEURALFOIL, else the installed package or perf/data."""
    places = package_folders(VARIABLE, "neuralfoil") + ([] if os.environ.get(VARIABLE) else [DATA])
    for place in places:
        wheels = [place] if place.suffix == ".whl" else sorted(place.glob("neuralfoil-*.whl"))
        for root in (place, *(zipfile.Path(w) for w in wheels if w.is_file())):
            for folder in (root, root / FOLDER, root / "neuralfoil" / FOLDER):
                if (folder / f"{DISTRIBUTION}.npz").is_file():
                    return folder
    raise FileNotFoundError(
        f"Expected NeuralFoil's weights in {' or '.join(map(str, places))}. Found none. Get them with: "
        f"pip install --no-deps neuralfoil==0.3.3, or name its wheel or folder by {VARIABLE}."
    )


def read_arrays(name: str) -> Arrays:
    """The arrays of `name`.npz."""
    content = (find_weights() / f"{name}.npz").read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def load_neuralfoil(size: str = "xxxlarge") -> NeuralFoil:
    """The float32 network of one size, in evaluation mode. Keys are net.0.weight, net.0.bias, net.2.weight, ..."""
    if size not in SIZES:
        raise ValueError(f"Found size {size!r}. Expected one of {', '.join(SIZES)}.")
    arrays = read_arrays(f"nn-{size}")
    layers = sorted({int(key.split(".")[1]) for key in arrays})
    weights, biases = (
        [torch.from_numpy(arrays[f"net.{k}.{part}"]).float() for k in layers] for part in ("weight", "bias")
    )
    return NeuralFoil(weights, biases).eval()


def sample_inputs(count: int, seed: int) -> Tensor:
    """Latent inputs (count, 25) float32, as the training data were drawn.

    The airfoil's features come from the Gaussian that the wheel states. The flow follows the authors' generator: angle
    of attack on 7 angles from -15 to 15 degrees, shifted uniformly by +-2.5 and normally by 2.5; Reynolds number
    log10-normal (5.5, 1.5); n_crit uniform in (0, 18); each transition forced at a uniform place with probability 0.2.
    """
    moments = read_arrays(DISTRIBUTION)
    rng = np.random.default_rng(seed)
    airfoil = slice(0, SHAPE_FEATURES)
    mean, covariance = moments["mean_inputs_scaled"][airfoil], moments["cov_inputs_scaled"][airfoil, airfoil]
    shape = rng.multivariate_normal(mean.astype(np.float64), covariance, count)
    alpha = rng.choice(np.linspace(-15, 15, 7), count)
    alpha = np.radians(alpha + rng.uniform(-2.5, 2.5, count) + 2.5 * rng.standard_normal(count))
    log_reynolds = np.log(10) * (5.5 + 1.5 * rng.standard_normal(count))
    n_crit = rng.uniform(0, 18, count)
    forced, place = rng.random((2, count)) < 0.2, rng.random((2, count))
    transition = np.where(forced, place, 1.0)
    cos = np.cos(alpha)
    angle = [np.sin(2 * alpha), cos, 1 - cos**2]
    flow = np.stack([*angle, (log_reynolds - 12.5) / 3.5, (n_crit - 9) / 4.5, *transition], axis=1)
    return torch.from_numpy(np.concatenate([shape, flow], axis=1)).float()
