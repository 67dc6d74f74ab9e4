"""QLKNN's ranges are those that its authors state."""

import numpy as np
import pytest
import torch

from hrt.perf.networks import qlknn

README = """## Input ranges

- QLKNN11D:

  ```
  {%s}
  ```

- QLKNN7D:

  ```
  {'Ati': {'min': 5.0, 'max': 150.0}}
  ```
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    lines = ",\n  ".join(f"'{name}': {{'min': -{k + 1}.0, 'max': {k}.5}}" for k, name in enumerate(qlknn.INPUTS))
    (tmp_path / qlknn.RANGES).write_text(README % lines)
    (tmp_path / qlknn.MODEL).touch()
    monkeypatch.setenv(qlknn.VARIABLE, str(tmp_path))
    return tmp_path


def test_ranges_are_those_of_the_authors(folder):
    box = qlknn.qlknn_box()
    assert box.low == tuple(-k - 1.0 for k in range(10)) and box.high == tuple(k + 0.5 for k in range(10))
    x = qlknn.qlknn_inputs(4000, 3)
    assert x.shape == (4000, 10) and x.dtype == torch.float32
    width = np.subtract(box.high, box.low)
    assert (np.abs(x.numpy().min(0) - box.low) <= 0.01 * width).all()
    assert (np.abs(x.numpy().max(0) - box.high) <= 0.01 * width).all()
    assert not torch.equal(x, qlknn.qlknn_inputs(4000, 4))


def test_other_inputs_are_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"Found ranges of \('Ati',\) for QLKNN7D"):
        qlknn.qlknn_box("QLKNN7D")
    with pytest.raises(ValueError, match=r"Found ranges of \(\) for nothing"):
        qlknn.qlknn_box("nothing")
    assert qlknn.qlknn_path() == folder / qlknn.MODEL
    monkeypatch.setenv(qlknn.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps fusion-surrogates"):
        qlknn.qlknn_path()
