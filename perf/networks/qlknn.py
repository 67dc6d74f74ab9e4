"""QLKNN 7_11, a turbulence surrogate of tokamak simulations (Apache-2.0): an ONNX file in its authors' wheel.

    pip install --no-deps fusion-surrogates==0.4.7

Only files of the wheel are read; the package, which needs JAX, is never imported.
"""

import ast
import importlib.util
import os
import re
from pathlib import Path

import torch
from torch import Tensor

import hrt

VARIABLE = "HRT_QLKNN"  # environment: a folder that holds the files
FOLDER = Path("qlknn", "models")
MODEL, RANGES = "qlknn_7_11.onnx", "README.md"
DATASET = "QLKNN11D"  # the core of the plasma; the other data set is its edge
INPUTS = ("Ati", "Ate", "Ane", "Ani", "q", "smag", "x", "Ti_Te", "LogNuStar", "normni")  # order in the graph


def package_folders(variable: str, package: str) -> list[Path]:
    """Where to look for a package's files: the environment's `variable`, else the installed package, not imported."""
    given = os.environ.get(variable)
    spec = None if given else importlib.util.find_spec(package)
    return [Path(given)] if given else [Path(p) for p in (spec and spec.submodule_search_locations) or []]


def find_qlknn() -> Path:
    """The folder with the ONNX file and the README."""
    places = package_folders(VARIABLE, "fusion_surrogates")
    for folder in (f for place in places for f in (place, place / FOLDER)):
        if (folder / MODEL).is_file() and (folder / RANGES).is_file():
            return folder
    where = " or ".join(map(str, places)) or "the package fusion-surrogates"
    raise FileNotFoundError(
        f"Expected {MODEL} and {RANGES} in {where}. Found none. "
        f"Get them with: pip install --no-deps fusion-surrogates==0.4.7, or name their folder by {VARIABLE}."
    )


def qlknn_path() -> Path:
    """The ONNX file."""
    return find_qlknn() / MODEL


def qlknn_box(dataset: str = DATASET) -> hrt.Box:
    """The ranges of the inputs that one of the training sets was sampled in, as the authors' README states them."""
    text = (find_qlknn() / RANGES).read_text("utf-8")
    block = re.search(rf"- {re.escape(dataset)}:\s*```\s*(\{{.*?\}})\s*```", text, re.DOTALL)
    ranges = ast.literal_eval(re.sub(r"^ +", "", block[1], flags=re.MULTILINE)) if block else {}
    if tuple(ranges) != INPUTS:
        raise ValueError(f"Found ranges of {tuple(ranges)} for {dataset}. Expected {INPUTS}.")
    return hrt.Box([ranges[k]["min"] for k in INPUTS], [ranges[k]["max"] for k in INPUTS])


def qlknn_inputs(count: int, seed: int) -> Tensor:
    """Inputs (count, 10) float32, uniform in the ranges of the plasma's core: where the network was trained."""
    box = qlknn_box()
    low, high = (torch.as_tensor(v, dtype=torch.float64) for v in (box.low, box.high))
    unit = torch.rand(count, len(INPUTS), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + unit * (high - low)).float()
