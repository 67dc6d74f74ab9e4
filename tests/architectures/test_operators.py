"""Operator networks: branches, trunks, fixed grids, several functions."""

import pytest

from architectures.checked import Architecture, FreshProcess
from architectures.networks_operators import OPERATORS


@pytest.mark.parametrize("architecture", OPERATORS.cases())
def test_keeps_the_promise(architecture: Architecture, fresh_process: FreshProcess) -> None:
    fresh_process.check(architecture)
