"""Convolutional networks: encoders, U-Nets, decoders, causal and recurrent ones."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_images import IMAGES


@pytest.mark.parametrize("architecture", IMAGES.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
