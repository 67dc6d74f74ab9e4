"""Networks that differentiate inside their forward."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_inside import INSIDE


@pytest.mark.parametrize("architecture", INSIDE.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
