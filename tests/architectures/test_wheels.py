"""Neural operators of public packages, compressed and run in every runtime, without Fourier transforms in the graph."""

import warnings

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_wheels import WHEELS


@pytest.mark.parametrize("architecture", WHEELS.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    try:
        architecture.build()
    except ImportError as error:
        pytest.skip(f"{error}; pip install neuraloperator nvidia-physicsnemo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the packages' own
        assert "DFT" not in fresh_process.check(architecture).operators
