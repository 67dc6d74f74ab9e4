"""Files that the tests of this room share."""

from pathlib import Path

import pytest

from models import mixed_bytes


@pytest.fixture
def mixed(tmp_path) -> Path:
    """The file of mixed_model."""
    (tmp_path / "m.hrt").write_bytes(mixed_bytes())
    return tmp_path / "m.hrt"
