"""Networks that know no batch."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_samples import SAMPLES


@pytest.mark.parametrize("architecture", SAMPLES.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
