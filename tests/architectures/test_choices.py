"""Networks that choose, compare or weigh what they have computed."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_choices import CHOICES


@pytest.mark.parametrize("architecture", CHOICES.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
