"""Networks whose inputs and outputs are lists, dictionaries and numbers of shape (batch,)."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_structures import STRUCTURES


@pytest.mark.parametrize("architecture", STRUCTURES.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
