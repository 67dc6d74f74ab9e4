"""Recurrent networks, ensembles, experts, attention's heads: the batch stands anywhere."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_layouts import LAYOUTS


@pytest.mark.parametrize("architecture", LAYOUTS.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
