"""Networks with tiny matrices, lookups in images and routes."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_matrices import MATRICES


@pytest.mark.parametrize("architecture", MATRICES.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
