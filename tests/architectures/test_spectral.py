"""Spectral networks: transforms of fixed length, complex weights, parallel parts."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_spectral import SPECTRAL


@pytest.mark.parametrize("architecture", SPECTRAL.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
