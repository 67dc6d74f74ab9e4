"""Plain networks: everything that a scientist's multilayer perceptron may be."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_plain import PLAIN


@pytest.mark.parametrize("architecture", PLAIN.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
